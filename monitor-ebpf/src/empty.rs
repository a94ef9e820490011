//! Programs that do nothing, at each hook of a counting one: the floor that `cargo xtask bench` measures
//! flatline's own against, in the same run.
//!
//! A crate root of its own, built into `target/ebpf/flatline-bench.o`: the object that the daemon carries
//! has none of this.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod freestanding;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{btf_tracepoint, classifier},
    programs::{BtfTracePointContext, TcContext},
};

/// On a tap: lets every packet go on, as flatline's programs do.
#[classifier]
pub(crate) fn empty_classifier(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Beside `block_submitted`.
#[btf_tracepoint(function = "block_bio_queue")]
pub(crate) fn empty_submitted(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Beside `block_request_completed`.
#[btf_tracepoint(function = "block_rq_complete")]
pub(crate) fn empty_request(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Beside `block_bio_completed`.
#[btf_tracepoint(function = "block_bio_complete")]
pub(crate) fn empty_bio(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Beside `threads`: what the kernel takes for going through all threads of the host.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn empty_threads(_ctx: *const core::ffi::c_void) -> i32 {
    0
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
