//! QEMU's events, as they come over libvirt's socket, or as a `virsh` that stays prints them.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout},
    time::{Instant, sleep_until},
};

use super::command::Way;
use crate::{
    libvirt::Hearing,
    program::{self, Place, virsh::Virsh},
    qmp::QmpEvent,
};

/// The longest line of an event that is read: QEMU's own are below a few hundred bytes.
pub(super) const LINE_BYTES: usize = 16 << 10;
/// The pause before the `virsh` for the events is begun anew.
const EVENTS_PAUSE: Duration = Duration::from_secs(5);

/// The events of a domain.
pub(super) enum Events {
    Link(Hearing),
    Virsh(Box<Printed>),
}

impl Events {
    pub(super) fn begin(way: &Way, domain: &str) -> Self {
        match way {
            Way::Link(link, domain, _) => Self::Link(link.hear(domain)),
            Way::Virsh(virsh) => {
                Self::Virsh(Box::new(Printed::begin(virsh.clone(), domain.to_owned())))
            }
        }
    }

    /// The next event; `None` where something else came. Nothing is lost if it is not waited for to the end.
    pub(super) async fn next(&mut self) -> Option<QmpEvent> {
        match self {
            Self::Link(hearing) => hearing.next().await,
            Self::Virsh(printed) => printed.next().await,
        }
    }

    /// Whether some were left out since this was asked last, so that what they told is to be asked for.
    pub(super) fn were_lost(&self) -> bool {
        match self {
            Self::Link(hearing) => hearing.were_lost(),
            Self::Virsh(_) => false,
        }
    }
}

/// What a `virsh` prints of events.
pub(super) struct Printed {
    virsh: Virsh,
    domain: String,
    /// It, and what it prints; `None` until it is begun anew.
    child: Option<(Child, BufReader<ChildStdout>)>,
    begins_at: Instant,
    line: Vec<u8>,
}

impl Printed {
    fn begin(virsh: Virsh, domain: String) -> Self {
        let (begins_at, line) = (Instant::now(), Vec::new());
        let mut events = Self { virsh, domain, child: None, begins_at, line };
        events.begin_anew();
        events
    }

    fn begin_anew(&mut self) {
        self.line.clear();
        self.begins_at = Instant::now() + EVENTS_PAUSE;
        let program = self.virsh.events();
        let name = program.words.first().map_or("", String::as_str);
        let child = program::find(name)
            .and_then(|path| program::spawn(&path, &program, &[], &Place::default()).ok());
        self.child = child.and_then(|mut child| {
            // Its complaints are those that every command hears, too.
            drop(child.stderr.take());
            let stdout = child.stdout.take()?;
            Some((child, BufReader::new(stdout)))
        });
    }

    /// The next event; `None` where something else was printed, or the program has ended.
    async fn next(&mut self) -> Option<QmpEvent> {
        let Some((_, stdout)) = &mut self.child else {
            sleep_until(self.begins_at).await;
            self.begin_anew();
            return None;
        };
        let goes_on = read_line(stdout, &mut self.line).await;
        let event = event_in(&String::from_utf8_lossy(&self.line), &self.domain);
        self.line.clear();
        if !goes_on {
            // Killed, should it not have ended.
            self.child = None;
        }
        event
    }
}

/// Reads on to the end of a line, of which the beginning may be in `line` already; a longer one than is allowed is
/// cut. `false` at the end of all lines. Whatever was read stays in `line` if it isn't waited for to the end.
pub(super) async fn read_line(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
    loop {
        let Ok(bytes) = from.fill_buf().await else { return false };
        if bytes.is_empty() {
            return false;
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let room = LINE_BYTES.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(&part[..room]);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        from.consume(taken);
        if end.is_some() {
            return true;
        }
    }
}

/// The event in a line: `TIME: event NAME for domain 'DOMAIN': DETAILS`, the quotes only in newer versions, and
/// `<null>` where there are no details (`virshEventPrint` for QEMU's events in libvirt's tools/virsh-domain.c).
pub(super) fn event_in(line: &str, domain: &str) -> Option<QmpEvent> {
    let (_, rest) = line.split_once("event ")?;
    let (name, rest) = rest.split_once(' ')?;
    let (_, rest) = rest.split_once("for domain ")?;
    let is_name = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let rest = rest.strip_prefix('\'').unwrap_or(rest).strip_prefix(domain)?;
    let details = rest.strip_prefix('\'').unwrap_or(rest).strip_prefix(':')?.trim();
    let data = serde_json::from_str(details).unwrap_or(Value::Null);
    is_name.then(|| QmpEvent::parse(name, &data))
}
