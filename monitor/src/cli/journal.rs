//! The journal of systemd: each event is a line that a person can read, and fields for programs.
//!
//! Readers of the journal see the message alone, so that it has the VM's name and what else belongs to it; `journalctl -o
//! json` has the fields, as `FLATLINE_VM` and so on. The protocol is the one of systemd's *Native Journal Protocol*: a
//! datagram an entry. `tracing-journald` leaves the fields out of the message, and waits where the journal does: this one
//! never does, since the loop logs. What found no room is counted, and the count is told once there is some.

use std::{
    fmt::{self, Write as _},
    io,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Where systemd's journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Fields that are for programs: people have the message, and `status` and `incidents`.
const NOT_IN_THE_MESSAGE: [&str; 6] = ["uuid", "uid", "state", "cause", "event", "incident"];
/// Bytes of one field; a datagram takes some 200,000.
const MOST_BYTES: usize = 8 << 10;

/// Writes events to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    lost: AtomicU64,
}

impl Journal {
    /// To what listens at `socket`.
    ///
    /// # Errors
    /// If nothing does.
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let connected = UnixDatagram::unbound()?;
        connected.connect(socket)?;
        connected.set_nonblocking(true)?;
        Ok(Self { socket: connected, lost: AtomicU64::new(0) })
    }

    fn send(&self, entry: &[u8]) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("{lost} lines before this one found no room in the journal");
            if self.socket.send(&preamble(Level::WARN, &text)).is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if self.socket.send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.send(&fields.entry(event.metadata()));
    }
}

/// What an event has, in its order.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, mut text: String) {
        if text.len() > MOST_BYTES {
            text.truncate(text.floor_char_boundary(MOST_BYTES));
            text.push('…');
        }
        match field.name() {
            "message" => self.message = text,
            // What the crate `log` puts beside its own.
            name if name.starts_with("log.") => {}
            name => self.others.push((name, text)),
        }
    }

    /// The line for people: `web-1: found (pid=4711, owner=bare)`.
    fn line(&self) -> String {
        let vm = self.others.iter().find(|(name, _)| *name == "vm");
        let mut line = vm.map_or_else(String::new, |(_, vm)| format!("{vm}: "));
        line.push_str(&self.message);
        let shown = |name: &str| name != "vm" && !NOT_IN_THE_MESSAGE.contains(&name);
        let rest = self.others.iter().filter(|(name, _)| shown(name));
        let rest: Vec<String> = rest.map(|(name, value)| format!("{name}={value}")).collect();
        if !rest.is_empty() {
            // Writing to a string can't fail.
            let _ = write!(line, " ({})", rest.join(", "));
        }
        line
    }

    fn entry(&self, metadata: &Metadata<'_>) -> Vec<u8> {
        let mut entry = preamble(*metadata.level(), &self.line());
        put(&mut entry, "TARGET", metadata.target());
        for (name, value) in &self.others {
            let fit =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            put(
                &mut entry,
                &format!("FLATLINE_{}", name.chars().map(fit).collect::<String>()),
                value,
            );
        }
        entry
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// What each entry has. The levels are those of syslog(3).
fn preamble(level: Level, message: &str) -> Vec<u8> {
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    };
    let mut entry = Vec::new();
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", "flatline");
    put(&mut entry, "MESSAGE", message);
    entry
}

/// A field, in the form that may have any bytes in it.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// The fields of an entry, as journald reads them.
    fn parse(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            let (length, rest) = entry[end + 1..].split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap());
            let length = usize::try_from(length).unwrap();
            fields.push((name, String::from_utf8(rest[..length].to_vec()).unwrap()));
            assert_eq!(rest[length], b'\n');
            entry = &rest[length + 1..];
        }
        fields
    }

    fn heard(journal: &UnixDatagram) -> Vec<(String, String)> {
        let mut bytes = vec![0; 1 << 18];
        let length = journal.recv(&mut bytes).expect("an entry");
        parse(&bytes[..length])
    }

    fn journal() -> (tempfile::TempDir, UnixDatagram, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let journal = Journal::connect(&path).unwrap();
        (directory, socket, journal)
    }

    #[test]
    fn a_line_says_what_people_want_to_know_and_programs_have_fields() {
        let (_directory, socket, journal) = journal();
        let registry = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(registry, || {
            let uuid = Some("0f1e");
            info!(vm = "web\n1", uuid, pid = 4711, owner = %"bare", "found");
            warn!("not attached: {}", "no hook");
            info!(vm = "x", long = "é".repeat(MOST_BYTES), "cut");
        });
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            heard(&socket),
            [
                text("PRIORITY", "5"),
                text("SYSLOG_IDENTIFIER", "flatline"),
                text("MESSAGE", "web\n1: found (pid=4711, owner=bare)"),
                text("TARGET", module_path!()),
                text("FLATLINE_VM", "web\n1"),
                text("FLATLINE_UUID", "0f1e"),
                text("FLATLINE_PID", "4711"),
                text("FLATLINE_OWNER", "bare"),
            ]
        );
        assert_eq!(heard(&socket)[2], text("MESSAGE", "not attached: no hook"));
        let cut = heard(&socket);
        assert_eq!(cut.last().unwrap().1.chars().count(), MOST_BYTES / 2 + 1);
    }

    #[test]
    fn a_journal_that_takes_nothing_holds_nothing_up_and_is_told_how_much_it_missed() {
        let (_directory, socket, journal) = journal();
        let mut sent = 0_u64;
        while journal.lost.load(Ordering::Relaxed) < 3 {
            journal.send(b"A=b\n");
            sent += 1;
        }
        for _ in 0..sent - 3 {
            socket.recv(&mut [0; 16]).unwrap();
        }
        journal.send(&preamble(Level::INFO, "again"));
        let message = heard(&socket).swap_remove(2).1;
        assert_eq!(message, "3 lines before this one found no room in the journal");
        assert_eq!(heard(&socket).swap_remove(2).1, "again");
        assert!(Journal::connect(Path::new("/nowhere/socket")).is_err());
    }
}
