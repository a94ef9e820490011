//! What is kept of a crashed guest, which users may read it, and for how long.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::{Guest, GuestConfig},
    interrupt::sleep,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, boot_all, trial, wait_for_incident, wait_for_vm};

/// What a restart, a boot and the next sign of life may take on a busy machine.
const RESTART_LIMIT: Duration = Duration::from_secs(90);
/// An announced crash is answered within this, evidence included.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_announced_panic_leaves_its_evidence_within_a_second", announced),
        trial("a_guest_without_a_display_leaves_all_but_a_picture_which_is_said", no_display),
        trial("the_memory_of_a_crashed_guest_is_dumped_within_its_quota", memory),
        trial("a_guest_that_saves_its_own_dump_at_an_nmi_is_left_to_it", own_dump),
        trial("evidence_that_is_too_old_goes_and_its_record_stays", retention),
    ]
}

/// A Linux guest that pauses when it panics, and says so.
fn guest(rig: &Rig, name: &str) -> Result<GuestConfig> {
    let mut config = rig.linux(name, 1)?;
    config.pvpanic = true;
    config.traces_commands = true;
    config.console_log = true;
    config.extra_args.extend(["-action".into(), "panic=pause".into()]);
    Ok(config)
}

/// Has the guest panic; the incident once it was restarted and came back.
fn panics(daemon: &Daemon, guest: &Guest) -> Result<Value> {
    wait_for_vm(daemon, guest.name(), "known", RESTART_LIMIT, |row| {
        row["run_state"] == "running" && row["storage"].is_object()
    })?;
    // Some ticks for its figures.
    sleep(Duration::from_secs(2))?;
    guest.send("panic")?;
    wait_for_incident(daemon, guest.name(), "recovered", RESTART_LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })
}

fn id(incident: &Value) -> Result<&str> {
    incident["id"].as_str().context("an incident without an id")
}

/// The files that the incident names.
fn named(incident: &Value) -> Vec<&str> {
    incident["evidence"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn directory(rig: &Rig, incident: &Value) -> Result<PathBuf> {
    Ok(rig.dir().join("state/incidents").join(id(incident)?))
}

fn client(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let output = daemon.client(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}\n{}", daemon.log().text());
    Ok(String::from_utf8(output.stdout)?)
}

fn announced() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = guest(&rig, "has-a-display")?;
    config.vga = true;
    let guests = boot_all(&[config])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let incident = panics(&daemon, &guests[0])?;
    let took = guests[0].reset_after("GUEST_PANICKED", &guests[0].events()?)?;
    let took = took.context("QEMU tells no announcement, or no reset after it")?;
    println!("told to reset {took:.3?} after the announcement");
    ensure!(took < AT_ONCE, "told to reset only {took:?} after the announcement: {incident}");

    let directory = directory(&rig, &incident)?;
    let list = fs::read_to_string(directory.join("evidence.txt"))?;
    println!("{list}");
    for name in [
        "evidence.txt",
        "run-state.txt",
        "screen.png",
        "console.txt",
        "registers.txt",
        "figures.json",
        "vcpus.json",
        "block.json",
        "blockstats.json",
        "network.json",
        "recording.flr",
    ] {
        ensure!(named(&incident).contains(&name), "no {name}: {incident}\n{list}");
        let bytes = fs::read(directory.join(name)).with_context(|| name.to_owned())?;
        ensure!(!bytes.is_empty(), "{name} is empty");
    }
    let text = |name: &str| fs::read_to_string(directory.join(name));
    ensure!(text("run-state.txt")? == "guest-panicked\n");
    ensure!(text("registers.txt")?.contains("CPU#0"));
    ensure!(
        text("console.txt")?.contains("Kernel panic - not syncing"),
        "{}",
        text("console.txt")?
    );
    ensure!(text("block.json")?.contains("disk0"));
    ensure!(serde_json::from_str::<Value>(&text("figures.json")?)?["name"] == "has-a-display");
    ensure!(list.contains("missing  panic.json "), "{list}");
    check_picture(&fs::read(directory.join("screen.png"))?)?;
    check_clients(&daemon, &rig, &incident)
}

/// A PNG of a size that a console may have.
fn check_picture(png: &[u8]) -> Result<()> {
    ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG: {:?}", png.get(..16));
    let number = |at: usize| {
        let bytes = png.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes)
    };
    let (width, height) = (number(16).context("too short")?, number(20).context("too short")?);
    println!("the picture has {width}x{height} pixels and {} bytes", png.len());
    ensure!((320..=4096).contains(&width) && (200..=4096).contains(&height), "{width}x{height}");
    Ok(())
}

/// A user that may do no more than open the socket gets all of it.
fn check_clients(daemon: &Daemon, rig: &Rig, incident: &Value) -> Result<()> {
    let shown = client(daemon, &["incidents", "show", id(incident)?])?;
    println!("{shown}");
    for part in ["screen.png", "kept     registers.txt ", "missing  panic.json "] {
        ensure!(shown.contains(part), "no {part:?} in {shown}");
    }
    let file = rig.dir().join("incident.html");
    let path = file.to_str().context("no text")?;
    client(daemon, &["incidents", "show", id(incident)?, "--html", path])?;
    let page = fs::read_to_string(&file)?;
    for part in [
        "<h1>has-a-display: crashed, was restarted, and came back</h1>",
        "The guest itself reported that its kernel had panicked.",
        "last sign of life",
        "src=\"data:image/png;base64,iVBOR",
        "<svg viewBox=",
        "class=\"mark verdict\"",
        "class=\"mark restart\"",
        "Kernel panic - not syncing",
        "CPU#0",
    ] {
        ensure!(page.contains(part), "no {part:?} in the page of {} bytes", page.len());
    }
    ensure!(!page.contains("<script") && !page.contains("http://"), "it fetches or runs something");
    let printed = client(daemon, &["incidents", "show", id(incident)?, "--html", "-"])?;
    ensure!(printed == page, "printed it is another page");
    let both = daemon.client(&["incidents", "show", "x", "--html", "-", "--json"])?;
    ensure!(both.status.code() == Some(2), "{both:?}");
    Ok(())
}

fn no_display() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[guest(&rig, "has-none")?])?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let incident = panics(&daemon, &guests[0])?;
    let list = fs::read_to_string(directory(&rig, &incident)?.join("evidence.txt"))?;
    println!("{list}");
    ensure!(
        list.contains("missing  screen.png       what the console showed: QEMU refused "),
        "{list}"
    );
    ensure!(!named(&incident).contains(&"screen.png"), "{incident}");
    ensure!(named(&incident).contains(&"registers.txt"), "{incident}");
    let page = client(&daemon, &["incidents", "show", id(&incident)?, "--html", "-"])?;
    ensure!(
        page.contains("There is no picture of it") && !page.contains("<img"),
        "a picture of nothing"
    );
    Ok(())
}

/// A daemon that dumps the guest's memory into at most so many MiB.
fn dumps(rig: &Rig, quota_mib: u32) -> Result<DaemonConfig> {
    let mut config = rig.daemon_config()?;
    config.extra_toml = format!(
        "[recovery]\nmemory_dump = \"on\"\nmemory_dump_quota_mib = {quota_mib}\npause = \"1s\"\n"
    );
    Ok(config)
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn memory() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[guest(&rig, "is-dumped")?])?;
    let mut daemon = rig.daemon(&dumps(&rig, 1024)?)?;
    let incident = panics(&daemon, &guests[0])?;
    let list = fs::read_to_string(directory(&rig, &incident)?.join("evidence.txt"))?;
    println!("{list}");
    let memory = rig.dir().join("state/memory");
    let names = names_in(&memory)?;
    ensure!(names == [format!("{}.kdump", id(&incident)?)], "{names:?}\n{}", daemon.log().text());
    let dump = memory.join(&names[0]);
    ensure!(list.contains(&format!("kept     {}", dump.display())), "{list}");
    let bytes = fs::read(&dump)?;
    // A header of makedumpfile's flattened format, and then the dump's own.
    ensure!(bytes.starts_with(b"makedumpfile"), "{:?}", bytes.get(..32));
    let has_header = bytes.windows(8).take(1 << 16).any(|window| window == b"KDUMP   ");
    ensure!(has_header && bytes.len() > 1 << 20, "{} bytes", bytes.len());
    ensure!(daemon.show(guests[0].name())?["memory_dump"].is_null(), "it is shown for ever");
    println!("{} bytes of memory", bytes.len());

    // Another quota: the dump that is there makes no room for one that is too large, nor does that stay.
    daemon.terminate()?;
    drop(daemon);
    let daemon = rig.daemon(&dumps(&rig, 1)?)?;
    guests[0].send("panic")?;
    let first = id(&incident)?;
    let second =
        wait_for_incident(&daemon, guests[0].name(), "again", RESTART_LIMIT, |incident| {
            incident["outcome"] == "recovered" && incident["id"] != first
        })?;
    let list = fs::read_to_string(directory(&rig, &second)?.join("evidence.txt"))?;
    println!("{list}");
    ensure!(
        list.contains("the guest's memory: it is larger than the quota of 1048576 bytes"),
        "{list}"
    );
    let names = names_in(&memory)?;
    ensure!(!names.iter().any(|name| name.contains(id(&second).unwrap_or("?"))), "{names:?}");
    Ok(())
}

fn retention() -> Result<()> {
    let rig = Rig::new()?;
    let incident = rig.dir().join("state/incidents/20200101T000000Z-old");
    fs::create_dir_all(&incident)?;
    let record = r#"{"format":1,"id":"20200101T000000Z-old","vm":"old","uuid":null,"pid":1,"cause":"halted",
        "reason":"r","detected_at":"2020-01-01T00:00:00Z","action":null,"outcome":"observed",
        "detect_seconds":null,"recover_seconds":null,"evidence":["screen.png","new.txt"]}"#;
    let outside = rig.dir().join("outside.txt");
    for path in [&incident.join("incident.json"), &incident.join("screen.png"), &outside] {
        fs::write(path, record)?;
        age(path)?;
    }
    fs::write(incident.join("new.txt"), "young")?;
    std::os::unix::fs::symlink(&outside, incident.join("link.txt"))?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let begun = SystemTime::now();
    while incident.join("screen.png").exists() {
        ensure!(begun.elapsed()? < Duration::from_secs(10), "it stays\n{}", daemon.log().text());
        sleep(Duration::from_millis(50))?;
    }
    let names = names_in(&incident)?;
    ensure!(names == ["incident.json", "link.txt", "new.txt"], "{names:?}");
    ensure!(outside.exists(), "a link was followed");
    let page = client(&daemon, &["incidents", "show", "20200101T000000Z-old", "--html", "-"])?;
    ensure!(page.contains("There is no picture of it") && page.contains("young"), "{page}");
    Ok(())
}

/// Makes a file a hundred days old.
fn age(path: &Path) -> Result<()> {
    let status = Command::new("touch").args(["-d", "100 days ago"]).arg(path).status()?;
    ensure!(status.success(), "touch: {status}");
    Ok(())
}

fn own_dump() -> Result<()> {
    let rig = Rig::new()?;
    let machine = |name: &str, sector| -> Result<GuestConfig> {
        let mut config = rig.boot_sector_on_disk(name, sector)?;
        config.traces_commands = true;
        Ok(config)
    };
    let guests = boot_all(&[
        machine("dumps", BootSector::NmiDump)?,
        machine("does-not", BootSector::CliHlt)?,
        machine("by-command", BootSector::CliHlt)?,
    ])?;
    let [dumps, does_not, by_command] = &guests[..] else { unreachable!() };
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml =
        "[recovery]\ninject_nmi = \"3s\"\nmax_restarts = 1\n[[vm]]\nmatch = \"by-*\"\n\
                         actuator = \"command\"\ncommand = [\"/bin/true\"]"
            .to_owned();
    let daemon = rig.daemon(&config)?;
    let told = |incident: &Value| !incident["action_at"].is_null();
    let incident = wait_for_incident(&daemon, "does-not", "reset", RESTART_LIMIT, told)?;
    let sent = does_not.took_command_at("inject-nmi")?.context("no NMI was sent")?;
    let reset = does_not.took_command_at("system_reset")?.context("it was not reset")?;
    let waited = reset.duration_since(sent).context("the NMI came after the reset")?;
    println!("reset {waited:.1?} after its NMI");
    ensure!(waited >= Duration::from_secs(3), "{waited:?}: {incident}");
    // Whatever restarts it.
    let incident = wait_for_incident(&daemon, "by-command", "restarted", RESTART_LIMIT, told)?;
    let sent = by_command.took_command_at("inject-nmi")?.context("no NMI was sent")?;
    let at = humantime::parse_rfc3339(incident["action_at"].as_str().unwrap_or_default())?;
    // That has whole seconds, rounded down.
    let waited = (at + Duration::from_secs(1)).duration_since(sent)?;
    ensure!(waited >= Duration::from_secs(3), "{waited:?}: {incident}");

    let held = |row: &Value| {
        let says = |part| row["reason"].as_str().is_some_and(|reason| reason.contains(part));
        row["state"] == "held" && says("its own crash dump")
    };
    wait_for_vm(&daemon, "dumps", "held", RESTART_LIMIT, held)?;
    ensure!(dumps.took_command_at("inject-nmi")?.is_some());
    sleep(config.flat_for * 2)?;
    wait_for_vm(&daemon, "dumps", "held still", Duration::from_secs(1), held)?;
    ensure!(dumps.took_command_at("system_reset")?.is_none(), "{}", daemon.log().text());
    Ok(())
}
