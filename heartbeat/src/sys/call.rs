//! System calls: the one place from which the kernel is entered.

use core::arch::asm;

use linux_raw_sys::ctypes::c_int;

/// Most arguments of a call.
const ARGUMENTS: usize = 6;

/// What the kernel says of a call that fails, as in errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) u32);

/// Enters the kernel; the arguments after the last that is given are zeros, which the call ignores.
///
/// # Safety
/// The arguments must be what this call takes: pointers lead to memory that is valid for what it reads and writes.
pub(super) unsafe fn call<const N: usize>(
    number: u32,
    arguments: [usize; N],
) -> Result<usize, Errno> {
    let mut all = [0; ARGUMENTS];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = from;
    }
    // SAFETY: as the caller promises.
    let result = unsafe { enter(number as usize, all) };
    // The last page's addresses are errors, and nothing else (`IS_ERR_VALUE` in Linux' include/linux/err.h).
    match u32::try_from(result.wrapping_neg()) {
        Ok(errno @ 1..=4095) => Err(Errno(errno)),
        _ => Ok(result),
    }
}

/// A number that the kernel takes for a C `int`, of which it reads the lower half of a register.
pub(super) fn int(number: c_int) -> usize {
    number.cast_unsigned() as usize
}

/// What a call is given for memory that it reads or writes.
pub(super) fn address<T: ?Sized>(of: *const T) -> usize {
    // Exposed: the kernel goes there by the number alone.
    of.expose_provenance()
}

/// What a call is given for memory that it need not read or write.
pub(super) const NOWHERE: usize = 0;

#[cfg(target_arch = "x86_64")]
unsafe fn enter(number: usize, [a, b, c, d, e, f]: [usize; ARGUMENTS]) -> usize {
    let result;
    // SAFETY: as `call`'s caller promises. The kernel keeps all but these registers, and uses no stack of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn enter(number: usize, [a, b, c, d, e, f]: [usize; ARGUMENTS]) -> usize {
    let result;
    // SAFETY: as `call`'s caller promises. The kernel keeps all but this register, and uses no stack of ours.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::{errno::EBADF, general};

    use super::{Errno, call, int};

    #[test]
    fn a_call_returns_what_the_kernel_says() {
        // SAFETY: they take no pointer.
        let (pid, closed) =
            unsafe { (call(general::__NR_getpid, []), call(general::__NR_close, [int(-1)])) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        assert_eq!(closed, Err(Errno(EBADF)));
    }
}
