//! Programs that are loaded already: finding them, running them, and what the kernel counted of them.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{
        ProgramFd,
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};

/// `BPF_PROG_TEST_RUN` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// Where `ifindex` stands in `struct __sk_buff`, and how much of it is handed over.
const IFINDEX_AT: usize = 40;
const SK_BUFF_BYTES: usize = 44;

/// The `test` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// Loads an object of which nothing needs to be set.
pub(crate) fn load(object: &Path) -> Result<Ebpf> {
    Ebpf::load_file(object).with_context(|| format!("cannot load {}", object.display()))
}

/// The program behind the one pinned link whose name ends so.
pub(crate) fn pinned_program(bpffs: &Path, ending: &str) -> Result<ProgramFd> {
    let directory = bpffs.join("links");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).context("the daemon has pinned no links")? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    ensure!(found.len() == 1, "{} links in {} end in {ending}", found.len(), directory.display());
    let link = FdLink::from(PinnedLink::from_pin(&found[0])?);
    let id = link.info()?.program_id();
    for program in loaded_programs() {
        let program = program?;
        if program.id() == id {
            return Ok(program.fd()?);
        }
    }
    anyhow::bail!("no program has the id {id}")
}

/// Runs a classifier on `frame` as if it had crossed the interface `ifindex` of this thread's network
/// namespace. Returns what the program returned.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    ifindex: u32,
    repeat: u32,
) -> Result<i32> {
    let mut context = [0_u8; SK_BUFF_BYTES];
    context[IFINDEX_AT..].copy_from_slice(&ifindex.to_ne_bytes());
    let mut attribute = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        data_size_in: u32::try_from(frame.len())?,
        data_in: frame.as_ptr().expose_provenance() as u64,
        repeat,
        ctx_size_in: u32::try_from(context.len())?,
        ctx_in: context.as_ptr().expose_provenance() as u64,
        ..TestRun::default()
    };
    // SAFETY: the attribute is whole and of the size given; frame and context outlive the call, which only
    // reads them, and writes nothing but the attribute.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attribute,
            std::mem::size_of::<TestRun>(),
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error()).context("BPF_PROG_TEST_RUN");
    }
    Ok(attribute.retval.cast_signed())
}

/// How often a program ran, and for how long, while statistics were on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) nanos: u64,
}

impl Runs {
    /// What the kernel counted so far.
    pub(crate) fn of(program: &impl AsFd) -> Result<Self> {
        let info = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let info = fs::read_to_string(info)?;
        let field = |name: &str| -> Result<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.with_context(|| format!("no {name} of a program"))?.trim().parse()?)
        };
        Ok(Self { count: field("run_cnt:")?, nanos: field("run_time_ns:")? })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, nanos: self.nanos - earlier.nanos }
    }

    /// Nanoseconds a run; `None` for a program that did not run.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(crate) fn mean(self) -> Option<f64> {
        (self.count != 0).then(|| self.nanos as f64 / self.count as f64)
    }
}

/// Moves this thread into a network namespace, for good.
pub(crate) fn enter(netns: &Path) -> Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let file = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the network namespace")
}
