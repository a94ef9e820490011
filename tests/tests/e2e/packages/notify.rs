//! The daemon's words to systemd, whose place a socket of the test takes.

use std::{
    io::ErrorKind::{Interrupted, WouldBlock},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        net::UnixDatagram,
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{daemon::Daemon, traced::Traced};
use rustix::{
    fs::Mode,
    process::{Pid, Signal, kill_process},
    time::{ClockId, clock_gettime},
};

use crate::rig::{Rig, binary};

/// The watchdog's time; ticks are a second apart.
const WATCHDOG: Duration = Duration::from_secs(3);
/// A group that owns nothing here, and a user without any rights of its own.
const GROUP: u32 = 65533;
const USER: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(10);

/// systemd's end.
struct Systemd(UnixDatagram);

impl Systemd {
    fn new(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self(socket))
    }

    /// What is said until then, as soon as `enough` of it is, each message on lines of its own.
    fn hear(&self, limit: Duration, enough: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let (end, mut heard) = (Instant::now() + limit, Vec::new());
        let mut bytes = [0; 4096];
        while Instant::now() < end {
            match self.0.recv(&mut bytes) {
                Ok(length) => {
                    let message = String::from_utf8(bytes[..length].to_vec())?;
                    heard.extend(message.lines().map(str::to_owned));
                    if heard.iter().any(|line| enough(line)) {
                        break;
                    }
                }
                // A wait that has an end is interrupted, too, where the test is stopped and goes on (signal(7)).
                Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {}
                Err(error) => bail!(error),
            }
        }
        Ok(heard)
    }
}

pub(super) fn test() -> Result<()> {
    let rig = Rig::new()?;
    // As the package's tmpfiles.d has it: for a group, and with the bit that hands it on.
    let run = rig.dir().join("run");
    std::fs::create_dir(&run)?;
    chown(&run, Some(0), Some(GROUP))?;
    rustix::fs::chmod(&run, Mode::from_raw_mode(0o2750))?;
    let systemd = Systemd::new(&rig.dir().join("notify"))?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    config.prefix = vec![
        "env".to_owned(),
        format!("NOTIFY_SOCKET={}", rig.dir().join("notify").display()),
        format!("WATCHDOG_USEC={}", WATCHDOG.as_micros()),
    ];
    let mut daemon = rig.daemon(&config)?;

    let heard = systemd.hear(LIMIT, |line| line == "WATCHDOG=1")?;
    let status = "STATUS=Observing 0 VMs; no guest is touched";
    ensure!(heard == ["READY=1", status, "WATCHDOG=1"], "{heard:?}");
    let heard = systemd.hear(WATCHDOG, |_| false)?;
    println!("in {WATCHDOG:?}: {heard:?}");
    // A quarter of its time would do, but the ticks are a second apart, and one may be late.
    ensure!((1..=4).contains(&heard.len()), "{heard:?}");
    ensure!(heard.iter().all(|line| line == "WATCHDOG=1"), "{heard:?}");

    let pid = daemon.pid().context("it runs")?;
    let stuck = Traced::main_thread(pid)?;
    ensure!(is_stopped(pid, pid)? && other_thread_runs(pid)?, "only the loop is to be stuck");
    systemd.hear(Duration::from_millis(200), |_| false)?;
    let heard = systemd.hear(WATCHDOG, |_| false)?;
    ensure!(heard.is_empty(), "of a loop that is stuck: {heard:?}");
    drop(stuck);
    let heard = systemd.hear(LIMIT, |line| line == "WATCHDOG=1")?;
    ensure!(heard == ["WATCHDOG=1"], "{heard:?}");

    kill_process(Pid::from_raw(pid.try_into()?).context("no pid")?, Signal::HUP)?;
    let heard = systemd.hear(LIMIT, |line| line == "READY=1")?;
    let heard: Vec<_> = heard.iter().filter(|line| *line != "WATCHDOG=1").collect();
    let [reloading, since, ready] = &heard[..] else { bail!("{heard:?}") };
    let microseconds = since.strip_prefix("MONOTONIC_USEC=").and_then(|text| text.parse().ok());
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
    let since = Duration::from_micros(microseconds.with_context(|| format!("{heard:?}"))?);
    ensure!(*reloading == "RELOADING=1" && *ready == "READY=1", "{heard:?}");
    ensure!(since <= now && now - since < LIMIT, "{since:?}, and it is {now:?}");

    operator(&daemon, &rig)?;
    daemon.terminate()?;
    let heard = systemd.hear(Duration::from_secs(1), |line| line == "STOPPING=1")?;
    ensure!(heard.contains(&"STOPPING=1".to_owned()), "{heard:?}");
    Ok(())
}

/// Members of the runtime directory's group may ask, without another right; others may not.
fn operator(daemon: &Daemon, rig: &Rig) -> Result<()> {
    let socket = rig.dir().join("run/control.sock").metadata()?;
    ensure!((socket.uid(), socket.gid()) == (0, GROUP), "{socket:?}");
    ensure!(socket.mode() & 0o777 == 0o660, "{:o}", socket.mode());
    // Where it was built, other users may not look.
    let program = rig.dir().join("flatline");
    // By another process: a program that a child of another test's has open for writing is refused as busy.
    let copied = Command::new("cp").arg(binary()?).arg(&program).status()?;
    ensure!(copied.success(), "cp: {copied}");
    std::fs::set_permissions(rig.dir(), std::fs::Permissions::from_mode(0o755))?;
    let ask = |group: u32| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={USER}"), format!("--regid={group}")]);
        command.args(["--clear-groups", "--"]).arg(&program).args(["status", "--config"]);
        command.arg(daemon.config_path()).output()
    };
    let member = ask(GROUP)?;
    ensure!(member.status.success(), "{member:?}");
    let other = ask(USER)?;
    ensure!(other.status.code() == Some(3), "{other:?}");
    Ok(())
}

/// A letter of proc(5) for each thread: `t` is one that a debugger stopped.
fn state(pid: u32, thread: u32) -> Result<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"))?;
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.context("stat has no state")
}

fn is_stopped(pid: u32, thread: u32) -> Result<bool> {
    // The kernel takes a moment.
    for _ in 0..50 {
        if state(pid, thread)? == 't' {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
}

fn other_thread_runs(pid: u32) -> Result<bool> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread: u32 = entry?.file_name().to_string_lossy().parse()?;
        if thread != pid && state(pid, thread)? != 't' {
            return Ok(true);
        }
    }
    Ok(false)
}
