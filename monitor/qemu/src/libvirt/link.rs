//! The one connection to a libvirt, kept by a task of its own, for all sessions of its domains.
//!
//! ```text
//!            taken, greeted, told of events
//! Connecting ──────────────────────────────► Up ── it ends, or is stuck ──► Down (again in 250 ms, doubling to 5 s)
//!      └── it asks for what is not spoken here ──► Unfit (again in 60 s)
//! ```

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::debug;

use super::{
    calls::{Call, CallError, Calls, Next},
    endpoint::Endpoint,
    hearing::{Hearing, Listeners},
    message::{
        self, Domain, DomainEvent, Kind, MONITOR_COMMAND, MONITOR_COMMAND_WITH_FILES, Refusal,
    },
    wire::{Frame, NoWire, Wire},
};

/// The pauses between attempts: the first, which doubles, the longest, and that after libvirt asked for what is not spoken here.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const UNFIT_PAUSE: Duration = Duration::from_secs(60);
/// Commands on their way to the task.
const HANDED_OVER: usize = 64;

/// Whether libvirt can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The first attempt is under way.
    Connecting,
    /// It can.
    Up {
        /// Which connection this is, the first being 1.
        number: u64,
        /// The user of the process behind it.
        peer_uid: u32,
    },
    /// Not now.
    Down(String),
    /// Not by its socket: it asks for what is not spoken here.
    Unfit(String),
}

/// A way to a libvirt; its task ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<LinkState>,
    listeners: Listeners,
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Link {}

/// All links that there are, one to each libvirt.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<HashMap<Endpoint, Weak<Inner>>>>);

impl Links {
    /// The link to the libvirt that this URI leads to, begun on the current runtime if it is the first; `None` where it is no
    /// socket of this host.
    pub fn to(&self, uri: &str) -> Option<Link> {
        let endpoint = Endpoint::parse(uri)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = all.get(&endpoint).and_then(Weak::upgrade) {
            return Some(Link(inner));
        }
        all.retain(|_, inner| inner.strong_count() > 0);
        let link = Link::begin(endpoint.clone());
        all.insert(endpoint, Arc::downgrade(&link.0));
        Some(link)
    }
}

impl Link {
    fn begin(endpoint: Endpoint) -> Self {
        let (sender, calls) = mpsc::channel(HANDED_OVER);
        let (states, state) = watch::channel(LinkState::Connecting);
        let listeners = Listeners::default();
        tokio::spawn(keep(endpoint, calls, states, listeners.clone()));
        Self(Arc::new(Inner { calls: sender, state, listeners }))
    }

    /// Whether libvirt can be asked now.
    pub fn state(&self) -> LinkState {
        self.0.state.borrow().clone()
    }

    /// Waits until its state is another than this one.
    pub async fn changed_from(&self, state: &LinkState) {
        let mut states = self.0.state.clone();
        // The task lives as long as this link.
        let _ = states.wait_for(|now| now != state).await;
    }

    /// Listens for a domain's events from now on.
    pub fn hear(&self, domain: &Domain) -> Hearing {
        self.0.listeners.add(domain.uuid)
    }

    /// Has libvirt pass a QMP command on, `command` in JSON, perhaps with a descriptor, and waits at most `limit` for QEMU's reply
    /// in JSON.
    ///
    /// # Errors
    /// [`CallError`]; which variants mean that nothing was sent stands there.
    pub async fn execute(
        &self,
        domain: &Domain,
        command: String,
        file: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + limit;
        let call = Call { domain: domain.clone(), command, file, deadline, reply };
        match timeout_at(deadline, self.0.calls.send(call)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(CallError::Disconnected),
            Err(_) => return Err(CallError::Busy),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) => Err(CallError::Disconnected),
            Err(_) => Err(CallError::Timeout),
        }
    }
}

/// No link wants the connection any more.
struct Unwanted;

/// Connects, and connects anew, as long as there is a link.
async fn keep(
    endpoint: Endpoint,
    mut calls: mpsc::Receiver<Call>,
    states: watch::Sender<LinkState>,
    listeners: Listeners,
) {
    let (mut number, mut pause) = (0, PAUSE);
    loop {
        let connecting = states.borrow().clone();
        let Ok(wire) = refusing(&mut calls, &connecting, Wire::connect(&endpoint)).await else {
            return;
        };
        let state = match wire {
            Ok(wire) => {
                number += 1;
                pause = PAUSE;
                debug!("connected to {}", endpoint.name);
                states.send_replace(LinkState::Up { number, peer_uid: wire.peer_uid });
                match serve(wire, &mut calls, &listeners).await {
                    Ok(why) => LinkState::Down(why),
                    Err(Unwanted) => return,
                }
            }
            Err(NoWire::Down(why)) => LinkState::Down(why),
            Err(NoWire::Unfit(why)) => LinkState::Unfit(why),
        };
        let wait = match &state {
            LinkState::Unfit(_) => UNFIT_PAUSE,
            _ => pause,
        };
        pause = (pause * 2).min(LONGEST_PAUSE);
        states.send_replace(state.clone());
        if refusing(&mut calls, &state, sleep(wait)).await.is_err() {
            return;
        }
    }
}

/// Does `work`; meanwhile every command is told that there is no connection, and why.
async fn refusing<T>(
    calls: &mut mpsc::Receiver<Call>,
    state: &LinkState,
    work: impl Future<Output = T>,
) -> Result<T, Unwanted> {
    tokio::pin!(work);
    let why = match state {
        LinkState::Connecting | LinkState::Up { .. } => "it is being connected to",
        LinkState::Down(why) | LinkState::Unfit(why) => why,
    };
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            call = calls.recv() => {
                let call = call.ok_or(Unwanted)?;
                let _ = call.reply.send(Err(CallError::NotConnected(why.to_owned())));
            }
        }
    }
}

/// Passes commands, answers and events on until the connection ends; why it did.
async fn serve(
    mut wire: Wire,
    handed: &mut mpsc::Receiver<Call>,
    listeners: &Listeners,
) -> Result<String, Unwanted> {
    let mut calls = Calls::default();
    loop {
        loop {
            let serial = wire.next_serial();
            let Some(next) = calls.next(serial, Instant::now()) else { break };
            send(&mut wire, serial, next);
        }
        let stuck_at = calls.stuck_at();
        let stuck = async {
            match stuck_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            call = handed.recv() => calls.push(call.ok_or(Unwanted)?),
            frame = wire.next() => match frame {
                Ok(frame) => take(frame, &mut wire, &mut calls, listeners),
                Err(why) => return Ok(why),
            },
            // Another connection has places of its own.
            () = stuck => return Ok("it answers none of its calls".to_owned()),
        }
    }
}

fn send(wire: &mut Wire, serial: u32, Next { domain, command, file }: Next) {
    let body = message::monitor_command(&domain, &command);
    match file {
        None => wire.put(&message::call(MONITOR_COMMAND, serial, &body)),
        file => {
            let call = message::call_with_file(MONITOR_COMMAND_WITH_FILES, serial, &body);
            wire.append(&call, file);
        }
    }
}

fn take(frame: Frame, wire: &mut Wire, calls: &mut Calls, listeners: &Listeners) {
    let Frame { header, body } = frame;
    match header.kind() {
        Kind::Ping => wire.put(&message::pong()),
        Kind::DomainEvent => {
            if let Some(event) = body.as_deref().and_then(DomainEvent::read) {
                listeners.tell(&event);
            }
        }
        kind @ (Kind::Reply | Kind::Refusal) => {
            let Some(reply) = calls.answered(header.serial) else { return };
            let answer = body.ok_or(CallError::TooLong).and_then(|body| match kind {
                Kind::Reply => {
                    message::answer(&body).map(<[u8]>::to_vec).ok_or(CallError::Malformed)
                }
                _ => Err(match Refusal::read(&body) {
                    Refusal { text, is_gone: true } => CallError::Gone(text),
                    Refusal { text, is_gone: false } => CallError::Refused(text),
                }),
            });
            // Its caller may have given up.
            let _ = reply.send(answer);
        }
        Kind::Other => {}
    }
}
