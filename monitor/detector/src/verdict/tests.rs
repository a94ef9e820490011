//! The state machine, driven by a simulated VM.

mod convictions;
mod deaf;
mod drawing;
mod dumps;
mod graces;
mod guest;
mod healthy;
mod heartbeat;
mod holds;
mod last_words;
mod model;
mod proof;
mod qemu_hang;
mod random;
mod recovery;
mod resets;
mod rest;
mod resting;
mod rig;
mod timing;
mod transitions;
mod unjudged;
mod unseen;
