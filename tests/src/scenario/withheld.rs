//! Healthy guests whose QEMU is kept from running, or from being read, by another process of the host.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::crashes::{SPINS, after, at, one};
use super::{Expected, Place, Scenario, Stage};
use crate::cgroup::Cgroup;
use crate::guest::GuestConfig;
use crate::interrupt;
use crate::traced::Traced;

/// How long QEMU is kept that goes on afterwards.
const KEPT_FOR: Duration = Duration::from_secs(20);
/// What a quota leaves of one CPU.
const SHARE: f64 = 0.02;
/// The second serial console that is not read, below the stage's directory.
const PIPE: &str = "console";
/// The least that the kernel makes a pipe: less than an oops says.
const PIPE_BYTES: libc::c_int = 4096;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "frozen",
        what: "QEMU is frozen by a cgroup for 20 s, and thawed",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| for_a_while(Cgroup::freeze(stage.guest().pid())?),
        expected: Expected::LeftAlone { states: &["alive"] },
    },
    Scenario {
        name: "stays-frozen",
        what: "QEMU is frozen by a cgroup, and stays so",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.until_the_end(Cgroup::freeze(stage.guest().pid())?);
            Ok(SystemTime::now())
        },
        expected: Expected::Held { reason_contains: "frozen" },
    },
    Scenario {
        name: "throttled-busy",
        what: "Linux computes, and a quota leaves its QEMU 2 % of a CPU",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            at(stage, "compute 1")?;
            interrupt::sleep(Duration::from_secs(3))?;
            throttle(stage)
        },
        expected: Expected::LeftAlone { states: &["alive", "held"] },
    },
    Scenario {
        name: "throttled-idle",
        what: "Linux idles, and a quota leaves its QEMU 2 % of a CPU",
        guests: one,
        boots: true,
        pins: 0,
        fault: throttle,
        expected: Expected::LeftAlone { states: &["alive", "held"] },
    },
    Scenario {
        name: "debugged",
        what: "A debugger stops QEMU for 20 s, and lets it go on",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| for_a_while(Traced::new(stage.guest().pid())?),
        expected: Expected::LeftAlone { states: &["alive"] },
    },
    Scenario {
        name: "stays-debugged",
        what: "A debugger stops QEMU, and looks at it for long",
        guests: one,
        boots: true,
        pins: 0,
        fault: |stage| {
            stage.until_the_end(Traced::new(stage.guest().pid())?);
            Ok(SystemTime::now())
        },
        expected: Expected::Held { reason_contains: "debugger" },
    },
    Scenario {
        name: "console-unread",
        what: "A serial console of Linux is no longer read: its kernel waits 10 ms for each letter of its next message",
        guests: with_pipe,
        boots: true,
        pins: 1,
        fault: |stage| {
            // Both are more than the pipe holds.
            at(stage, "lockup oops")?;
            interrupt::sleep(Duration::from_secs(2))?;
            at(stage, "lockup oops")
        },
        // It may take its interrupts between two lines, or not.
        expected: Expected::AsItAnswers { causes: &["spinning", "silent"] },
    },
    Scenario {
        name: "console-unread-panic",
        what: "Linux panics, and its console is not read: it waits for that in the middle of its last words",
        guests: with_pipe,
        boots: true,
        pins: 1,
        fault: |stage| {
            at(stage, "lockup oops")?;
            interrupt::sleep(Duration::from_secs(3))?;
            after(stage, "panic", "Kernel panic - not syncing")
        },
        expected: SPINS,
    },
];

/// Keeps QEMU for a while, and lets it go.
fn for_a_while(kept: impl Sized) -> Result<SystemTime> {
    let now = SystemTime::now();
    interrupt::sleep(KEPT_FOR)?;
    drop(kept);
    Ok(now)
}

fn throttle(stage: &Stage) -> Result<SystemTime> {
    let group = Cgroup::throttle(stage.guest().pid(), SHARE)?;
    stage.until_the_end(group);
    Ok(SystemTime::now())
}

/// Linux whose messages also go to a second serial console, which is a pipe that is not read.
fn with_pipe(place: &mut Place) -> Result<Vec<GuestConfig>> {
    let mut guests = one(place)?;
    let path = place.dir().join(PIPE);
    let [input, output] = ["in", "out"].map(|end| path.with_extension(end));
    for fifo in [&input, &output] {
        make_fifo(fifo)?;
    }
    let open = |path: &Path| {
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
    };
    let (input, output) = (open(&input)?, open(&output)?);
    // SAFETY: no pointers; the descriptor is open.
    let set = unsafe { libc::fcntl(output.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
    ensure!(set >= 0, "cannot make a pipe small: {}", std::io::Error::last_os_error());
    for config in &mut guests {
        let path = path.to_str().context("a path is UTF-8")?;
        config.extra_args.extend([
            "-chardev".to_owned(),
            format!("pipe,id=serial1,path={path}"),
            "-serial".to_owned(),
            "chardev:serial1".to_owned(),
        ]);
        config.kernel_args.push("console=ttyS1".to_owned());
    }
    // A pipe without a reader would be an error, and hold up no write.
    place.keep_open([input, output]);
    Ok(guests)
}

fn make_fifo(path: &Path) -> Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a whole string that outlives the call.
    let made = unsafe { libc::mkfifo(text.as_ptr(), 0o600) };
    ensure!(made == 0, "cannot make {}: {}", path.display(), std::io::Error::last_os_error());
    Ok(())
}
