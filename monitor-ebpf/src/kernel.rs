//! Fields of the kernel's structures, at offsets that user space resolves from the running kernel's BTF:
//! aya emits no CO-RE relocations for Rust, and an offset taken from one kernel is wrong on the next.
//!
//! What user space knows before the load stands in the instructions themselves, in place of what is
//! [`placed`](monitor_ebpf::placeholder) there for it: a global would be a load from memory, each time, which is most of
//! what a program takes that finds the CPU's caches cold.

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// A number that user space puts into the programs before the load.
pub(crate) struct Global<const PLACEHOLDER: u32>;

/// Declares such numbers, by the names that user space has for them.
macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub(crate) const $name: crate::kernel::Global<
            { monitor_ebpf::placeholder::of(stringify!($name)) },
        > = crate::kernel::Global;)*
    };
}
pub(crate) use globals;

/// A number that user space set before the load. The verifier knows it, the compiler does not.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub(crate) fn global<const PLACEHOLDER: u32>(_: &Global<PLACEHOLDER>) -> u32 {
    let number: u32;
    // SAFETY: the instruction writes one register.
    unsafe {
        core::arch::asm!(
            "{number} = {placeholder}",
            number = lateout(wreg) number,
            placeholder = const PLACEHOLDER,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    number
}

/// As above, for tools that look at this crate on another target.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn global<const PLACEHOLDER: u32>(_: &Global<PLACEHOLDER>) -> u32 {
    PLACEHOLDER
}

/// The same as a distance in memory.
#[inline(always)]
#[cfg(target_arch = "bpf")]
fn offset<const PLACEHOLDER: u32>(_: &Global<PLACEHOLDER>) -> usize {
    let offset: usize;
    // SAFETY: the instruction writes one register.
    unsafe {
        core::arch::asm!(
            "{offset} = {placeholder}",
            offset = lateout(reg) offset,
            placeholder = const PLACEHOLDER,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    offset
}

/// As above, for tools that look at this crate on another target.
#[cfg(not(target_arch = "bpf"))]
fn offset<const PLACEHOLDER: u32>(_: &Global<PLACEHOLDER>) -> usize {
    PLACEHOLDER as usize
}

/// Reads a field of a structure whose type the verifier knows.
///
/// # Safety
///
/// `base` must be a BTF-typed pointer: an argument of the program, or what this function read from one.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy, const PLACEHOLDER: u32>(
    base: *const u8,
    at: &Global<PLACEHOLDER>,
) -> T {
    // SAFETY: the verifier knows the offset and checks the load against the kernel's own type; a
    // faulting read yields zero instead of faulting.
    unsafe { base.add(offset(at)).cast::<T>().read_volatile() }
}

/// Reads a field of a structure at an address that was computed; `None` where there is no memory.
#[inline(always)]
pub(crate) fn field_at<T, const PLACEHOLDER: u32>(
    address: u64,
    at: &Global<PLACEHOLDER>,
) -> Option<T> {
    let from = address.wrapping_add(offset(at) as u64) as *const T;
    // SAFETY: the helper takes any address, and says so if it can't be read.
    unsafe { bpf_probe_read_kernel(from) }.ok()
}

/// The lower half of a pointer. The verifier lets nothing else be computed with one whose type it knows, and the compiler,
/// which would take the whole of it for a test of a few bits, is not told what it is.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub(crate) fn low_half(pointer: *const u8) -> u32 {
    let half: u32;
    // SAFETY: the instruction copies the lower half of one register into another, and clears its upper half.
    unsafe {
        core::arch::asm!(
            "{half} = {pointer}",
            half = lateout(wreg) half,
            pointer = in(wreg) pointer as u32,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    half
}

/// As above, for tools that look at this crate on another target.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn low_half(pointer: *const u8) -> u32 {
    pointer as u32
}
