//! Batch look-up: reads many elements of a map in one system call, which aya has no way to.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads the first `count` elements of an array into `values`, which of a per-CPU array take one value for
/// each possible CPU. Returns how many were read.
///
/// # Errors
/// What the kernel said: per-CPU arrays can be read so since 5.13, others since 5.6.
pub(super) fn look_up<T: Pod>(map: &MapData, count: u32, values: &mut [T]) -> io::Result<u32> {
    if count == 0 {
        return Ok(0);
    }
    let room = size_of_val(values) / count as usize;
    debug_assert!(room * count as usize == size_of_val(values), "whole elements only");
    let mut keys = vec![0_u32; count as usize];
    let mut last_key = 0_u32;
    let mut attribute = Batch {
        out_batch: (&raw mut last_key).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count,
        map_fd: u32::try_from(map.fd().as_fd().as_raw_fd()).map_err(io::Error::other)?,
        ..Batch::default()
    };
    // SAFETY: the attribute is whole and of the size given. The kernel writes `count` keys of four bytes
    // and as many values, for which there is room: `T` is what the map holds, and its size was asserted
    // when it was made, and any bits are a value of it. All of it outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attribute,
            std::mem::size_of::<Batch>(),
        )
    };
    if answer == 0 {
        return Ok(attribute.count);
    }
    match io::Error::last_os_error() {
        // The map's end was reached.
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(attribute.count),
        error => Err(error),
    }
}
