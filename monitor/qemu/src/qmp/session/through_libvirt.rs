//! Sessions through libvirt, which holds the monitor of its domains: a `virsh` for each command, and one that stays
//! for the events.
//!
//! A domain is talked to only after its vCPUs were shown to be threads of the very QEMU that was found: the UUID
//! that led to it is from that QEMU's own command line. libvirt passes commands on one after the other, and its
//! replies are as bounded as those of a socket. Should the `virsh` for the events end, it is begun anew, with pauses;
//! what is lost meanwhile, and all else that events would tell, the run state tells, which is asked every so often.

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
use crate::{discover, qmp::commands::run_state, text::error_chain};
use command::execute;
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
        // In boxes, like all that runs a program: the room for it is kept by no session that waits.
        let verify = Box::pin(verify(target, limits.handshake));
        let verified = inbox.meanwhile("connecting", verify).await?;
        let disconnect = match verified {
            Err(disconnect) => disconnect,
            Ok(()) => {
                pauses.reset();
                talk(target, inbox, outbox, limits).await?
            }
        };
        pauses.after(disconnect, inbox, outbox).await?;
    }
}

/// Makes sure that the domain's vCPUs are threads of the QEMU that was found.
async fn verify(target: &LibvirtTarget, limit: Duration) -> Result<(), Disconnect> {
    let reply = execute(target, "query-cpus-fast", None, limit).await;
    let reply = reply.map_err(|error| Disconnect::Closed(error_chain(&error)))?;
    let threads = reply.as_array().map(Vec::as_slice).unwrap_or_default();
    let pid = target.vm.pid;
    // libvirt passes on what QEMU calls its threads, which may live in a PID namespace of its own.
    let ids = tokio::task::spawn_blocking(move || discover::ThreadIds::of(pid)).await;
    let ids = ids.ok().and_then(Result::ok);
    let is_of_it = |vcpu: &Value| {
        let tid = vcpu.get("thread-id").and_then(Value::as_u64);
        tid.and_then(|tid| u32::try_from(tid).ok())
            .is_some_and(|tid| ids.as_ref().is_some_and(|ids| ids.here(tid).is_some()))
    };
    let same = discover::start_ticks(target.vm.pid).ok() == Some(target.vm.start_ticks);
    if same && !threads.is_empty() && threads.iter().all(is_of_it) {
        return Ok(());
    }
    let reason = "the domain that libvirt has under its UUID is another QEMU";
    Err(Disconnect::Refused(reason.to_owned()))
}

/// Serves commands and passes events on, until libvirt is lost.
async fn talk(
    target: &LibvirtTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<Disconnect, Ended> {
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
                    Outcome::Answered => Box::pin(settle(target, outbox, limits, false)).await,
                    Outcome::Late(since) => outbox.unresponsive(since).await.map_err(Disconnect::from),
                    Outcome::Lost(reason) => Err(Disconnect::Closed(reason)),
                }
            }
            event = events.next(target) => match event {
                Some(event) => match flood.bytes(0, &limits).and_then(|()| flood.event(&event, &limits)) {
                    Ok(true) => outbox.tell(QmpNotice::Event(event)).await.map_err(Disconnect::from),
                    Ok(false) => Ok(()),
                    Err(disconnect) => Err(disconnect),
                },
                None => Ok(()),
            },
            _ = poll.tick() => Box::pin(settle(target, outbox, limits, true)).await,
        };
        if let Err(disconnect) = step {
            return Ok(disconnect);
        }
    }
}

/// Reports that QEMU can be asked, if that is news, and its run state then, or always.
async fn settle(
    target: &LibvirtTarget,
    outbox: &mut Outbox,
    limits: Limits,
    always: bool,
) -> Result<(), Disconnect> {
    let news = outbox.last != Some(QmpState::Ready);
    if !(news || always) {
        return Ok(());
    }
    let since = std::time::Instant::now();
    match execute(target, "query-status", None, limits.handshake).await {
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
            | QmpError::Skipped { .. }
            | QmpError::Unsendable { .. }
            | QmpError::NoDescriptors { .. }
            | QmpError::Busy,
        ) => Outcome::Answered,
        Err(error) => Outcome::Lost(error_chain(error)),
    };
    let _ = reply.send(result);
    outcome
}
