//! The QMP client: one connection a VM, by which a QEMU is asked and told things.
//!
//! The QEMU at the other end may have been taken over by its guest. So whatever it says is bounded in
//! size ([`codec`]), in rate and in time ([`session`]); every string that is passed on is cut to
//! [`crate::text::MAX_TEXT_CHARS`] printable ASCII characters, so that it can stand in a log line, a metric label
//! or a file; and nothing is said to a socket before the process behind it has been shown to be the
//! QEMU that was found (`peer`).
//!
//! Replies are parsed tolerantly: QEMU's versions differ in what they send, so a field is looked up
//! only where it is needed, and an unknown event is passed on as [`QmpEvent::Other`]. A generated,
//! strictly typed client would end at the first field that its version does not know.
//!
//! A QMP socket serves one client at a time. While another one (an operator, libvirt) holds it, a
//! connection succeeds and gets no greeting: that is [`QmpState::Busy`], not a hung QEMU.

pub(crate) mod codec;
pub(crate) mod commands;
mod registers;
mod session;
mod stats;

pub use codec::{CodecError, Excess};
pub use commands::QmpCpu;
pub use flatline_samples::{QmpEvent, RunState};
pub use registers::{
    Lapic, Pic, RegistersError, TimerMode, VcpuRegisters, Vectors,
    aarch64::{ArmLevel, ArmRegisters, parse_arm_registers},
    has_no_lapic, parse_lapic, parse_pic, parse_registers,
    system::operating_system,
};
pub use session::{
    LibvirtTarget, Limits, QmpError, QmpHandle, QmpNotice, QmpState, QmpTarget, Room, Transport,
    spawn,
};
pub use stats::VcpuStats;
