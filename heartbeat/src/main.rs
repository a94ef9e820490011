//! Where the program begins and what the compiler takes for granted; the rest is the library of the same name.
#![no_std]
#![no_main]

mod memory;
mod start;

use core::panic::PanicInfo;

use flatline_heartbeat::sys;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    sys::exit(101)
}

/// Named by the core library's tables for unwinding, which is not done here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
