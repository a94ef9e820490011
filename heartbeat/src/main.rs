//! Where the C library begins: see the library of the same name.
#![no_std]
#![no_main]

use core::{
    ffi::{c_char, c_int},
    panic::PanicInfo,
};

use flatline_heartbeat::{arguments::MOST_WORDS, run, sys};

// Nothing else would ask for it where there is no standard library.
#[link(name = "c")]
unsafe extern "C" {}

#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let mut room = [""; MOST_WORDS];
    // SAFETY: the C library hands over as many strings as it says, which live as long as the process.
    match unsafe { sys::words(count, words, &mut room) } {
        Some(words) => run(words),
        None => {
            sys::say(2, &["flatline-heartbeat: too many words, or one that is no UTF-8\n"]);
            2
        }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    sys::abort()
}
