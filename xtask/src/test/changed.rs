//! What a change touches: the packages whose unit tests it concerns, and the subjects of the end-to-end tests.
//!
//! The table is of what is most likely to break, for an answer while one still remembers the question. Before a change is
//! accepted, all tests are run.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{capture, workspace_root};

/// The end-to-end tests of a room: of a module, wherever it stands, or of a directory.
const ROOMS: [(&str, &[&str]); 31] = [
    ("activity", &["brought_back", "left_alone", "overcommitted"]),
    ("api", &["reports", "metrics", "page", "web_access", "top", "hostile", "tenants_http"]),
    ("balloon", &["memory", "witnesses"]),
    (
        "bpf",
        &[
            "counts",
            "network",
            "missed_programs",
            "taps",
            "tenants_taps",
            "tenants_attaching",
            "storage",
            "upgrade",
        ],
    ),
    ("check", &["packages", "documents"]),
    ("cli", &["reports", "top", "documents"]),
    ("config", &["reload", "documents", "tenants_commands"]),
    (
        "daemon",
        &[
            "lifecycle",
            "brought_back",
            "killed",
            "reload",
            "hostile",
            "upgrade",
            "tenants_identity",
            "tenants_storm",
            "tenants_at_once",
        ],
    ),
    ("discover", &["executables", "sockets", "peers", "named_files", "owners", "tenants_sockets"]),
    ("docs", &["documents"]),
    ("fuzzing", &[]),
    ("heartbeat", &["heartbeats"]),
    ("history", &["top", "page"]),
    ("insight", &["unreadable"]),
    ("libvirt", &["owners"]),
    ("memory", &["memory"]),
    ("metrics", &["metrics", "alerts"]),
    ("monitor-ebpf", &["counts", "network", "taps", "storage", "neighbours", "upgrade"]),
    ("notify", &["telling", "alerts"]),
    ("packaging", &["packages", "documents", "alerts"]),
    ("probes", &["witnesses", "left_alone", "masked_wait", "kvm_stats", "network", "neighbours"]),
    ("program", &["owners", "packages"]),
    ("qmp", &["hostile", "answers", "peers", "sockets", "unreadable"]),
    ("recorder", &["recordings"]),
    ("recording", &["recordings"]),
    (
        "recovery",
        &[
            "brought_back",
            "ladder",
            "run_states",
            "killed",
            "evidence",
            "kdump",
            "owners",
            "tenants_identity",
            "tenants_turns",
        ],
    ),
    ("sampler", &["counts", "storage", "memory", "overcommitted", "idle_costs"]),
    ("storage", &["evidence", "state_dir", "version_before", "reports", "tenants_quotas"]),
    (
        "verdict",
        &["brought_back", "left_alone", "masked_wait", "known_dead", "kdump", "recordings"],
    ),
    ("vm", &BASIC),
    ("web", &["page", "web_access", "metrics", "tenants_http"]),
];
/// Of whatever else the daemon and the tests' own harness have.
const BASIC: [&str; 2] = ["brought_back", "lifecycle"];
/// Where that is.
const BASIC_PLACES: [&str; 4] = ["monitor", "tests", "Cargo.toml", "Cargo.lock"];
/// The end-to-end tests, a file or a directory a subject.
const END_TO_END: &str = "tests/tests/e2e";

/// Files that differ from those of the commit at which this branch left `revision`, relative to the workspace; new ones as
/// well.
///
/// # Errors
///
/// If git knows no such revision.
pub(super) fn files(revision: &str) -> Result<Vec<String>> {
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        capture(command.args(words).current_dir(workspace_root()))
            .with_context(|| format!("`git {}` failed", words.join(" ")))
    };
    let base = git(&["merge-base", "HEAD", revision])?;
    let changed = git(&["diff", "--name-only", &base])?;
    let new = git(&["ls-files", "--others", "--exclude-standard"])?;
    Ok(changed.lines().chain(new.lines()).map(str::to_owned).collect())
}

/// The directory among `packages` that a file belongs to; the workspace's root is none of them.
pub(super) fn package_of<'a>(file: &Path, packages: &[&'a Path]) -> Option<&'a Path> {
    let above = packages.iter().copied().filter(|package| file.starts_with(package));
    above.max_by_key(|package| package.components().count())
}

/// The end-to-end tests' subjects that these files concern.
pub(super) fn subjects(files: &[String]) -> BTreeSet<&str> {
    files.iter().flat_map(|file| subjects_of(file)).collect()
}

fn subjects_of(file: &str) -> Vec<&str> {
    if let Some(inside) = file.strip_prefix(END_TO_END) {
        let inside = inside.trim_start_matches('/');
        let name = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        // The others are what subjects stand on.
        return if all().contains(name) { vec![name] } else { BASIC.to_vec() };
    }
    let mut names = file.split('/').map(|part| part.trim_end_matches(".rs"));
    let room = names.find_map(|name| ROOMS.iter().find(|(room, _)| *room == name));
    let is_basic = BASIC_PLACES.iter().any(|place| Path::new(file).starts_with(place));
    match room {
        // The tasks have modules of the same names.
        Some((_, subjects)) if !file.starts_with("xtask/") => subjects.to_vec(),
        Some(_) | None if is_basic => BASIC.to_vec(),
        Some(_) | None => Vec::new(),
    }
}

/// Every subject that some room has.
fn all() -> BTreeSet<&'static str> {
    ROOMS.iter().flat_map(|(_, subjects)| subjects.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// What stands directly in each `src` of the daemon's packages.
    fn modules() -> Vec<PathBuf> {
        let list = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let monitor = workspace_root().join("monitor");
        let sources = list(&monitor).chain([monitor.clone()]).map(|path| path.join("src"));
        sources.filter(|path| path.is_dir()).flat_map(|path| list(&path)).collect()
    }

    #[test]
    fn each_directory_of_the_daemon_is_a_room_and_each_room_is_there() {
        let stem = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        let modules = modules();
        for directory in modules.iter().filter(|path| path.is_dir()).map(stem) {
            assert!(ROOMS.iter().any(|(room, _)| *room == directory), "{directory} has no tests");
        }
        let modules: BTreeSet<_> = modules.iter().map(stem).collect();
        let elsewhere = ["docs", "heartbeat", "monitor-ebpf", "packaging"];
        for (room, _) in ROOMS {
            assert!(modules.contains(room) || elsewhere.contains(&room), "there is no {room}");
        }
    }

    #[test]
    fn the_rooms_have_every_subject_and_no_other() {
        let main = fs::read_to_string(workspace_root().join(END_TO_END).join("main.rs")).unwrap();
        let names = main.lines().filter_map(|line| {
            let (name, rest) = line.trim().strip_prefix("(\"")?.split_once("\", ")?;
            (rest == format!("{name}::trials),")).then_some(name)
        });
        assert_eq!(names.collect::<BTreeSet<_>>(), all());
    }

    #[test]
    fn a_file_concerns_its_own_room_wherever_that_stands() {
        let of = |file: &str| subjects_of(file).join(" ");
        assert_eq!(of("monitor/src/insight/tests.rs"), "unreadable");
        assert_eq!(of("monitor/detector/src/insight.rs"), "unreadable");
        assert_eq!(of("tests/tests/e2e/taps.rs"), "taps");
        assert_eq!(of("tests/tests/e2e/top/tmux.rs"), "top");
        assert_eq!(of("tests/tests/e2e/rig.rs"), BASIC.join(" "));
        assert_eq!(of("monitor/src/lib.rs"), BASIC.join(" "));
        assert_eq!(of("xtask/src/test/changed.rs"), "");
    }

    #[test]
    fn a_file_is_its_innermost_packages() {
        let packages = ["monitor", "monitor/qemu"].map(Path::new);
        assert_eq!(package_of(Path::new("monitor/qemu/src/lib.rs"), &packages), Some(packages[1]));
        assert_eq!(package_of(Path::new("monitor/src/lib.rs"), &packages), Some(packages[0]));
        assert_eq!(package_of(Path::new("README.md"), &packages), None);
    }
}
