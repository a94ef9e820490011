//! Users that start what claims another's VM: its name, its UUID, its process id. None of it counts for that VM, keeps it
//! from being brought back, or from being named.
//!
//! The victim is a real QEMU wherever its crash is answered. The strangers are made-up ones, which say of their guests what
//! no real one would: that they reset themselves and panic without end.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Output,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::GuestConfig,
    interrupt::{sleep, wait_until},
    tenants::{Claim, Fake, Homes},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{OFTEN, Rig, boot_all, trial};

/// Whose the victim is, and the strangers.
const VICTIM: u32 = 64_981;
const STRANGER: u32 = 64_982;
const OTHER_STRANGER: u32 = 64_983;
/// What all of them claim to be.
const NAME: &str = "web";
const UUID: &str = "7f3b6a10-58e2-4c6d-9a37-0d1c5e2b4f60";
/// For a VM to be found, judged, and alive.
const WITHIN: Duration = Duration::from_secs(20);
/// For a guest that says that it panicked to be told to reset: a tick, and what a busy machine needs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Some ticks.
const A_WHILE: Duration = Duration::from_secs(1);
/// In `/etc/passwd` of every host.
const NOBODY: u32 = 65_534;
const MOST_RESTARTS: u64 = 2;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what_another_users_process_claims_takes_no_restart_of_a_vm",
            claimed_by_another_user,
        ),
        trial(
            "processes_of_one_user_that_claim_one_vm_are_counted_apart_and_told_of",
            claimed_twice,
        ),
        trial("only_a_qemu_of_its_own_user_keeps_a_vm_from_being_started_again", started_again),
        trial("a_vm_can_be_named_whatever_others_call_theirs", named),
        trial("a_qemu_of_roots_that_becomes_another_users_is_known_by_that", given_up),
    ]
}

/// A place in which users have directories of their own.
struct Place {
    rig: Rig,
    homes: Homes,
}

impl Place {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let homes = rig.homes()?;
        Ok(Self { rig, homes })
    }

    fn daemon(&self, more: &str) -> Result<Daemon> {
        let mut config: DaemonConfig = self.rig.daemon_config()?;
        config.executables.extend(self.homes.executables());
        config.sample_interval = OFTEN;
        config.boot_grace = Duration::from_secs(2);
        config.extra_toml = format!(
            "[recovery]\nmax_restarts = {MOST_RESTARTS}\npause = \"0s\"\nmax_restarts_per_minute = 100\n{more}"
        );
        self.rig.daemon(&config)
    }

    /// A guest of the victim's that lives until it is told to report its panic, upon which QEMU pauses it.
    fn victim(&self, name: &str, uuid: Option<&str>) -> Result<GuestConfig> {
        let mut config = self.homes.obeys(&self.rig.qemu, VICTIM, name)?;
        config.extra_args.extend(uuid.iter().flat_map(|uuid| ["-uuid".into(), (*uuid).into()]));
        Ok(config)
    }

    /// A made-up QEMU of `user` with this manner, that claims this name, and perhaps this UUID.
    fn claims(&self, user: u32, name: &str, uuid: Option<&str>, manner: &str) -> Result<Fake> {
        let claim = Claim { uuid: uuid.map(str::to_owned), ..Claim::new(name, manner) };
        let fake = self.homes.fake(user, &claim)?;
        wait_until("its monitor", WITHIN, || Ok(fake.socket().exists().then_some(())))?;
        Ok(fake)
    }
}

/// Waits until the row of this process satisfies `wanted`: several have one name here.
fn wait_for(
    daemon: &Daemon,
    pid: u32,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    wait_until(what, WITHIN, || {
        let status = daemon.status()?;
        let vms = status["vms"].as_array().context("no vms")?;
        last = vms.iter().find(|vm| vm["pid"] == pid).cloned().unwrap_or_default();
        Ok(wanted(&last).then(|| last.clone()))
    })
    .with_context(|| format!("{what}: {last}\n{}", daemon.log().text()))
}

fn is_alive(row: &Value) -> bool {
    row["state"] == "alive"
}

fn restarts(row: &Value) -> u64 {
    row["restarts_in_window"].as_u64().unwrap_or(0)
}

/// Waits for the incident of this process that was recovered from.
fn wait_for_recovery(daemon: &Daemon, pid: u32) -> Result<Value> {
    let is_it = |one: &Value| one["pid"] == pid && one["outcome"] == "recovered";
    wait_until("its recovery", WITHIN, || Ok(daemon.incidents()?.into_iter().find(is_it)))
        .with_context(|| format!("{:?}\n{}", daemon.incidents(), daemon.log().text()))
}

/// Seconds from `crashed` until QEMU was told to reset the guest; times in incidents have whole seconds, rounded down.
fn answered_after(incident: &Value, crashed: SystemTime) -> Result<Duration> {
    let at = incident["action_at"].as_str().context("it was not restarted")?;
    let at = humantime::parse_rfc3339(at)?;
    Ok(at.duration_since(crashed).unwrap_or_default())
}

/// Two strangers use up what a name and a UUID have of restarts, one by resets of its guest's own, the other by panics.
fn claimed_by_another_user() -> Result<()> {
    let place = Place::new()?;
    let guests = boot_all(&[place.victim(NAME, Some(UUID))?, place.victim("beside", None)?])?;
    let [victim, beside] = &guests[..] else { unreachable!() };
    let daemon = place.daemon("")?;
    let resets = place.claims(STRANGER, NAME, Some(UUID), "resets")?;
    let panics = place.claims(OTHER_STRANGER, NAME, Some(UUID), "lies")?;
    for guest in &guests {
        wait_for(&daemon, guest.pid(), "alive", is_alive)?;
    }
    wait_for(&daemon, resets.pid(), "resets", |row| restarts(row) >= MOST_RESTARTS)?;
    let row = wait_for(&daemon, victim.pid(), "alive", is_alive)?;
    ensure!(restarts(&row) == 0 && row["uid"] == VICTIM, "{row}");
    wait_for(&daemon, panics.pid(), "its last restart", |row| restarts(row) >= MOST_RESTARTS)?;

    let crashed = SystemTime::now();
    for guest in &guests {
        guest.send("p")?;
    }
    for guest in [victim, beside] {
        let incident = wait_for_recovery(&daemon, guest.pid())?;
        let took = answered_after(&incident, crashed)?;
        println!("{}: told to reset {took:.1?} after its panic, or up to 1 s later", guest.name());
        ensure!(took <= ANSWERED_WITHIN && incident["uid"] == VICTIM, "{incident}");
        ensure!(incident["counted_for"].is_null(), "{incident}");
        let row = wait_for(&daemon, guest.pid(), "alive again", is_alive)?;
        ensure!(restarts(&row) == 1, "{row}");
    }
    let log = daemon.log().text();
    ensure!(!log.contains("duplicate identity"), "of several users there is none: {log}");
    Ok(())
}

/// What runs as the victim's own user, as a guest that took its QEMU over may have it.
fn claimed_twice() -> Result<()> {
    let place = Place::new()?;
    let guests = boot_all(&[place.victim(NAME, Some(UUID))?])?;
    let victim = &guests[0];
    let daemon = place.daemon("")?;
    wait_for(&daemon, victim.pid(), "alive", is_alive)?;
    ensure!(daemon.status()?["host"]["degraded"].is_null(), "{}", daemon.status()?);
    let twin = place.claims(VICTIM, NAME, Some(UUID), "resets")?;
    wait_for(&daemon, twin.pid(), "resets", |row| restarts(row) >= MOST_RESTARTS)?;
    let row = wait_for(&daemon, victim.pid(), "alive", is_alive)?;
    ensure!(restarts(&row) == 0, "{row}");
    let said = format!("of user {VICTIM} all claim to be {UUID}");
    let degraded = daemon.status()?["host"]["degraded"].to_string();
    ensure!(degraded.contains(&said), "{degraded}");
    let notes = daemon.show(&victim.pid().to_string())?["notes"].to_string();
    ensure!(notes.contains(&said) && notes.contains(&twin.pid().to_string()), "{notes}");

    let crashed = SystemTime::now();
    victim.send("p")?;
    let incident = wait_for_recovery(&daemon, victim.pid())?;
    ensure!(answered_after(&incident, crashed)? <= ANSWERED_WITHIN, "{incident}");
    ensure!(incident["counted_for"]["pid"] == victim.pid(), "{incident}");
    let row = wait_for(&daemon, victim.pid(), "alive again", is_alive)?;
    ensure!(restarts(&row) == 1, "{row}");
    drop(twin);
    wait_until("its end", WITHIN, || {
        Ok(daemon.log().text().contains("duplicate identity over").then_some(()))
    })?;
    let log = daemon.log().text();
    ensure!(log.matches("duplicate identity:").count() == 1, "{log}");
    ensure!(daemon.status()?["host"]["degraded"].is_null(), "{}", daemon.status()?);
    Ok(())
}

/// The victim's QEMU is killed while one of another user claims to be it, then while one of its own user does.
fn started_again() -> Result<()> {
    let place = Place::new()?;
    let machine = place.victim(NAME, Some(UUID))?;
    let (script, calls) = (place.rig.dir().join("again"), place.rig.dir().join("calls"));
    let lines =
        format!("#!/bin/sh\necho \"$FLATLINE_ACTION $FLATLINE_PID\" >> {}\n", calls.display());
    fs::write(&script, lines)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let command = json!([script]);
    let daemon = place.daemon(&format!(
        "[[vm]]\nmatch = \"{NAME}\"\nuser = {VICTIM}\nstart_exited = true\ncommand = {command}\n"
    ))?;
    let called = || fs::read_to_string(&calls).unwrap_or_default();

    let guest = machine.start()?;
    wait_for(&daemon, guest.pid(), "alive", is_alive)?;
    let stranger = place.claims(STRANGER, NAME, Some(UUID), "bytewise")?;
    wait_for(&daemon, stranger.pid(), "found", |row| row["run_state"] == "running")?;
    let killed = SystemTime::now();
    guest.kill()?;
    let wanted = format!("start {}\n", guest.pid());
    wait_until("the command's run", WITHIN, || Ok((called() == wanted).then_some(())))
        .with_context(|| format!("{}\n{}", called(), daemon.log().text()))?;
    let took = killed.elapsed()?;
    println!("started again {took:.1?} after its end");
    ensure!(took <= ANSWERED_WITHIN, "only after {took:?}");
    // What the command would have started takes its place, and the stranger does not.
    let old = guest.pid();
    drop(guest);
    let guest = machine.start()?;
    let incident = wait_for_recovery(&daemon, old)?;
    ensure!(incident["cause"] == "qemu-exited" && incident["uid"] == VICTIM, "{incident}");
    let row = wait_for(&daemon, guest.pid(), "alive", is_alive)?;
    ensure!(restarts(&row) == 1, "{row}");

    let own = place.claims(VICTIM, NAME, Some(UUID), "bytewise")?;
    wait_for(&daemon, own.pid(), "found", |row| row["run_state"] == "running")?;
    guest.kill()?;
    let is_it = |one: &Value| one["pid"] == guest.pid() && one["outcome"] == "refused";
    let refused =
        wait_until("its refusal", WITHIN, || Ok(daemon.incidents()?.into_iter().find(is_it)))
            .with_context(|| daemon.log().text())?;
    let why = format!("another QEMU of its name runs already: process {}", own.pid());
    ensure!(refused["reason"].as_str().is_some_and(|reason| reason.contains(&why)), "{refused}");
    ensure!(called() == wanted, "{}", called());
    Ok(())
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs a client that is to have an answer.
fn ask(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let output = daemon.client(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}", text(&output));
    Ok(text(&output))
}

/// The process ids of the VMs that are on hold.
fn held(daemon: &Daemon) -> Result<Vec<u64>> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    let held = vms.iter().filter(|vm| vm["hold"].is_string());
    Ok(held.filter_map(|vm| vm["pid"].as_u64()).collect())
}

/// A user that calls its VMs like another's, like its UUID, like its process id, and like what tells it from others. All
/// are made-up QEMUs: nothing is done to any.
fn named() -> Result<()> {
    let place = Place::new()?;
    let daemon = place.daemon("")?;
    let victim = place.claims(VICTIM, NAME, Some(UUID), "bytewise")?;
    let pid = victim.pid().to_string();
    let by_user = format!("{NAME}@{VICTIM}");
    ensure!(wait_for(&daemon, victim.pid(), "found", |row| row["pid"].is_u64())?["uid"] == VICTIM);
    // Without strangers, its name is enough.
    ask(&daemon, &["hold", NAME])?;
    ensure!(held(&daemon)? == [u64::from(victim.pid())]);
    ask(&daemon, &["release", NAME])?;

    let mut strangers = Vec::new();
    for (name, uuid) in [(NAME, Some(UUID)), (UUID, None), (&pid, None), (&by_user, None)] {
        let stranger = place.claims(STRANGER, name, uuid, "bytewise")?;
        wait_for(&daemon, stranger.pid(), "found", |row| row["pid"].is_u64())?;
        strangers.push(stranger);
    }
    let by_uuid = format!("{UUID}@{VICTIM}");
    for meant in [&pid, &by_user, &by_uuid] {
        ask(&daemon, &["hold", meant])?;
        ensure!(held(&daemon)? == [u64::from(victim.pid())], "{meant}: {:?}", held(&daemon)?);
        let shown: Value = serde_json::from_str(&ask(&daemon, &["show", meant, "--json"])?)?;
        ensure!(shown["pid"] == victim.pid() && shown["uid"] == VICTIM, "{shown}");
        ask(&daemon, &["incidents", "--vm", meant])?;
        ask(&daemon, &["release", meant])?;
        ensure!(held(&daemon)?.is_empty(), "{meant}: {:?}", held(&daemon)?);
    }
    for wanted in [NAME, UUID] {
        let output = daemon.client(&["hold", wanted])?;
        let said = text(&output);
        println!("{said}");
        ensure!(output.status.code() == Some(1) && said.contains("NAME@USER"), "{said}");
        for (pid, user) in [(victim.pid(), VICTIM), (strangers[0].pid(), STRANGER)] {
            let listed = format!("{NAME} (process {pid}, user {user}, bare)");
            ensure!(said.contains(&listed), "{listed} is not in: {said}");
        }
    }
    sleep(A_WHILE)?;
    ensure!(held(&daemon)?.is_empty(), "{:?}", held(&daemon)?);
    Ok(())
}

/// A real QEMU that gives root's rights up once it has its devices (`-runas`), as LXD's and Incus' do.
fn given_up() -> Result<()> {
    let place = Place::new()?;
    let daemon = place.daemon("")?;
    let mut machine = place.rig.boot_sector_on_disk(NAME, BootSector::OnCommand)?;
    machine.extra_args.extend(["-runas", "nobody"].map(str::to_owned));
    let guest = machine.start()?;
    let is_its = |row: &Value| row["uid"] == NOBODY && is_alive(row);
    wait_for(&daemon, guest.pid(), "its user", is_its)?;
    ask(&daemon, &["hold", &format!("{NAME}@nobody")])?;
    ensure!(held(&daemon)? == [u64::from(guest.pid())], "{:?}", held(&daemon)?);
    Ok(())
}
