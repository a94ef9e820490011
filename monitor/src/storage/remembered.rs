//! What is known of all VMs, for a daemon that comes after one that was killed: `STATE_DIR/vms.jsonl`, a line for each after one that
//! says by which program and since which start of the host.
//!
//! It saves that daemon reading a thousand processes before it counts on. It is believed of processes that live still, and only
//! by the very program that wrote it: another one may know a VM otherwise. What can't be read of it is found by a sweep.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::debug;

use super::incidents::{StoreError, read_bounded, write_whole};
use flatline_qemu::discover::{Scope, Vm, recall, to_remember};

const FILE: &str = "vms.jsonl";
/// A longer one was not written by us: a VM takes a kilobyte or two.
const MOST_BYTES: u64 = 64 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    state_dir: PathBuf,
    /// The first line, without its end.
    first: String,
}

impl Remembered {
    /// That of this program; `None` where the kernel doesn't tell which one that is: nothing is remembered then.
    pub(crate) fn new(state_dir: &Path) -> Option<Self> {
        let boot = fs::read_to_string(BOOT_ID).ok()?;
        let program = fs::metadata("/proc/self/exe").ok()?;
        let first = serde_json::json!({
            "flatline": env!("CARGO_PKG_VERSION"),
            "boot": boot.trim(),
            "device": program.dev(),
            "inode": program.ino(),
            "bytes": program.size(),
            "modified": [program.mtime(), program.mtime_nsec()],
        });
        Some(Self { state_dir: state_dir.to_owned(), first: first.to_string() })
    }

    /// Writes down what is known of these.
    ///
    /// # Errors
    /// If the file can't be written; the one before stays.
    pub(crate) fn write(&self, vms: &[Arc<Vm>]) -> Result<(), StoreError> {
        let mut text = self.first.clone();
        for line in vms.iter().filter_map(|vm| to_remember(vm)) {
            text.push('\n');
            text.push_str(&line);
        }
        text.push('\n');
        write_whole(&self.state_dir, FILE, text.as_bytes())
    }

    /// Those that live still and are in scope; none where another program wrote it, or during another start of the host.
    pub(crate) fn recall(&self, scope: &Scope) -> Vec<Vm> {
        let text = match read_bounded(&self.state_dir.join(FILE), MOST_BYTES) {
            Ok(text) => text,
            Err(error) => {
                debug!("no VMs are remembered: {error}");
                return Vec::new();
            }
        };
        let mut lines = text.split(|byte| *byte == b'\n');
        if lines.next() != Some(self.first.as_bytes()) {
            debug!(
                "what is remembered of VMs was written by another program, or before the host was started"
            );
            return Vec::new();
        }
        lines.filter_map(|line| recall(line, scope)).collect()
    }
}

#[cfg(test)]
mod tests {
    use flatline_qemu::discover::{Ownership, VmId, start_ticks};
    use glob::Pattern;

    use super::*;

    fn ourselves(name: &str) -> Arc<Vm> {
        let mut vm = Vm::stand_in(Ownership::bare(), &[]);
        let pid = std::process::id();
        vm.id = VmId { pid, start_ticks: start_ticks(pid).unwrap() };
        vm.name = name.to_owned();
        Arc::new(vm)
    }

    fn names(remembered: &Remembered) -> Vec<String> {
        let executables = vec![Pattern::new("/usr/bin/*").unwrap()];
        let recalled = remembered.recall(&Scope { executables, users: Vec::new() });
        recalled.into_iter().map(|vm| vm.name).collect()
    }

    #[test]
    fn what_was_written_last_is_recalled_by_the_same_program_since_the_same_start() {
        let directory = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(directory.path()).unwrap();
        assert!(names(&remembered).is_empty(), "there is no file");
        remembered.write(&[ourselves("a")]).unwrap();
        remembered.write(&[ourselves("b"), ourselves("c")]).unwrap();
        assert_eq!(names(&remembered), ["b", "c"]);
        let other = Remembered { first: remembered.first.replace("boot", "Boot"), ..remembered };
        assert!(names(&other).is_empty());
    }

    #[test]
    fn of_a_torn_file_what_is_whole_is_recalled_and_one_that_is_too_long_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(directory.path()).unwrap();
        remembered.write(&[ourselves("b"), ourselves("c")]).unwrap();
        let path = directory.path().join(FILE);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        assert_eq!(names(&remembered), ["b"]);
        fs::write(&path, &text[..20]).unwrap();
        assert!(names(&remembered).is_empty());
        fs::File::options().write(true).open(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(names(&remembered).is_empty());
    }
}
