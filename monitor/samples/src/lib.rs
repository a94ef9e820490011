//! What is observed of a VM, as plain values: figures of one moment ([`VmSample`], [`Memory`]), and what QEMU says
//! ([`RunState`], [`QmpEvent`]).
//!
//! No I/O and no clock: readers of files, maps and sockets make these, and the detector takes them.

#![forbid(unsafe_code)]

mod event;
mod heartbeat;
mod memory;
mod missing;
mod run_state;
mod text;
mod vm;

pub use event::QmpEvent;
pub use heartbeat::{Heard, Heartbeats, LastBeat};
pub use memory::{GuestMemory, Memory, PlainHost, QemuMemory, Strain};
pub use missing::{Missing, Reading};
pub use run_state::RunState;
pub use text::{MAX_TEXT_CHARS, printable};
pub use vm::{InFlightAges, ProcessState, VcpuTime, VmSample};
