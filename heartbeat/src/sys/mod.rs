//! What is asked of the kernel, through the C library: all that is unsafe stands here.

mod child;
mod network;
mod signals;

use core::ffi::{CStr, c_char, c_int};

pub use child::Child;
pub use network::PacketSocket;
pub use signals::{Signals, Waited};

/// Milliseconds of a second.
pub const SECOND_MS: u64 = 1000;
/// A path or a word of a command with its final zero.
pub(super) const TEXT_BYTES: usize = 4096;

/// Milliseconds of a clock that nobody sets, and that stands still while the guest is suspended.
pub fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that lives as long as the call. This clock can't fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec) * SECOND_MS + part(now.tv_nsec) / 1_000_000
}

/// Prints to a descriptor, as far as that goes.
pub fn say(descriptor: c_int, parts: &[&str]) {
    for part in parts {
        // SAFETY: the text is as long as said, and lives as long as the call.
        unsafe { libc::write(descriptor, part.as_ptr().cast(), part.len()) };
    }
}

/// Ends the process at once.
pub fn abort() -> ! {
    // SAFETY: it has no conditions.
    unsafe { libc::abort() }
}

/// The words after the program's own name; `None` if there are too many, or one is no UTF-8.
///
/// # Safety
/// `words` must hold `count` C strings that live as long as `'a`.
pub unsafe fn words<'a, 'b>(
    count: c_int,
    words: *const *const c_char,
    room: &'b mut [&'a str],
) -> Option<&'b [&'a str]> {
    let count = usize::try_from(count).ok()?.saturating_sub(1);
    let room = room.get_mut(..count)?;
    for (at, word) in room.iter_mut().enumerate() {
        // SAFETY: as the caller promises; the first is the program's name.
        *word = unsafe { CStr::from_ptr(*words.add(at + 1)) }.to_str().ok()?;
    }
    Some(room)
}

/// The first half of the kernel's id of this boot, which is random.
pub fn boot_id() -> Option<[u8; 8]> {
    let file = Descriptor::open(c"/proc/sys/kernel/random/boot_id", libc::O_RDONLY)?;
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

/// A text with a zero behind it, for the kernel; `None` if it is too long, or has one within.
pub(super) fn terminated<'a>(text: &str, room: &'a mut [u8]) -> Option<&'a CStr> {
    let (bytes, end) = room.split_at_mut_checked(text.len())?;
    bytes.copy_from_slice(text.as_bytes());
    *end.first_mut()? = 0;
    CStr::from_bytes_with_nul(room.get(..=text.len())?).ok()
}

/// An open file, which is closed when it is dropped.
pub struct Descriptor(c_int);

impl Descriptor {
    /// One that the kernel handed out just now.
    pub(super) fn new(raw: c_int) -> Option<Self> {
        (raw >= 0).then_some(Self(raw))
    }

    pub(super) fn raw(&self) -> c_int {
        self.0
    }

    fn open(path: &CStr, flags: c_int) -> Option<Self> {
        // SAFETY: the path is a C string that lives as long as the call.
        Self::new(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
    }

    /// A character device, to which writes never wait.
    pub fn open_to_write(path: &str) -> Option<Self> {
        let mut room = [0; TEXT_BYTES];
        let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        Self::open(terminated(path, &mut room)?, flags)
    }

    /// Whether all of it was taken.
    pub fn write(&self, bytes: &[u8]) -> bool {
        // SAFETY: the bytes are as many as said, and live as long as the call.
        let taken = unsafe { libc::write(self.0, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(taken) == Ok(bytes.len())
    }

    fn read(&self, room: &mut [u8]) -> Option<usize> {
        // SAFETY: the room is as large as said, and lives as long as the call.
        let bytes = unsafe { libc::read(self.0, room.as_mut_ptr().cast(), room.len()) };
        usize::try_from(bytes).ok()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody uses it any more.
        unsafe { libc::close(self.0) };
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
        assert!(boot_id().is_some());
    }

    #[test]
    fn a_text_that_the_kernel_would_not_see_as_a_whole_is_refused() {
        let mut room = [0; 4];
        assert_eq!(terminated("abc", &mut room), Some(c"abc"));
        assert_eq!(terminated("abcd", &mut room), None);
        assert_eq!(terminated("a\0b", &mut room), None);
    }
}
