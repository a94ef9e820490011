//! Stand-ins for the programs of owners, put where the daemon looks first, for as long as a test needs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Where the stand-ins look VMs up: the daemon hands them nothing but arguments.
pub const TABLE: &str = "/run/flatline-test-owners";
/// The first folder in which the daemon looks for programs.
const FIRST: &str = "/usr/local/sbin";
/// The others.
const OTHERS: [&str; 5] = ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A stand-in; dropping it removes it.
#[derive(Debug)]
pub struct StandIn(PathBuf);

impl StandIn {
    /// Puts `program` in place as `name`; `None` where the host has a real one that `is_used`.
    ///
    /// # Errors
    ///
    /// If it can't be put there.
    pub fn put(program: &Path, name: &str, is_used: bool) -> Result<Option<Self>> {
        let path = Path::new(FIRST).join(name);
        let is_real = OTHERS.iter().any(|folder| Path::new(folder).join(name).exists());
        if path.exists() || is_real && is_used {
            return Ok(None);
        }
        std::fs::create_dir_all(FIRST)?;
        std::fs::create_dir_all(TABLE)?;
        std::fs::copy(program, &path).with_context(|| format!("cannot make {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Some(Self(path)))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A VM that the stand-ins know; dropping it makes them forget it.
#[derive(Debug)]
pub struct Entry(PathBuf);

impl Entry {
    /// Enters it by this name.
    ///
    /// # Errors
    ///
    /// If the table can't be written.
    pub fn new(name: &str, entry: &Value) -> Result<Self> {
        std::fs::create_dir_all(TABLE)?;
        let path = Path::new(TABLE).join(name);
        std::fs::write(&path, entry.to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A group in the hierarchy that systemd uses, with one process in it. Dropping it removes it, and puts what
/// is in it back where the hierarchy begins.
#[derive(Debug)]
pub struct UnitGroup {
    made: Vec<PathBuf>,
    root: PathBuf,
}

impl UnitGroup {
    /// Makes the group `path`, such as `qemu.slice/100.scope`, and moves the process there; `None` where there is no
    /// hierarchy that may be used.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn new(path: &str, pid: u32) -> Result<Option<Self>> {
        let roots = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let is_root = |root: &&&str| Path::new(root).join("cgroup.procs").exists();
        let Some(root) = roots.iter().find(is_root) else { return Ok(None) };
        let mut group = Self { made: Vec::new(), root: PathBuf::from(root) };
        let mut at = PathBuf::from(root);
        for part in path.split('/') {
            at.push(part);
            if !at.exists() {
                std::fs::create_dir(&at)
                    .with_context(|| format!("cannot make {}", at.display()))?;
                group.made.push(at.clone());
            }
        }
        std::fs::write(at.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move process {pid} to {}", at.display()))?;
        Ok(Some(group))
    }
}

impl Drop for UnitGroup {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let pids = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines() {
                // It may have ended.
                let _ = std::fs::write(self.root.join("cgroup.procs"), pid);
            }
            // The kernel takes a moment to see that a process has ended.
            for _ in 0..20 {
                if std::fs::remove_dir(path).is_ok() || !path.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}
