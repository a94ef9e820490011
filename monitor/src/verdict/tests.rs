//! The state machine, driven by a simulated VM.

mod convictions;
mod healthy;
mod random;
mod recovery;
mod rig;
mod transitions;
