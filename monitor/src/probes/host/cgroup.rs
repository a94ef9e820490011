//! The cgroups of QEMU's threads, of either version.
//!
//! libvirt puts each vCPU into a cgroup of its own, and a limit may be on any level above: so the levels of several
//! threads are looked at, up to the root.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use super::{full_avg10, ratio, read};
use flatline_qemu::discover::cgroup_lines;

/// Where distributions mount them.
const MOUNT: &str = "/sys/fs/cgroup";
/// Threads whose cgroups are looked at.
const MOST_THREADS: usize = 64;
/// Levels that are looked at, of all threads together.
const MOST_LEVELS: usize = 64;

/// What a quota has cost so far, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quota {
    pub(super) throttled_us: u64,
    pub(super) used_us: u64,
}

impl Quota {
    /// The share of the time that was wanted since `before` and withheld; `None` if that was less than half of
    /// the time of one CPU, of which a share says nothing.
    pub(super) fn withheld_since(self, before: &Self, seconds: f64) -> Option<f64> {
        let throttled = ratio(self.throttled_us.checked_sub(before.throttled_us)?);
        let used = ratio(self.used_us.checked_sub(before.used_us)?);
        (throttled >= seconds * 500_000.0).then(|| throttled / (throttled + used))
    }
}

/// Which cgroup a process or thread is in: by the controllers of a first version's hierarchy, and the second's.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Paths {
    pub(super) cpu: Option<PathBuf>,
    pub(super) freezer: Option<PathBuf>,
    pub(super) unified: Option<PathBuf>,
}

impl Paths {
    /// Reads `/proc/PID/cgroup`. A path that leads out of our own namespace is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut paths = Self::default();
        for (controllers, path) in cgroup_lines(text) {
            let path = Path::new(path.trim_start_matches('/'));
            if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                continue;
            }
            let path = path.to_owned();
            match controllers {
                "" => paths.unified = Some(path),
                _ if controllers.split(',').any(|one| one == "cpu") => paths.cpu = Some(path),
                _ if controllers.split(',').any(|one| one == "freezer") => {
                    paths.freezer = Some(path);
                }
                _ => {}
            }
        }
        paths
    }
}

/// The cgroups of a QEMU.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    process: Paths,
    /// Of its threads, each once.
    threads: BTreeSet<Paths>,
}

impl Cgroups {
    /// Those of process `pid`; none if it can't be told.
    pub(super) fn of(pid: u32) -> Self {
        let paths = |path: &Path| read(path).map(|text| Paths::parse(&text));
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let tasks = fs::read_dir(folder.join("task")).into_iter().flatten();
        Self {
            process: paths(&folder.join("cgroup")).unwrap_or_default(),
            threads: tasks
                .take(MOST_THREADS)
                .filter_map(|task| paths(&task.ok()?.path().join("cgroup")))
                .collect(),
        }
    }

    /// Whether QEMU is kept from running; a cgroup is as frozen as the one that it is in.
    pub(super) fn is_frozen(&self) -> bool {
        let first = self.process.freezer.as_ref().and_then(|path| {
            read(&Path::new(MOUNT).join("freezer").join(path).join("freezer.state"))
        });
        let second = self
            .process
            .unified
            .as_ref()
            .and_then(|path| read(&unified(path).join("cgroup.events")));
        first.is_some_and(|state| matches!(state.trim(), "FROZEN" | "FREEZING"))
            || second.is_some_and(|events| keyed(&events, "frozen") == Some(1))
    }

    /// The pressure on QEMU's own cgroup, in percent; empty where there is none but the host's.
    pub(super) fn pressure(&self) -> Vec<(&'static str, f64)> {
        let Some(path) = self.process.unified.as_ref().filter(|path| path.components().count() > 0)
        else {
            return Vec::new();
        };
        let full = |name: &str| full_avg10(&read(&unified(path).join(name))?);
        let of = [("memory", full("memory.pressure")), ("I/O", full("io.pressure"))];
        of.into_iter().filter_map(|(what, full)| Some((what, full?))).collect()
    }

    /// What the quotas on any level have cost so far.
    pub(super) fn quotas(&self) -> BTreeMap<PathBuf, Quota> {
        let mut quotas = BTreeMap::new();
        let levels = |path: &Option<PathBuf>| -> Vec<PathBuf> {
            path.iter().flat_map(|path| path.ancestors()).map(Path::to_owned).collect()
        };
        let mut second: BTreeSet<PathBuf> = BTreeSet::new();
        let mut first: BTreeSet<PathBuf> = BTreeSet::new();
        for paths in self.threads.iter().chain([&self.process]) {
            second.extend(levels(&paths.unified));
            first.extend(levels(&paths.cpu));
        }
        for level in second.iter().take(MOST_LEVELS) {
            let folder = unified(level);
            if let Some(quota) = read(&folder.join("cpu.stat")).and_then(|text| of_second(&text)) {
                quotas.insert(folder, quota);
            }
        }
        for level in first.iter().take(MOST_LEVELS) {
            let folder = Path::new(MOUNT).join("cpu").join(level);
            let used = Path::new(MOUNT).join("cpuacct").join(level).join("cpuacct.usage");
            let quota = read(&folder.join("cpu.stat"))
                .zip(read(&used))
                .and_then(|(stat, used)| of_first(&stat, &used));
            if let Some(quota) = quota {
                quotas.insert(folder, quota);
            }
        }
        quotas
    }
}

/// The folder of a cgroup of the second version, which is mounted below where both are in use.
fn unified(path: &Path) -> PathBuf {
    let mount = Path::new(MOUNT);
    let hybrid = mount.join("unified");
    if hybrid.join("cgroup.controllers").exists() { hybrid } else { mount.to_owned() }.join(path)
}

/// Of a `cpu.stat` of the second version.
pub(super) fn of_second(stat: &str) -> Option<Quota> {
    Some(Quota {
        throttled_us: keyed(stat, "throttled_usec")?,
        used_us: keyed(stat, "usage_usec")?,
    })
}

/// Of a `cpu.stat` and a `cpuacct.usage` of the first, which are in nanoseconds.
pub(super) fn of_first(stat: &str, used: &str) -> Option<Quota> {
    let used_ns: u64 = used.trim().parse().ok()?;
    Some(Quota { throttled_us: keyed(stat, "throttled_time")? / 1000, used_us: used_ns / 1000 })
}

/// The figure that follows `key` in a file of such lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
