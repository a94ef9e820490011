//! Real guests on real taps: what the demo and the end-to-end tests stand on.
//!
//! Everything here runs the programs by path and looks at them from outside, as an operator would:
//! nothing links to the daemon. Plain threads and blocking calls, since a test is one sequence of
//! events. Whatever is started or created is ended or deleted when its value is dropped, and
//! [`interrupt::install`] makes that hold for Ctrl-C too.

pub mod aio;
pub mod boot_sector;
pub mod broadcast;
pub mod browser;
pub mod capture;
pub mod cgroup;
pub mod command;
pub mod console;
pub mod cpio;
pub mod cpu;
pub mod daemon;
pub mod dashboard;
pub mod deb;
pub mod guest;
pub mod hostile;
pub mod image;
pub mod interrupt;
pub mod libvirt;
mod machine;
pub mod media;
pub mod netns;
pub mod owners;
pub mod paced;
pub mod prometheus;
pub mod qmp;
pub mod scenario;
pub mod schedule;
mod seccomp;
pub mod soak;
pub mod state;
pub mod stopped;
pub mod store;
pub mod tenants;
pub mod tools;
pub mod traced;
