//! Fields of the kernel's structures, at offsets that user space resolves from the running kernel's BTF:
//! aya emits no CO-RE relocations for Rust, and an offset taken from one kernel is wrong on the next.

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// Declares offsets as globals. User space sets each before the load, and the kernel then freezes it.
macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: u32 = 0;)*
    };
}
pub(crate) use offsets;

/// Reads a global that user space sets before the load: volatile, so that the compiler doesn't fold in
/// the value of build time.
#[inline(always)]
pub(crate) fn global<T: Copy>(global: &'static T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::from_ref(global).read_volatile() }
}

/// Reads a field of a structure whose type the verifier knows.
///
/// # Safety
///
/// `base` must be a BTF-typed pointer: an argument of the program, or what this function read from one.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: &'static u32) -> T {
    // SAFETY: the verifier knows the frozen offset and checks the load against the kernel's own type; a
    // faulting read yields zero instead of faulting.
    unsafe { base.add(global(offset) as usize).cast::<T>().read_volatile() }
}

/// Reads a field of a structure at an address that was computed; `None` where there is no memory.
#[inline(always)]
pub(crate) fn field_at<T>(address: u64, offset: &'static u32) -> Option<T> {
    let from = address.wrapping_add(u64::from(global(offset))) as *const T;
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
