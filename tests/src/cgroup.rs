//! Groups of the kernel's first version of cgroups, of a test's own, by which a QEMU is frozen or throttled.
//!
//! Where a host has the second version only, there are none, and callers are told so.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Tells groups of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// The period of a CPU quota: the kernel's default.
const PERIOD: Duration = Duration::from_millis(100);

/// A group with one process in it. Dropping it puts the process back where it was, and removes the group.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Where the process was before.
    home: PathBuf,
    pid: u32,
}

impl Cgroup {
    /// Freezes a process.
    ///
    /// # Errors
    ///
    /// If there is no freezer of the first version, or the kernel refuses.
    pub fn freeze(pid: u32) -> Result<Self> {
        let group = Self::with("freezer", pid)?;
        group.write("freezer.state", "FROZEN")?;
        Ok(group)
    }

    /// Leaves a process this share of one CPU's time.
    ///
    /// # Errors
    ///
    /// If there are no quotas of the first version, or the kernel refuses.
    pub fn throttle(pid: u32, share: f64) -> Result<Self> {
        let group = Self::with("cpu", pid)?;
        let quota = PERIOD.mul_f64(share);
        group.write("cpu.cfs_period_us", &PERIOD.as_micros().to_string())?;
        group.write("cpu.cfs_quota_us", &quota.as_micros().to_string())?;
        Ok(group)
    }

    /// Makes a group of this controller, and moves the process there with all its threads.
    fn with(controller: &str, pid: u32) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup").join(controller);
        ensure!(
            root.join("tasks").exists(),
            "no cgroups of the first version with {controller} here"
        );
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let now = group_of(&text, controller).context("the process is in no such group")?;
        let home = root.join(now.trim_start_matches('/'));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("fl-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { path, home, pid };
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        write(&self.path.join(file), text)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A frozen process leaves its group no sooner than it is thawed.
        let state = self.path.join("freezer.state");
        let thawed = if state.exists() { write(&state, "THAWED") } else { Ok(()) };
        // It may be gone: then there is nothing to move.
        let _ = write(&self.home.join("cgroup.procs"), &self.pid.to_string());
        let removed = std::fs::remove_dir(&self.path).map_err(anyhow::Error::from);
        if let Err(error) = thawed.and(removed) {
            eprintln!("{}: {error:#}", self.path.display());
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
}

/// The group of `/proc/PID/cgroup` that has this controller.
fn group_of<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|each| each == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_controller_among_those_that_share_it() {
        let text = "4:freezer:/a\n3:cpu,cpuacct:/b:c\n0::/unified\n";
        assert_eq!(group_of(text, "cpu"), Some("/b:c"));
        assert_eq!(group_of(text, "freezer"), Some("/a"));
        assert_eq!(group_of(text, "cpuset"), None);
    }
}
