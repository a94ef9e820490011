//! One virtual machine: a QEMU that is our own child, on sockets and a serial console of ours.

mod child;
mod trace;

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::console::{Log, Mark};
use crate::interrupt;
pub use crate::machine::executable::{
    ROOT_VARIABLE, private_copy, private_qemu, qemu_command, version_command,
};
pub use crate::machine::{
    ACCELERATOR_VARIABLE, Accelerator, Board, DiskConfig, GLOBAL_VARIABLE, GuestConfig, GuestKind,
    WatchdogAction,
};
use crate::qmp::Qmp;
pub use child::was_killed;
use child::{Reaper, reap};

/// A Linux guest prints a line with this, and its number of CPUs, when it takes commands.
pub const BANNER: &str = "FLATLINE-GUEST READY";

/// A running machine; dropping it kills its QEMU, and waits until it is gone.
#[derive(Debug)]
pub struct Guest {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    stdin: Mutex<ChildStdin>,
    log: Log,
    /// None without a monitor.
    qmp: Option<Mutex<Qmp>>,
    qmp_path: PathBuf,
    trace_path: Option<PathBuf>,
}

impl GuestConfig {
    /// Starts the machine and returns once its QMP answers; a Linux is then still booting. Without a monitor, it may
    /// still end over an argument.
    ///
    /// # Errors
    ///
    /// If QEMU cannot be started, or ends or does not answer within 10 s: with what it said.
    pub fn start(&self) -> Result<Guest> {
        let mut command = self.command()?;
        // A process group of its own: Ctrl-C is for the harness, which then ends its guests in order.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let log = Log::new();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            bail!("the pipes were asked for");
        };
        log.drain(stdout);
        log.drain(stderr);
        let mut child = Reaper(Some(child));
        let socket = self.test_socket();
        let connect = || {
            interrupt::wait_until("QMP", Duration::from_secs(30), || {
                if child.ended()? {
                    // The drain may be behind the end by a moment.
                    std::thread::sleep(Duration::from_millis(50));
                    bail!("QEMU ended at once: {}", log.text());
                }
                // Refused until QEMU listens; cut off when it ends over a later argument.
                Ok(UnixStream::connect(&socket).ok().and_then(|stream| Qmp::new(stream).ok()))
            })
            .with_context(|| format!("guest {}", self.name))
        };
        let qmp = (!self.no_monitor).then(connect).transpose()?;
        let child = child.0.take().context("it was there a moment ago")?;
        Ok(Guest {
            name: self.name.clone(),
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            stdin: Mutex::new(stdin),
            log,
            qmp: qmp.map(Mutex::new),
            qmp_path: self.daemon_socket(),
            trace_path: self.traces_commands.then(|| self.trace_path()),
        })
    }
}

impl Guest {
    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The QMP socket that is the daemon's.
    pub fn qmp_path(&self) -> &Path {
        &self.qmp_path
    }

    /// What the machine wrote to its serial console, and QEMU to its standard error.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Where the console is now.
    pub fn mark(&self) -> Mark {
        self.log.mark()
    }

    /// Waits for a line since the start; returns the time from the start to it.
    ///
    /// # Errors
    ///
    /// As [`Log::wait_for`].
    pub fn wait_for(&self, wanted: &str, timeout: Duration) -> Result<Duration> {
        self.wait_for_after(self.log.start(), wanted, timeout)
    }

    /// Waits for a line after `mark`; returns the time from the mark to it.
    ///
    /// # Errors
    ///
    /// As [`Log::wait_for`].
    pub fn wait_for_after(&self, mark: Mark, wanted: &str, timeout: Duration) -> Result<Duration> {
        let found = self.log.wait_for(mark, wanted, timeout);
        found.with_context(|| format!("guest {}", self.name))
    }

    /// Waits until a Linux takes commands for the first time; returns how long that took.
    ///
    /// # Errors
    ///
    /// As [`Log::wait_for`].
    pub fn wait_until_booted(&self, timeout: Duration) -> Result<Duration> {
        self.wait_for(BANNER, timeout)
    }

    /// How often Linux came up.
    pub fn banner_count(&self) -> usize {
        self.log.count(self.log.start(), BANNER)
    }

    /// Gives Linux a command (see `guest-init.sh`) and does not wait.
    ///
    /// # Errors
    ///
    /// If QEMU is gone.
    pub fn send(&self, command: &str) -> Result<()> {
        use std::io::Write as _;
        let mut stdin = lock(&self.stdin);
        let text = format!("{command}\n");
        stdin.write_all(text.as_bytes()).with_context(|| format!("guest {}: {command}", self.name))
    }

    /// Gives Linux a command that ends, and waits until it has.
    ///
    /// # Errors
    ///
    /// If QEMU is gone, or Linux does not say that it is done in time.
    pub fn run(&self, command: &str, timeout: Duration) -> Result<Duration> {
        let mark = self.mark();
        self.send(command)?;
        let verb = command.split_whitespace().next().unwrap_or_default();
        self.wait_for_after(mark, &format!("DONE {verb}"), timeout)
    }

    /// Carries out a QMP command on the test's own socket; `arguments` may be null.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`], and if it has no monitor.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        let answer = self.monitor().and_then(|mut qmp| qmp.execute(command, arguments));
        answer.with_context(|| format!("guest {}", self.name))
    }

    fn monitor(&self) -> Result<MutexGuard<'_, Qmp>> {
        self.qmp.as_ref().map(lock).context("it has no monitor")
    }

    /// The dword at a physical address of the machine.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`], and if QEMU shows something else.
    pub fn dword_at(&self, address: u64) -> Result<u32> {
        let command = json!({ "command-line": format!("xp /1wx {address:#x}") });
        let answer = self.qmp("human-monitor-command", &command)?;
        let digits = answer.as_str().and_then(|text| text.trim().rsplit_once("0x"));
        let (_, digits) = digits.with_context(|| format!("no memory in {answer}"))?;
        u32::from_str_radix(digits, 16).with_context(|| format!("no dword in {answer}"))
    }

    /// What a display in VGA's text mode shows, a line a row; nonsense in any other mode.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn text_on_display(&self) -> Result<String> {
        const ROWS: usize = 25;
        const COLUMNS: usize = 80;
        let command = format!("xp /{}hx 0xb8000", ROWS * COLUMNS);
        let answer = self.qmp("human-monitor-command", &json!({ "command-line": command }))?;
        // A letter and its colours each.
        let cells = answer.as_str().unwrap_or_default().split_whitespace();
        let cells = cells.filter_map(|word| u16::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        let letters: Vec<char> = cells.map(|cell| char::from(cell.to_le_bytes()[0])).collect();
        let rows = letters.chunks(COLUMNS).map(|row| row.iter().collect::<String>());
        Ok(rows.collect::<Vec<_>>().join("\n"))
    }

    /// The QMP events since the last call.
    ///
    /// # Errors
    ///
    /// As [`Qmp::take_events`], and if it has no monitor.
    pub fn events(&self) -> Result<Vec<Value>> {
        self.monitor()?.take_events()
    }

    /// The `status` of `query-status`, such as `running` or `guest-panicked`.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn run_state(&self) -> Result<String> {
        let status = self.qmp("query-status", &Value::Null)?;
        let state = status.get("status").and_then(Value::as_str);
        state.map(str::to_owned).ok_or_else(|| anyhow!("query-status: no status in {status}"))
    }

    /// Whether its firmware has handed over to its boot sector: the first vCPU is within the first bytes at 0000:7c00, and not
    /// at that offset in a segment of the firmware's.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub fn runs_its_boot_sector(&self) -> Result<bool> {
        let registers = json!({ "command-line": "info registers" });
        let text = self.qmp("human-monitor-command", &registers)?;
        let text = text.as_str().context("info registers prints no text")?;
        Ok(text.contains("EIP=00007c0") && text.contains("CS =0000 00000000"))
    }

    /// Whether QEMU runs still (a stopped machine's does).
    pub fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Waits until QEMU ended by itself.
    ///
    /// # Errors
    ///
    /// After `timeout`, or on a signal.
    pub fn wait_for_exit(&self, timeout: Duration) -> Result<ExitStatus> {
        interrupt::wait_until(&format!("exit of {}", self.name), timeout, || {
            Ok(lock(&self.child).try_wait()?)
        })
    }

    /// Sends QEMU a signal, such as `Signal::STOP` and `Signal::CONT`.
    ///
    /// # Errors
    ///
    /// If QEMU is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Held so that no other thread reaps the child in between, and the pid is still its own.
        let mut child = lock(&self.child);
        if child.try_wait()?.is_some() {
            bail!("guest {}: QEMU is gone", self.name);
        }
        rustix::process::kill_process(self.pid, signal).context("cannot signal QEMU")
    }

    /// Kills QEMU and waits until it is gone. Returns how it ended: it may have been gone before.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = lock(&self.child);
        reap(&mut child).with_context(|| format!("guest {}", self.name))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
