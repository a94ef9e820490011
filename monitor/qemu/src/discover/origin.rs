//! The user and the control groups that a QEMU runs in, for a start of the same once it is gone.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{DiscoverError, common::Common, proc};

/// Where distributions mount the control groups.
const MOUNT: &str = "/sys/fs/cgroup";

/// The user and the control groups of a QEMU, as they were when it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The real user id.
    pub uid: u32,
    /// The real group id.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// The folder of its control group in each hierarchy in which it has one that is not the root.
    pub cgroups: Vec<PathBuf>,
}

/// Reads it of `pid`.
pub(super) fn read(pid: u32) -> Result<Origin, DiscoverError> {
    parse(pid, &proc::status(pid)?, &proc::cgroups(pid)?, &mut Common::new())
}

/// The same, where the texts of its `status` and its `cgroup` are there.
pub(super) fn parse(
    pid: u32,
    status: &str,
    cgroups: &str,
    common: &mut Common,
) -> Result<Origin, DiscoverError> {
    let malformed = || DiscoverError::Malformed { pid, file: "status".to_owned() };
    let origin = parse_ids(status).ok_or_else(malformed)?;
    Ok(Origin { cgroups: common.folders(cgroups), ..origin })
}

impl Origin {
    /// Reads which user the process `pid` is of by now: one that root started may have become another user's (`-runas`).
    ///
    /// # Errors
    /// If there is no such process, or it can't be read.
    pub fn of(pid: u32) -> Result<Self, DiscoverError> {
        read(pid)
    }

    /// Takes the user of `now`, where this was root's until then, and that is another one. Returns whether it was so.
    pub fn become_of(&mut self, now: Self) -> bool {
        let has_become = self.uid == 0 && now.uid != 0;
        if has_become {
            let cgroups = std::mem::take(&mut self.cgroups);
            *self = Self { cgroups, ..now };
        }
        has_become
    }
}

/// The ids in `/proc/PID/status`.
pub(super) fn parse_ids(status: &str) -> Option<Origin> {
    let first = |field| proc::ids(status, field)?.first().copied();
    let (uid, gid) = (first("Uid:")?, first("Gid:")?);
    Some(Origin { uid, gid, groups: proc::ids(status, "Groups:")?, cgroups: Vec::new() })
}

/// The folders of the groups in `/proc/PID/cgroup`. One that lies outside of our own namespace is left out, and so
/// are the roots: a process that is there was put nowhere.
pub(super) fn folders(text: &str, is_group: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let folder_of = |(controllers, path): (&str, &str)| {
        let path = Path::new(path.strip_prefix('/')?);
        let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
        if path.as_os_str().is_empty() || !is_below {
            return None;
        }
        let controllers = controllers.strip_prefix("name=").unwrap_or(controllers);
        // Version 2 has the whole mount, or a folder of it beside version 1; of that, controllers that share a
        // hierarchy have a folder, and links to it.
        let mounts = match controllers {
            "" => vec!["unified", ""],
            _ => std::iter::once(controllers).chain(controllers.split(',')).collect(),
        };
        let mounts = mounts.into_iter().map(|mount| Path::new(MOUNT).join(mount));
        mounts.map(|mount| mount.join(path)).find(|folder| is_group(folder))
    };
    proc::cgroup_lines(text).filter_map(folder_of).collect()
}

/// Whether a control group is there still.
pub fn is_there(cgroup: &Path) -> bool {
    fs::exists(cgroup.join("cgroup.procs")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::{Origin, folders, parse_ids, read};

    fn found(text: &str) -> Vec<String> {
        let folders = folders(text, |folder| !folder.starts_with("/sys/fs/cgroup/unified"));
        folders.iter().map(|folder| folder.display().to_string()).collect()
    }

    #[test]
    fn the_group_of_each_hierarchy_is_where_that_is_mounted() {
        let text = "12:cpu,cpuacct:/vms/web\n2:name=systemd:/system.slice/web.service\n3:pids:/\n\
                    0::/vms/web\n";
        let expected = [
            "/sys/fs/cgroup/cpu,cpuacct/vms/web",
            "/sys/fs/cgroup/systemd/system.slice/web.service",
            "/sys/fs/cgroup/vms/web",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_lies_outside_and_what_is_garbage_is_none() {
        assert!(found("0::/../../web\n0::/a/../b\nx\n5:\n::\n0:cpu:web\n").is_empty());
    }

    #[test]
    fn the_ids_are_the_real_ones() {
        let status = "Name:\tqemu\nUid:\t107\t0\t0\t0\nGid:\t108\t0\t0\t0\nGroups:\t5 36 \n";
        let expected = Origin { uid: 107, gid: 108, groups: vec![5, 36], cgroups: Vec::new() };
        assert_eq!(parse_ids(status), Some(expected));
        assert!(parse_ids("Uid:\t1\nGid:\t1\nGroups:\t \n").unwrap().groups.is_empty());
        assert_eq!(parse_ids("Uid:\t1\nGid:\tx\nGroups:\t\n"), None);
        assert_eq!(parse_ids("Uid:\t1\nGid:\t1\n"), None);
    }

    #[test]
    fn only_roots_becomes_another_users_and_stays_where_it_was_put() {
        let of = |uid, group: &str| Origin {
            uid,
            gid: uid,
            groups: Vec::new(),
            cgroups: vec![group.into()],
        };
        let mut origin = of(0, "/vms/web");
        assert!(!origin.become_of(of(0, "/")));
        assert!(origin.become_of(of(107, "/")));
        assert_eq!(origin, of(107, "/vms/web"));
        assert!(!origin.become_of(of(108, "/")) && !origin.become_of(of(0, "/")));
        assert_eq!(origin.uid, 107);
    }

    #[test]
    fn our_own_is_read() {
        let own = read(std::process::id()).unwrap();
        assert_eq!(own.uid, rustix::process::getuid().as_raw());
        assert!(own.cgroups.iter().all(|folder| super::is_there(folder)));
    }
}
