//! Beats, and where they go.

use monitor_ebpf::heartbeat::{
    CHECK_NAME_BYTES, FLAG_CHECK_FAILED, FLAG_LEAVING, HEARTBEAT_MAGIC, HEARTBEAT_VERSION,
    Heartbeat, frame,
};

use crate::{
    ERROR,
    arguments::Arguments,
    sys::{Descriptor, PacketSocket, Written, say},
};

/// Going down is said so often: a frame may be lost.
const SAID_GOING: usize = 3;

/// What is sent, and where it goes.
pub(crate) struct Beats<'a> {
    way: Way<'a>,
    beat: Heartbeat,
    sequence: u64,
    /// That nothing could be sent was said.
    is_told: bool,
}

enum Way<'a> {
    /// On every network card.
    Cards(PacketSocket),
    /// To a character device of this path, which is opened anew after it was unplugged.
    Port(&'a str, Option<Descriptor>),
}

impl<'a> Beats<'a> {
    /// Opens the way that the arguments name.
    ///
    /// # Errors
    /// If there is none, in words.
    pub(crate) fn begin(arguments: &Arguments<'a>) -> Result<Self, &'static str> {
        let way = match arguments.port {
            None => Way::Cards(PacketSocket::open()?),
            Some(path) => {
                let port = Descriptor::open_to_write(path).ok_or("the port can't be opened")?;
                Way::Port(path, Some(port))
            }
        };
        let beat = Heartbeat {
            magic: HEARTBEAT_MAGIC,
            version: HEARTBEAT_VERSION,
            flags: 0,
            reserved: [0; 2],
            interval_ms: arguments.interval_ms.to_be_bytes(),
            boot: crate::sys::boot_id().ok_or("the kernel tells no boot id")?,
            sequence: [0; 8],
            check: name(arguments.name),
        };
        Ok(Self { way, beat, sequence: 0, is_told: false })
    }

    /// The guest lives, and what is checked does.
    pub(crate) fn beat(&mut self) {
        self.sequence += 1;
        self.send(0);
    }

    /// The guest lives, and what is checked does not.
    pub(crate) fn check_failed(&mut self) {
        self.send(FLAG_CHECK_FAILED);
    }

    /// The guest goes down in good order.
    pub(crate) fn leave(&mut self) {
        for _ in 0..SAID_GOING {
            self.send(FLAG_LEAVING);
        }
    }

    /// What can't be sent now is lost: the next beat is as good.
    fn send(&mut self, flags: u8) {
        let beat = Heartbeat { flags, sequence: self.sequence.to_be_bytes(), ..self.beat };
        match &mut self.way {
            Way::Cards(socket) => {
                let cards = socket.on_each_card(|source| frame(source, &beat));
                if cards == 0 && !self.is_told {
                    self.is_told = true;
                    say(ERROR, &["flatline-heartbeat: no network card is up yet\n"]);
                }
            }
            Way::Port(path, port) => {
                // The same bytes, so that one parser reads both.
                let bytes = frame([0; 6], &beat);
                // Without a reader at the other end it stays open: a port can be opened but once, and each time the host
                // is told.
                if port.as_ref().is_none_or(|port| port.write(&bytes) == Written::Gone) {
                    *port = None;
                    *port = Descriptor::open_to_write(path);
                }
            }
        }
    }
}

/// A check's name as it goes over the wire: printable ASCII, the rest as `?`.
fn name(text: &str) -> [u8; CHECK_NAME_BYTES] {
    let mut name = [0; CHECK_NAME_BYTES];
    for (byte, c) in name.iter_mut().zip(text.chars()) {
        *byte = u8::try_from(c).ok().filter(|byte| matches!(byte, b' '..=b'~')).unwrap_or(b'?');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn a_name_is_printable_and_cut() {
        assert_eq!(&name("web")[..4], b"web\0");
        assert_eq!(&name("a\u{1b}ä\n")[..5], b"a???\0");
        assert_eq!(name(&"x".repeat(40)), [b'x'; 32]);
    }
}
