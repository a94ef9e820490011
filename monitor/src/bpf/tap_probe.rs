//! How a tap's packets are counted, or why they aren't.

use std::io;

use aya::{maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{ProbeError, tap_hooks::Hook};
use flatline_qemu::discover::Tap;

/// How a tap's packets are counted, or why they aren't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapProbe {
    /// The tap.
    pub tap: Tap,
    /// `tcx`, `clsact` or `ingress`, or what went wrong.
    pub hook: Result<&'static str, String>,
    /// What is not counted on it all the same, and why: packets to the guest, never those that it sends.
    pub unseen: Option<&'static str>,
}

impl TapProbe {
    /// A tap whose packets are not counted.
    pub fn not_on(tap: &Tap, why: impl Into<String>) -> Self {
        Self { tap: tap.clone(), hook: Err(why.into()), unseen: None }
    }

    pub(super) fn on(tap: &Tap, hook: Hook) -> Self {
        Self { tap: tap.clone(), hook: Ok(hook.as_str()), unseen: hook.unseen() }
    }
}

/// Why programs can't be brought onto a tap, or be looked for on it.
#[derive(Debug, Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cannot attach {program} through {hook}")]
    Attach {
        program: &'static str,
        hook: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("cannot enter its network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot see which programs are on it")]
    Query(#[source] ProgramError),
    #[error("cannot see or change the disciplines and filters on it")]
    Discipline(#[source] io::Error),
    #[error("it is not there any more")]
    Interface(#[source] io::Error),
    #[error(
        "what its guest sends cannot be counted: an ingress discipline stands where clsact would, and has no other direction"
    )]
    OneDirection,
    #[error(
        "{first} has it as well and was the first, so that it counts for that one: which of them sent a packet can't be told"
    )]
    Shared { first: String },
    #[error("cannot note the tap in the map `taps`")]
    Map(#[from] MapError),
}
