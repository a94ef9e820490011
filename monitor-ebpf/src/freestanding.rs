//! Panic handler and license, which every object without `std` needs: each of the crate's roots has this module.

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no unbounded loop: were a panic reachable, the program would not load.
    loop {}
}

/// Helpers such as `bpf_skb_load_bytes` are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
