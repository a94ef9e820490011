//! Whether this host is fit for flatline, asked before anything is loaded or attached.
//!
//! Each question has three answers: yes, no, and *couldn't tell*; only a definite no of something
//! that is required keeps the daemon from starting. What files say is judged by functions of
//! their text, so that hosts other than the one at hand can be tested. A gap says what is missing
//! and what to do about it in one line; each answer says what is lost where it is no.

mod capabilities;
mod facts;
mod guests;
mod owners;
mod programs;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Config, TapHook};
use flatline_qemu::discover::Scope;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const OSRELEASE: &str = "/proc/sys/kernel/osrelease";

/// The block tracepoints have the arguments that the programs take; ring buffers came with 5.8, programs
/// on BTF tracepoints with 5.5.
const OLDEST_KERNEL: (u32, u32) = (5, 11);
/// tcx, as links that can be pinned.
const TCX_KERNEL: (u32, u32) = (6, 6);

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// The tracepoints that programs attach to, and what for.
const TRACEPOINTS: [(&str, &str); 5] = [
    ("block_bio_queue", "counting the guests' disk requests"),
    ("block_rq_complete", "counting completed disk requests"),
    ("block_bio_complete", "counting those of stacked devices"),
    ("sched_process_exec", "finding QEMUs as they start"),
    ("sched_process_exit", "noticing at once that a QEMU ended"),
];

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It is there.
    Ok,
    /// It is missing.
    Gap,
    /// It couldn't be told.
    Unknown,
}

impl Verdict {
    /// The word that stands for it in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Gap => "gap",
            Self::Unknown => "unknown",
        }
    }
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Item {
    /// What was asked for.
    pub name: String,
    /// Whether the daemon can't do without it.
    pub required: bool,
    /// The answer.
    pub verdict: Verdict,
    /// What was found; of a gap, also what to do.
    pub detail: String,
    /// What it is needed for.
    pub needed_for: String,
    /// What is lost without it.
    pub without: String,
    /// What to do about it; empty where nothing has to be done.
    pub remedy: String,
}

impl Item {
    /// Says what is lost without it, and what to do where it isn't known to be there.
    fn or_else(mut self, without: &str, remedy: &str) -> Self {
        without.clone_into(&mut self.without);
        if self.verdict != Verdict::Ok {
            remedy.clone_into(&mut self.remedy);
        }
        self
    }

    /// The same of what is required.
    fn or_none(self, remedy: &str) -> Self {
        self.or_else("flatline does not start", remedy)
    }
}

/// All answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// In the order in which a person would mend them.
    pub items: Vec<Item>,
}

impl Report {
    /// The first required item that is missing, in one line that says what and what to do; `None`: this host is fit.
    pub(crate) fn first_gap(&self) -> Option<String> {
        let gap = |item: &&Item| item.required && item.verdict == Verdict::Gap;
        self.items.iter().find(gap).map(|item| format!("{}: {}", item.name, item.detail))
    }
}

/// Asks everything, also what the daemon does without where it has to. Looks at every process.
pub(crate) fn survey(config: &Config) -> Report {
    let mut report = check(config);
    report.items.extend(programs::structures());
    report.items.push(programs::kvm_tracepoints(std::fs::read(BTF).ok().as_deref()));
    report.items.push(guests::elsewhere(config));
    report.items.push(guests::kvm());
    report.items.push(guests::qmp(config));
    report.items.extend(owners::programs());
    report.items.push(owners::commands(config));
    report.items.push(owners::bounds(config));
    report
}

/// What keeps programs that the configuration has from doing as they would elsewhere, in one line.
pub(crate) fn lack_of_room(config: &Config) -> Option<String> {
    let item = owners::bounds(config);
    let Item { needed_for, detail, without, remedy, .. } = &item;
    let text = format!("{needed_for}: {detail}; {without}; {remedy}");
    (item.verdict == Verdict::Gap).then_some(text)
}

/// Asks what the daemon has to know before it starts. Reads only; takes some milliseconds, most of them for the
/// kernel's BTF.
pub(crate) fn check(config: &Config) -> Report {
    let release = read(OSRELEASE);
    let version = release.as_deref().ok().and_then(facts::kernel_version);
    let btf = std::fs::read(BTF);

    let mut items = vec![kernel(version, &release)];
    items.extend(capabilities::look());
    items.push(btf_itself(&btf));
    let btf = btf.as_deref().ok();
    items.push(bpffs(&config.paths.bpffs_dir));
    items.extend(TRACEPOINTS.map(|(name, needed_for)| tracepoint(btf, name, needed_for)));
    items.push(tap_hook(config.probes.tap_hook, version, btf, release.as_deref().ok()));
    items.push(thread_iterator(btf));
    items.push(schedstat());
    items.push(executables(config));
    Report { items }
}

fn item(
    name: impl Into<String>,
    required: bool,
    verdict: Verdict,
    detail: impl Into<String>,
    needed_for: &str,
) -> Item {
    let (name, detail, needed_for) = (name.into(), detail.into(), needed_for.to_owned());
    let (without, remedy) = (String::new(), String::new());
    Item { name, required, verdict, detail, needed_for, without, remedy }
}

fn read(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path);
    text.map(|text| text.trim().to_owned())
        .map_err(|error| format!("can't read {}: {error}", path.display()))
}

fn kernel(version: Option<(u32, u32)>, release: &Result<String, String>) -> Item {
    let (major, minor) = OLDEST_KERNEL;
    let (verdict, detail) = match (version, release) {
        (Some(version), Ok(release)) if version >= OLDEST_KERNEL => (Verdict::Ok, release.clone()),
        (Some(_), Ok(release)) => {
            (Verdict::Gap, format!("{release} is too old; use Linux {major}.{minor} or newer"))
        }
        (None, Ok(release)) => (Verdict::Unknown, format!("{release:?} is no kernel's release")),
        (_, Err(error)) => (Verdict::Unknown, error.clone()),
    };
    item("kernel", true, verdict, detail, "the block tracepoints as of 5.11, BPF ring buffers")
        .or_none("use Linux 5.11 or newer")
}

fn btf_itself(btf: &std::io::Result<Vec<u8>>) -> Item {
    let mut remedy = "use a kernel with CONFIG_DEBUG_INFO_BTF=y";
    let (verdict, detail) = match btf {
        Ok(btf) if facts::has_btf_magic(btf) => {
            (Verdict::Ok, format!("{BTF}, {} KiB", btf.len() >> 10))
        }
        Ok(_) => (Verdict::Gap, format!("{BTF} has no BTF magic; {remedy}")),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                remedy = "run as root";
            }
            (Verdict::Gap, format!("can't read {BTF}: {error}; {remedy}"))
        }
    };
    item("BTF", true, verdict, detail, "fitting the programs to this kernel").or_none(remedy)
}

fn bpffs(directory: &Path) -> Item {
    let needed_for = "keeping counters and attachments while the daemon is away";
    let (verdict, detail) = match nearest_file_system(directory) {
        Ok((path, BPF_FS_MAGIC)) => {
            (Verdict::Ok, format!("{} is on a bpf file system", path.display()))
        }
        Ok(_) => {
            let detail = format!(
                "{} is on no bpf file system; mount -t bpf bpf /sys/fs/bpf",
                directory.display()
            );
            (Verdict::Gap, detail)
        }
        Err((path, error)) => {
            (Verdict::Unknown, format!("can't look at {}: {error}", path.display()))
        }
    };
    item("bpffs", true, verdict, detail, needed_for).or_none("mount -t bpf bpf /sys/fs/bpf")
}

/// The nearest ancestor of `directory`, itself included, that exists, and its file system's magic.
fn nearest_file_system(directory: &Path) -> Result<(PathBuf, u32), (PathBuf, rustix::io::Errno)> {
    use rustix::io::Errno;
    let mut last = (directory.to_owned(), Errno::NOENT);
    for path in directory.ancestors() {
        match rustix::fs::statfs(path) {
            // The field's type differs between architectures; no magic has more than 32 bits.
            Ok(found) => return Ok((path.to_owned(), u32::try_from(found.f_type).unwrap_or(0))),
            Err(error @ (Errno::NOENT | Errno::NOTDIR)) => last = (path.to_owned(), error),
            Err(error) => return Err((path.to_owned(), error)),
        }
    }
    Err(last)
}

/// Whether the kernel's BTF has `name`, and `otherwise` what to do without.
fn in_btf(btf: Option<&[u8]>, name: &str, otherwise: &str) -> (Verdict, String) {
    match btf.map(|btf| facts::has_btf_name(btf, name)) {
        Some(true) => (Verdict::Ok, "in the kernel's BTF".to_owned()),
        Some(false) => (Verdict::Gap, format!("not in the kernel's BTF; {otherwise}")),
        None => (Verdict::Unknown, format!("can't read {BTF}")),
    }
}

fn tracepoint(btf: Option<&[u8]>, name: &str, needed_for: &str) -> Item {
    let remedy = "use a kernel with CONFIG_BLOCK and tracepoints";
    let (verdict, detail) = in_btf(btf, &format!("btf_trace_{name}"), remedy);
    item(format!("tracepoint {name}"), true, verdict, detail, needed_for).or_none(remedy)
}

fn tap_hook(
    wanted: TapHook,
    version: Option<(u32, u32)>,
    btf: Option<&[u8]>,
    release: Option<&str>,
) -> Item {
    // A distribution may have put tcx into an older kernel: its BTF knows better than its number.
    let tcx = match btf {
        Some(btf) if facts::has_btf_name(btf, "tcx_link") => Some(true),
        Some(_) => Some(false),
        None => version.map(|version| version >= TCX_KERNEL),
    };
    let clsact = || {
        let modules = |file| read(format!("/lib/modules/{}/{file}", release?)).ok();
        let (builtin, loadable) = (modules("modules.builtin"), modules("modules.dep"));
        let loaded = read("/proc/modules").unwrap_or_default();
        facts::has_clsact(builtin.as_deref(), loadable.as_deref(), &loaded)
    };
    let (verdict, detail) = facts::judge_tap_hook(wanted, tcx, clsact);
    item("tap hook", true, verdict, detail, "counting what guests send and receive")
        .or_none("use Linux 6.6 or newer, or one with sch_ingress and cls_bpf")
}

/// A function of that name stands for the hook; without it, `schedstat` files do.
fn thread_iterator(btf: Option<&[u8]>) -> Item {
    let otherwise = "a file for each vCPU is read instead";
    let (verdict, detail) = in_btf(btf, "bpf_iter_task", otherwise);
    item("iterator over threads", false, verdict, detail, "reading all vCPUs' time at once")
        .or_else(
            "a tick takes some 3 times as long for its vCPUs; nothing else is lost",
            "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_PROC_FS, if a thousand vCPUs run here",
        )
}

fn schedstat() -> Item {
    let remedy = "use a kernel with CONFIG_SCHED_INFO";
    let (verdict, detail) = match read("/proc/self/schedstat") {
        Ok(text) if facts::has_run_time(&text) => (Verdict::Ok, "readable".to_owned()),
        Ok(text) => (Verdict::Gap, format!("/proc/self/schedstat says {text:?}; {remedy}")),
        Err(error) => (Verdict::Gap, format!("{error}; {remedy}")),
    };
    item("schedstat", true, verdict, detail, "the vCPUs' time").or_none(remedy)
}

fn executables(config: &Config) -> Item {
    let patterns: Vec<_> = config.discovery.executables.iter().map(glob::Pattern::as_str).collect();
    let found =
        patterns.iter().filter_map(|pattern| glob::glob_with(pattern, Scope::MATCHING).ok());
    let found: Vec<_> =
        found.flat_map(|paths| paths.flatten()).map(|path| path.display().to_string()).collect();
    let (verdict, detail) = if found.is_empty() {
        let patterns = patterns.join(", ");
        let detail = format!(
            "no file matches {patterns}; install QEMU or set discovery.executables (a QEMU in a \
             container is found all the same)"
        );
        (Verdict::Gap, detail)
    } else {
        (Verdict::Ok, found.join(", "))
    };
    item("QEMU", false, verdict, detail, "having something to watch").or_else(
        "there is nothing to watch, but for QEMUs in containers",
        "install QEMU, or set discovery.executables",
    )
}

#[cfg(test)]
mod tests;
