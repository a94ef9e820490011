//! Stage six: the only one that touches a guest.
//!
//! A plan is complete before anything is done ([`mod@plan`] is pure), and is made from the run state that
//! QEMU tells at that very moment: what was true when the verdict was given may have changed, and a
//! VM that was paused meanwhile must be left alone.

pub(crate) mod actuator;
mod allowance;
mod budget;
mod case;
mod cases;
mod effect;
mod event;
pub(crate) mod evidence;
mod execute;
mod exit_reason;
mod hold;
mod incident_writer;
mod journal;
mod locked;
mod nmi;
mod outcome;
mod overtaken;
mod own_dump;
mod places;
mod plan;
mod qemu_exit;
mod respawn;
mod restart_context;
mod restarts;
mod resume;
mod supervisor;
mod turns;

use case::{Case, Stage, Tries};
use execute::Journal;
use exit_reason::{ExitReason, exit_reason};
use outcome::{Files, Kept, OwnerError, Stand};
use plan::{
    Circumstances, Clearance, HOST_WINDOW, Refusal, Remainder, Step, clearance, plan, remainder,
};

pub(crate) use case::RecoveryState;
pub(crate) use effect::Effect;
pub(crate) use event::{Event, EventKind, EventSink};
pub(crate) use execute::{finish, put_back};
pub(crate) use incident_writer::IncidentWriter;
pub(crate) use outcome::{Restart, RestartError};
pub(crate) use overtaken::Overtaken;
pub(crate) use plan::PUT_BACK_AFTER;
pub(crate) use supervisor::Supervisor;

#[cfg(test)]
mod tests;
