//! Runs other programs for the tasks, so that a person always sees what is going on.
//!
//! Two ways: [`run`] lets a program write to the terminal itself (cargo, test runners: their own
//! progress and closing lines are better than any that could be made of them), [`run_quietly`] keeps
//! the output to itself, shows the elapsed time, and prints the last lines only if the program fails
//! (apt, `cargo install`: long, and of no interest while all is well).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of a failed program's last lines are shown.
const SHOWN_LINES: usize = 20;

/// How often the elapsed time is renewed: on a terminal in place, elsewhere (a CI log) as a new line.
const TERMINAL_TICK: Duration = Duration::from_secs(1);
const LOG_TICK: Duration = Duration::from_secs(30);

/// How long output is still read after the program has ended: a child that it left behind may hold
/// the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(300);

/// The workspace's root directory: the parent of this package's.
pub(crate) fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// The cargo that runs this task, or else the one in `PATH`.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// A command of that cargo, run at the workspace's root.
pub(crate) fn cargo_command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(cargo());
    command.args(arguments).current_dir(workspace_root());
    command
}

/// Where cargo installs programs: `$CARGO_HOME/bin` or `~/.cargo/bin`; `None` without a home.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    Some(home.join("bin"))
}

/// Directories in which programs are looked for: `PATH`, the system administrator's (an ordinary
/// user's `PATH` lacks them, yet `bpftool` and `ip` are there), and cargo's.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.extend(cargo_bin());
    directories
}

/// The first executable of that name in [`search_path`].
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|directory| directory.join(name)).find(|path| is_executable(path))
}

/// Whether the path is a file that some user may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What the program wrote to stdout, trimmed; `None` if it can't be run or fails.
pub(crate) fn capture(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it.
pub(crate) fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Tells which part of a task begins.
pub(crate) fn heading(text: &str) {
    eprintln!("==> {text}");
}

/// Runs the command with this process's stdout and stderr; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("could not start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs the command, shows `label` with the elapsed time, and the command's last lines if it fails.
pub(crate) fn run_quietly(label: &str, command: &mut Command) -> Result<()> {
    let line = display(command);
    let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
    let second = writer.try_clone().context("could not make a pipe")?;
    let mut progress = Progress::start(label);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .spawn()
        .with_context(|| format!("could not start `{line}`"))?;
    // The command still holds the pipe's writing ends; without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut last = VecDeque::new();
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => keep_last(&mut last, line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.tick();
        if ended.is_none() && child.try_wait().context("could not wait")?.is_some() {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|at| at.elapsed() > DRAIN) {
            break;
        }
    }
    let status = child.wait().context("could not wait")?;
    progress.end(if status.success() { "done" } else { "failed" });
    if !status.success() {
        for line in last {
            eprintln!("    {line}");
        }
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

fn keep_last(last: &mut VecDeque<String>, line: String) {
    if last.len() == SHOWN_LINES {
        last.pop_front();
    }
    last.push_back(line);
}

/// One line that tells what runs and for how long.
pub(crate) struct Progress {
    label: String,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    /// Shows the label at once.
    pub(crate) fn start(label: &str) -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        let progress = Self { label: label.to_owned(), started: now, shown: now, terminal };
        if terminal {
            progress.draw("");
        } else {
            eprintln!("{label} ...");
        }
        progress
    }

    /// Renews the elapsed time if it is due.
    pub(crate) fn tick(&mut self) {
        let due = if self.terminal { TERMINAL_TICK } else { LOG_TICK };
        if self.shown.elapsed() >= due {
            self.shown = Instant::now();
            if self.terminal {
                self.draw("");
            } else {
                eprintln!("{} ... {}", self.label, elapsed(self.started.elapsed()));
            }
        }
    }

    /// Closes the line.
    pub(crate) fn end(self, how: &str) {
        if self.terminal {
            self.draw(&format!(", {how}"));
            eprintln!();
        } else {
            eprintln!("{} {how} after {}", self.label, elapsed(self.started.elapsed()));
        }
    }

    fn draw(&self, end: &str) {
        let mut stderr = std::io::stderr().lock();
        // A terminal that can't be written to is no reason to stop the work.
        let _ =
            write!(stderr, "\r\x1b[K{} ... {}{end}", self.label, elapsed(self.started.elapsed()));
        let _ = stderr.flush();
    }
}

/// Whole seconds below two minutes, then minutes and seconds.
pub(crate) fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// A list variable of the environment, with one directory put before the others.
pub(crate) fn prepended(variable: &str, directory: &Path) -> Result<OsString> {
    let old = std::env::var_os(variable).unwrap_or_default();
    let others = std::env::split_paths(&old).filter(|path| !path.as_os_str().is_empty());
    std::env::join_paths(std::iter::once(directory.to_path_buf()).chain(others))
        .with_context(|| format!("{} can't stand in {variable}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_an_error_that_names_it() {
        let error = run_quietly("false", Command::new("sh").args(["-c", "exit 3"]));
        let text = error.expect_err("exit code 3").to_string();
        assert!(text.contains("sh -c 'exit 3'") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_command_that_leaves_a_child_with_the_pipe_behind_does_not_block() {
        let started = Instant::now();
        run_quietly("sleep", Command::new("sh").args(["-c", "sleep 5 & exit 0"])).expect("exit 0");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut last = VecDeque::new();
        (0..30).for_each(|n| keep_last(&mut last, n.to_string()));
        assert_eq!(last.len(), SHOWN_LINES);
        assert_eq!(last.back().map(String::as_str), Some("29"));
    }

    #[test]
    fn words_that_a_shell_would_split_are_quoted() {
        let mut command = Command::new("cargo");
        command.args(["a b", "it's", "", "-D=x"]);
        assert_eq!(display(&command), r"cargo 'a b' 'it'\''s' '' -D=x");
    }

    #[test]
    fn time_is_shown_in_minutes_from_two_on() {
        assert_eq!(elapsed(Duration::from_secs(119)), "119 s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2 min 5 s");
    }
}
