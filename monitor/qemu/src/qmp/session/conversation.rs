//! One connection's life: greeting, negotiation, commands and events, until it ends.
//!
//! Nothing here waits for the peer: reading, writing, new commands and the next deadline stand in one
//! `select!`, so a QEMU that neither reads nor writes delays nothing else. What it can make us hold is
//! bounded: one message being read, and the unanswered commands.

mod replies;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::Encoder;

use replies::NoResult;
use serde_json::Value;

use super::disconnect::Disconnect;
use super::flood::Flood;
use super::limits::Limits;
use super::notice::{QmpError, QmpNotice};
use super::outbox::Outbox;
use super::reading::{give_back, read, read_left};
use super::requests::{Ended, Inbox, Request};
use super::room::Place;
use crate::outgoing::Outgoing;
use crate::qmp::QmpEvent;
use crate::qmp::codec::{Command, MAX_MESSAGE_BYTES, Message, QmpCodec};
use crate::text::error_chain;

/// How long a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Until it ends.
    Kept,
    /// Until all that is wanted of it is answered. Its run state is asked, whatever was known before.
    Brief,
}

/// Talks until the connection ends.
pub(super) async fn hold(
    stream: UnixStream,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
    style: Style,
    place: Place,
) -> Result<Disconnect, Ended> {
    let (reader, writer) = stream.into_split();
    let loss = place.loss();
    let mut talk = Conversation::new(limits, style, place);
    let mut received = BytesMut::new();
    loop {
        while matches!(talk.phase, Phase::Open)
            && let Some(request) = inbox.kept.pop_front()
        {
            talk.accept(request);
        }
        let deadline = talk.next_deadline();
        let step = tokio::select! {
            request = inbox.next() => {
                match request? {
                    early if style == Style::Brief && !matches!(talk.phase, Phase::Open) => {
                        inbox.kept.push_back(early);
                    }
                    request => talk.accept(request),
                }
                Ok(())
            }
            read = read(&reader, &mut received) => match read {
                Ok(0) => Err(Disconnect::Closed("QEMU closed the connection".to_owned())),
                // In a box, like all that is seldom: the room for it is kept by none that waits.
                Ok(bytes) => Box::pin(talk.receive(bytes, &mut received, outbox)).await,
                Err(error) => Err(Disconnect::Closed(error_chain(&error))),
            },
            sent = talk.unsent.send(writer.as_ref()), if !talk.unsent.is_empty() => {
                match sent {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        let last = talk.last_words(reader.as_ref(), &mut received, outbox);
                        Box::pin(last).await.and(Err(Disconnect::Closed(error_chain(&error))))
                    }
                }
            }
            why = loss.why() => Err(Disconnect::Refused(why)),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                Box::pin(talk.expire(outbox)).await
            }
        };
        if let Err(disconnect) = step {
            talk.disconnect();
            return Ok(disconnect);
        }
        talk.place.hold(if received.is_empty() { 0 } else { received.capacity() });
        // Their room is given back: there are such ones for each VM of the host.
        give_back(&mut received);
        if talk.unanswered.is_empty() {
            talk.unanswered = BTreeMap::new();
        }
    }
}

/// How far the connection has got.
enum Phase {
    /// Nothing may be sent yet.
    Greeting { deadline: Instant },
    /// Only `qmp_capabilities` may be sent.
    Negotiation,
    /// Anything may be sent.
    Open,
}

/// What waits for a reply.
enum Waiting {
    Negotiation,
    Status,
    Caller {
        command: String,
        limit: Duration,
        reply: oneshot::Sender<Result<Value, QmpError>>,
    },
    /// Its time was up; the caller has been told.
    NoCaller,
}

struct Unanswered {
    waiting: Waiting,
    sent: Instant,
    deadline: Instant,
    expired: bool,
}

/// How much is taken of the answer to a command: what the session asks itself is answered in a few words.
fn most_bytes(asked: Option<&Unanswered>) -> usize {
    match asked.map(|one| &one.waiting) {
        Some(Waiting::Caller { .. }) => MAX_MESSAGE_BYTES,
        Some(Waiting::Negotiation | Waiting::Status | Waiting::NoCaller) | None => 0,
    }
}

struct Conversation {
    limits: Limits,
    style: Style,
    /// Since when a brief one has nothing more to do.
    idle_since: Option<Instant>,
    codec: QmpCodec,
    /// Since when a message is not complete.
    within_since: Option<Instant>,
    /// Bytes that were taken of it.
    message_bytes: usize,
    unsent: Outgoing,
    phase: Phase,
    next_id: u64,
    unanswered: BTreeMap<u64, Unanswered>,
    flood: Flood,
    place: Place,
}

impl Conversation {
    fn new(limits: Limits, style: Style, place: Place) -> Self {
        Self {
            limits,
            style,
            idle_since: None,
            codec: QmpCodec::default(),
            within_since: None,
            message_bytes: 0,
            unsent: Outgoing::default(),
            phase: Phase::Greeting { deadline: Instant::now() + limits.greeting },
            next_id: 1,
            unanswered: BTreeMap::new(),
            flood: Flood::new(),
            place,
        }
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let is_idle = self.style == Style::Brief
            && matches!(self.phase, Phase::Open)
            && self.unanswered.is_empty()
            && self.unsent.is_empty();
        self.idle_since =
            if is_idle { self.idle_since.or_else(|| Some(Instant::now())) } else { None };
        let idle = self.idle_since.map(|since| since + self.limits.brief_linger);
        let greeting = match self.phase {
            Phase::Greeting { deadline } => Some(deadline),
            Phase::Negotiation | Phase::Open => None,
        };
        let waiting = self.unanswered.values().filter(|one| !one.expired).map(|one| one.deadline);
        let message = self.within_since.map(|since| since + self.limits.message);
        waiting.chain(greeting).chain(idle).chain(message).min()
    }

    fn accept(&mut self, request: Request) {
        let Request { command, arguments, descriptor, limit, deadline, reply } = request;
        if reply.is_closed() {
            // The caller has given up; what it asked for must not happen behind its back.
            return;
        }
        let error = if !matches!(self.phase, Phase::Open) {
            QmpError::NotConnected { reason: "not yet negotiated".to_owned() }
        } else if self.unanswered.len() >= self.limits.unanswered {
            QmpError::Busy
        } else {
            let name = command.clone();
            let waiting = Waiting::Caller { command, limit, reply };
            self.send(&name, arguments.as_ref(), descriptor, deadline, waiting);
            return;
        };
        let _ = reply.send(Err(error));
    }

    fn send(
        &mut self,
        execute: &str,
        arguments: Option<&Value>,
        descriptor: Option<OwnedFd>,
        deadline: Instant,
        waiting: Waiting,
    ) {
        let id = self.next_id;
        let codec = &mut self.codec;
        let encoded = self
            .unsent
            .append(descriptor, |bytes| codec.encode(Command { execute, arguments, id }, bytes));
        match encoded {
            Ok(()) => {
                self.next_id += 1;
                let sent = Instant::now();
                self.unanswered.insert(id, Unanswered { waiting, sent, deadline, expired: false });
            }
            Err(source) => {
                if let Waiting::Caller { command, reply, .. } = waiting {
                    let _ = reply.send(Err(QmpError::Unsendable { command, source }));
                }
            }
        }
    }

    fn send_own(&mut self, execute: &str, waiting: Waiting) {
        self.send(execute, None, None, Instant::now() + self.limits.handshake, waiting);
    }

    /// Whatever is due: the greeting, or the answers to commands.
    async fn expire(&mut self, outbox: &mut Outbox) -> Result<(), Disconnect> {
        let now = Instant::now();
        if let Phase::Greeting { deadline } = self.phase
            && deadline <= now
        {
            return Err(Disconnect::Busy);
        }
        if self.idle_since.is_some_and(|since| since + self.limits.brief_linger <= now) {
            return Err(Disconnect::Done);
        }
        if self.within_since.is_some_and(|since| since + self.limits.message <= now) {
            let limit = self.limits.message;
            return Err(Disconnect::Closed(format!("a message was not complete within {limit:?}")));
        }
        let mut since = None;
        for one in self.unanswered.values_mut().filter(|one| !one.expired && one.deadline <= now) {
            one.expired = true;
            since = since.or(Some(one.sent.into_std()));
            if matches!(one.waiting, Waiting::Caller { .. })
                && let Waiting::Caller { command, limit, reply } =
                    std::mem::replace(&mut one.waiting, Waiting::NoCaller)
            {
                let _ = reply.send(Err(QmpError::Timeout { command, limit }));
            }
        }
        match since {
            Some(since) => Ok(outbox.unresponsive(since).await?),
            None => Ok(()),
        }
    }

    async fn receive(
        &mut self,
        bytes: usize,
        received: &mut BytesMut,
        outbox: &mut Outbox,
    ) -> Result<(), Disconnect> {
        self.flood.bytes(bytes, &self.limits)?;
        loop {
            let before = received.len();
            let unanswered = &self.unanswered;
            let decoded = self.codec.next(received, |id| most_bytes(unanswered.get(&id)));
            self.message_bytes += before.saturating_sub(received.len());
            let Some(message) =
                decoded.map_err(|error| Disconnect::Refused(error_chain(&error)))?
            else {
                if self.codec.is_within(received) {
                    self.within_since.get_or_insert_with(Instant::now);
                } else {
                    self.within_since = None;
                }
                return Ok(());
            };
            self.within_since = None;
            let bytes = std::mem::take(&mut self.message_bytes);
            if !self.is_asked_for(&message) {
                self.place.unasked(bytes);
                self.flood.unasked(bytes, &self.limits)?;
            }
            self.flood.message(&self.limits)?;
            self.take(message, outbox).await?;
        }
    }

    /// Takes what a peer had sent before nothing could be sent to it any more: its events, and its answers.
    async fn last_words(
        &mut self,
        socket: &UnixStream,
        received: &mut BytesMut,
        outbox: &mut Outbox,
    ) -> Result<(), Disconnect> {
        loop {
            // Bounded, as all that is received: by what floods may have.
            match read_left(socket, received) {
                0 => return Ok(()),
                bytes => self.receive(bytes, received, outbox).await?,
            }
        }
    }

    /// Whether a message answers a command that was sent.
    fn is_asked_for(&self, message: &Message) -> bool {
        match message {
            Message::Return { id, .. }
            | Message::Error { id, .. }
            | Message::Skipped { id, .. } => id.is_some_and(|id| self.unanswered.contains_key(&id)),
            Message::Greeting | Message::Event { .. } | Message::Unknown => false,
        }
    }

    async fn take(&mut self, message: Message, outbox: &mut Outbox) -> Result<(), Disconnect> {
        match (message, &self.phase) {
            (Message::Greeting, Phase::Greeting { .. }) => {
                self.phase = Phase::Negotiation;
                self.send_own("qmp_capabilities", Waiting::Negotiation);
                Ok(())
            }
            (Message::Greeting, Phase::Negotiation | Phase::Open) => {
                Err(Disconnect::Refused("a second greeting on one connection".to_owned()))
            }
            (_, Phase::Greeting { .. }) => {
                Err(Disconnect::Refused("something else than a greeting at first".to_owned()))
            }
            (Message::Return { id, value }, _) => self.reply(id, Ok(value), outbox).await,
            (Message::Error { id, class, desc }, _) => {
                self.reply(id, Err(NoResult::Error { class, desc }), outbox).await
            }
            (Message::Skipped { kind, id, excess }, _) => {
                self.skipped(kind, id, excess, outbox).await
            }
            (Message::Event { name, data }, _) => {
                let event = QmpEvent::parse(&name, &data);
                if self.flood.event(&event, &self.limits)? {
                    outbox.tell(QmpNotice::Event(event)).await?;
                }
                Ok(())
            }
            (Message::Unknown, _) => Ok(()),
        }
    }

    fn disconnect(self) {
        for one in self.unanswered.into_values() {
            if let Waiting::Caller { command, reply, .. } = one.waiting {
                let _ = reply.send(Err(QmpError::Disconnected { command }));
            }
        }
    }
}
