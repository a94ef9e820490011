//! Guests whose registers say nothing, or little: encrypted ones, and those of other architectures.
//!
//! No machine of these tests has SEV or TDX, and no QEMU takes their objects without: stand-ins play the QEMUs of
//! encrypted guests, with command lines, answers and registers like theirs. The other QEMUs are real.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    daemon::{Daemon, DaemonConfig},
    guest::{Board, Guest, GuestConfig, GuestKind, private_copy},
    interrupt,
    tools::{QEMU_AARCH64, QEMU_RISCV64, Tool},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    FLAT_FOR, Load, MARGIN, Rig, binary, put, skippable_trial_with, trial, trial_that_may_skip, vm,
    wait_for_incident, wait_for_vm,
};

/// `unconfirmed_flat_for` of guests that no witness knows of, and how long those that live are watched: longer
/// than all times that count.
const UNCONFIRMED_FLAT_FOR: Duration = Duration::from_secs(4);
const WATCHED_FOR: Duration = Duration::from_secs(9);
/// What one guest's QEMU may be asked, whatever it answers and however soon.
const MOST_COMMANDS_A_SECOND: f64 = 20.0;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_encrypted_guest_is_not_convicted_by_the_registers_of_its_reset", encrypted),
        skippable_trial_with(Load::Spins(2), "arm_guests_that_wait_or_compute_are_left_alone", arm),
        trial_that_may_skip("an_architecture_that_is_not_understood_is_asked_about_once", riscv),
    ]
}

/// A stand-in, which is killed when dropped.
struct StandIn {
    child: Child,
    asked: PathBuf,
}

impl StandIn {
    fn start(executable: &Path, dir: &Path, name: &str, options: &[&str]) -> Result<Self> {
        let place = |extension: &str| dir.join(format!("{name}.{extension}"));
        let (socket, asked) = (place("qmp").display().to_string(), place("asked"));
        let child = Command::new(executable)
            .args(["-name", name, "-qmp", &format!("unix:{socket},server=on,wait=off")])
            .args(["-ticks", "on", "-registers", "reset", "-asked"])
            .arg(&asked)
            .args(options)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the stand-in")?;
        Ok(Self { child, asked })
    }

    fn times_asked(&self, command: &str) -> Result<usize> {
        let asked = std::fs::read_to_string(&self.asked)?;
        Ok(asked.lines().filter(|line| *line == command).count())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hasty(config: &mut DaemonConfig) {
    config.flat_for = FLAT_FOR;
    config.boot_grace = Duration::from_secs(2);
    let unconfirmed = humantime::format_duration(UNCONFIRMED_FLAT_FOR);
    config.extra_toml = format!("unconfirmed_flat_for = \"{unconfirmed}\"");
}

fn encrypted() -> Result<()> {
    const SNP: [&str; 4] = [
        "-machine",
        "q35,confidential-guest-support=lsec0",
        "-object",
        r#"{"qom-type":"sev-snp-guest","id":"lsec0","cbitpos":51,"policy":196608}"#,
    ];
    let rig = Rig::new()?;
    let qemu = rig.dir().join("qemu-system-x86_64-played");
    put(Path::new(env!("CARGO_BIN_EXE_stand-in")), &qemu)?;
    let mut config = DaemonConfig::new(&binary()?, &qemu);
    hasty(&mut config);
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    let start = |name, options: &[&str]| StandIn::start(&qemu, rig.dir(), name, options);
    let begun = Instant::now();
    let told = start("told", &[&SNP[..], &["-confidential", "sev-snp-guest"]].concat())?;
    // What makes it confidential is in the file, as Incus starts all of its guests.
    let hidden = start("hidden", &["-readconfig", "/vm.conf", "-confidential", "tdx-guest"])?;
    let _halted = start("halted", &[])?;

    // One that is not encrypted, and shows the same, is convicted by that: so were the others.
    let limit = (FLAT_FOR + MARGIN) * 2;
    wait_for_incident(&daemon, "halted", "halted", limit, |one| one["cause"] == "halted")?;
    while begun.elapsed() < WATCHED_FOR {
        interrupt::sleep(Duration::from_millis(500))?;
        for name in ["told", "hidden"] {
            let row = vm(&daemon, name)?;
            ensure!(row["cause"].is_null(), "{name} was convicted: {row}");
        }
    }
    for (name, by) in [("told", "sev-snp-guest"), ("hidden", "tdx-guest")] {
        check_said(&daemon, name, by)?;
    }
    ensure!(told.times_asked("human-monitor-command")? == 0, "its registers were asked for");
    ensure!(told.times_asked("qom-get")? == 0, "QEMU was asked what its command line tells");
    ensure!(hidden.times_asked("human-monitor-command")? == 0, "its registers were asked for");
    ensure!(hidden.times_asked("qom-get")? <= 3, "QEMU was asked again and again");
    Ok(())
}

/// What can't be read is said where people look, and once in the log.
fn check_said(daemon: &Daemon, name: &str, why: &str) -> Result<()> {
    let shown = daemon.show(name)?;
    let says = |value: &Value| value.as_str().is_some_and(|text| text.contains(why));
    let signals = shown["signals"].as_array().context("no signals")?;
    let signal = signals.iter().find(|signal| signal["name"] == "registers");
    let signal = signal.with_context(|| format!("nothing of its registers: {shown}"))?;
    ensure!(signal["verdict"] == "not asked" && says(&signal["value"]), "{name}: {signal}");
    ensure!(shown["notes"].as_array().is_some_and(|notes| notes.iter().any(says)), "{shown}");
    let status = daemon.status()?;
    let degraded = &status["host"]["degraded"];
    ensure!(says(degraded) && degraded.as_str().is_some_and(|it| it.contains(name)), "{degraded}");
    let text = daemon.log().text();
    let lines = text.lines().filter(|line| {
        line.contains("not asked for:") && line.contains(name) && line.contains(why)
    });
    ensure!(lines.count() == 1, "{name}: not said once:\n{text}");
    Ok(())
}

/// A guest of a few instructions, without a network and a disk.
pub(crate) fn bare(
    rig: &Rig,
    name: &str,
    qemu: &Path,
    board: Board,
    words: &'static [u32],
) -> GuestConfig {
    let mut config = GuestConfig::new(name, GuestKind::Words(words), qemu, rig.dir());
    (config.board, config.traces_commands) = (board, true);
    config
}

/// A QEMU of this test's own, or why there is none.
pub(crate) fn own(rig: &Rig, tool: Tool, name: &str) -> Result<Result<PathBuf, String>> {
    match tool.needed() {
        Ok(program) => Ok(Ok(private_copy(&program, name, rig.dir())?)),
        Err(why) => Ok(Err(why)),
    }
}

/// `wfi`, and back to it: interrupts are masked, as in Linux' idle loop.
pub(crate) const ARM_WAITS: &[u32] = &[0xd503_207f, 0x17ff_ffff];

fn arm() -> Result<Option<String>> {
    // A jump to itself.
    const LOOPS: &[u32] = &[0x1400_0000];
    // adr x0, .+16; msr elr_el1, x0; msr spsr_el1, xzr; eret to EL0 with interrupts on; a jump to itself.
    const COMPUTES: &[u32] = &[0x1000_0080, 0xd518_4020, 0xd518_401f, 0xd69f_03e0, 0x1400_0000];
    let rig = Rig::new()?;
    let qemu = match own(&rig, QEMU_AARCH64, "qemu-system-aarch64")? {
        Ok(qemu) => qemu,
        Err(why) => return Ok(Some(why)),
    };
    let mut config = DaemonConfig::new(&binary()?, &qemu);
    hasty(&mut config);
    let guests = [("waits", ARM_WAITS), ("loops", LOOPS), ("computes", COMPUTES)]
        .map(|(name, words)| bare(&rig, name, &qemu, Board::ArmVirt, words).start());
    let guests = guests.into_iter().collect::<Result<Vec<Guest>>>()?;
    let daemon = rig.daemon(&config)?;
    for (guest, rate) in guests.iter().zip(watch(&daemon, &guests)?) {
        println!("{}: {rate:.1} QMP commands a second", guest.name());
        ensure!(rate < MOST_COMMANDS_A_SECOND, "{}: {rate} commands a second", guest.name());
    }
    let says = |row: &Value, text: &str| row["reason"].as_str().is_some_and(|it| it.contains(text));
    wait_for_vm(&daemon, "computes", "alive", FLAT_FOR * 4, |row| {
        row["state"] == "alive" && says(row, "runs user code")
    })?;
    for name in ["waits", "loops"] {
        let what = "waits or loops in kernel mode";
        wait_for_vm(&daemon, name, what, FLAT_FOR * 4, |row| says(row, what))?;
    }
    for guest in &guests {
        ensure!(guest.times_taken("info lapic")? + guest.times_taken("info pic")? == 0);
    }
    ensure!(daemon.status()?["host"]["degraded"].is_null(), "{}", daemon.status()?["host"]);
    Ok(None)
}

fn riscv() -> Result<Option<String>> {
    // wfi, and back to it.
    const WAITS: &[u32] = &[0x1050_0073, 0xffdf_f06f];
    let rig = Rig::new()?;
    let qemu = match own(&rig, QEMU_RISCV64, "qemu-system-riscv64")? {
        Ok(qemu) => qemu,
        Err(why) => return Ok(Some(why)),
    };
    let mut config = DaemonConfig::new(&binary()?, &qemu);
    config.flat_for = FLAT_FOR;
    config.boot_grace = Duration::from_secs(2);
    let guests = [bare(&rig, "foreign", &qemu, Board::RiscvVirt, WAITS).start()?];
    let daemon = rig.daemon(&config)?;
    watch(&daemon, &guests)?;
    check_said(&daemon, "foreign", "riscv64")?;
    let [foreign] = &guests;
    ensure!(foreign.times_taken("human-monitor-command")? == 0, "its registers were asked for");
    ensure!(foreign.times_taken("query-target")? <= 1, "it was asked again and again");
    Ok(None)
}

/// Watches guests that nothing may happen to. How many QMP commands each was given in a second.
fn watch(daemon: &Daemon, guests: &[Guest]) -> Result<Vec<f64>> {
    for guest in guests {
        wait_for_vm(daemon, guest.name(), "suspect", FLAT_FOR * 4, |row| {
            row["state"] != "starting"
        })?;
    }
    let count = |guest: &Guest| guest.times_taken("\"execute\"");
    let before = guests.iter().map(count).collect::<Result<Vec<usize>>>()?;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED_FOR {
        interrupt::sleep(Duration::from_millis(500))?;
        for guest in guests {
            let row = vm(daemon, guest.name())?;
            ensure!(row["cause"].is_null(), "{} was convicted: {row}", guest.name());
        }
    }
    let mut rates = Vec::new();
    for (guest, before) in guests.iter().zip(before) {
        #[expect(clippy::cast_precision_loss, reason = "they are few")]
        rates.push((count(guest)? - before) as f64 / begun.elapsed().as_secs_f64());
        let resets = guest.events()?.iter().filter(|event| event["event"] == "RESET").count();
        ensure!(resets == 0, "{} was reset", guest.name());
    }
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    Ok(rates)
}
