//! Stage six: the only one that touches a guest.
//!
//! A plan is complete before anything is done ([`mod@plan`] is pure), and is made from the run state that
//! QEMU tells at that very moment: what was true when the verdict was given may have changed, and a
//! VM that was paused meanwhile must be left alone.

pub(crate) mod actuator;
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
mod nmi;
mod outcome;
mod plan;
mod qemu_exit;
mod respawn;
mod restart_context;
mod restarts;
mod resume;
mod supervisor;

pub(crate) use case::{Case, RecoveryState, Stage, Tries};
pub(crate) use effect::Effect;
pub(crate) use event::{Event, EventKind, EventSink};
pub(crate) use execute::{Journal, finish, put_back};
pub(crate) use exit_reason::{ExitReason, exit_reason};
pub(crate) use incident_writer::IncidentWriter;
pub(crate) use outcome::{Kept, OwnerError, Restart, RestartError, Stand};
pub(crate) use plan::{
    Circumstances, Clearance, HOST_WINDOW, PUT_BACK_AFTER, Refusal, Remainder, Step, clearance,
    plan, remainder,
};
pub(crate) use supervisor::Supervisor;

#[cfg(test)]
mod tests;
