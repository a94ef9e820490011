//! Heartbeats through a virtio-serial port, for guests without a network card: the same frames as on the wire, or lines
//! that any shell can write. But for the task in `listen`, pure: bytes in, [`Heartbeats`] out.
//!
//! ```text
//! flatline INTERVAL_MS BOOT              a beat; BOOT begins with 16 hexadecimal digits, dashes left out
//! flatline INTERVAL_MS BOOT leaving      the guest goes down in good order
//! flatline INTERVAL_MS BOOT failed NAME  it lives, and what it checks does not
//! ```

mod listen;

use std::time::Duration;

use monitor_ebpf::heartbeat::{
    CHECK_NAME_BYTES, FLAG_CHECK_FAILED, FLAG_LEAVING, HEARTBEAT_MAGIC, Heartbeat,
};

pub(crate) use listen::PortListener;

use super::{Heard, Heartbeats, LastBeat, heartbeats::name};

/// How a line begins.
const LINE: &[u8] = b"flatline ";
/// More is no line.
const LINE_BYTES: usize = 128;
/// What stands before the magic of a frame: an Ethernet header.
const HEADER_BYTES: usize = 14;
/// Digits of a boot's number.
const BOOT_DIGITS: usize = 16;

/// A port's bytes, and what they said.
#[derive(Debug, Default)]
pub(crate) struct PortStream {
    pending: Vec<u8>,
    beats: Heartbeats,
}

/// What the pending bytes begin with.
enum Piece {
    /// Something, so long, that said this.
    Said(usize, LastBeat),
    /// Something of this length that is none.
    Malformed(usize),
    /// Something that may go on.
    Unfinished,
}

impl PortStream {
    /// What was said so far.
    pub(crate) fn heartbeats(&self) -> &Heartbeats {
        &self.beats
    }

    /// Forgets what was read in part: what comes next is of another connection.
    pub(crate) fn reconnected(&mut self) {
        self.pending.clear();
    }

    /// Takes bytes that came at `now`, a time since the host's start. No more than a frame's or a line's are kept of them.
    pub(crate) fn take(&mut self, bytes: &[u8], now: Duration) {
        // A piece at a time, so that what waits stays small whatever comes.
        for bytes in bytes.chunks(LINE_BYTES) {
            self.pending.extend_from_slice(bytes);
            while self.step(now) {}
        }
    }

    fn step(&mut self, now: Duration) -> bool {
        let Some(begin) = begin(&self.pending) else {
            // The end may be the begin of a beginning.
            let kept = self.pending.len().min(LINE.len() - 1);
            let passed = self.pending.len() - kept;
            if passed > HEADER_BYTES {
                self.beats.malformed += 1;
                self.pending.drain(..passed);
            }
            return false;
        };
        if begin > HEADER_BYTES {
            self.beats.malformed += 1;
        }
        self.pending.drain(..begin);
        let length = match piece(&self.pending, now) {
            Piece::Unfinished => return false,
            Piece::Malformed(length) => {
                self.beats.malformed += 1;
                length
            }
            Piece::Said(length, said) => {
                self.note(said);
                length
            }
        };
        self.pending.drain(..length.min(self.pending.len()));
        true
    }

    fn note(&mut self, said: LastBeat) {
        match (said.leaving, said.failed) {
            (true, _) => self.beats.leavings += 1,
            (false, true) => self.beats.failures += 1,
            (false, false) => self.beats.beats += 1,
        }
        self.beats.last = Some(said);
    }
}

/// Where the first frame or line begins.
fn begin(bytes: &[u8]) -> Option<usize> {
    let of = |pattern: &[u8]| bytes.windows(pattern.len()).position(|window| window == pattern);
    [of(&HEARTBEAT_MAGIC), of(LINE)].into_iter().flatten().min()
}

fn piece(bytes: &[u8], now: Duration) -> Piece {
    if bytes.starts_with(&HEARTBEAT_MAGIC) {
        let Some(beat) = bytes.first_chunk().map(Heartbeat::from_bytes) else {
            return Piece::Unfinished;
        };
        return match beat.is_well_formed() {
            true => Piece::Said(size_of::<Heartbeat>(), of_frame(&beat, now)),
            false => Piece::Malformed(HEARTBEAT_MAGIC.len()),
        };
    }
    match bytes.iter().take(LINE_BYTES).position(|byte| *byte == b'\n') {
        Some(end) => match bytes.get(..end).and_then(|line| of_line(line, now)) {
            Some(said) => Piece::Said(end + 1, said),
            None => Piece::Malformed(end + 1),
        },
        None if bytes.len() < LINE_BYTES => Piece::Unfinished,
        None => Piece::Malformed(LINE.len()),
    }
}

fn of_frame(beat: &Heartbeat, now: Duration) -> LastBeat {
    LastBeat {
        heard: Heard::At(now),
        leaving: beat.flags & FLAG_LEAVING != 0,
        failed: beat.flags & FLAG_CHECK_FAILED != 0,
        interval: Duration::from_millis(u32::from_be_bytes(beat.interval_ms).into()),
        boot: u64::from_be_bytes(beat.boot),
        sequence: u64::from_be_bytes(beat.sequence),
        check: name(&beat.check),
    }
}

fn of_line(line: &[u8], now: Duration) -> Option<LastBeat> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace().skip(1);
    let interval = words.next()?.parse::<u32>().ok().filter(|interval| *interval != 0)?;
    let digits: String =
        words.next()?.chars().filter(|digit| *digit != '-').take(BOOT_DIGITS).collect();
    let boot = u64::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == BOOT_DIGITS)?;
    let (leaving, failed) = match words.next() {
        None => (false, false),
        Some("leaving") => (true, false),
        Some("failed") => (false, true),
        Some(_) => return None,
    };
    let check = words.next().filter(|_| failed).unwrap_or_default();
    let check = name(check.as_bytes().get(..CHECK_NAME_BYTES).unwrap_or(check.as_bytes()));
    let interval = Duration::from_millis(interval.into());
    let heard = Heard::At(now);
    words.next().is_none().then_some(LastBeat {
        heard,
        leaving,
        failed,
        interval,
        boot,
        sequence: 0,
        check,
    })
}

/// Any bytes, however they are cut: what comes of them is the same.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::*;

    /// Takes bytes as a port would.
    pub(crate) fn port(bytes: &[u8]) {
        let now = Duration::from_secs(5);
        let read = |size: usize| {
            let mut stream = PortStream::default();
            for bytes in bytes.chunks(size) {
                stream.take(bytes, now);
                assert!(stream.pending.len() <= 2 * LINE_BYTES, "{}", stream.pending.len());
            }
            let Heartbeats { beats, failures, leavings, malformed: _, last } = stream.beats;
            (beats, failures, leavings, last)
        };
        assert_eq!(read(bytes.len().max(1)), read(1));
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::heartbeat::{HEARTBEAT_VERSION, frame};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const NOW: Duration = Duration::from_secs(7);

    fn beat(flags: u8, sequence: u64) -> Vec<u8> {
        let beat = Heartbeat {
            magic: HEARTBEAT_MAGIC,
            version: HEARTBEAT_VERSION,
            flags,
            reserved: [0; 2],
            interval_ms: 2000_u32.to_be_bytes(),
            boot: 0xabcd_u64.to_be_bytes(),
            sequence: sequence.to_be_bytes(),
            check: [0; CHECK_NAME_BYTES],
        };
        frame([0; 6], &beat).to_vec()
    }

    fn read(bytes: &[u8]) -> Heartbeats {
        let mut stream = PortStream::default();
        stream.take(bytes, NOW);
        stream.heartbeats().clone()
    }

    fn counts(beats: &Heartbeats) -> [u64; 4] {
        [beats.beats, beats.failures, beats.leavings, beats.malformed]
    }

    #[test]
    fn frames_are_read_one_after_the_other() {
        let said = read(&[beat(0, 1), beat(FLAG_CHECK_FAILED, 1), beat(0, 2)].concat());
        assert_eq!(counts(&said), [2, 1, 0, 0]);
        let last = said.last.expect("it said something");
        assert_eq!((last.boot, last.sequence, last.interval.as_secs()), (0xabcd, 2, 2));
        assert_eq!(last.heard, Heard::At(NOW));
        assert!(read(&beat(FLAG_LEAVING, 9)).last.is_some_and(|last| last.leaving));
    }

    #[test]
    fn lines_say_the_same_as_frames() {
        let id = "01234567-89ab-cdef-0123-456789abcdef";
        let said = read(format!("flatline 1500 {id}\nflatline 1500 {id} failed web\n").as_bytes());
        assert_eq!(counts(&said), [1, 1, 0, 0]);
        let last = said.last.expect("it said something");
        assert_eq!((last.boot, last.check.as_str()), (0x0123_4567_89ab_cdef, "web"));
        assert!(last.failed && last.interval == Duration::from_millis(1500));
        let said = read(format!("flatline 1 {id} leaving\r\n").as_bytes());
        assert_eq!(counts(&said), [0, 0, 1, 0]);
    }

    #[test]
    fn what_makes_no_sense_is_counted_and_what_follows_is_understood() {
        let id = "0123456789abcdef";
        for line in [
            "flatline\n".to_owned() + "flatline \n",
            format!("flatline 0 {id}\n"),
            format!("flatline -1 {id}\n"),
            format!("flatline 99999999999 {id}\n"),
            "flatline 1000 0123\n".to_owned(),
            "flatline 1000 xxxxxxxxxxxxxxxx\n".to_owned(),
            format!("flatline 1000 {id} bored\n"),
            format!("flatline 1000 {id} failed a b\n"),
            format!("flatline {}\n", "7".repeat(500)),
            "\u{1b}[2J".repeat(100),
        ] {
            let said = read(&[line.as_bytes(), &beat(0, 1)].concat());
            assert_eq!((said.beats, said.failures, said.leavings), (1, 0, 0), "{line:?}");
            assert!(said.malformed > 0, "{line:?}");
        }
        let mut old = beat(0, 1);
        old[18] = 0;
        assert_eq!(counts(&read(&[old, beat(0, 2)].concat()))[0], 1);
    }

    #[test]
    fn half_a_frame_of_a_connection_before_is_forgotten() {
        let mut stream = PortStream::default();
        stream.take(&beat(0, 1)[..40], NOW);
        stream.reconnected();
        stream.take(&beat(0, 2), NOW);
        assert_eq!(counts(stream.heartbeats()), [1, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn however_bytes_are_cut_they_say_the_same(
            pieces in vec(prop_oneof![
                Just(beat(0, 1)),
                Just(beat(FLAG_LEAVING, 1)),
                Just(b"flatline 1000 0123456789abcdef\n".to_vec()),
                Just(b"flatline ".to_vec()),
                Just(b"FLHB".to_vec()),
                vec(any::<u8>(), 0..200),
            ], 0..8),
        ) {
            fuzzing::port(&pieces.concat());
        }
    }
}
