//! Evidence of QEMUs that are made up.

use std::{fs::File, io::Write as _};

use serde_json::{Value, json};

use super::*;
use made_up_qemu::{Qemu, healthy, qemu, wanted};

pub(in crate::recovery) mod made_up_qemu;

async fn files(qemu: &Qemu, limit: Duration) -> Vec<(&'static str, Vec<u8>)> {
    gather(&qemu.handle, &RunState::GuestPanicked, &wanted(qemu, limit)).await.into_files()
}

fn text(files: &[(&str, Vec<u8>)], name: &str) -> String {
    let (_, content) = files.iter().find(|(file, _)| *file == name).expect(name);
    String::from_utf8(content.clone()).unwrap()
}

#[tokio::test]
async fn a_qemu_in_good_health_gives_all_and_the_list_says_so() {
    let qemu = qemu(healthy).await;
    let files = files(&qemu, Duration::from_secs(20)).await;
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            LIST,
            "run-state.txt",
            "screen.png",
            "registers.txt",
            "figures.json",
            "vcpus.json",
            "block.json",
            "blockstats.json",
            "network.json",
        ]
    );
    assert_eq!(text(&files, "registers.txt"), "CPU#0\nRAX=0000000000000000\n");
    assert_eq!(text(&files, "run-state.txt"), "guest-panicked\n");
    assert!(files[2].1.starts_with(b"\x89PNG"));
    let list = text(&files, LIST);
    assert!(
        list.starts_with("Evidence of 20261122T100001Z-g, from before the restart.\n"),
        "{list}"
    );
    assert!(list.contains("kept     screen.png       what the console showed, 2x1: "), "{list}");
    assert!(
        list.contains(
            "missing  panic.json       what the guest said of its panic: it said no more"
        )
    );
    assert!(list.contains(
        "missing  console.txt      the last lines of the serial console: QEMU writes no"
    ));
}

#[tokio::test]
async fn what_qemu_refuses_is_missing_with_its_reason_and_the_rest_is_there() {
    let qemu = qemu(|command, arguments, descriptor| match command {
        "screendump" => Some(Err("There is no console to take a screendump from\u{1b}[2J")),
        "query-block" => Some(Err("no")),
        _ => healthy(command, arguments, descriptor),
    });
    let files = files(&qemu.await, Duration::from_secs(20)).await;
    let list = text(&files, LIST);
    assert!(
        list.contains(
            "missing  screen.png       what the console showed: QEMU refused screendump: "
        )
    );
    assert!(list.contains("There is no console to take a screendump from"), "{list}");
    assert!(!list.contains('\u{1b}'), "{list}");
    assert!(list.contains("missing  block.json "), "{list}");
    assert!(list.contains("kept     blockstats.json "), "{list}");
    assert!(!files.iter().any(|(name, _)| matches!(*name, "screen.png" | "block.json")));
}

#[tokio::test]
async fn what_is_more_than_is_taken_is_asked_for_flat_and_the_list_says_so() {
    let nested = || (0..200).fold(json!("base"), |inner, _| json!({ "backing": inner }));
    let qemu = qemu(move |command, arguments, descriptor| match command {
        "query-block" | "query-blockstats" => Some(Ok(json!([nested()]))),
        "query-named-block-nodes" => {
            assert_eq!(arguments["flat"], true);
            Some(Ok(json!([{"node-name": "#block083"}])))
        }
        "human-monitor-command" if arguments["command-line"] == "info blockstats" => {
            Some(Ok(json!("disk0: rd_bytes=512 rd_operations=1\r\n")))
        }
        "query-rx-filter" => Some(Ok(nested())),
        _ => healthy(command, arguments, descriptor),
    });
    let files = files(&qemu.await, Duration::from_secs(20)).await;
    assert!(text(&files, "block.json").contains("\"node-name\": \"#block083\""));
    let figures: Value = serde_json::from_str(&text(&files, "blockstats.json")).unwrap();
    assert_eq!(figures, json!({"disk0": {"rd_bytes": 512, "rd_operations": 1}}));
    let list = text(&files, LIST);
    for line in [
        "kept     block.json       QEMU's account of the disks (query-named-block-nodes: QEMU's answer to \
         query-block is not taken: it is nested deeper than 127, from its byte ",
        "kept     blockstats.json  what QEMU counted of the disks (info blockstats: QEMU's answer to \
         query-blockstats is not taken: it is nested deeper than 127, from its byte ",
        "missing  network.json     QEMU's account of the networks' filters: QEMU's answer to \
         query-rx-filter is not taken: it is nested deeper than 127, from its byte ",
        "kept     screen.png ",
    ] {
        assert!(list.contains(line), "no {line:?} in {list}");
    }
}

#[tokio::test]
async fn a_qemu_that_fell_silent_over_a_question_is_asked_for_nothing() {
    let qemu = qemu(|command, _, _| panic!("{command} is asked for")).await;
    let memory = dump::Wanted {
        directory: PathBuf::from("/nowhere"),
        quota_bytes: 1,
        limit: Duration::from_secs(1),
        incidents: PathBuf::from("/nowhere"),
        user: 1000,
        under_way: dump::UnderWay::default(),
    };
    let wanted =
        Wanted { asks: false, memory: Some(memory), ..wanted(&qemu, Duration::from_secs(2)) };
    let mut evidence = gather(&qemu.handle, &RunState::GuestPanicked, &wanted).await;
    assert!(!dump_memory(&qemu.handle, &wanted, &mut evidence).await);
    assert_eq!(evidence.was_up(), None);
    assert!(evidence.into_files().is_empty());
}

#[test]
fn a_deep_answer_takes_no_multiple_of_its_room() {
    let deep = |inner: Value| (0..120).fold(inner, |inner, _| json!([inner]));
    let value = deep(json!(vec![0; 100_000]));
    let text = pretty(&value);
    assert!(text.len() > TEXT_MAX_BYTES && text.len() < TEXT_MAX_BYTES + 1024, "{}", text.len());
    assert_eq!(pretty(&json!({"a": 1})), "{\n  \"a\": 1\n}\n");
}

#[tokio::test]
async fn a_qemu_that_falls_silent_costs_no_more_than_the_limit_and_is_not_asked_on() {
    let qemu = qemu(|command, arguments, descriptor| match command {
        "screendump" | "query-block" => None,
        "query-blockstats" | "query-rx-filter" => panic!("{command} after one that hangs"),
        _ => healthy(command, arguments, descriptor),
    });
    let (qemu, begun) = (qemu.await, Instant::now());
    // Long enough for whatever does answer, on a machine that is busy with other things.
    let files = files(&qemu, Duration::from_secs(2)).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let list = text(&files, LIST);
    for line in [
        "missing  screen.png       what the console showed: not there within 1s\n",
        "missing  block.json       QEMU's account of the disks: not there within 1s\n",
        "missing  network.json     QEMU's account of the networks' filters: not asked for: QEMU is too slow\n",
        "kept     registers.txt    ",
        "kept     vcpus.json       ",
    ] {
        assert!(list.contains(line), "no {line:?} in {list}");
    }
}

#[tokio::test]
async fn a_hostile_picture_is_missing_and_a_hostile_text_is_harmless() {
    let qemu = qemu(|command, arguments, descriptor| match command {
        "screendump" => {
            let mut file = File::from(descriptor.take().unwrap());
            file.write_all(b"P6\n4000000000 4000000000\n255\n").unwrap();
            Some(Ok(json!({})))
        }
        "human-monitor-command" => {
            Some(Ok(json!("\u{1b}]0;x\u{7}\u{202e}RAX\r\n".repeat(100_000))))
        }
        _ => healthy(command, arguments, descriptor),
    });
    let files = files(&qemu.await, Duration::from_secs(20)).await;
    let list = text(&files, LIST);
    assert!(
        list.contains("missing  screen.png       what the console showed: QEMU wrote no picture: ")
    );
    let registers = text(&files, "registers.txt");
    assert!(registers.starts_with("?]0;x??RAX\n?]0;x??RAX\n"), "{:?}", registers.get(..40));
    assert!(registers.is_ascii() && registers.len() <= TEXT_MAX_BYTES + 1);
}

#[tokio::test]
async fn no_evidence_is_gathered_where_none_is_wanted_but_the_registers_are_looked_at() {
    let qemu = qemu(|command, arguments, descriptor| match command {
        "query-status" | "human-monitor-command" => healthy(command, arguments, descriptor),
        "qom-get" if arguments["path"] == "/machine" => healthy(command, arguments, descriptor),
        other => panic!("{other} is not asked for"),
    });
    let qemu = qemu.await;
    let evidence = gather(&qemu.handle, &RunState::Running, &wanted(&qemu, Duration::ZERO)).await;
    assert!(evidence.registers.as_ref().is_some_and(|text| text.contains("RAX=")));
    assert!(evidence.into_files().is_empty());
}

#[tokio::test]
async fn what_a_guest_said_of_its_panic_is_kept() {
    let qemu = qemu(|command, arguments, descriptor| match command {
        "qom-get" if arguments["path"] != "/machine" => {
            assert_eq!(arguments["path"], "/machine/unattached/device[0]");
            assert_eq!(arguments["property"], "crash-information");
            Some(Ok(json!({"type": "hyper-v", "arg1": 239})))
        }
        _ => healthy(command, arguments, descriptor),
    });
    let files = files(&qemu.await, Duration::from_secs(20)).await;
    assert!(text(&files, "panic.json").contains("\"arg1\": 239"));
}

#[tokio::test]
async fn the_last_lines_of_the_console_are_cleared_of_what_moves_a_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("console.log");
    let mut written = File::create(&log).unwrap();
    written.write_all(b"Kernel panic\r\n\x1b[31mred\n").unwrap();
    let mut qemu = qemu(healthy).await;
    qemu.log_to(log);
    let files = files(&qemu, Duration::from_secs(20)).await;
    assert_eq!(text(&files, "console.txt"), "Kernel panic\n?[31mred\n");
}

#[tokio::test]
async fn the_memory_is_dumped_through_a_pipe_and_named_in_the_list() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipe = None;
    let qemu = qemu(move |command, arguments, descriptor| match command {
        "query-dump-guest-memory-capability" => Some(Ok(json!({"formats": ["elf", "kdump-zlib"]}))),
        "getfd" => {
            pipe = descriptor.take().map(File::from);
            Some(Ok(json!({})))
        }
        "dump-guest-memory" => {
            assert_eq!(arguments["format"], "kdump-zlib");
            assert_eq!((&arguments["detach"], &arguments["paging"]), (&json!(true), &json!(false)));
            pipe.take().expect("a pipe").write_all(b"makedumpfile").unwrap();
            Some(Ok(json!({})))
        }
        "query-dump" => Some(Ok(json!({"status": "completed", "completed": 9, "total": 9}))),
        _ => healthy(command, arguments, descriptor),
    })
    .await;
    let memory = dump::Wanted {
        directory: directory.path().join("memory"),
        quota_bytes: 1 << 20,
        limit: Duration::from_secs(20),
        incidents: PathBuf::from("/nowhere"),
        user: 1000,
        under_way: dump::UnderWay::default(),
    };
    let wanted = Wanted { memory: Some(memory), ..wanted(&qemu, Duration::ZERO) };
    let mut evidence = gather(&qemu.handle, &RunState::GuestPanicked, &wanted).await;
    assert!(dump_memory(&qemu.handle, &wanted, &mut evidence).await);
    let path = directory.path().join("memory/20261122T100001Z-g.kdump");
    assert_eq!(std::fs::read(&path).unwrap(), b"makedumpfile");
    let list = text(&evidence.into_files(), LIST);
    let line = format!("kept     {}: the guest's memory (kdump-zlib), 12 bytes, ", path.display());
    assert!(list.contains(&line), "{list}");
}

#[tokio::test]
async fn a_memory_dump_that_takes_too_long_is_given_up_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipe = None;
    let qemu = qemu(move |command, arguments, descriptor| match command {
        "query-dump-guest-memory-capability" => Some(Ok(json!({"formats": ["elf"]}))),
        // Held on to, and never closed.
        "getfd" => {
            pipe = descriptor.take();
            Some(Ok(json!({})))
        }
        "dump-guest-memory" => {
            assert!(pipe.is_some());
            Some(Ok(json!({})))
        }
        "query-dump" => Some(Ok(json!({"status": "failed", "completed": 9, "total": 9}))),
        _ => healthy(command, arguments, descriptor),
    })
    .await;
    let memory = dump::Wanted {
        directory: directory.path().to_owned(),
        quota_bytes: 1 << 20,
        limit: Duration::from_millis(400),
        incidents: PathBuf::from("/nowhere"),
        user: 1000,
        under_way: dump::UnderWay::default(),
    };
    let wanted = Wanted { memory: Some(memory), ..wanted(&qemu, Duration::ZERO) };
    let (mut evidence, begun) = (Evidence::default(), Instant::now());
    assert!(dump_memory(&qemu.handle, &wanted, &mut evidence).await);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let list = text(&evidence.into_files(), LIST);
    assert!(
        list.contains("missing  -                the guest's memory: not done within 400ms"),
        "{list}"
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_is_read_of_a_guest_that_is_encrypted_and_the_list_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let qemu = qemu(|command, arguments, descriptor| match (command, &arguments["property"]) {
        ("human-monitor-command" | "getfd" | "dump-guest-memory", _) => {
            panic!("{command} is asked of an encrypted guest")
        }
        ("qom-get", Value::String(property)) => Some(Ok(match property.as_str() {
            "confidential-guest-support" => json!("/objects/lsec0"),
            "type" => json!("sev-snp-guest"),
            "policy" => json!(0x30000),
            _ => return healthy(command, arguments, descriptor),
        })),
        _ => healthy(command, arguments, descriptor),
    })
    .await;
    let memory = dump::Wanted {
        directory: directory.path().to_owned(),
        quota_bytes: 1 << 20,
        limit: Duration::from_secs(20),
        incidents: PathBuf::from("/nowhere"),
        user: 1000,
        under_way: dump::UnderWay::default(),
    };
    let wanted = Wanted { memory: Some(memory), ..wanted(&qemu, Duration::from_secs(20)) };
    let mut evidence = gather(&qemu.handle, &RunState::Running, &wanted).await;
    assert!(evidence.registers.is_none());
    assert!(!dump_memory(&qemu.handle, &wanted, &mut evidence).await);
    let list = text(&evidence.into_files(), LIST);
    for line in [
        "missing  registers.txt    the vCPUs' registers: its registers are encrypted (sev-snp-guest)",
        "missing  -                the guest's memory: its memory is encrypted (sev-snp-guest)\n",
        "kept     screen.png       ",
    ] {
        assert!(list.contains(line), "no {line:?} in {list}");
    }
}

#[test]
fn text_that_is_too_long_is_cut() {
    let (text, cut) = fit_for_people(&"x".repeat(TEXT_MAX_BYTES + 5));
    assert!(cut && text.len() == TEXT_MAX_BYTES);
    assert_eq!(fit_for_people("a\u{e9}\r\n\tb"), ("a?\n\tb".to_owned(), false));
}
