//! QEMU processes on this host: what they are ([`discover`]), and how they and those that started them are talked to
//! ([`qmp`], [`program`]).
//!
//! Everything that a QEMU says is foreign: its guest may have taken it over. So all of it is bounded and made printable
//! here, before it goes anywhere else.

pub mod blocking;
pub mod discover;
pub mod libvirt;
mod other_end;
mod outgoing;
pub mod peer;
pub mod program;
pub mod qmp;
pub mod text;

#[doc(hidden)]
pub mod fuzzing;
