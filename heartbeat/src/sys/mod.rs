//! What is asked of the kernel, without a C library between: all that is unsafe stands here, and in how the program
//! begins. So it is some kilobytes, the same with every distribution, and any Rust compiler that has a core library for
//! its target builds it.

mod call;
mod child;
mod network;
mod signals;

use core::ffi::{CStr, c_char};

use linux_raw_sys::{
    errno::EAGAIN,
    general::{
        __NR_clock_gettime, __NR_close, __NR_exit_group, __NR_faccessat, __NR_getdents64,
        __NR_openat, __NR_read, __NR_write, AT_FDCWD, CLOCK_MONOTONIC, F_OK, O_CLOEXEC, O_NOCTTY,
        O_NONBLOCK, O_RDONLY, O_WRONLY,
    },
};

use call::{Errno, address, call, int};
pub use child::{Child, Environment};
pub use network::PacketSocket;
pub use signals::{Signals, Waited};

/// Milliseconds of a second.
pub const SECOND_MS: u64 = 1000;
/// A path or a word of a command with its final zero.
const TEXT_BYTES: usize = 4096;

/// `struct timespec` of 64-bit kernels.
#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

/// Milliseconds of a clock that can't be set, and that stands still while the guest is suspended.
pub fn now_ms() -> u64 {
    let mut now = TimeSpec { seconds: 0, nanoseconds: 0 };
    let arguments = [CLOCK_MONOTONIC as usize, address(&raw mut now)];
    // SAFETY: `now` lives as long as the call, which fills it in. This clock can't fail.
    let _ = unsafe { call(__NR_clock_gettime, arguments) };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.seconds) * SECOND_MS + part(now.nanoseconds) / 1_000_000
}

/// Prints to a descriptor, as far as that goes.
pub fn say(descriptor: u32, parts: &[&str]) {
    for part in parts {
        let _ = write(descriptor, part.as_bytes());
    }
}

/// Ends the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: it has no conditions, and does not come back.
        let _ = unsafe { call(__NR_exit_group, [int(code)]) };
    }
}

/// The words after the program's own name; `None` if there are too many, or one is no UTF-8.
///
/// # Safety
/// `words` must hold `count` C strings that live as long as `'a`.
pub unsafe fn words<'a, 'b>(
    count: usize,
    words: *const *const c_char,
    room: &'b mut [&'a str],
) -> Option<&'b [&'a str]> {
    let room = room.get_mut(..count.saturating_sub(1))?;
    for (at, word) in room.iter_mut().enumerate() {
        // SAFETY: as the caller promises; the first is the program's name.
        *word = unsafe { CStr::from_ptr(*words.add(at + 1)) }.to_str().ok()?;
    }
    Some(room)
}

/// The first half of the kernel's id of this boot, which is random.
pub fn boot_id() -> Option<[u8; 8]> {
    let file = Descriptor::open(c"/proc/sys/kernel/random/boot_id", O_RDONLY)?;
    let mut text = [0; 36];
    let bytes = file.read(&mut text)?;
    parse_id(text.get(..bytes)?)
}

/// The first eight bytes of a UUID.
fn parse_id(text: &[u8]) -> Option<[u8; 8]> {
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    let mut digit = || char::from(*digits.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut id = [0; 8];
    for byte in &mut id {
        *byte = digit()? << 4 | digit()?;
    }
    Some(id)
}

/// Some texts as one, with a zero behind it, for the kernel; `None` if it is too long, or has one within.
fn joined<'a>(parts: &[&[u8]], room: &'a mut [u8]) -> Option<&'a CStr> {
    let mut length = 0_usize;
    for part in parts {
        room.get_mut(length..length.checked_add(part.len())?)?.copy_from_slice(part);
        length += part.len();
    }
    *room.get_mut(length)? = 0;
    CStr::from_bytes_with_nul(room.get(..=length)?).ok()
}

/// Whether there is something of this name.
fn exists(path: &CStr) -> bool {
    let arguments = [int(AT_FDCWD), address(path.as_ptr()), F_OK as usize];
    // SAFETY: the path is a C string that lives as long as the call.
    unsafe { call(__NR_faccessat, arguments) }.is_ok()
}

fn write(descriptor: u32, bytes: &[u8]) -> Result<usize, Errno> {
    let arguments = [descriptor as usize, address(bytes.as_ptr()), bytes.len()];
    // SAFETY: the bytes are as many as said, and live as long as the call, which reads them.
    unsafe { call(__NR_write, arguments) }
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it was taken.
    All,
    /// There was no room for it: there is no reader.
    NoRoom,
    /// What was open is no longer there.
    Gone,
}

/// An open file, which is closed when it is dropped.
pub struct Descriptor(u32);

impl Descriptor {
    /// One that the kernel handed out just now.
    fn new(raw: Result<usize, Errno>) -> Option<Self> {
        raw.ok().and_then(|raw| u32::try_from(raw).ok()).map(Self)
    }

    fn raw(&self) -> usize {
        self.0 as usize
    }

    fn open(path: &CStr, flags: u32) -> Option<Self> {
        let flags = (flags | O_CLOEXEC) as usize;
        // SAFETY: the path is a C string that lives as long as the call.
        Self::new(unsafe { call(__NR_openat, [int(AT_FDCWD), address(path.as_ptr()), flags]) })
    }

    /// A character device, to which writes never wait.
    pub fn open_to_write(path: &str) -> Option<Self> {
        let mut room = [0; TEXT_BYTES];
        let path = joined(&[path.as_bytes()], &mut room)?;
        Self::open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY)
    }

    /// Writes all of it, or a part, which no reader takes for a message.
    pub fn write(&self, bytes: &[u8]) -> Written {
        match write(self.0, bytes) {
            Ok(length) if length == bytes.len() => Written::All,
            Ok(_) | Err(Errno(EAGAIN)) => Written::NoRoom,
            Err(_) => Written::Gone,
        }
    }

    fn read(&self, room: &mut [u8]) -> Option<usize> {
        self.fill(__NR_read, room)
    }

    /// Entries of a directory, as `getdents64(2)` tells of them; none are left after none.
    fn read_entries(&self, room: &mut [u8]) -> Option<usize> {
        self.fill(__NR_getdents64, room)
    }

    fn fill(&self, number: u32, room: &mut [u8]) -> Option<usize> {
        let arguments = [self.raw(), address(room.as_mut_ptr()), room.len()];
        // SAFETY: the room is as large as said, and lives as long as the call, which fills it in.
        unsafe { call(number, arguments) }.ok()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is ours, and is not used any more.
        let _ = unsafe { call(__NR_close, [self.raw()]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_its_first_digits() {
        let id = parse_id(b"a1b2c3d4-e5f6-4a5b-8c7d-000102030405\n");
        assert_eq!(id, Some([0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x4a, 0x5b]));
        assert_eq!(parse_id(b"a1b2"), None);
        assert_eq!(parse_id(b"xyz2c3d4-e5f6-4a5b"), None);
        let text = std::fs::read("/proc/sys/kernel/random/boot_id").expect("it is there");
        assert_eq!(boot_id(), parse_id(&text));
        assert!(boot_id().is_some());
    }

    #[test]
    fn a_text_that_the_kernel_would_not_see_as_a_whole_is_refused() {
        let mut room = [0xff; 4];
        assert_eq!(joined(&[b"a", b"bc"], &mut room), Some(c"abc"));
        assert_eq!(joined(&[b"abcd"], &mut room), None);
        assert_eq!(joined(&[b"abc", b"d"], &mut room), None);
        assert_eq!(joined(&[b"a\0b"], &mut room), None);
        assert_eq!(joined(&[], &mut room), Some(c""));
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now_ms();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!((30..30_000).contains(&(now_ms() - before)));
    }

    #[test]
    fn a_port_without_a_reader_has_no_room_and_one_that_ended_is_gone() {
        let path = std::format!("/tmp/flatline-heartbeat-{}", std::process::id());
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.is_ok_and(|status| status.success()));
        // A pipe without a reader can't be opened.
        assert!(Descriptor::open_to_write(&path).is_none());
        let reads = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a pipe");
        let port = Descriptor::open_to_write(&path).expect("it has a reader");
        let bytes = [0; 4096];
        while port.write(&bytes) == Written::All {}
        assert_eq!(port.write(&bytes), Written::NoRoom);
        drop(reads);
        assert_eq!(port.write(&bytes), Written::Gone);
        std::fs::remove_file(&path).expect("it is ours");
    }
}
