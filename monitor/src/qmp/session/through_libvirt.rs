//! Sessions through libvirt, which holds the monitor of its domains: a `virsh` for each command, and one that stays
//! for the events.
//!
//! A domain is talked to only after its vCPUs were shown to be threads of the very QEMU that was found: the UUID
//! that led to it is from that QEMU's own command line. libvirt passes commands on one after the other, and its
//! replies are as bounded as those of a socket. Should the `virsh` for the events end, it is begun anew, with pauses;
//! what is lost meanwhile, and all else that events would tell, the run state tells, which is asked every so often.

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout},
    sync::{Semaphore, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use tokio_util::codec::Decoder as _;

use super::{
    LibvirtTarget,
    flood::Flood,
    limits::Limits,
    notice::{QmpError, QmpNotice, QmpState},
    outbox::Outbox,
    parting::{Parting, Pauses},
    requests::{Ended, Inbox, Request},
};
use crate::{
    discover,
    error_text::in_full,
    program::{self, RunError, run_keeping},
    qmp::{
        MAX_TEXT_CHARS, QmpEvent,
        codec::{CodecError, MAX_COMMAND_BYTES, MAX_MESSAGE_BYTES, Message, QmpCodec},
        commands::run_state,
        printable,
    },
};

/// The longest line of an event that is read: QEMU's own are below a few hundred bytes.
const LINE_BYTES: usize = 16 << 10;
/// The pause before the `virsh` for the events is begun anew.
const EVENTS_PAUSE: Duration = Duration::from_secs(5);

/// `virsh`s for commands that run at the same time, of all sessions: on a host with hundreds of domains, a thousand at
/// once would be a storm of flatline's own making.
static AT_ONCE: Semaphore = Semaphore::const_new(16);

/// What a command led to, for the session's state.
enum Outcome {
    /// QEMU answered.
    Answered,
    /// It did not, in time; the command was begun then.
    Late(std::time::Instant),
    /// libvirt can't be asked, or has no such domain any more.
    Lost(String),
}

pub(super) async fn attempts(
    target: &LibvirtTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut pauses = Pauses::new(limits);
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        let verified = inbox.meanwhile("connecting", verify(target, limits.handshake)).await?;
        let parting = match verified {
            Err(parting) => parting,
            Ok(()) => {
                pauses.reset();
                talk(target, inbox, outbox, limits).await?
            }
        };
        pauses.after(parting, inbox, outbox).await?;
    }
}

/// Makes sure that the domain's vCPUs are threads of the QEMU that was found.
async fn verify(target: &LibvirtTarget, limit: Duration) -> Result<(), Parting> {
    let reply = execute(target, "query-cpus-fast", None, limit).await;
    let reply = reply.map_err(|error| Parting::Closed(in_full(&error)))?;
    let threads = reply.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_of_it = |vcpu: &Value| {
        let tid = vcpu.get("thread-id").and_then(Value::as_u64);
        tid.and_then(|tid| u32::try_from(tid).ok())
            .is_some_and(|tid| discover::has_thread(target.vm.pid, tid))
    };
    let same = discover::start_ticks(target.vm.pid).ok() == Some(target.vm.start_ticks);
    if same && !threads.is_empty() && threads.iter().all(is_of_it) {
        return Ok(());
    }
    let reason = "the domain that libvirt has under its UUID is another QEMU";
    Err(Parting::Refused(reason.to_owned()))
}

/// Serves commands and passes events on, until libvirt is lost.
async fn talk(
    target: &LibvirtTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<Parting, Ended> {
    let (outcomes, mut ended) = mpsc::unbounded_channel();
    let mut under_way = 0_usize;
    let mut events = Events::begin(target);
    let mut flood = Flood::new();
    let mut poll = interval(limits.libvirt_poll);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let step = tokio::select! {
            request = inbox.next() => {
                let request = request?;
                if under_way < limits.unanswered {
                    under_way += 1;
                    let (target, outcomes) = (target.clone(), outcomes.clone());
                    tokio::spawn(async move {
                        // The session may have ended meanwhile.
                        let _ = outcomes.send(serve(&target, request).await);
                    });
                } else {
                    request.refuse(QmpError::Busy);
                }
                Ok(())
            }
            // Never closed, since one of its senders is here.
            Some(outcome) = ended.recv() => {
                under_way = under_way.saturating_sub(1);
                match outcome {
                    Outcome::Answered => settle(target, outbox, limits, false).await,
                    Outcome::Late(since) => outbox.unresponsive(since).await.map_err(Parting::from),
                    Outcome::Lost(reason) => Err(Parting::Closed(reason)),
                }
            }
            event = events.next(target) => match event {
                Some(event) => match flood.bytes(0, &limits).and_then(|()| flood.event(&event, &limits)) {
                    Ok(true) => outbox.tell(QmpNotice::Event(event)).await.map_err(Parting::from),
                    Ok(false) => Ok(()),
                    Err(parting) => Err(parting),
                },
                None => Ok(()),
            },
            _ = poll.tick() => settle(target, outbox, limits, true).await,
        };
        if let Err(parting) = step {
            return Ok(parting);
        }
    }
}

/// Reports that QEMU can be asked, if that is news, and its run state then, or always.
async fn settle(
    target: &LibvirtTarget,
    outbox: &mut Outbox,
    limits: Limits,
    always: bool,
) -> Result<(), Parting> {
    let news = outbox.last != Some(QmpState::Ready);
    if !(news || always) {
        return Ok(());
    }
    let since = std::time::Instant::now();
    match execute(target, "query-status", None, limits.handshake).await {
        Ok(reply) => {
            let Some(state) = run_state(&reply) else {
                let reason = "query-status is not answered with a run state";
                return Err(Parting::Refused(reason.to_owned()));
            };
            outbox.state(QmpState::Ready).await?;
            Ok(outbox.tell(QmpNotice::RunState(state)).await?)
        }
        Err(QmpError::Timeout { .. }) => Ok(outbox.unresponsive(since).await?),
        Err(error) => Err(Parting::Closed(in_full(&error))),
    }
}

/// Carries one command out.
async fn serve(target: &LibvirtTarget, request: Request) -> Outcome {
    let Request { command, arguments, descriptor, deadline, reply, limit: _ } = request;
    if reply.is_closed() {
        // The caller has given up; what it asked for must not happen behind its back.
        return Outcome::Answered;
    }
    if descriptor.is_some() {
        let _ = reply.send(Err(QmpError::NoDescriptors { command }));
        return Outcome::Answered;
    }
    let since = std::time::Instant::now();
    let left = deadline.saturating_duration_since(Instant::now());
    let result = execute(target, &command, arguments.as_ref(), left).await;
    let outcome = match &result {
        Ok(_) | Err(QmpError::Command { .. }) => Outcome::Answered,
        Err(QmpError::Timeout { .. }) => Outcome::Late(since),
        // What was wrong with this one command says nothing of the next.
        Err(
            QmpError::Malformed { .. }
            | QmpError::Unsendable { .. }
            | QmpError::NoDescriptors { .. }
            | QmpError::Busy,
        ) => Outcome::Answered,
        Err(error) => Outcome::Lost(in_full(error)),
    };
    let _ = reply.send(result);
    outcome
}

/// One command through a `virsh` of its own.
async fn execute(
    target: &LibvirtTarget,
    command: &str,
    arguments: Option<&Value>,
    limit: Duration,
) -> Result<Value, QmpError> {
    let name = || command.to_owned();
    let mut message = json!({ "execute": command });
    if let Some(arguments) = arguments {
        message["arguments"] = arguments.clone();
    }
    let program = target.virsh.monitor_command(&message);
    let bytes = program.words.last().map_or(0, String::len);
    if bytes > MAX_COMMAND_BYTES {
        let source = CodecError::CommandTooLarge { bytes };
        return Err(QmpError::Unsendable { command: name(), source });
    }
    let deadline = Instant::now() + limit;
    // Never closed.
    let Ok(Ok(_turn)) = timeout_at(deadline, AT_ONCE.acquire()).await else {
        return Err(QmpError::Timeout { command: name(), limit });
    };
    let left = deadline.saturating_duration_since(Instant::now());
    match run_keeping(&program, &[], left, MAX_MESSAGE_BYTES).await {
        Ok(ran) => reply_in(command, &ran.stdout),
        Err(RunError::TimeLimit { .. }) => Err(QmpError::Timeout { command: name(), limit }),
        Err(error @ RunError::Failed { .. }) => {
            let said = error.ran().map(|ran| String::from_utf8_lossy(&ran.stderr).into_owned());
            Err(refusal_in(command, &said.unwrap_or_default()))
        }
        Err(error) => Err(QmpError::NotConnected { reason: in_full(&error) }),
    }
}

/// QEMU's reply, as libvirt passes it on, within the same bounds as one from a socket.
fn reply_in(command: &str, printed: &[u8]) -> Result<Value, QmpError> {
    let command = command.to_owned();
    let mut printed = BytesMut::from(printed);
    printed.extend_from_slice(b"\n");
    match QmpCodec::default().decode(&mut printed) {
        Ok(Some(Message::Return { value, .. })) => Ok(value),
        Ok(Some(Message::Error { class, desc, .. })) => {
            Err(QmpError::Command { command, class, desc })
        }
        Ok(Some(Message::Greeting | Message::Event { .. } | Message::Unknown) | None) | Err(_) => {
            Err(QmpError::Malformed { command })
        }
    }
}

/// What `virsh` complained of. Where libvirt or its domain isn't there, nothing was sent; else libvirt refused to.
fn refusal_in(command: &str, said: &str) -> QmpError {
    let text = said.lines().map(|line| line.trim_start_matches("error: "));
    let text = text.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let desc = printable(&text, 4 * MAX_TEXT_CHARS);
    let lost = [
        "failed to connect",
        "Failed to connect",
        "failed to get domain",
        "Domain not found",
        "domain is not running",
        "Requested operation is not valid",
    ];
    if lost.iter().any(|part| desc.contains(part)) {
        return QmpError::NotConnected { reason: desc };
    }
    QmpError::Command { command: command.to_owned(), class: "libvirt".to_owned(), desc }
}

/// The `virsh` that prints events.
struct Events {
    /// It, and what it prints; `None` until it is begun anew.
    child: Option<(Child, BufReader<ChildStdout>)>,
    begins_at: Instant,
    line: Vec<u8>,
}

impl Events {
    fn begin(target: &LibvirtTarget) -> Self {
        let mut events = Self { child: None, begins_at: Instant::now(), line: Vec::new() };
        events.begin_anew(target);
        events
    }

    fn begin_anew(&mut self, target: &LibvirtTarget) {
        self.line.clear();
        self.begins_at = Instant::now() + EVENTS_PAUSE;
        let program = target.virsh.events();
        let name = program.words.first().map_or("", String::as_str);
        let child = program::find(name).and_then(|path| program::spawn(&path, &program, &[]).ok());
        self.child = child.and_then(|mut child| {
            // Its complaints are those that every command hears, too.
            drop(child.stderr.take());
            let stdout = child.stdout.take()?;
            Some((child, BufReader::new(stdout)))
        });
    }

    /// The next event; `None` where something else was printed, or the program has ended. Nothing is lost if it is
    /// not waited for to the end.
    async fn next(&mut self, target: &LibvirtTarget) -> Option<QmpEvent> {
        let Some((_, stdout)) = &mut self.child else {
            sleep_until(self.begins_at).await;
            self.begin_anew(target);
            return None;
        };
        let goes_on = read_line(stdout, &mut self.line).await;
        let event = event_in(&String::from_utf8_lossy(&self.line), &target.domain);
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
async fn read_line(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
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
fn event_in(line: &str, domain: &str) -> Option<QmpEvent> {
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
