//! One task a VM that owns the QMP connection: it connects, reconnects, and reports what it hears.
//!
//! ```text
//!              connected, greeted,           a command's time is up
//! Connecting ─┬─ negotiated ──────► Ready ◄──────────────────────► Unresponsive
//!             │                       │          any reply comes        │
//!             ├─ no greeting in 2 s ──┼──► Busy      (again in 5 s)     │
//!             ├─ cannot connect, EOF ─┼──► Closed    (again in 250 ms, doubling to 5 s) ◄┤
//!             └─ impostor, nonsense, ─┴──► Refused   (again in 60 s) ◄──────────────────┘
//!                flood
//! ```
//!
//! Connecting is reported once, at the start; a state is reported again only if it differs from the
//! one before. After each step to Ready the run state is asked for and reported, because events are
//! not replayed to a client that was away.
//!
//! Nothing is lost silently: a notice that the receiver does not take within a second ends the
//! connection, so that the task holds no more than that one notice and the kernel's socket buffer.
//! That counts as Closed and not as Refused, since the receiver is shared by all VMs and the one
//! that floods it need not be this one. The states outside a connection are sent for as long as it
//! takes; the next connection then brings the run state again.
//!
//! So it is where the socket is ours alone. Where somebody else needs it as well, a session is `brief`; where libvirt
//! holds it, one goes `through_libvirt`. Callers see no difference but in what is heard: [`Transport`].

mod brief;
mod conversation;
mod outgoing;
#[cfg(test)]
mod tests;
mod through_libvirt;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use conversation::Style;

use super::codec::CodecError;
use super::peer::{self, PeerError};
use super::{MAX_TEXT_CHARS, QmpEvent, RunState, printable};
use crate::discover::VmId;
use crate::error_text::in_full;
use crate::program::virsh::Virsh;

/// Which QEMU to talk to, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpTarget {
    /// The QEMU process.
    pub vm: VmId,
    /// The socket as QEMU was told: in its root, or relative to its working directory.
    pub socket: PathBuf,
}

/// By which way a QEMU is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// One connection to its socket, kept open.
    Keep(QmpTarget),
    /// A connection for each batch of commands; events are not heard.
    Brief(QmpTarget),
    /// `virsh`, while libvirt holds the monitor.
    Libvirt(LibvirtTarget),
}

impl Transport {
    /// The QEMU process.
    pub fn vm(&self) -> VmId {
        match self {
            Self::Keep(QmpTarget { vm, .. })
            | Self::Brief(QmpTarget { vm, .. })
            | Self::Libvirt(LibvirtTarget { vm, .. }) => *vm,
        }
    }
}

/// Which domain to talk to, through libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtTarget {
    /// The QEMU process that the domain must be.
    pub vm: VmId,
    /// The connection to libvirt, and the domain's UUID there.
    pub virsh: Virsh,
    /// The domain's name, which stands in each event's line.
    pub domain: String,
}

/// Whether the QEMU can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpState {
    /// The first attempt is under way.
    Connecting,
    /// Commands are taken.
    Ready,
    /// Connected, but there is no greeting: another client holds the socket (or QEMU is stopped).
    Busy,
    /// A command's time is up. The connection is kept: a stopped QEMU answers late.
    Unresponsive {
        /// When the first command was sent that got no answer in time.
        since: std::time::Instant,
    },
    /// The peer is not that QEMU, breaks the protocol, or floods.
    Refused {
        /// Which; printable.
        reason: String,
    },
    /// There is no connection.
    Closed {
        /// Why; printable.
        reason: String,
    },
}

/// What a session reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpNotice {
    /// The session's state changed.
    State(QmpState),
    /// QEMU's answer to `query-status`, after each step to [`QmpState::Ready`].
    RunState(RunState),
    /// QEMU reported an event.
    Event(QmpEvent),
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no negotiated connection; nothing was sent.
    #[error("no QMP connection: {reason}")]
    NotConnected {
        /// The session's state in words.
        reason: String,
    },
    /// Too many commands are unanswered; nothing was sent.
    #[error("too many QMP commands are unanswered")]
    Busy,
    /// No answer in time. QEMU may still carry the command out, whenever it reads it.
    #[error("no answer to {command} within {limit:?}")]
    Timeout {
        /// The command's name.
        command: String,
        /// The time it had.
        limit: Duration,
    },
    /// The connection ended before the answer; the command may have been carried out.
    #[error("the QMP connection ended before {command} was answered")]
    Disconnected {
        /// The command's name.
        command: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {class}: {desc}")]
    Command {
        /// The command's name.
        command: String,
        /// QEMU's error class, bounded and printable.
        class: String,
        /// QEMU's description, bounded and printable.
        desc: String,
    },
    /// The answer is not of the form that the command promises.
    #[error("the answer to {command} is not understood")]
    Malformed {
        /// The command's name.
        command: String,
    },
    /// The command cannot be sent.
    #[error("{command} cannot be sent")]
    Unsendable {
        /// The command's name.
        command: String,
        /// Why.
        source: CodecError,
    },
    /// A command that hands QEMU a file descriptor, where it goes through a program; nothing was sent.
    #[error("{command} hands over a file descriptor, which libvirt does not pass on")]
    NoDescriptors {
        /// The command's name.
        command: String,
    },
    /// The session was closed.
    #[error("the QMP session is closed")]
    SessionClosed,
}

/// The bounds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For connecting, and for the greeting after it. QEMU sends it at once: 2 s.
    pub greeting: Duration,
    /// For `qmp_capabilities` and the session's own `query-status`: 5 s.
    pub handshake: Duration,
    /// From Busy to the next attempt: 5 s, short since an operator's client may leave at any time.
    pub busy_pause: Duration,
    /// From Refused to the next attempt: 60 s.
    pub refused_pause: Duration,
    /// From the first Closed to the next attempt: 250 ms; doubled each time.
    pub closed_pause_min: Duration,
    /// The longest such pause: 5 s.
    pub closed_pause_max: Duration,
    /// How long a notice may wait for the receiver: 1 s.
    pub notice: Duration,
    /// Commands that were sent and are not answered, timed out or not: 16.
    pub unanswered: usize,
    /// Messages in one second before the connection is refused: 2,000. A guest in a boot loop
    /// causes some 40.
    pub messages_per_second: u32,
    /// Bytes in one second before the connection is refused: 32 MiB.
    pub bytes_per_second: usize,
    /// Events passed on in one second: 200. Beyond, block errors and events that are not known are
    /// left out; any other is a flood.
    pub events_per_second: u32,
    /// Of a session that keeps no connection: from one question for the run state to the next: 10 s.
    pub brief_poll: Duration,
    /// The same of one through libvirt, which hears of events, and where a question is a program's start: 30 s.
    pub libvirt_poll: Duration,
    /// How long such a connection is kept after its last answer, for a caller's next command: 100 ms.
    pub brief_linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            busy_pause: Duration::from_secs(5),
            refused_pause: Duration::from_secs(60),
            closed_pause_min: Duration::from_millis(250),
            closed_pause_max: Duration::from_secs(5),
            notice: Duration::from_secs(1),
            unanswered: 16,
            messages_per_second: 2_000,
            bytes_per_second: 32 << 20,
            events_per_second: 200,
            brief_poll: Duration::from_secs(10),
            libvirt_poll: Duration::from_secs(30),
            brief_linger: Duration::from_millis(100),
        }
    }
}

/// The longest that a command may wait: far beyond any use, and short enough for any clock.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A way to the session's task. The task ends when the last clone is dropped, or at
/// [`QmpHandle::close`].
#[derive(Debug, Clone)]
pub struct QmpHandle {
    requests: mpsc::Sender<Request>,
    closing: CancellationToken,
}

impl QmpHandle {
    /// Sends a command and waits at most `limit` (or a day) for its result. Commands of several
    /// callers are pipelined.
    ///
    /// # Errors
    /// [`QmpError`]; which variants mean that nothing was sent stands there.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, limit, None).await
    }

    /// The same, and hands QEMU a file descriptor, for the commands that ask for one (`add-fd`, `getfd`).
    ///
    /// # Errors
    /// As [`QmpHandle::execute`].
    pub async fn execute_with(
        &self,
        descriptor: OwnedFd,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, limit, Some(descriptor)).await
    }

    async fn request(
        &self,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let limit = limit.min(LONGEST_LIMIT);
        let deadline = Instant::now() + limit;
        let command = command.to_owned();
        let request =
            Request { command: command.clone(), arguments, descriptor, limit, deadline, reply };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => QmpError::Busy,
            mpsc::error::TrySendError::Closed(_) => QmpError::SessionClosed,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(QmpError::SessionClosed),
            Err(_) => Err(QmpError::Timeout { command, limit }),
        }
    }

    /// Ends the session; commands that wait for an answer get [`QmpError::SessionClosed`].
    pub fn close(&self) {
        self.closing.cancel();
    }
}

/// Starts a session's task with the default [`Limits`], on the current tokio runtime.
#[must_use]
pub fn spawn(transport: Transport, notices: mpsc::Sender<(VmId, QmpNotice)>) -> QmpHandle {
    spawn_by(transport, notices, Limits::default())
}

/// Starts the task of a session that keeps its connection, on the current tokio runtime.
#[must_use]
pub fn spawn_with_limits(
    target: QmpTarget,
    notices: mpsc::Sender<(VmId, QmpNotice)>,
    limits: Limits,
) -> QmpHandle {
    spawn_by(Transport::Keep(target), notices, limits)
}

/// Starts a session's task, on the current tokio runtime.
#[must_use]
pub fn spawn_by(
    transport: Transport,
    notices: mpsc::Sender<(VmId, QmpNotice)>,
    limits: Limits,
) -> QmpHandle {
    let (sender, requests) = mpsc::channel(limits.unanswered.max(1));
    let closing = CancellationToken::new();
    let mut inbox = Inbox { requests, closing: closing.clone(), kept: VecDeque::new(), keeps: 0 };
    let mut outbox = Outbox { vm: transport.vm(), notices, last: None, wait: limits.notice };
    tokio::spawn(async move {
        let (inbox, outbox) = (&mut inbox, &mut outbox);
        let ended = match &transport {
            Transport::Keep(target) => attempts(target, inbox, outbox, limits).await,
            Transport::Brief(target) => brief::attempts(target, inbox, outbox, limits).await,
            Transport::Libvirt(target) => {
                through_libvirt::attempts(target, inbox, outbox, limits).await
            }
        };
        // Its only outcome is that nobody wants it any more.
        let Err(Ended) = ended;
    });
    QmpHandle { requests: sender, closing }
}

/// The session is closed, or its last handle is gone.
#[derive(Debug)]
struct Ended;

/// A command on its way from a handle to the task.
#[derive(Debug)]
struct Request {
    command: String,
    arguments: Option<Value>,
    descriptor: Option<OwnedFd>,
    limit: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl Request {
    /// A caller that no longer waits is no reason to fail.
    fn refuse(self, error: QmpError) {
        let _ = self.reply.send(Err(error));
    }
}

struct Inbox {
    requests: mpsc::Receiver<Request>,
    closing: CancellationToken,
    /// Commands that wait for a connection.
    kept: VecDeque<Request>,
    /// So many of them may; none, where a caller is told at once that there is no connection.
    keeps: usize,
}

impl Inbox {
    async fn next(&mut self) -> Result<Request, Ended> {
        tokio::select! {
            // What comes after the end is not carried out any more.
            biased;
            () = self.closing.cancelled() => Err(Ended),
            request = self.requests.recv() => request.ok_or(Ended),
        }
    }

    /// Does `work`; meanwhile tells every command that there is no connection, and why, or keeps it.
    async fn meanwhile<T>(
        &mut self,
        reason: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                request = self.next() => {
                    let request = request?;
                    if self.kept.len() < self.keeps {
                        self.kept.push_back(request);
                    } else {
                        request.refuse(QmpError::NotConnected { reason: reason.to_owned() });
                    }
                }
            }
        }
    }

    /// Waits for a command, which is kept, or for `work`.
    async fn first_or(&mut self, work: impl Future<Output = ()>) -> Result<(), Ended> {
        if self.kept.is_empty() {
            tokio::select! {
                request = self.next() => self.kept.push_back(request?),
                () = work => {}
            }
        }
        Ok(())
    }

    /// Tells those that wait that there will be no connection, and keeps no others.
    fn refuse_kept(&mut self, reason: &str) {
        self.keeps = 0;
        for request in self.kept.drain(..) {
            request.refuse(QmpError::NotConnected { reason: reason.to_owned() });
        }
    }
}

/// A notice was not taken in time.
#[derive(Debug)]
struct NotTaken;

struct Outbox {
    vm: VmId,
    notices: mpsc::Sender<(VmId, QmpNotice)>,
    last: Option<QmpState>,
    wait: Duration,
}

impl Outbox {
    /// A receiver that is gone takes everything: the handle goes on working without it.
    async fn tell(&self, notice: QmpNotice) -> Result<(), NotTaken> {
        let sent = timeout(self.wait, self.notices.send((self.vm, notice))).await;
        sent.map(|_| ()).map_err(|_| NotTaken)
    }

    /// Reports a state while there is a connection.
    async fn state(&mut self, state: QmpState) -> Result<(), NotTaken> {
        if self.last.as_ref() != Some(&state) {
            self.tell(QmpNotice::State(state.clone())).await?;
            self.last = Some(state);
        }
        Ok(())
    }

    /// Reports a state while there is none, however long it takes.
    async fn state_at_last(&mut self, state: QmpState, inbox: &mut Inbox) -> Result<(), Ended> {
        if self.last.as_ref() != Some(&state) {
            let notice = (self.vm, QmpNotice::State(state.clone()));
            // As above: a receiver that is gone is no reason to end.
            let _ = inbox.meanwhile(in_words(&state), self.notices.send(notice)).await?;
            self.last = Some(state);
        }
        Ok(())
    }
}

fn in_words(state: &QmpState) -> &str {
    match state {
        QmpState::Connecting => "not yet connected",
        QmpState::Ready => "ready",
        QmpState::Busy => "another client holds the socket",
        QmpState::Unresponsive { .. } => "a command was not answered",
        QmpState::Refused { reason } | QmpState::Closed { reason } => reason,
    }
}

/// How an attempt or a connection ended.
#[derive(Debug)]
enum Parting {
    /// Nothing more is wanted of a brief one.
    Done,
    Busy,
    Refused(String),
    Closed(String),
}

impl Parting {
    fn state(self) -> QmpState {
        // Reasons may quote a path that QEMU's command line chose.
        let reason = |text: String| printable(&text, 4 * MAX_TEXT_CHARS);
        match self {
            Self::Done => QmpState::Ready,
            Self::Busy => QmpState::Busy,
            Self::Refused(text) => QmpState::Refused { reason: reason(text) },
            Self::Closed(text) => QmpState::Closed { reason: reason(text) },
        }
    }
}

impl From<NotTaken> for Parting {
    fn from(NotTaken: NotTaken) -> Self {
        Self::Closed("its notices were not taken in time".to_owned())
    }
}

impl From<PeerError> for Parting {
    fn from(error: PeerError) -> Self {
        let text = in_full(&error);
        match error {
            PeerError::QueueFull { .. } => Self::Busy,
            PeerError::WrongProcess { .. }
            | PeerError::ProcessGone { .. }
            | PeerError::Escapes { .. }
            | PeerError::NotASocket { .. }
            | PeerError::NoOpenat2 { .. } => Self::Refused(text),
            PeerError::NoBase { .. } | PeerError::NotFound { .. } | PeerError::Connect { .. } => {
                Self::Closed(text)
            }
        }
    }
}

async fn attempts(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut closed_pause = limits.closed_pause_min;
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        let parting = match connect(target, inbox, outbox, limits).await? {
            Err(parting) => parting,
            Ok(stream) => {
                let parting =
                    conversation::hold(stream, inbox, outbox, limits, Style::Kept).await?;
                if matches!(outbox.last, Some(QmpState::Ready | QmpState::Unresponsive { .. })) {
                    closed_pause = limits.closed_pause_min;
                }
                parting
            }
        };
        let pause = match parting {
            // A kept one is never done.
            Parting::Done => continue,
            Parting::Busy => limits.busy_pause,
            Parting::Refused(_) => limits.refused_pause,
            Parting::Closed(_) => {
                let pause = closed_pause;
                closed_pause = (closed_pause * 2).min(limits.closed_pause_max);
                pause
            }
        };
        let state = parting.state();
        outbox.state_at_last(state.clone(), inbox).await?;
        inbox.meanwhile(in_words(&state), sleep(pause)).await?;
    }
}

/// A connection to the right process, not yet greeted.
async fn connect(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<Result<UnixStream, Parting>, Ended> {
    let QmpTarget { vm, socket } = target.clone();
    // The path may lead through a file system that a hostile QEMU serves itself and that never
    // answers. Such a look-up occupies one thread of the blocking pool, and no second one is begun.
    let mut lookup = tokio::task::spawn_blocking(move || peer::resolve(vm.pid, &socket));
    let found = inbox.meanwhile("connecting", timeout(limits.greeting, &mut lookup)).await?;
    let found = match found {
        Ok(found) => found,
        Err(_) => {
            let reason = "looking up the path of the socket takes too long".to_owned();
            let state = QmpState::Closed { reason };
            outbox.state_at_last(state.clone(), inbox).await?;
            inbox.meanwhile(in_words(&state), lookup).await?
        }
    };
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Ok(Err(error.into())),
        Err(error) => return Ok(Err(Parting::Closed(in_full(&error)))),
    };
    let connected = peer::connect(vm, found, &target.socket);
    let connected = inbox.meanwhile("connecting", timeout(limits.greeting, connected)).await?;
    Ok(match connected {
        Ok(connected) => connected.map_err(Parting::from),
        Err(_) => Err(Parting::Busy),
    })
}
