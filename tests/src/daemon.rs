//! The daemon under test, with every directory of its own: several may run on one machine.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::command;
use crate::console::Log;
use crate::interrupt;
use crate::seccomp;

/// Loading the programs and attaching them takes a second or two; a busy machine more.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the daemon may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What `timeout` ends a client after, in seconds: a client must not hang with its daemon.
const CLIENT_TIMEOUT: &str = "20";

/// A daemon to be. Start from [`DaemonConfig::new`] and set what differs.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The program.
    pub binary: PathBuf,
    /// A program, and its arguments, that runs the daemon in its own place: `env`, `setpriv`.
    pub prefix: Vec<String>,
    /// Which executables' VMs it manages: globs; none: its own defaults.
    pub executables: Vec<String>,
    /// Users whose VMs it manages, by id; none: those of all users.
    pub users: Vec<u32>,
    /// `recover` or `observe`.
    pub mode: String,
    /// Silence before a VM is suspected.
    pub flat_for: Duration,
    /// Time given to a VM that starts.
    pub boot_grace: Duration,
    /// Time from one tick to the next.
    pub sample_interval: Duration,
    /// Where it serves its metrics: `off`, since several may run on one machine.
    pub metrics: String,
    /// A system call that is refused it (`EPERM`), as a seccomp filter or a security module would.
    pub refused_call: Option<libc::c_long>,
    /// More lines for the configuration; they come last, in `[detection]` until they name another table.
    pub extra_toml: String,
}

/// An address of this host on which no program listens now, and which is not handed out again soon.
///
/// # Errors
///
/// If no port is free.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?)
}

/// A running daemon, with its directories below one; dropping it ends it and unmounts its bpffs.
#[derive(Debug)]
pub struct Daemon {
    config: DaemonConfig,
    config_path: PathBuf,
    child: Option<Child>,
    log: Log,
    // After `child`: what the daemon pinned lives as long as this.
    _bpffs: Bpffs,
}

/// A bpffs of its own, so that nothing that a test pins outlives it.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl DaemonConfig {
    /// A daemon that recovers what the one `executable` runs, ten times as hasty as an operator's.
    pub fn new(binary: &Path, executable: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            prefix: Vec::new(),
            executables: vec![executable.display().to_string()],
            users: Vec::new(),
            mode: "recover".to_owned(),
            flat_for: Duration::from_secs(5),
            boot_grace: Duration::from_secs(10),
            sample_interval: Duration::from_secs(1),
            metrics: "off".to_owned(),
            refused_call: None,
            extra_toml: String::new(),
        }
    }

    fn toml(&self, dir: &Path) -> String {
        let Self { executables, users, mode, metrics, extra_toml, .. } = self;
        // JSON's strings and lists of strings are TOML's too.
        let path = |name: &str| json!(dir.join(name).display().to_string());
        let mut toml = String::new();
        let [flat_for, boot_grace, sample_interval] =
            [self.flat_for, self.boot_grace, self.sample_interval].map(humantime::format_duration);
        let executables = match executables.as_slice() {
            [] => String::new(),
            some => format!("executables = {}\n", json!(some)),
        };
        let users = json!(users);
        // Writing to a String cannot fail.
        let _ = write!(
            toml,
            "mode = {}\n\n\
             [paths]\nstate_dir = {}\nruntime_dir = {}\nbpffs_dir = {}\n\n\
             [discovery]\n{executables}users = {users}\n\n\
             [metrics]\nlisten = {}\n\n\
             [detection]\nflat_for = \"{flat_for}\"\nboot_grace = \"{boot_grace}\"\n\
             sample_interval = \"{sample_interval}\"\n\n{extra_toml}\n",
            json!(mode),
            path("state"),
            path("run"),
            path("bpf/flatline"),
            json!(metrics),
        );
        toml
    }
}

impl Daemon {
    /// Starts the daemon in `dir` and waits until it answers.
    ///
    /// # Errors
    ///
    /// If `dir` cannot be prepared (root is needed), or the daemon ends or does not answer within
    /// 20 s: with its log.
    pub fn start(config: &DaemonConfig, dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir)?;
        for name in ["state", "run"] {
            std::fs::create_dir_all(dir.join(name))
                .with_context(|| format!("cannot make {}", dir.join(name).display()))?;
        }
        let bpffs = Bpffs::mount(dir.join("bpf"))?;
        let config_path = dir.join("flatline.toml");
        std::fs::write(&config_path, config.toml(&dir))
            .context("cannot write the configuration")?;
        let mut daemon = Self {
            config: config.clone(),
            config_path,
            child: None,
            log: Log::new(),
            _bpffs: bpffs,
        };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts the daemon once more, after [`Self::terminate`] or [`Self::kill`], with what its
    /// predecessor left: state, pins, sockets.
    ///
    /// # Errors
    ///
    /// As [`Self::start`], and if it runs still.
    pub fn start_again(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the daemon runs already");
        }
        let mut words = self.config.prefix.iter().map(OsStr::new).collect::<Vec<_>>();
        words.push(self.config.binary.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["run", "--config"]).arg(&self.config_path);
        // It is to log to its stderr, also where systemd started the tests.
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        // A process group of its own: Ctrl-C is for the harness.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(call) = self.config.refused_call {
            seccomp::refuse(&mut command, call)?;
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.config.binary.display()))?;
        let stderr = child.stderr.take().context("the pipe was asked for")?;
        self.log.drain(stderr);
        self.child = Some(child);
        let started = interrupt::wait_until("an answer of the daemon", START_TIMEOUT, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                // The drain may be behind the end by a moment.
                std::thread::sleep(Duration::from_millis(50));
                bail!("the daemon ended at once: {status}");
            }
            Ok(self.status().ok())
        });
        match started {
            Ok(_) => Ok(()),
            Err(error) => {
                // Before it is read: what the daemon says while it ends may tell why.
                let _ = self.kill();
                Err(error.context(format!("the daemon's log:\n{}", self.log.text())))
            }
        }
    }

    /// Another program for the next start, as after an upgrade, and for clients from now on.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.config.binary);
    }

    /// Where its configuration is, for clients that are run by hand.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// Runs the program as a client: `arguments`, then `--config FILE`. A status other than 0 is no
    /// error here.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn client(&self, arguments: &[&str]) -> Result<Output> {
        Command::new("timeout")
            .arg(CLIENT_TIMEOUT)
            .arg(&self.config.binary)
            .args(arguments)
            .arg("--config")
            .arg(&self.config_path)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.config.binary.display()))
    }

    fn successful_client(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let Output { status, stdout, stderr } = self.client(arguments)?;
        if !status.success() {
            bail!("{arguments:?}: {status}: {}", String::from_utf8_lossy(&stderr).trim());
        }
        Ok(stdout)
    }

    /// What `status --json` says.
    ///
    /// # Errors
    ///
    /// If the daemon cannot be reached, or the client prints no JSON.
    pub fn status(&self) -> Result<Value> {
        let output = self.successful_client(&["status", "--json"])?;
        serde_json::from_slice(&output).context("status --json printed no JSON")
    }

    /// What `show VM --json` says.
    ///
    /// # Errors
    ///
    /// As [`Self::status`], and if there is no such VM.
    pub fn show(&self, vm: &str) -> Result<Value> {
        let output = self.successful_client(&["show", vm, "--json"])?;
        serde_json::from_slice(&output).context("show --json printed no JSON")
    }

    /// What `incidents --json` says, in its order.
    ///
    /// # Errors
    ///
    /// As [`Self::status`].
    pub fn incidents(&self) -> Result<Vec<Value>> {
        let output = self.successful_client(&["incidents", "--json"])?;
        String::from_utf8_lossy(&output)
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// What the daemon logged, over all its starts.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log.text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Asks the daemon to end, and waits up to 10 s.
    ///
    /// # Errors
    ///
    /// If it does not run, or had to be killed.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the daemon does not run")?;
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM)?;
        // Also after a signal to the harness, hence not by `interrupt`'s means.
        let end = std::time::Instant::now() + END_TIMEOUT;
        while std::time::Instant::now() < end {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill()?;
        child.wait()?;
        bail!("the daemon did not end within {END_TIMEOUT:?}, and was killed");
    }

    /// Kills the daemon, as a crash would, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        Ok(child.wait()?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.terminate()
        {
            eprintln!("{error:#}");
        }
    }
}

impl Bpffs {
    /// Mounts it on a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made, or nothing be mounted on it.
    pub fn mount(path: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        command::run("mount", ["-t".as_ref(), "bpf".as_ref(), "bpf".as_ref(), path.as_os_str()])?;
        Ok(Self(path))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = command::run("umount", [&self.0]) {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_quotes_what_toml_must_have_quoted() {
        let mut config = DaemonConfig::new(Path::new("flatline"), Path::new("/tmp/a \"b\"/qemu"));
        config.flat_for = Duration::from_millis(1500);
        config.extra_toml = "[recovery]\nmax_restarts = 1".to_owned();
        let toml = config.toml(Path::new("/d"));
        assert!(toml.starts_with("mode = \"recover\"\n\n[paths]\nstate_dir = \"/d/state\"\n"));
        assert!(toml.contains("bpffs_dir = \"/d/bpf/flatline\"\n"));
        assert!(toml.contains(r#"executables = ["/tmp/a \"b\"/qemu"]"#));
        assert!(toml.contains("flat_for = \"1s 500ms\"\n"));
        assert!(toml.contains("[metrics]\nlisten = \"off\"\n"));
        config.executables.clear();
        assert!(!config.toml(Path::new("/d")).contains("executables"));
        assert!(toml.ends_with("[recovery]\nmax_restarts = 1\n"));
    }
}
