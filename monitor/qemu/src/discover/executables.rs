//! Executables that may be QEMUs, by the numbers of their inodes: the kernel knows a program by its inode when a process
//! executes it.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::Scope;

/// Most files that patterns may name: a host has some dozens of QEMUs, one for each architecture.
const EXECUTABLES: usize = 512;
/// A pattern with this walks whole trees.
const ANY_DEPTH: &str = "**";

/// The numbers of the inodes of all files that `scope` names in this mount namespace. `None` where they are too many to be
/// looked for, or may be anywhere.
pub fn executables(scope: &Scope) -> Option<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for pattern in &scope.executables {
        if pattern.as_str().contains(ANY_DEPTH) {
            return None;
        }
        // The pattern was compiled once already, so that it is one.
        for path in glob::glob_with(pattern.as_str(), Scope::MATCHING).ok()?.flatten() {
            inodes.extend(inode_of(&path));
            if inodes.len() > EXECUTABLES {
                return None;
            }
        }
    }
    Some(inodes)
}

/// The number of the inode of what a process executes; `None` where that can't be told.
pub fn executable_inode(pid: u32) -> Option<u64> {
    inode_of(Path::new(&format!("/proc/{pid}/exe")))
}

/// Asks no server of a network file system.
fn inode_of(path: &Path) -> Option<u64> {
    statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok().map(|found| found.stx_ino)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn scope(patterns: &[String]) -> Scope {
        let pattern = |text: &String| glob::Pattern::new(text).expect("a pattern");
        Scope { executables: patterns.iter().map(pattern).collect(), users: Vec::new() }
    }

    #[test]
    fn files_that_are_named_count_by_their_inodes_also_through_a_link_and_after_an_upgrade() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("qemu-system-a"), "").expect("a file");
        fs::write(at("other"), "").expect("a file");
        std::os::unix::fs::symlink(at("qemu-system-a"), at("kvm")).expect("a link");
        let inode = |name| fs::metadata(at(name)).expect("a file").ino();
        let scope =
            scope(&["qemu-system-*", "kvm", "none"].map(|name| at(name).display().to_string()));
        let old = inode("qemu-system-a");
        assert_eq!(executables(&scope), Some(BTreeSet::from([old])));
        fs::write(at("new"), "").expect("a file");
        fs::rename(at("new"), at("qemu-system-a")).expect("an upgrade");
        assert_ne!(inode("qemu-system-a"), old);
        assert_eq!(executables(&scope), Some(BTreeSet::from([inode("qemu-system-a")])));
    }

    #[test]
    fn patterns_of_any_depth_and_of_very_many_files_are_not_looked_for() {
        assert_eq!(executables(&scope(&["/**/qemu".to_owned()])), None);
        let dir = tempfile::tempdir().expect("a directory");
        for n in 0..=EXECUTABLES {
            fs::write(dir.path().join(n.to_string()), "").expect("a file");
        }
        assert_eq!(executables(&scope(&[dir.path().join("*").display().to_string()])), None);
    }

    #[test]
    fn what_a_process_executes_is_told_by_its_inode() {
        let own = std::env::current_exe().and_then(fs::metadata).expect("our own").ino();
        assert_eq!(executable_inode(std::process::id()), Some(own));
        assert_eq!(executable_inode(u32::MAX), None);
    }
}
