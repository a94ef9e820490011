//! flatline's eBPF programs: one module a subject, each program's doc naming its hook, the oldest kernel
//! that has it, and what it costs.
//!
//! Costs are above those of an empty program at the same hook, as `cargo xtask bench` measures them;
//! `docs/costs.md` has the machine and the figures in full.
//!
//! Built for `bpfel-unknown-none` by `cargo xtask build-ebpf`. On any other target the crate still
//! compiles, with `std` in place of the panic handler, so that ordinary tools can check it.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod beat;
mod block;
mod freestanding;
mod in_flight;
mod kernel;
mod kvm;
mod maps;
mod neighbour;
mod process;
mod slots;
mod tap;
mod threads;
mod vms;
mod writeback;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
