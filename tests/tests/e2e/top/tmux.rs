//! A terminal that a test can read: a tmux server of its own, with one shell in it.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use flatline_tests::{command, interrupt::wait_until};

/// What the shell shows when it waits for a command.
pub(super) const PROMPT: &str = "ready>";

/// The server; dropping it ends it with all that runs in it.
pub(super) struct Tmux {
    socket: PathBuf,
}

/// Why there is no tmux; `None` if there is.
pub(super) fn missing() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|folder| folder.join("tmux").is_file());
    (!found).then(|| "there is no tmux (Debian's package `tmux`)".to_owned())
}

impl Tmux {
    /// Starts one whose terminal has so many columns and lines.
    pub(super) fn start(dir: &Path, (columns, lines): (u16, u16)) -> Result<Self> {
        let tmux = Self { socket: dir.join("tmux") };
        // Neither the settings nor the prompt of the user that runs the tests.
        let shell = format!("PS1='{PROMPT} ' PROMPT_COMMAND= exec bash --norc --noprofile -i");
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let arguments = ["new-session", "-d", "-x", &columns, "-y", &lines, &shell];
        let mut command = tmux.command(&arguments);
        command.env_remove("TMUX").env_remove("NO_COLOR").env_remove("NO_UNICODE");
        command::run_command(command.env("LC_ALL", "C.UTF-8"))?;
        tmux.wait_for("the prompt", |screen| screen.contains(PROMPT))?;
        Ok(tmux)
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = command::run_command(&mut self.command(arguments))?;
        Ok(String::from_utf8(output)?)
    }

    /// Presses keys, by tmux's names of them.
    pub(super) fn press(&self, keys: &[&str]) -> Result<()> {
        self.run(&[&["send-keys"], keys].concat()).map(|_| ())
    }

    /// Types a line into the shell.
    pub(super) fn enter(&self, line: &str) -> Result<()> {
        self.run(&["send-keys", "-l", line])?;
        self.press(&["Enter"])
    }

    pub(super) fn resize(&self, (columns, lines): (u16, u16)) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.run(&["resize-window", "-x", &columns, "-y", &lines]).map(|_| ())
    }

    /// The process that the shell waits for now.
    pub(super) fn child(&self) -> Result<u32> {
        let shell = self.run(&["display-message", "-p", "#{pane_pid}"])?;
        let shell = shell.trim();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let child = children.split_whitespace().next().context("the shell waits for nothing")?;
        Ok(child.parse()?)
    }

    /// What is on the screen.
    pub(super) fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// The same with the codes for colours and the like.
    pub(super) fn coloured_screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// Waits until the screen is as `wanted`; returns it.
    pub(super) fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_within(what, Duration::from_secs(15), wanted)
    }

    pub(super) fn wait_within(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let mut last = String::new();
        let found = wait_until(what, limit, || {
            last = self.screen()?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        match found {
            Ok(screen) => Ok(screen),
            Err(error) => bail!("{error:#}; on the screen:\n{last}"),
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["kill-server"]) {
            eprintln!("tmux: {error:#}");
        }
    }
}
