//! Sessions through libvirt, which holds the monitor of its domains: over its socket, on the one connection that all
//! sessions share; or, where its URI is more than a plain socket's or it asks for authentication, by a `virsh` for each
//! command and one that stays for the events.
//!
//! A domain is talked to only after its vCPUs were shown to be threads of the very QEMU that was found: the UUID
//! that led to it is from that QEMU's own command line. libvirt passes commands on one after the other, and its
//! replies are as bounded as those of a socket. Once there is a connection anew, and where events were left out, the
//! run state is asked for, which tells what they would have; so it is every so often.

mod command;
mod events;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    LibvirtTarget,
    disconnect::{Disconnect, Pauses},
    flood::Flood,
    limits::Limits,
    notice::{QmpError, QmpNotice, QmpState},
    outbox::Outbox,
    requests::{Ended, Inbox, Request},
};
use crate::{
    discover::{self, VmId},
    libvirt::LinkState,
    qmp::commands::run_state,
    text::{MAX_TEXT_CHARS, error_chain, printable},
};
use command::{Command, Way};
use events::Events;

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
        let disconnect = match way_to(target, inbox, outbox).await? {
            Err(disconnect) => disconnect,
            Ok(way) => {
                // In boxes, like all that runs a program: the room for it is kept by no session that waits.
                let verify = Box::pin(verify(target.vm, &way, limits.handshake));
                match inbox.meanwhile("connecting", verify).await? {
                    Err(disconnect) => disconnect,
                    Ok(()) => {
                        pauses.reset();
                        talk(target, &way, inbox, outbox, limits).await?
                    }
                }
            }
        };
        pauses.after(disconnect, inbox, outbox).await?;
    }
}

/// How libvirt can be spoken to, once it can: a connection that is down is waited for.
async fn way_to(
    target: &LibvirtTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
) -> Result<Result<Way, Disconnect>, Ended> {
    let by_program = || Ok(Ok(Way::Virsh(target.virsh.clone())));
    let Some((link, domain)) = &target.link else { return by_program() };
    loop {
        let state = link.state();
        match &state {
            LinkState::Up { peer_uid, .. } if *peer_uid != 0 && *peer_uid != target.uid => {
                let reason =
                    format!("the libvirt there is of user {peer_uid}, and its QEMU is not");
                return Ok(Err(Disconnect::Refused(reason)));
            }
            LinkState::Up { number, .. } => {
                return Ok(Ok(Way::Link(link.clone(), domain.clone(), *number)));
            }
            LinkState::Unfit(_) => return by_program(),
            LinkState::Connecting => {
                inbox.meanwhile("connecting", link.changed_from(&state)).await?
            }
            LinkState::Down(why) => {
                let reason = printable(why, 4 * MAX_TEXT_CHARS);
                outbox.state_at_last(QmpState::Closed { reason }, inbox).await?;
                inbox.meanwhile(why, link.changed_from(&state)).await?;
            }
        }
    }
}

/// Waits until the connection is not the one any more by which `way` leads; for ever where it leads by none.
async fn way_ends(way: &Way) -> String {
    let Way::Link(link, _, number) = way else { return std::future::pending().await };
    loop {
        let state = link.state();
        match &state {
            LinkState::Up { number: now, .. } if now == number => link.changed_from(&state).await,
            LinkState::Down(why) | LinkState::Unfit(why) => return why.clone(),
            LinkState::Connecting | LinkState::Up { .. } => {
                return "it was connected to anew".to_owned();
            }
        }
    }
}

/// Makes sure that the domain's vCPUs are threads of the QEMU that was found.
async fn verify(vm: VmId, way: &Way, limit: Duration) -> Result<(), Disconnect> {
    let reply = way.execute(Command::bare("query-cpus-fast", limit)).await;
    let reply = reply.map_err(|error| Disconnect::Closed(error_chain(&error)))?;
    let threads = reply.as_array().map(Vec::as_slice).unwrap_or_default();
    let pid = vm.pid;
    // libvirt passes on what QEMU calls its threads, which may live in a PID namespace of its own.
    let ids = tokio::task::spawn_blocking(move || discover::ThreadIds::of(pid)).await;
    let ids = ids.ok().and_then(Result::ok);
    let is_of_it = |vcpu: &Value| {
        let tid = vcpu.get("thread-id").and_then(Value::as_u64);
        tid.and_then(|tid| u32::try_from(tid).ok())
            .is_some_and(|tid| ids.as_ref().is_some_and(|ids| ids.here(tid).is_some()))
    };
    let same = discover::start_ticks(pid).ok() == Some(vm.start_ticks);
    if same && !threads.is_empty() && threads.iter().all(is_of_it) {
        return Ok(());
    }
    let reason = "the domain that libvirt has under its UUID is another QEMU";
    Err(Disconnect::Refused(reason.to_owned()))
}

/// Serves commands and passes events on, until libvirt is lost.
async fn talk(
    target: &LibvirtTarget,
    way: &Way,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<Disconnect, Ended> {
    let (outcomes, mut ended) = mpsc::unbounded_channel();
    let mut under_way = 0_usize;
    let mut events = Events::begin(way, &target.domain);
    let ends = way_ends(way);
    tokio::pin!(ends);
    let mut flood = Flood::new();
    let mut poll = interval(limits.libvirt_poll);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let step = tokio::select! {
            request = inbox.next() => {
                let request = request?;
                if under_way < limits.unanswered {
                    under_way += 1;
                    let (way, outcomes) = (way.clone(), outcomes.clone());
                    tokio::spawn(async move {
                        // The session may have ended meanwhile.
                        let _ = outcomes.send(serve(&way, request).await);
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
                    Outcome::Answered => Box::pin(settle(way, outbox, limits, false)).await,
                    Outcome::Late(since) => outbox.unresponsive(since).await.map_err(Disconnect::from),
                    Outcome::Lost(reason) => Err(Disconnect::Closed(reason)),
                }
            }
            why = &mut ends => Err(Disconnect::Closed(why)),
            event = events.next() => match event {
                Some(event) => match flood.bytes(0, &limits).and_then(|()| flood.event(&event, &limits)) {
                    Ok(true) => outbox.tell(QmpNotice::Event(event)).await.map_err(Disconnect::from),
                    Ok(false) => Ok(()),
                    Err(disconnect) => Err(disconnect),
                },
                None => Ok(()),
            },
            _ = poll.tick() => Box::pin(settle(way, outbox, limits, true)).await,
        };
        if let Err(disconnect) = step {
            return Ok(disconnect);
        }
        if events.were_lost()
            && let Err(disconnect) = Box::pin(settle(way, outbox, limits, true)).await
        {
            return Ok(disconnect);
        }
    }
}

/// Reports that QEMU can be asked, if that is news, and its run state then, or always.
async fn settle(
    way: &Way,
    outbox: &mut Outbox,
    limits: Limits,
    always: bool,
) -> Result<(), Disconnect> {
    let news = outbox.last != Some(QmpState::Ready);
    if !(news || always) {
        return Ok(());
    }
    let since = std::time::Instant::now();
    match way.execute(Command::bare("query-status", limits.handshake)).await {
        Ok(reply) => {
            let Some(state) = run_state(&reply) else {
                let reason = "query-status is not answered with a run state";
                return Err(Disconnect::Refused(reason.to_owned()));
            };
            outbox.state(QmpState::Ready).await?;
            Ok(outbox.tell(QmpNotice::RunState(state)).await?)
        }
        Err(QmpError::Timeout { .. }) => Ok(outbox.unresponsive(since).await?),
        Err(error) => Err(Disconnect::Closed(error_chain(&error))),
    }
}

/// Carries one command out.
async fn serve(way: &Way, request: Request) -> Outcome {
    let Request { command, arguments, descriptor, deadline, reply, limit: _ } = request;
    if reply.is_closed() {
        // The caller has given up; what it asked for must not happen behind its back.
        return Outcome::Answered;
    }
    let since = std::time::Instant::now();
    let limit = deadline.saturating_duration_since(Instant::now());
    let arguments = arguments.as_ref();
    let result = way.execute(Command { name: &command, arguments, file: descriptor, limit }).await;
    let outcome = match &result {
        Ok(_) | Err(QmpError::Command { .. }) => Outcome::Answered,
        Err(QmpError::Timeout { .. }) => Outcome::Late(since),
        // What was wrong with this one command says nothing of the next.
        Err(
            QmpError::Malformed { .. }
            | QmpError::Skipped { .. }
            | QmpError::Unsendable { .. }
            | QmpError::NoDescriptors { .. }
            | QmpError::Withheld { .. }
            | QmpError::Busy,
        ) => Outcome::Answered,
        Err(error) => Outcome::Lost(error_chain(error)),
    };
    let _ = reply.send(result);
    outcome
}
