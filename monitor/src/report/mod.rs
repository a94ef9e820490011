//! What leaves the daemon for people and scripts: views, incidents, the control socket, and figures over HTTP.
//!
//! Everything here is a copy of what the daemon knows; nothing in it decides anything. The JSON
//! shapes are a promise (dashboards hold on to them), so they are structs of their own rather
//! than the engine's types, which may change.

pub mod recording;
