//! eBPF programs and maps: loads the programs, pins their maps and links, and attaches them to what discovery
//! found.
//!
//! | program | hook | required | without it |
//! |---|---|---|---|
//! | `block_submitted`, `block_request_completed`, `block_bio_completed` | tp_btf | yes | storage can't be read |
//! | `process_started` (of files that may be QEMUs), `process_ended` | tp_btf | no | a sweep of `/proc` finds QEMUs later |
//! | `threads` | iter | no | threads' times are read from `/proc` |
//! | `tap_from_guest`, `tap_to_guest` | tcx, clsact or ingress, each tap | yes, for that VM | its network can't be read |
//! | `kvm_*` | raw_tp, while a VM is suspected | no | KVM can't be asked as a witness |
//!
//! A program that is lost makes a figure *unreadable*, never zero.

mod attachments;
mod bypass;
mod clsact;
mod executables;
mod host;
pub(crate) mod kernel_types;
mod kvm;
mod links;
mod lock;
mod namespace;
mod netlink;
mod numbers;
mod offsets;
mod pins;
mod presence;
mod queue;
mod shares;
mod sights;
mod slots;
mod strangers;
mod tally;
mod tap_hooks;
mod tap_probe;
mod tap_rows;
mod taps;
mod tcx;
mod tending;
mod thread;
mod worker;

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use thiserror::Error;
use tracing::debug;

pub(crate) use bypass::DOUBTED_FOR;
pub(crate) use executables::Executables;
pub(crate) use host::parse_process_event;
pub(crate) use host::{ProcessEvents, STARTS};
pub(crate) use kernel_types::KernelTypesError;
pub use kvm::KvmHooks;
pub(crate) use kvm::{ONLY_ARM64, ONLY_X86, expected as expected_of_kvm};
pub(crate) use lock::DirectoryLock;
pub(crate) use namespace::{namespace_of, near_namespace};
pub(crate) use offsets::Offsets;
pub use pins::THREADS;
pub(crate) use tap_probe::TapProbe;
pub(crate) use tending::{Tend, Tended};
pub(crate) use thread::{AttachReport, Counted};
pub use thread::{ProbeReport, ProbeThread};

/// The programs and maps, compiled by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/flatline-ebpf.o"));

/// How one program's loading and attaching went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramHealth {
    /// The program's name in the object.
    pub program: &'static str,
    /// Where it hooks in.
    pub hook: &'static str,
    /// Whether the daemon does its work without it.
    pub required: bool,
    /// Why it is not attached, if it isn't.
    pub failure: Option<String>,
}

/// Why the programs can't be loaded, or their maps not be pinned.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The kernel's types can't be read.
    #[error("cannot resolve the kernel's structures")]
    KernelTypes(#[from] KernelTypesError),
    /// The kernel's BTF is unreadable for aya.
    #[error("cannot parse the kernel's BTF")]
    Btf(#[source] aya::BtfError),
    /// The object doesn't load.
    #[error("cannot load the eBPF object")]
    Object(#[source] EbpfError),
    /// The object lacks something: it and this binary were built from different sources.
    #[error("the eBPF object has no {0}; build both again")]
    Incomplete(&'static str),
    /// The object wants a number by a name that is not known here, likewise.
    #[error("the eBPF object wants a number that is not known here ({0:#x}); build both again")]
    UnknownNumber(u32),
    /// A program doesn't load.
    #[error("cannot load the program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What aya or the kernel said.
        #[source]
        source: ProgramError,
    },
    /// A program doesn't attach to its tracepoint, which this kernel may not have.
    #[error("cannot attach the program {program} to {tracepoint}")]
    Tracepoint {
        /// Its name.
        program: &'static str,
        /// The tracepoint's.
        tracepoint: &'static str,
        /// What aya or the kernel said.
        #[source]
        source: ProgramError,
    },
    /// The kernel's verifier refuses a program.
    #[error("the kernel refuses the program {program} ({why})")]
    Rejected {
        /// Its name.
        program: &'static str,
        /// The verifier's last word.
        why: String,
        /// The kernel's code for it.
        #[source]
        source: io::Error,
    },
    /// A map can't be used.
    #[error("cannot use the map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya or the kernel said.
        #[source]
        source: MapError,
    },
    /// A link can't be used.
    #[error("cannot use the link {link}")]
    Link {
        /// Its name.
        link: String,
        /// What aya or the kernel said.
        #[source]
        source: LinkError,
    },
    /// A link can't be pinned.
    #[error("cannot pin {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What aya or the kernel said.
        #[source]
        source: PinError,
    },
    /// There are more VMs or taps than there is room for, and the user of this one has its share.
    #[error("no room: {key} is too small")]
    Full {
        /// The key of the configuration that makes room.
        key: &'static str,
    },
    /// News of interfaces can't be heard.
    #[error("cannot listen to the news of network interfaces")]
    News(#[source] io::Error),
    /// A file or directory below `bpffs_dir`, or another daemon's.
    #[error("{what} {path}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another daemon watches this host.
    #[error("another flatline runs on this host: it holds {path}")]
    AlreadyRunning {
        /// The directory that it has locked.
        path: PathBuf,
    },
}

impl ProbeError {
    /// What went wrong with a program. The verifier's account of it, of some thousand lines, is logged at
    /// the level `debug`.
    fn program(program: &'static str, source: ProgramError) -> Self {
        match source {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                debug!("the verifier on {program}:\n{log}");
                Self::Rejected { program, why: last_word(&log), source: io_error }
            }
            source => Self::Program { program, source },
        }
    }
}

/// The last line of a verifier's log that is not about its own work.
fn last_word(log: &str) -> String {
    const ABOUT_ITSELF: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut telling =
        lines.filter(|line| !ABOUT_ITSELF.iter().any(|prefix| line.starts_with(prefix)));
    telling.next_back().unwrap_or("it says no more").to_owned()
}

#[cfg(test)]
mod tests {
    use super::last_word;

    #[test]
    fn the_verifiers_last_word_is_the_line_that_says_what_is_wrong() {
        let log = "0: (b7) r0 = 0\n1: (95) exit\nR1 pointer arithmetic prohibited\n\
            verification time 12 usec\nstack depth 8\nprocessed 2 insns (limit 1000000)\n";
        assert_eq!(last_word(log), "R1 pointer arithmetic prohibited");
        assert_eq!(last_word(""), "it says no more");
    }
}
