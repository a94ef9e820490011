//! Programs that a system call is refused to, as a unit's `SystemCallFilter` or a security module would.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Result;

/// Instructions of classic BPF: load a word of `struct seccomp_data`, jump if it is equal, return.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Has `call` fail with `EPERM` in what `command` starts, and in all that this starts. Needs root.
///
/// # Errors
///
/// If the number is none of a system call's.
pub(crate) fn refuse(command: &mut Command, call: libc::c_long) -> Result<()> {
    let instruction =
        |code, on_true, on_false, k| libc::sock_filter { code, jt: on_true, jf: on_false, k };
    let filter = [
        // The number comes first.
        instruction(LOAD, 0, 0, 0),
        instruction(JUMP_IF_EQUAL, 0, 1, u32::try_from(call)?),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the program and its four instructions outlive the call, which copies them.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(install) };
    Ok(())
}
