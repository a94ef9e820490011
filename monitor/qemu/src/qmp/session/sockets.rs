//! The sockets by which one QEMU can be reached, and the connections that wait to be greeted.
//!
//! ```text
//!        found, may be connected to        bytes come
//! (none) ──────────────────────────► waits ──────────► the conversation's; the others that wait are dropped
//! ```
//!
//! QEMU's listen queue is short, and a connection stays in it until the monitor's client has left. So a socket has one
//! connection of ours at most, which waits for as long as it takes. Sockets are tried one after the other, the next
//! once the one before has not greeted in time, and those that another client is seen to hold last. The one that served
//! last is the first to be tried again.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use rustix::net::{RecvFlags, recv};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    QmpTarget,
    disconnect::Disconnect,
    limits::Limits,
    notice::{QmpState, in_words},
    outbox::Outbox,
    requests::{Ended, Inbox},
};
use crate::{
    blocking::{UnderWay, within},
    discover::{Found, ListeningSocket, ThreadsTold, VmId},
    peer::{self, PeerError},
};

/// All sockets of one QEMU.
pub(super) struct Sockets {
    vm: VmId,
    threads: ThreadsTold,
    limits: Limits,
    each: Vec<Socket>,
    /// The one that is tried first.
    first: usize,
    /// Since when QEMU was seen to have no vCPUs.
    not_started: Option<Instant>,
}

struct Socket {
    socket: ListeningSocket,
    /// A connection that was not greeted yet.
    waiting: Option<UnixStream>,
    /// A look-up that is under way still.
    lookup: UnderWay<Result<Found, PeerError>>,
    /// Why it did not serve last, and until when it is left alone for that.
    trouble: Option<(Disconnect, Instant)>,
}

impl Sockets {
    pub(super) fn new(target: &QmpTarget, limits: Limits) -> Self {
        let QmpTarget { vm, sockets, threads, uid: _ } = target;
        let socket = |socket: &ListeningSocket| {
            let socket = socket.clone();
            Socket { socket, waiting: None, lookup: None, trouble: None }
        };
        let each = sockets.iter().map(socket).collect();
        let (vm, threads) = (*vm, *threads);
        Self { vm, threads, limits, each, first: 0, not_started: None }
    }

    /// A connection to the right process on which it has begun to speak, or hung up. That none is greeted within
    /// `patience` is reported, and they wait all the same.
    pub(super) async fn connect(
        &mut self,
        inbox: &mut Inbox,
        outbox: &mut Outbox,
        patience: Duration,
    ) -> Result<Result<UnixStream, Disconnect>, Ended> {
        let mut late = None;
        loop {
            if let Some(stream) = self.try_each(inbox, outbox).await? {
                return Ok(Ok(stream));
            }
            let waits = self.each.iter().any(|socket| socket.waiting.is_some());
            if !waits && let Some(trouble) = self.trouble() {
                return Ok(Err(trouble));
            }
            let now = Instant::now();
            let until = if waits {
                let until = *late.get_or_insert(now + patience);
                if until <= now {
                    inbox.refuse_kept(in_words(&QmpState::Busy));
                    outbox.state_at_last(QmpState::Busy, inbox).await?;
                    now + self.limits.busy_pause
                } else {
                    until
                }
            } else {
                now + self.limits.launch_pause
            };
            if let Some(stream) = self.greeted(inbox, outbox, until).await? {
                return Ok(Ok(stream));
            }
        }
    }

    /// The one that [`Self::connect`] handed out did not serve. `None` if another one is to be tried at once.
    pub(super) fn failed(&mut self, disconnect: Disconnect) -> Option<Disconnect> {
        let pause = match &disconnect {
            Disconnect::Done | Disconnect::NotStarted(_) => Duration::ZERO,
            Disconnect::Busy => self.limits.busy_pause,
            Disconnect::Refused(_) => self.limits.refused_pause,
            Disconnect::Closed(_) => self.limits.closed_pause_max,
        };
        let (first, now) = (self.first, Instant::now());
        let others = self.each.iter().enumerate().filter(|(at, _)| *at != first);
        if !others.into_iter().any(|(_, other)| !other.rests(now)) {
            return Some(disconnect);
        }
        if let Some(socket) = self.each.get_mut(first) {
            socket.trouble = Some((disconnect, now + pause));
        }
        None
    }

    /// Connects to one socket after the other, until one greets.
    async fn try_each(
        &mut self,
        inbox: &mut Inbox,
        outbox: &mut Outbox,
    ) -> Result<Option<UnixStream>, Ended> {
        let count = self.each.len();
        let mut held = Vec::new();
        let mut may_greet = false;
        for step in 0..count {
            if may_greet {
                // The next one is its owner's, perhaps: not before this one had its time.
                let until = Instant::now() + self.limits.greeting;
                if let Some(stream) = self.greeted(inbox, outbox, until).await? {
                    return Ok(Some(stream));
                }
            }
            may_greet = false;
            let at = (self.first + step) % count;
            let Some(socket) = self.each.get_mut(at) else { continue };
            if socket.waiting.is_some() || socket.rests(Instant::now()) {
                continue;
            }
            let found = inbox
                .meanwhile(words(outbox), socket.look_up(self.vm, self.threads, &self.limits))
                .await?;
            match found {
                Ok(found) if found.is_held && count > 1 => held.push((at, found)),
                Ok(found) => {
                    let joined = socket.join(self.vm, found, &self.limits);
                    inbox.meanwhile(words(outbox), joined).await?;
                    may_greet = socket.waiting.is_some();
                }
                Err(disconnect) => socket.fail(disconnect, &self.limits),
            }
        }
        let waits = self.each.iter().any(|socket| socket.waiting.is_some());
        for (at, found) in held {
            // Those that may greet are waited for first; then, all of them are.
            if let Some(socket) = self.each.get_mut(at).filter(|_| !waits) {
                inbox.meanwhile(words(outbox), socket.join(self.vm, found, &self.limits)).await?;
            }
        }
        Ok(None)
    }

    /// Waits until then for one of the connections to be greeted, or hung up. The others are dropped then.
    async fn greeted(
        &mut self,
        inbox: &mut Inbox,
        outbox: &Outbox,
        until: Instant,
    ) -> Result<Option<UnixStream>, Ended> {
        let each = &self.each;
        let any = poll_fn(|context| {
            let speaks = |socket: &Socket| {
                socket.waiting.as_ref().is_some_and(|waiting| {
                    loop {
                        if waiting.poll_read_ready(context).is_pending() {
                            return false;
                        }
                        let peeked = waiting.try_io(Interest::READABLE, || {
                            Ok(recv(waiting, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?)
                        });
                        if !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                            return true;
                        }
                    }
                })
            };
            each.iter().position(speaks).map_or(Poll::Pending, Poll::Ready)
        });
        let Ok(at) = inbox.meanwhile(words(outbox), timeout_at(until, any)).await? else {
            return Ok(None);
        };
        self.first = at;
        let waiting: Vec<_> = self.each.iter_mut().map(|socket| socket.waiting.take()).collect();
        Ok(waiting.into_iter().nth(at).flatten())
    }

    /// Why there is no connection at all: what will be over soonest, or all that was wrong. `None` while QEMU has no
    /// vCPUs for the first moments of its life.
    fn trouble(&mut self) -> Option<Disconnect> {
        let all: Vec<&Disconnect> =
            self.each.iter().filter_map(|socket| Some(&socket.trouble.as_ref()?.0)).collect();
        let launches = all.iter().find(|one| matches!(one, Disconnect::NotStarted(_)));
        if let Some(launches) = launches {
            let since = *self.not_started.get_or_insert_with(Instant::now);
            return (since.elapsed() >= self.limits.greeting).then(|| (*launches).clone());
        }
        self.not_started = None;
        if all.iter().any(|one| matches!(one, Disconnect::Busy)) {
            return Some(Disconnect::Busy);
        }
        let mut reasons: Vec<&str> = Vec::new();
        let mut is_refused = true;
        for one in all {
            let reason = match one {
                Disconnect::Refused(reason) => reason,
                Disconnect::Closed(reason) => {
                    is_refused = false;
                    reason
                }
                Disconnect::Done | Disconnect::Busy | Disconnect::NotStarted(_) => continue,
            };
            if !reasons.contains(&reason.as_str()) {
                reasons.push(reason);
            }
        }
        let reasons = reasons.join("; ");
        Some(if is_refused { Disconnect::Refused(reasons) } else { Disconnect::Closed(reasons) })
    }
}

impl Socket {
    fn rests(&self, now: Instant) -> bool {
        self.trouble.as_ref().is_some_and(|(_, until)| *until > now)
    }

    fn fail(&mut self, disconnect: Disconnect, limits: &Limits) {
        let pause = match disconnect {
            Disconnect::Refused(_) => limits.refused_pause,
            Disconnect::Done
            | Disconnect::Busy
            | Disconnect::NotStarted(_)
            | Disconnect::Closed(_) => Duration::ZERO,
        };
        self.trouble = Some((disconnect, Instant::now() + pause));
    }

    /// The path may lead through a file system that a hostile QEMU serves itself and that never answers. Such a look-up
    /// occupies one thread of the blocking pool, and no second one is begun.
    async fn look_up(
        &mut self,
        vm: VmId,
        threads: ThreadsTold,
        limits: &Limits,
    ) -> Result<Found, Disconnect> {
        let socket = self.socket.clone();
        let look = move || peer::resolve(vm.pid, &socket, threads);
        match within(limits.greeting, &mut self.lookup, look).await {
            Some(found) => found.map_err(Disconnect::from),
            None => Err(Disconnect::Closed(
                "looking up the path of the socket takes too long".to_owned(),
            )),
        }
    }

    /// Connects, and notes what comes of it.
    async fn join(&mut self, vm: VmId, found: Found, limits: &Limits) {
        match timeout(limits.greeting, peer::connect(vm, found, &self.socket.at)).await {
            Ok(Ok(stream)) => (self.waiting, self.trouble) = (Some(stream), None),
            Ok(Err(error)) => self.fail(error.into(), limits),
            Err(_) => self.fail(Disconnect::Busy, limits),
        }
    }
}

/// What a caller is told meanwhile.
fn words(outbox: &Outbox) -> &'static str {
    if outbox.last == Some(QmpState::Busy) {
        "another client holds the socket"
    } else {
        "connecting"
    }
}
