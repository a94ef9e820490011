//! How the kernel begins a program: at `_start`, with the stack as execve(2) left it.

use core::{arch::global_asm, ffi::c_char};

use flatline_heartbeat::{
    arguments::MOST_WORDS,
    run,
    sys::{self, Environment},
};

// The first frame has none before it, and the stack stands at a multiple of 16.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "and sp, x0, #-16",
    "bl {begin}",
    "brk #1",
    begin = sym begin,
);

/// The stack has the number of words, then the words, a null pointer, the variables, and another.
///
/// # Safety
/// That has to be so.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: as the caller promises.
    let (count, first) = unsafe { (*stack, stack.add(1).cast::<*const c_char>()) };
    // SAFETY: as the caller promises; all of it stays for as long as the process.
    let environment = unsafe { Environment::new(first.add(count + 1)) };
    let mut room = [""; MOST_WORDS];
    // SAFETY: as the caller promises.
    let words = unsafe { sys::words(count, first, &mut room) };
    sys::exit(match words {
        Some(words) => run(words, &environment),
        None => {
            sys::say(2, &["flatline-heartbeat: too many words, or one that is no UTF-8\n"]);
            2
        }
    })
}
