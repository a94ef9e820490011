//! The state machine, driven by a simulated VM.

mod convictions;
mod drawing;
mod dumps;
mod healthy;
mod holds;
mod model;
mod mute;
mod proof;
mod pulse;
mod random;
mod recovery;
mod resets;
mod rig;
mod timing;
mod transitions;
