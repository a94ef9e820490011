//! What `/proc/PID/cgroup` says of what put a process where it is.
//!
//! systemd keeps its units in the hierarchy of version 2 and, beside version 1, in `name=systemd`; libvirt on a host
//! without systemd has the controllers' own.

use crate::discover::proc::cgroup_lines;

/// The groups of a process.
#[derive(Debug, Default)]
pub(super) struct Groups<'a> {
    /// Paths in which systemd keeps its units.
    units: Vec<&'a str>,
    /// All of them.
    all: Vec<&'a str>,
}

impl<'a> Groups<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut groups = Self::default();
        for (controllers, path) in cgroup_lines(text) {
            if matches!(controllers, "" | "name=systemd") {
                groups.units.push(path);
            }
            groups.all.push(path);
        }
        groups
    }

    /// The paths that only root can have put a process into: not those that are delegated to a user, nor what lies
    /// outside of our own namespace (`/../..`), nor what a container made below its own group.
    pub(super) fn of_host(&self) -> impl Iterator<Item = &'a str> {
        self.all.iter().copied().filter(|path| {
            let first = path.strip_prefix('/').and_then(|rest| rest.split('/').next());
            let is_of_root = first.is_some_and(|first| {
                let ends = |end| first.ends_with(end);
                first != "user.slice"
                    && ([".slice", ".service", ".scope", ".partition"].into_iter().any(ends)
                        || ["machine", "kubepods", "kata_overhead"].contains(&first))
            });
            is_of_root && !path.split('/').any(|part| part == ".." || is_user_manager(part))
        })
    }

    /// The unit of the host's systemd, with its whole path: the first part that is no slice (`cg_path_get_unit` in
    /// systemd's src/basic/cgroup-util.c).
    pub(super) fn unit(&self) -> Option<&'a str> {
        self.units
            .iter()
            .find_map(|path| path.split('/').skip(1).find(|part| !part.ends_with(".slice")))
            .filter(|unit| !unit.is_empty())
    }

    /// The first part of a path of the host that `wanted` takes, down to the first service or scope: what is below
    /// is that one's own.
    pub(super) fn find<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Option<(T, &'a str)> {
        self.of_host().find_map(|path| {
            for part in path.split('/') {
                if let Some(found) = wanted(part) {
                    return Some((found, path));
                }
                if part.ends_with(".service") || part.ends_with(".scope") {
                    break;
                }
            }
            None
        })
    }
}

/// The service manager of one user, which may arrange what is below as it likes.
fn is_user_manager(part: &str) -> bool {
    part.starts_with("user@") && part.ends_with(".service")
}

/// A unit's name with `\xNN` undone, as bytes that are no ASCII stay escaped.
pub(super) fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        out.push_str(before);
        let code = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[2..];
            }
            None => {
                out.push_str("\\x");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{Groups, unescape};

    #[test]
    fn a_unit_is_the_first_part_that_is_no_slice_in_either_version() {
        for text in [
            "0::/system.slice/system-qemu.slice/qemu@web.service\n",
            "12:cpu,cpuacct:/\n1:name=systemd:/system.slice/qemu@web.service/delegated\n0::/\n",
        ] {
            assert_eq!(Groups::parse(text).unit(), Some("qemu@web.service"), "{text}");
        }
        assert_eq!(Groups::parse("0::/\n").unit(), None);
        assert_eq!(Groups::parse("5:cpu:/system.slice/a.service\n").unit(), None);
    }

    #[test]
    fn what_a_user_may_arrange_is_none_of_the_hosts() {
        for path in [
            "/user.slice/user-1000.slice/user@1000.service/qemu.slice/100.scope",
            "/machine.slice/user@1000.service/machine-qemu.scope",
            "/../../qemu.slice/100.scope",
            "qemu.slice/100.scope",
            "/docker/4f5e/qemu.slice/100.scope",
        ] {
            let text = format!("0::{path}\n");
            assert_eq!(Groups::parse(&text).of_host().count(), 0, "{path}");
        }
        assert_eq!(Groups::parse("0::/qemu.slice/100.scope\n").of_host().count(), 1);
    }

    #[test]
    fn what_lies_below_a_service_or_a_container_is_not_looked_at() {
        let web = |part: &str| (part == "web").then_some(());
        let found = |path: &str| Groups::parse(&format!("0::{path}")).find(web).is_some();
        assert!(found("/machine.slice/web"));
        assert!(!found("/system.slice/docker-4f5e.scope/web"));
        assert!(!found("/system.slice/a.service/web"));
    }

    #[test]
    fn garbage_is_no_group() {
        assert_eq!(Groups::parse("x\n0:\n::\n\n").of_host().count(), 0);
    }

    #[test]
    fn escapes_are_undone_and_torn_ones_stay() {
        assert_eq!(unescape(r"qemu\x2d1\x2dweb"), "qemu-1-web");
        assert_eq!(unescape(r"a\x"), r"a\x");
        assert_eq!(unescape(r"a\xzz\x2d"), r"a\xzz-");
        assert_eq!(unescape(r"a\xffé\x2"), r"a\xffé\x2");
    }
}
