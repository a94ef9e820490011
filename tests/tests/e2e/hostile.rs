//! QEMUs that do not answer, lie, or flood: the daemon says so of them, and keeps time for the others.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{boot_sector::BootSector, daemon::Daemon, guest::Accelerator, interrupt};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::rig::{
    Crash, FLAT_FOR, Load, MARGIN, Rig, boot_all, check_restart, incidents_of, put, trial_with, vm,
    wait_for_incident, wait_for_vm,
};

/// For a guest that shows no sign of life to leave `starting`: the boot grace, and what a busy machine needs.
const GRACE: Duration = Duration::from_secs(15);

/// What the daemon may take of memory of its own, and a client of its time, whatever the QEMUs do: 64 MiB with the pages
/// of an optimized program.
const MOST_ANON_KIB: u64 = 56 << 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// When the good guest panics, after the daemon started.
const PANIC_AFTER: Duration = Duration::from_secs(5);

/// Each manner of the fake, and what `show` must say of such a QEMU's monitor.
const MANNERS: [(&str, &str); 7] = [
    ("silent", "another client holds the QMP socket"),
    ("mute", "got no answer in time"),
    ("events", "flood: "),
    ("garbage", "byte 0xff where a QMP message should start"),
    ("endless", "a QMP message of more than"),
    ("deep", "of no known kind, nested deeper than"),
    ("liar", "run state guest-panicked"),
];
/// Those that come a second time: a QEMU that was refused is left alone for a minute, so that the
/// first wave is over when the good guest is judged.
const SECOND_WAVE: [&str; 4] = ["events", "garbage", "endless", "deep"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            Load::Spins(1),
            "qemus_that_flood_lie_or_keep_silent_delay_nobody_else",
            monitors,
        ),
        trial_with(Load::Spins(1), "a_stopped_qemu_is_held_and_delays_nobody_else", stopped),
    ]
}

/// A process that poses as a QEMU; killed when dropped.
pub(crate) struct Fake(Child);

impl Fake {
    /// Starts `executable` as a VM `name` whose monitor has this manner.
    pub(crate) fn start(executable: &Path, dir: &Path, name: &str, manner: &str) -> Result<Self> {
        let socket = dir.join(format!("{name}.qmp")).display().to_string();
        let child = Command::new(executable)
            .args(["-name", name, "-qmp", &format!("unix:{socket},server=on,wait=off")])
            .args(["-fake", manner])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the fake QEMU")?;
        Ok(Self(child))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the daemon itself took, at worst.
#[derive(Default)]
struct Worst {
    answer: Duration,
    /// Without its program's own pages, of which an unoptimized one has three times as many.
    anon_kib: u64,
}

impl Worst {
    /// Measures once.
    fn look(&mut self, daemon: &Daemon) -> Result<()> {
        let begin = Instant::now();
        daemon.status()?;
        self.answer = self.answer.max(begin.elapsed());
        self.anon_kib = self.anon_kib.max(memory_kib(daemon, "RssAnon:")?);
        Ok(())
    }

    /// Goes on measuring until `done`.
    fn look_until(
        &mut self,
        daemon: &Daemon,
        limit: Duration,
        what: &str,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        interrupt::wait_until(what, limit, || {
            self.look(daemon)?;
            Ok(done()?.then_some(()))
        })
    }

    fn check(&self, daemon: &Daemon) -> Result<()> {
        let Self { answer, anon_kib } = self;
        let peak = memory_kib(daemon, "VmHWM:")?;
        println!(
            "slowest answer {answer:?}, up to {anon_kib} KiB of its own, and with its program {peak}"
        );
        ensure!(*answer <= ANSWER_WITHIN, "`status` took {answer:?}");
        ensure!(*anon_kib <= MOST_ANON_KIB, "{anon_kib} KiB of its own");
        Ok(())
    }
}

pub(crate) fn memory_kib(daemon: &Daemon, field: &str) -> Result<u64> {
    let pid = daemon.pid().context("the daemon does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn has_action(daemon: &Daemon, name: &str) -> Result<bool> {
    Ok(incidents_of(daemon, name)?.iter().any(|incident| !incident["action_at"].is_null()))
}

/// What `show` says of a VM's monitor.
fn monitor(daemon: &Daemon, name: &str) -> Result<String> {
    let shown = daemon.show(name)?;
    shown["qmp"].as_str().map(str::to_owned).with_context(|| format!("no qmp in {shown}"))
}

fn wait_for_monitor(daemon: &Daemon, name: &str, wanted: &str) -> Result<()> {
    let mut said = String::new();
    interrupt::wait_until(name, Duration::from_secs(20), || {
        said = monitor(daemon, name)?;
        Ok(said.contains(wanted).then_some(()))
    })
    .with_context(|| format!("{name}: not {wanted:?} but {said:?}"))?;
    println!("{name}: {said}");
    Ok(())
}

fn monitors() -> Result<()> {
    let rig = Rig::new()?;
    let fake = rig.dir().join("qemu-system-x86_64-fake");
    put(Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &fake)?;
    let guests = boot_all(&[rig.linux("good", 1)?])?;
    let sector = |name| rig.boot_sector(name, BootSector::StiHlt, Accelerator::Tcg);
    let _robbed = boot_all(&[sector("robbed")])?;
    // A real QEMU whose socket's place was taken: this process listens there.
    let place = rig.dir().join("robbed.qmp");
    std::fs::rename(&place, rig.dir().join("robbed.moved"))?;
    let thief = UnixListener::bind(&place)?;

    let mut config = rig.daemon_config()?;
    config.executables.push(fake.display().to_string());
    let daemon = rig.daemon(&config)?;
    let begin = Instant::now();
    let start = |name: &str, manner| Fake::start(&fake, rig.dir(), name, manner);
    let mut fakes =
        MANNERS.iter().map(|(manner, _)| start(manner, manner)).collect::<Result<Vec<_>>>()?;
    let mut worst = Worst::default();
    worst.look_until(&daemon, PANIC_AFTER * 2, "the time to panic", || {
        Ok(begin.elapsed() >= PANIC_AFTER)
    })?;
    let crash = Crash::now(&daemon, &guests[0])?;
    guests[0].send("panic")?;
    let mut again = SECOND_WAVE.iter();
    // One more flood each second, so that there is always one while the good guest is judged.
    let mut next = Instant::now() + FLAT_FOR / 2;
    worst.look_until(&daemon, (FLAT_FOR + MARGIN) * 2, "the restart", || {
        if Instant::now() >= next
            && let Some(manner) = again.next()
        {
            fakes.push(start(&format!("{manner}-2"), manner)?);
            next += Duration::from_secs(1);
        }
        has_action(&daemon, "good")
    })?;
    check_restart(&daemon, &guests[0], &crash)?;

    for (manner, found) in MANNERS {
        wait_for_monitor(&daemon, manner, found)?;
    }
    // It is spoken to where it does listen, and the thief is not.
    wait_for_monitor(&daemon, "robbed", "answers; run state running")?;
    thief.set_nonblocking(true)?;
    ensure!(thief.accept().is_err(), "another program was connected to");
    // A QEMU that says that its guest panicked is taken at its word, and dealt with at its own pace.
    let lie = wait_for_incident(&daemon, "liar", "panicked", MARGIN, |_| true)?;
    ensure!(lie["cause"] == "panicked", "{lie}");
    for (manner, _) in MANNERS.iter().filter(|(manner, _)| *manner != "liar") {
        ensure!(incidents_of(&daemon, manner)?.is_empty(), "{manner} was convicted");
    }
    ensure!(incidents_of(&daemon, "robbed")?.is_empty(), "robbed was convicted");
    worst.look_until(&daemon, Duration::from_secs(60), "the recovery", || {
        Ok(incidents_of(&daemon, "good")?.iter().any(|one| one["outcome"] == "recovered"))
    })?;
    worst.check(&daemon)
}

fn stopped() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[rig.linux("good", 1)?, rig.linux("stopped", 2)?])?;
    let [good, stopped] = &guests[..] else { unreachable!() };
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let alive = |row: &Value| row["state"] == "alive";
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "alive", GRACE, alive)?;
    }
    stopped.signal(Signal::STOP)?;
    let crash = Crash::now(&daemon, good)?;
    good.send("panic")?;
    let is_held = |row: &Value| {
        row["state"] == "held"
            && row["reason"].as_str().is_some_and(|reason| reason.contains("stopped by a signal"))
    };
    wait_for_vm(&daemon, "stopped", "held", MARGIN, is_held)?;
    let mut worst = Worst::default();
    worst.look_until(&daemon, (FLAT_FOR + MARGIN) * 2, "the restart", || {
        ensure!(is_held(&vm(&daemon, "stopped")?), "{}", daemon.show("stopped")?);
        has_action(&daemon, "good")
    })?;
    check_restart(&daemon, good, &crash)?;

    stopped.signal(Signal::CONT)?;
    let continued = Instant::now();
    wait_for_vm(&daemon, "stopped", "alive again", MARGIN, alive)?;
    // Through one more silence, at whose end it is asked, and answers.
    worst.look_until(&daemon, FLAT_FOR * 5, "that time", || {
        ensure!(vm(&daemon, "stopped")?["cause"].is_null(), "{}", daemon.show("stopped")?);
        Ok(continued.elapsed() >= FLAT_FOR * 4)
    })?;
    wait_for_vm(&daemon, "stopped", "alive still", MARGIN, alive)?;
    ensure!(incidents_of(&daemon, "stopped")?.is_empty(), "stopped was convicted");
    let resets = stopped.events()?.iter().filter(|event| event["event"] == "RESET").count();
    ensure!(resets == 0 && stopped.banner_count() == 1, "stopped was reset");
    worst.check(&daemon)
}
