//! Calls that wait for their turn, and those that are on the wire.
//!
//! libvirt takes five calls of a client at a time (`max_client_requests`), and reads no further ones: so many that hang would
//! keep all others waiting. It passes commands to one domain on one after the other, and a domain's monitor may hang: so each
//! domain has one call on the wire at most.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
};

use tokio::{sync::oneshot, time::Instant};

use super::message::Domain;

/// On the wire at a time: one fewer than libvirt takes.
pub(super) const AT_ONCE: usize = 4;
/// Waiting at a time, of all domains.
const QUEUED: usize = 1024;

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent.
    #[error("no connection to libvirt: {0}")]
    NotConnected(String),
    /// Too many wait already; nothing was sent.
    #[error("too many commands wait for libvirt")]
    Busy,
    /// No answer in time; libvirt may still pass the command on.
    #[error("no answer from libvirt in time")]
    Timeout,
    /// The connection ended before the answer.
    #[error("the connection to libvirt ended before the answer")]
    Disconnected,
    /// libvirt has no such domain that runs: nothing was passed on.
    #[error("{0}")]
    Gone(String),
    /// libvirt refused.
    #[error("{0}")]
    Refused(String),
    /// The answer is longer than is taken.
    #[error("the answer is too long")]
    TooLong,
    /// The answer is not of the form that libvirt promises.
    #[error("the answer is not understood")]
    Malformed,
}

/// Where an answer goes: QEMU's own reply, in JSON.
pub(super) type Reply = oneshot::Sender<Result<Vec<u8>, CallError>>;

/// A QMP command for a domain.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) domain: Domain,
    /// JSON.
    pub(super) command: String,
    pub(super) file: Option<OwnedFd>,
    pub(super) deadline: Instant,
    pub(super) reply: Reply,
}

/// One that was sent.
#[derive(Debug)]
struct Sent {
    uuid: [u8; 16],
    deadline: Instant,
    reply: Reply,
}

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Calls {
    queued: VecDeque<Call>,
    sent: HashMap<u32, Sent>,
}

/// What goes on the wire next.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) domain: Domain,
    pub(super) command: String,
    pub(super) file: Option<OwnedFd>,
}

impl Calls {
    /// Has it wait for its turn, if there is room.
    pub(super) fn push(&mut self, call: Call) {
        if self.queued.len() < QUEUED {
            self.queued.push_back(call);
        } else {
            let _ = call.reply.send(Err(CallError::Busy));
        }
    }

    /// The next call that may go, which then counts as sent under this number. One that is not waited for any more is not
    /// sent: what it asked for must not happen behind its caller's back.
    pub(super) fn next(&mut self, serial: u32, now: Instant) -> Option<Next> {
        self.queued.retain(|call| call.deadline > now && !call.reply.is_closed());
        if self.sent.len() >= AT_ONCE {
            return None;
        }
        let is_free = |call: &Call| !self.sent.values().any(|sent| sent.uuid == call.domain.uuid);
        let at = self.queued.iter().position(is_free)?;
        let Call { domain, command, file, deadline, reply } = self.queued.remove(at)?;
        self.sent.insert(serial, Sent { uuid: domain.uuid, deadline, reply });
        Some(Next { domain, command, file })
    }

    /// Where the answer to this number goes; `None` if it was not asked for.
    pub(super) fn answered(&mut self, serial: u32) -> Option<Reply> {
        self.sent.remove(&serial).map(|sent| sent.reply)
    }

    /// When nothing more will come of this connection, unless an answer comes before: all that may be on the wire is late, and
    /// another call waits.
    pub(super) fn stuck_at(&self) -> Option<Instant> {
        let is_full = self.sent.len() >= AT_ONCE && !self.queued.is_empty();
        self.sent.values().map(|sent| sent.deadline).max().filter(|_| is_full)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    type Answer = oneshot::Receiver<Result<Vec<u8>, CallError>>;

    fn call(domain: u8, now: Instant) -> (Call, Answer) {
        let (reply, answer) = oneshot::channel();
        let domain = Domain { name: format!("d{domain}"), uuid: [domain; 16] };
        (
            Call { domain, command: "{}".to_owned(), file: None, deadline: now + SECOND, reply },
            answer,
        )
    }

    fn sent(calls: &mut Calls, serial: u32, now: Instant) -> Option<String> {
        calls.next(serial, now).map(|next| next.domain.name)
    }

    #[test]
    fn a_domain_that_does_not_answer_keeps_no_other_from_its_turn() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let answers: Vec<Answer> = [1, 1, 2]
            .map(|domain| {
                let (call, answer) = call(domain, now);
                calls.push(call);
                answer
            })
            .into();
        assert_eq!(sent(&mut calls, 1, now).as_deref(), Some("d1"));
        assert_eq!(sent(&mut calls, 2, now).as_deref(), Some("d2"), "d1 is asked already");
        assert_eq!(sent(&mut calls, 3, now), None);
        assert!(calls.answered(1).is_some() && calls.answered(1).is_none());
        assert_eq!(sent(&mut calls, 3, now).as_deref(), Some("d1"));
        drop(answers);
    }

    #[test]
    fn what_is_not_waited_for_any_more_is_not_sent() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let (given_up, answer) = call(1, now);
        let (late, _late_answer) = call(2, now);
        calls.push(given_up);
        calls.push(late);
        drop(answer);
        assert_eq!(sent(&mut calls, 1, now + SECOND), None);
        assert!(calls.queued.is_empty());
    }

    #[test]
    fn a_wire_of_which_every_place_is_late_is_stuck_once_another_waits() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let mut answers = Vec::new();
        for domain in 1..=4 {
            let (call, answer) = call(domain, now);
            calls.push(call);
            answers.push(answer);
            assert!(sent(&mut calls, u32::from(domain), now).is_some());
        }
        assert_eq!(calls.stuck_at(), None, "no other waits");
        let (fifth, _answer) = call(5, now + SECOND);
        calls.push(fifth);
        assert_eq!(sent(&mut calls, 5, now), None);
        assert_eq!(calls.stuck_at(), Some(now + SECOND));
        calls.answered(2);
        assert_eq!(calls.stuck_at(), None);
        assert_eq!(sent(&mut calls, 5, now).as_deref(), Some("d5"));
    }

    #[test]
    fn more_than_may_wait_are_refused_at_once() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let mut answers: Vec<Answer> = Vec::new();
        for _ in 0..=QUEUED {
            let (call, answer) = call(1, now);
            calls.push(call);
            answers.push(answer);
        }
        assert_eq!(answers[QUEUED].try_recv(), Ok(Err(CallError::Busy)));
        assert!(answers[QUEUED - 1].try_recv().is_err());
    }
}
