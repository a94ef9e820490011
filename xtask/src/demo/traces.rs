//! What the demo may leave behind, and the proof that it doesn't.
//!
//! The guards of the harness clean up; here is looked for what they missed. A second Ctrl-C also ends
//! the `umount` or `ip` that a guard runs, so that these are tried once more.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flatline_tests::command;
use serde_json::Value;

use super::screen::Screen;
use crate::process::find_program;

/// The kernel frees programs and namespaces some time after their last user is gone.
const PATIENCE: Duration = Duration::from_secs(5);

const NAMESPACES: &str = "/run/netns";

/// Everything to look for once the demo is over.
pub(super) struct Traces {
    dir: PathBuf,
    /// The kernel's ids of the eBPF programs that use the daemon's maps.
    programs: BTreeSet<u32>,
    /// Interfaces of the host's own network before.
    interfaces: BTreeSet<String>,
}

/// A sentence that is true once the list is empty.
type Check = (String, fn(&Traces) -> Result<Vec<String>>);

impl Traces {
    /// To be taken before anything is started; `dir` is the demo's own directory.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let interfaces = names_in(Path::new("/sys/class/net"))?.into_iter().collect();
        Ok(Self { dir: dir.to_owned(), programs: BTreeSet::new(), interfaces })
    }

    /// Remembers the eBPF programs that use a running daemon's maps: it need not hold them itself, as their
    /// links are pinned.
    pub(super) fn note_programs(&mut self, daemon: u32) -> Result<()> {
        let Some(bpftool) = find_program("bpftool") else { return Ok(()) };
        let directory = PathBuf::from(format!("/proc/{daemon}/fdinfo"));
        let mut maps = BTreeSet::new();
        for name in names_in(&directory)? {
            // A descriptor may be closed meanwhile.
            let Ok(text) = fs::read_to_string(directory.join(name)) else { continue };
            let ids = text.lines().filter_map(|line| line.strip_prefix("map_id:"));
            maps.extend(ids.filter_map(|id| id.trim().parse::<u64>().ok()));
        }
        let output = command::run_command(Command::new(bpftool).args(["-j", "prog", "show"]))?;
        let shown: Value = serde_json::from_slice(&output).context("bpftool printed no JSON")?;
        for program in shown.as_array().into_iter().flatten() {
            let used = program["map_ids"].as_array().into_iter().flatten();
            if used.filter_map(Value::as_u64).any(|map| maps.contains(&map)) {
                let id = program["id"].as_u64().and_then(|id| u32::try_from(id).ok());
                self.programs.extend(id);
            }
        }
        Ok(())
    }

    /// Looks for everything, and prints what it looked for.
    ///
    /// # Errors
    ///
    /// If something is left: what.
    pub(super) fn verify(&self, screen: &mut Screen) -> Result<()> {
        self.clean_again();
        let mut checks: Vec<Check> = vec![
            ("no process: every QEMU and the daemon are gone".to_owned(), Self::processes),
            ("no mount: the daemon's bpffs is gone, and each pin with it".to_owned(), Self::mounts),
            (
                "no network namespace: its taps and their qdiscs went with it".to_owned(),
                Self::namespaces,
            ),
            ("no new interface in the host's own network".to_owned(), Self::new_taps),
            ("no directory: disks, sockets and records are deleted".to_owned(), Self::directory),
        ];
        if !self.programs.is_empty() && find_program("bpftool").is_some() {
            let sentence = format!(
                "no eBPF program: the kernel has freed the {} that were loaded",
                self.programs.len()
            );
            checks.push((sentence, Self::loaded_programs));
        }
        let mut failed = Vec::new();
        for (sentence, find) in checks {
            let left = self.wait_until_gone(find)?;
            if left.is_empty() {
                screen.say(&format!("   ok  {sentence}"));
            } else {
                screen.say(&format!(" LEFT  {}", left.join(", ")));
                failed.extend(left);
            }
        }
        if !failed.is_empty() {
            bail!("left behind: {}", failed.join(", "));
        }
        Ok(())
    }

    fn wait_until_gone(&self, find: fn(&Self) -> Result<Vec<String>>) -> Result<Vec<String>> {
        let begin = Instant::now();
        loop {
            let left = find(self)?;
            if left.is_empty() || begin.elapsed() > PATIENCE {
                return Ok(left);
            }
            // Not `interrupt::sleep`: this is also for after a signal.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn clean_again(&self) {
        // Whatever fails here is found, and told, afterwards.
        for mount in self.mounts().unwrap_or_default() {
            let _ = command::run("umount", [mount]);
        }
        for name in own_namespaces().unwrap_or_default() {
            let _ = command::run("ip", ["netns", "delete", name.as_str()]);
        }
        if self.mounts().is_ok_and(|mounts| mounts.is_empty()) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// Processes that run something from the directory, or were told of it.
    fn processes(&self) -> Result<Vec<String>> {
        let wanted = self.dir.as_os_str().as_bytes();
        let mut found = Vec::new();
        for pid in names_in(Path::new("/proc"))? {
            if pid.parse::<u32>().is_err() {
                continue;
            }
            // Its process may end meanwhile.
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if cmdline.windows(wanted.len()).any(|window| window == wanted) {
                found.push(format!("process {pid}"));
            }
        }
        Ok(found)
    }

    fn mounts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points
            .filter(|point| Path::new(point).starts_with(&self.dir))
            .map(str::to_owned)
            .collect())
    }

    fn namespaces(&self) -> Result<Vec<String>> {
        own_namespaces()
    }

    fn new_taps(&self) -> Result<Vec<String>> {
        let names = names_in(Path::new("/sys/class/net"))?.into_iter();
        Ok(names
            .filter(|name| name.starts_with(super::TAP) && !self.interfaces.contains(name))
            .collect())
    }

    fn directory(&self) -> Result<Vec<String>> {
        let exists = self.dir.try_exists().context("cannot look for the directory")?;
        Ok(exists.then(|| self.dir.display().to_string()).into_iter().collect())
    }

    fn loaded_programs(&self) -> Result<Vec<String>> {
        let bpftool = find_program("bpftool").unwrap_or_else(|| PathBuf::from("bpftool"));
        let mut found = Vec::new();
        for id in &self.programs {
            let mut command = Command::new(&bpftool);
            command.args(["prog", "show", "id", &id.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if command.status().context("bpftool")?.success() {
                found.push(format!("eBPF program {id}"));
            }
        }
        Ok(found)
    }
}

/// The network namespaces that this process's [`flatline_tests::netns::Netns`] made.
fn own_namespaces() -> Result<Vec<String>> {
    let prefix = format!("fl-{}-", std::process::id());
    let names = names_in(Path::new(NAMESPACES))?.into_iter();
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}

/// Names in a directory that are UTF-8; none if there is no such directory.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| directory.display().to_string()),
    };
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    Ok(names.filter_map(|name| OsStr::to_str(&name).map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_told_of_the_directory_is_found_until_it_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let traces = Traces::new(dir.path()).expect("readable /sys");
        assert_eq!(traces.processes().expect("/proc"), Vec::<String>::new());
        let mut command = Command::new("tail");
        command.args(["-f", "/dev/null"]).arg(dir.path().join("x")).stderr(Stdio::null());
        let mut child = command.spawn().expect("tail");
        let found = traces.wait_until_gone(|traces| {
            Ok(if traces.processes()?.is_empty() { vec!["none yet".to_owned()] } else { vec![] })
        });
        let name = format!("process {}", child.id());
        let seen = traces.processes().expect("/proc");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        assert!(found.expect("/proc").is_empty());
        assert_eq!(seen, [name]);
        assert_eq!(traces.processes().expect("/proc"), Vec::<String>::new());
    }

    #[test]
    fn a_directory_that_is_left_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let traces = Traces::new(dir.path()).expect("readable /sys");
        assert_eq!(traces.directory().expect("readable").len(), 1);
        drop(dir);
        assert!(traces.directory().expect("readable").is_empty());
    }
}
