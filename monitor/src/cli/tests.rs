use std::path::Path;

use crate::api::{ControlRequest, RefusalKind, Reply, Request, bind, serve};
use crate::storage::evidence::{EvidenceView, base64};
use crate::storage::incident::{Incident, IncidentsView};
use clap::Parser;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{Arguments, run};

/// The exit code of the command line `words`, and what it prints to either side.
fn flatline(words: &[&str]) -> (u8, String) {
    let arguments = match Arguments::try_parse_from([&["flatline"], words].concat()) {
        Ok(arguments) => arguments,
        Err(error) => {
            return (error.exit_code().try_into().expect("small"), error.to_string());
        }
    };
    match run(arguments) {
        Ok(answer) => (answer.bad_news.into(), answer.text),
        Err(failure) => (failure.exit_code(), format!("{:#}", failure.into_error())),
    }
}

fn configuration(directory: &Path) -> String {
    let file = directory.join("flatline.toml");
    let text = format!("[paths]\nruntime_dir = {:?}\n", directory.join("run"));
    std::fs::write(&file, text).expect("written");
    file.to_str().expect("a path").to_owned()
}

#[test]
fn wrong_arguments_are_wrong_usage() {
    for words in [
        &["strike"][..],
        &[],
        &["show"],
        &["status", "--verbose"],
        &["top", "web-1"],
        &["check-config"],
        &["record"],
        &["record", "a", "--all"],
        &["incidents", "show", "i", "--html", "-", "--json"],
        &["replay"],
    ] {
        assert_eq!(flatline(words).0, 2, "{words:?}");
    }
    for words in [&["--help"][..], &["--version"], &["incidents", "show", "--help"]] {
        assert_eq!(flatline(words).0, 0, "{words:?}");
    }
}

#[test]
fn a_wrong_configuration_is_wrong_usage_for_every_command_and_says_where() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("wrong.toml");
    std::fs::write(&file, "mode = \"observe\"\nmood = 1\n").expect("written");
    let file = file.to_str().expect("a path");
    for words in
        [&["check-config", file][..], &["--config", file, "status"], &["check", "--config", file]]
    {
        let (code, text) = flatline(words);
        assert_eq!(code, 2, "{words:?}");
        assert!(text.starts_with(&format!("{file}:2: mood: unknown field")), "{text}");
    }
    let (code, text) = flatline(&["run", "--config", "/nonexistent.toml"]);
    assert_eq!(code, 2);
    assert!(text.contains("/nonexistent.toml: No such file"), "{text}");
}

#[test]
fn a_right_configuration_is_fine() {
    let directory = TempDir::new().expect("a directory");
    assert_eq!(flatline(&["check-config", &configuration(directory.path())]).0, 0);
}

#[test]
fn a_daemon_that_does_not_run_is_unreachable_and_its_path_is_named() {
    let directory = TempDir::new().expect("a directory");
    let file = configuration(directory.path());
    let commands = [
        &["status"][..],
        &["show", "a"],
        &["incidents"],
        &["incidents", "show", "x", "--json"],
        &["incidents", "show", "x", "--html", "-"],
        &["record", "--all"],
    ];
    for command in commands {
        let (code, text) = flatline(&[command, &["--config", &file]].concat());
        assert_eq!(code, 3, "{command:?}");
        assert!(text.contains("run/control.sock: No such file"), "{text}");
    }
}

#[test]
fn a_file_that_is_no_recording_is_bad_news_and_named() {
    let directory = TempDir::new().expect("a directory");
    for (content, part) in [(None, "No such file"), (Some("[]\n"), "not a recording of flatline's")]
    {
        let file = directory.path().join("x.flr");
        if let Some(content) = content {
            std::fs::write(&file, content).expect("written");
        }
        let file = file.to_str().expect("a path");
        let (code, text) = flatline(&["replay", file]);
        assert_eq!(code, 1);
        assert!(text.contains(file) && text.contains(part), "{text}");
    }
}

/// A daemon that has an incident `i` of 30 bytes of evidence in `console.txt`, which it hands out by the dozen.
fn with_evidence(directory: &Path) -> (String, Runtime) {
    let file = configuration(directory);
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    let listener = bind(&directory.join("run")).expect("bound");
    let (sender, mut requests) = tokio::sync::mpsc::channel::<ControlRequest>(1);
    runtime.spawn(serve(listener, sender, axum::Router::new()));
    runtime.spawn(async move {
        let content = b"<0123456789abcdef0123456789>\n!";
        while let Some(ControlRequest { request, reply }) = requests.recv().await {
            let text = |text: &str| text.to_owned();
            let mut incident = Incident::new(
                text("i"),
                text("a"),
                text("halted"),
                text("r"),
                std::time::SystemTime::UNIX_EPOCH,
            );
            incident.evidence = vec![text("console.txt"), text("screen.png")];
            let _ = reply.send(match request {
                Request::Incidents { .. } => {
                    Reply::ok(&IncidentsView { incidents: vec![incident], complaints: Vec::new() })
                }
                Request::Evidence { file, offset, .. } if file == "console.txt" => {
                    let offset = usize::try_from(offset).expect("small");
                    let part = content[offset..].chunks(12).next().unwrap_or_default();
                    let bytes = content.len() as u64;
                    Reply::ok(&EvidenceView { bytes, data: base64(part) })
                }
                _ => Reply::error(RefusalKind::Nothing, "no such file"),
            });
        }
    });
    drop(entered);
    (file, runtime)
}

#[test]
fn an_incident_is_put_together_from_parts_and_what_is_no_longer_kept_is_said() {
    let directory = TempDir::new().expect("a directory");
    let (config, _runtime) = with_evidence(directory.path());
    let page = directory.path().join("page.html");
    let path = page.to_str().expect("a path");
    let command = ["incidents", "show", "i", "--config", &config];
    assert_eq!(flatline(&[&command[..], &["--html", path]].concat()), (0, String::new()));
    let page = std::fs::read_to_string(&page).expect("written");
    assert!(page.contains("<pre>&lt;0123456789abcdef0123456789&gt;\n!\n</pre>"), "{page}");
    assert!(page.contains("There is no picture of it"), "{page}");
    assert_eq!(flatline(&[&command[..], &["--html", "-"]].concat()), (0, page));
    let nowhere = directory.path().join("none/page.html");
    let nowhere = nowhere.to_str().expect("a path");
    let (code, text) = flatline(&[&command[..], &["--html", nowhere]].concat());
    assert!(code == 1 && text.contains("none/page.html: No such file"), "{code}: {text}");
    let (code, text) = flatline(&command);
    assert!(code == 0 && text.contains("console.txt, screen.png"), "{code}: {text}");
}

#[test]
fn a_vm_or_incident_that_does_not_exist_is_bad_news() {
    let directory = TempDir::new().expect("a directory");
    let file = configuration(directory.path());
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    let listener = bind(&directory.path().join("run")).expect("bound");
    let (sender, mut requests) = tokio::sync::mpsc::channel::<ControlRequest>(1);
    runtime.spawn(serve(listener, sender, axum::Router::new()));
    runtime.spawn(async move {
        while let Some(ControlRequest { request, reply }) = requests.recv().await {
            let _ = reply.send(match request {
                Request::Incidents { .. } => Reply::ok(&IncidentsView::default()),
                _ => Reply::error(RefusalKind::NoSuchVm, "no VM a"),
            });
        }
    });
    drop(entered);
    let config = ["--config", file.as_str()];
    assert_eq!(flatline(&[&["show", "a"], &config[..]].concat()), (1, "no VM a".to_owned()));
    let shown = flatline(&[&["incidents", "show", "i"], &config[..]].concat());
    assert_eq!(shown, (1, "no incident i".to_owned()));
    assert_eq!(flatline(&[&["incidents"], &config[..]].concat()), (0, "no incidents\n".to_owned()));
    let none = flatline(&[&["incidents", "--json", "--vm", "a"], &config[..]].concat());
    assert_eq!(none, (0, String::new()));
}
