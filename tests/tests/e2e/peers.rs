//! What else may stand where a QEMU, its monitor, its guest or its name should: each of them leads to a line of
//! `docs/hostile.md`, and to no command for another VM.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    hostile::Fake,
    rig::{
        BOOT_LIMIT, Load, Rig, boot_all, incidents_of, outer_resets, put, trial, trial_with,
        wait_for_incident, wait_for_vm,
    },
};

/// For a guest of a few bytes to be found dead, restarted, and seen alive.
const WITHIN: Duration = Duration::from_secs(60);
/// Some time in which what must not happen would be seen.
const A_WHILE: Duration = Duration::from_secs(3);
/// The manners of made-up monitors, and what `show` says of each.
const MANNERS: [(&str, &str); 3] = [
    ("bytewise", "run state running"),
    ("dripping", "another client holds the QMP socket"),
    ("cut", "QEMU closed the connection"),
];
/// What a terminal, a shell, a path or a browser would make something of.
const NAME: &str =
    "\x1b[2J\x1b]0;owned\x07$(touch ran)/../../<script>alert(1)</script>\u{202e}\r\n";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("monitors_that_drip_hang_up_or_draw_absurd_pictures_harm_nobody", monitors),
        trial("a_link_to_another_vms_socket_and_a_made_up_qemu_are_not_taken_for_one", sockets),
        trial("names_reach_no_terminal_path_shell_or_page_as_they_are", names),
        trial_with(Load::Spins(1), "a_guest_agent_that_floods_says_nothing", agent),
    ]
}

/// A line of the table in the documentation.
fn row(peer: &str, came: &str) {
    println!("| {peer} | {came} |");
}

fn monitor(daemon: &Daemon, name: &str) -> Option<String> {
    daemon.show(name).ok()?["qmp"].as_str().map(str::to_owned)
}

fn monitors() -> Result<()> {
    let rig = Rig::new()?;
    let fake = rig.dir().join("qemu-system-x86_64-fake");
    put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &fake)?;
    let mut config = rig.daemon_config()?;
    config.executables.push(fake.display().to_string());
    config.extra_toml = "[recovery]\nmax_restarts = 1".to_owned();
    let daemon = rig.daemon(&config)?;
    let start = |manner: &str| Fake::start(&fake, rig.dir(), manner, manner);
    let _fakes = MANNERS.iter().map(|(manner, _)| start(manner)).collect::<Result<Vec<_>>>()?;
    let _painter = start("painter")?;
    for (manner, wanted) in MANNERS {
        let mut said = None;
        wait_until(manner, WITHIN, || {
            said = monitor(&daemon, manner);
            Ok(said.as_ref().is_some_and(|said| said.contains(wanted)).then_some(()))
        })
        .with_context(|| format!("{manner}: {said:?}\n{}", daemon.log().text()))?;
        row(manner, &said.unwrap_or_default());
    }
    let told = |incident: &Value| !incident["attempts"][0]["reset_at"].is_null();
    let incident = wait_for_incident(&daemon, "painter", "told", WITHIN, told)?;
    let list = rig.dir().join("state/incidents").join(incident["id"].as_str().context("no id")?);
    let list = wait_until("the list of its evidence", WITHIN, || {
        Ok(fs::read_to_string(list.join("evidence.txt")).ok())
    })?;
    let picture = list.lines().find(|line| line.contains("screen.png")).unwrap_or_default();
    ensure!(picture.starts_with("missing") && picture.contains("100000x100000"), "{list}");
    row("painter", picture);
    for (manner, _) in MANNERS {
        ensure!(incidents_of(&daemon, manner)?.is_empty(), "{manner} was convicted");
    }
    Ok(())
}

/// A dead guest whose monitor's place leads to that of a healthy one, and a process that only calls itself a QEMU.
fn sockets() -> Result<()> {
    let rig = Rig::new()?;
    let victim = rig.boot_sector_on_disk("victim", BootSector::OnCommand)?;
    let dead = rig.boot_sector("linked", BootSector::CliHlt, Accelerator::Tcg);
    let guests: Vec<Guest> = boot_all(&[victim, dead])?;
    let [victim, dead] = &guests[..] else { unreachable!() };
    fs::rename(dead.qmp_path(), rig.dir().join("linked.moved"))?;
    std::os::unix::fs::symlink(victim.qmp_path(), dead.qmp_path())?;
    // Where QEMU may not be, and called like it.
    let elsewhere = rig.dir().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    let impostor = elsewhere.join("qemu-system-x86_64");
    put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &impostor)?;
    let _impostor = Fake::start(&impostor, rig.dir(), "impostor", "liar")?;

    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, "victim", "alive", WITHIN, |row| row["state"] == "alive")?;
    victim.events()?;
    // The dead one is restarted by the monitor on which it listens itself.
    let acted = |incident: &Value| !incident["action_at"].is_null();
    wait_for_incident(&daemon, "linked", "restarted", WITHIN, acted)?;
    ensure!(!outer_resets(dead)?.is_empty(), "{}", daemon.log().text());
    row("linked", &monitor(&daemon, "linked").unwrap_or_default());
    sleep(A_WHILE)?;
    ensure!(outer_resets(victim)?.is_empty(), "the wrong one was reset: {}", daemon.log().text());
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    ensure!(vms.iter().all(|vm| vm["name"] != "impostor") && vms.len() == 2, "{status}");
    row("impostor", "is no VM");
    Ok(())
}

fn names() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.boot_sector("named", BootSector::CliHlt, Accelerator::Tcg);
    // In QEMU's options, a comma begins the next one.
    config.extra_args.extend(["-name".to_owned(), NAME.to_owned()]);
    let guests = boot_all(&[config])?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    config.extra_toml = "[recovery]\nmax_restarts = 1".to_owned();
    let daemon = rig.daemon(&config)?;
    let pid = guests[0].pid().to_string();
    let incident = wait_until("its restart", WITHIN, || {
        let all = daemon.incidents()?;
        Ok(all.into_iter().find(|incident| !incident["action_at"].is_null()))
    })
    .with_context(|| daemon.log().text())?;
    let id = incident["id"].as_str().context("no id")?.to_owned();
    let commands: [&[&str]; 5] = [
        &["status"],
        &["show", &pid],
        &["incidents"],
        &["incidents", "show", &id],
        &["incidents", "show", &id, "--html", "-"],
    ];
    let is_unfit = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    for arguments in commands {
        let output = daemon.client(arguments)?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains("owned"), "{arguments:?}: {text}");
        ensure!(!text.contains(is_unfit), "{arguments:?}: {text:?}");
        ensure!(!text.contains("<script") || !arguments.contains(&"--html"), "{text}");
    }
    let log = daemon.log().text();
    ensure!(log.contains("owned") && !log.contains(is_unfit), "{log:?}");
    let folder = rig.dir().join("state/incidents").join(&id);
    ensure!(folder.is_dir() && !id.contains(['/', '$', '<', ' ']), "{id}");
    ensure!(!rig.dir().join("ran").exists() && !Path::new("/ran").exists(), "the name was run");
    row(&format!("{NAME:?}"), &format!("is shown as {}; its incident is {id}", incident["vm"]));
    Ok(())
}

fn agent() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.linux("floods", 1)?;
    config.agent = true;
    config.kernel_args.push("flatline.agent=flood".to_owned());
    let guests = boot_all(&[config])?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(5);
    let daemon = rig.daemon(&config)?;
    let mut last = Value::Null;
    wait_until("a word of its agent", BOOT_LIMIT, || {
        let Ok(shown) = daemon.show("floods") else { return Ok(None) };
        let rows = shown["signals"].as_array().cloned().unwrap_or_default();
        last = rows.into_iter().find(|row| row["name"] == "guest agent").unwrap_or(Value::Null);
        let value = last["value"].as_str().unwrap_or_default();
        Ok(value.contains("other answers than ours").then_some(()))
    })
    .with_context(|| format!("{last}\n{}", daemon.log().text()))?;
    row("agent", last["value"].as_str().unwrap_or_default());
    // What it says counts for nothing, in either direction.
    guests[0].send("panic")?;
    let recovered = |incident: &Value| incident["outcome"] == "recovered";
    let incident = wait_for_incident(&daemon, "floods", "recovered", BOOT_LIMIT * 2, recovered)?;
    ensure!(incidents_of(&daemon, "floods")?.len() == 1, "{incident}");
    Ok(())
}
