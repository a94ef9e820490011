//! Many direct reads at once, as a QEMU with `aio=native` has them in flight.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Size of each read; a logical block of any disk fits a whole number of times.
pub const BLOCK: usize = 4096;
/// Reads that are submitted at once.
const DEPTH: usize = 32;

/// A buffer that direct I/O takes.
#[repr(align(4096))]
pub struct Block(pub [u8; BLOCK]);

/// `struct iocb` (include/uapi/linux/aio_abi.h), as a little-endian machine has it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    /// 0 is `IOCB_CMD_PREAD`.
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    options: u32,
    event_descriptor: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    second_result: i64,
}

/// Reads blocks of `file` (opened for direct I/O), 32 at a time, at the offsets that `offset` gives for a
/// running number; never returns but with an error.
pub fn read_forever(file: &File, offset: impl Fn(u64) -> u64) -> io::Error {
    let mut context: libc::c_ulong = 0;
    // SAFETY: the call writes no more than the context.
    if unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) } != 0 {
        return io::Error::last_os_error();
    }
    let mut buffers: Vec<Block> = (0..DEPTH).map(|_| Block([0; BLOCK])).collect();
    let Ok(descriptor) = u32::try_from(file.as_raw_fd()) else {
        return io::Error::other("a descriptor below zero");
    };
    let mut events = [Event::default(); DEPTH];
    for round in 0_u64.. {
        let mut requests = [Request::default(); DEPTH];
        for (at, (request, buffer)) in requests.iter_mut().zip(&mut buffers).enumerate() {
            request.descriptor = descriptor;
            request.buffer = buffer.0.as_mut_ptr().expose_provenance() as u64;
            request.bytes = BLOCK as u64;
            request.offset = offset(round * DEPTH as u64 + at as u64).cast_signed();
        }
        let mut pointers = requests.each_mut().map(std::ptr::from_mut);
        // SAFETY: there are as many requests as said; they, and the buffers that they name, live until all
        // have completed, which the next call waits for.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, context, DEPTH, pointers.as_mut_ptr()) };
        if submitted < 0 {
            return io::Error::last_os_error();
        }
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for as many events as said.
        let completed = unsafe {
            let events = events.as_mut_ptr();
            libc::syscall(libc::SYS_io_getevents, context, submitted, DEPTH, events, none)
        };
        if completed < submitted {
            // The kernel still writes into the buffers: they must outlive the process.
            std::mem::forget(buffers);
            return io::Error::last_os_error();
        }
    }
    io::Error::other("all numbers are used up")
}
