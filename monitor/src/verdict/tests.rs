//! The state machine, driven by a simulated VM.

mod convictions;
mod drawing;
mod healthy;
mod random;
mod recovery;
mod rig;
mod transitions;
