//! What the documents tell a reader to type works, and what they have of configuration is sound.
//!
//! Each command of flatline's that stands in the README or below `docs` is run as written against a daemon that has an incident
//! to tell of, with real names in place of `VM`, `ID` and `FILE`. Those of the README's first crash, which need an
//! installed package and systemd, are played by `cargo xtask first-steps`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, free_address},
    guest::GuestConfig,
};
use libtest_mimic::Trial;

use crate::rig::{Rig, binary, trial, wait_for_incident, wait_for_vm};

const NAME: &str = "practised";
const SOON: Duration = Duration::from_secs(60);
/// What a document calls something that a reader has another name for.
const PLACEHOLDERS: [&str; 4] = ["VM", "ID", "FILE", "NEW.toml"];
/// A subcommand alone, which a document speaks of: it wants more than that, stays, or is another program's.
const SPOKEN_OF: [&str; 6] = ["run", "top", "show", "replay", "heartbeat", "documents"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_commands_in_the_documents_work_as_written", commands),
        trial("the_configurations_in_the_documents_are_sound", configurations),
    ]
}

/// The README and all documents, with what they are called.
fn documents() -> Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs"))? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let read = |path: PathBuf| {
        let name = path.file_name().context("a nameless document")?.to_string_lossy().into_owned();
        Ok((name, fs::read_to_string(&path)?))
    };
    paths.into_iter().map(read).collect()
}

/// The blocks between fences of that kind.
fn blocks<'a>(text: &'a str, kind: &str) -> impl Iterator<Item = &'a str> {
    let fence = format!("{kind}\n");
    text.split("```").skip(1).step_by(2).filter_map(move |block| block.strip_prefix(&fence))
}

/// flatline's commands in a document: between backticks, and in blocks after a prompt.
fn typed(text: &str) -> BTreeSet<Vec<&str>> {
    let outside = text.split("```").step_by(2).flat_map(|part| part.split('`').skip(1).step_by(2));
    let consoles = blocks(text, "console").flat_map(str::lines);
    let inside = consoles.filter_map(|line| line.strip_prefix("# "));
    let commands = outside.chain(inside).filter_map(|command| command.strip_prefix("flatline "));
    // What a shell has to put together is a shell's to try.
    let plain = commands.filter(|command| !command.contains(['$', '|', '>', '…']));
    plain.map(|command| command.split_whitespace().collect()).collect()
}

fn commands() -> Result<()> {
    let rig = Rig::new()?;
    let mut config: GuestConfig = rig.boot_sector_on_disk(NAME, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
    let guest = config.start()?;
    let mut config = rig.daemon_config()?;
    // For the page, to which there are links.
    config.metrics = free_address()?.to_string();
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, NAME, "it lives", SOON, |row| row["state"] == "alive")?;
    guest.send("p")?;
    let incident = wait_for_incident(&daemon, NAME, "it is back", SOON, |incident| {
        incident["outcome"] == "recovered"
    })?;
    let id = incident["id"].as_str().context("no id")?;
    let recording = rig.dir().join(format!("state/incidents/{id}/recording.flr"));

    let mut tried = BTreeSet::new();
    for (document, text) in documents()? {
        for words in typed(&text) {
            if let [only] = words[..]
                && SPOKEN_OF.contains(&only)
            {
                continue;
            }
            // Names that are an example's own.
            let mut words: Vec<&str> =
                words.iter().map(|word| if *word == "practice" { "VM" } else { *word }).collect();
            if words[0] == "check-config" {
                words.truncate(1);
                words.push("FILE");
            }
            if words.contains(&"run") || !tried.insert(words.join(" ")) {
                continue;
            }
            try_out(&rig, &daemon, &words, id, &recording)
                .with_context(|| format!("{document}: `flatline {}`", words.join(" ")))?;
        }
    }
    println!("{} commands: {tried:?}", tried.len());
    ensure!(tried.len() >= 15, "the documents lost their commands: {tried:?}");
    Ok(())
}

/// Runs one command, which must answer and end well.
fn try_out(rig: &Rig, daemon: &Daemon, words: &[&str], id: &str, recording: &Path) -> Result<()> {
    let path = |path: &Path| path.display().to_string();
    let own = path(daemon.config_path());
    let mut arguments: Vec<String> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        arguments.push(match *word {
            "VM" => NAME.to_owned(),
            "ID" => id.to_owned(),
            "FILE" if index > 0 && words[index - 1] == "--html" => {
                path(&rig.dir().join("page.html"))
            }
            "FILE" if words[0] == "replay" => path(recording),
            "FILE" | "NEW.toml" => own.clone(),
            word => word.to_owned(),
        });
    }
    // A replay on its own terms is one without a configuration.
    if !matches!(words[0], "replay" | "check-config") {
        arguments.extend(["--config".to_owned(), own.clone()]);
    }
    let output = Command::new("timeout").arg("20").arg(binary()?).args(&arguments).output()?;
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}{complaint}", output.status);
    ensure!(!PLACEHOLDERS.iter().any(|name| arguments.iter().any(|word| word == name)));
    ensure!(
        !said.trim().is_empty() || words.contains(&"--html"),
        "it answers nothing: {complaint}"
    );
    Ok(())
}

fn configurations() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut checked = 0;
    for (document, text) in documents()? {
        for block in blocks(&text, "toml") {
            let file = directory.path().join("flatline.toml");
            fs::write(&file, block)?;
            let output = Command::new(binary()?).arg("check-config").arg(&file).output()?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{document}: {complaint}\n{block}");
            checked += 1;
        }
    }
    ensure!(checked >= 3, "the documents lost their configurations: {checked}");
    Ok(())
}
