//! Decides whether a guest has crashed.
//!
//! [`activity`] says what moved between two samples of a VM, or what is missing; [`verdict`] is the state machine that is
//! told so and decides; [`policy`] is what it decides by; [`recording`] is the form in which its inputs are kept, and judged
//! again.
//!
//! Pure: no clock, no I/O, no runtime. `now` comes in with each input, and what leaves is a value.

#![forbid(unsafe_code)]

pub mod activity;
pub mod policy;
pub mod recording;
pub mod verdict;

#[cfg(test)]
extern crate self as flatline_detector;
