//! Processes that start and may be QEMUs: looked at a few at a time. Of more than that, a sweep takes care, so that a user
//! that starts QEMUs in a loop takes none of the daemon's memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use monitor_ebpf::{PROCESS_EXEC, PROCESS_EXIT, ProcessEvent};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{Receiver, Sender, UnboundedSender, channel},
    },
    time::sleep,
};

use super::message::Message;
use flatline_qemu::discover::Passed;

/// Processes that started, and wait for the loop.
const WAITING: usize = 256;
/// Processes that are looked at at the same time: to read of one may hang.
const LOOKED_AT: usize = 32;

/// Turns of which one has a sweep, where the kernel tells of what is executed.
const SELDOM: u32 = 6;

/// What the loop knows of them.
pub(super) struct Starts {
    looks: Arc<Semaphore>,
    again: SweepAgain,
    is_sweeping: bool,
    /// Whether the kernel tells of what is executed.
    is_told: bool,
    /// Turns since the last one in which a sweep was due.
    turns: u32,
    passed: Arc<Mutex<Passed>>,
}

/// Has a sweep begin in the next tick. A clone has the same one begin.
#[derive(Clone, Default)]
pub(super) struct SweepAgain(Arc<AtomicBool>);

impl SweepAgain {
    pub(super) fn soon(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether one is wanted; it is not any more after that.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Leave to look at a process, until it is dropped.
pub(super) struct Leave {
    again: SweepAgain,
    _permit: OwnedSemaphorePermit,
}

impl Leave {
    /// It runs what may be a QEMU, and is no VM: another process that it begins may be, which no event tells of.
    pub(super) fn leave_to_sweep(&self) {
        self.again.soon();
    }
}

/// Where the kernel's events go.
pub(super) struct Outlets {
    started: Sender<u32>,
    again: SweepAgain,
    messages: UnboundedSender<Message>,
}

impl Starts {
    /// With the way for events, and the end at which pids of processes come out that started.
    pub(super) fn new(messages: UnboundedSender<Message>) -> (Self, Outlets, Receiver<u32>) {
        let again = SweepAgain::default();
        let (started, receiver) = channel(WAITING);
        let outlets = Outlets { started, again: again.clone(), messages };
        let looks = Arc::new(Semaphore::new(LOOKED_AT));
        let passed = Arc::default();
        (
            Self { looks, again, is_sweeping: false, is_told: false, turns: 0, passed },
            outlets,
            receiver,
        )
    }

    /// Leave to look at one more; where there is none, a sweep will.
    pub(super) fn may_look(&self) -> Option<Leave> {
        let permit = self.looks.clone().try_acquire_owned();
        let permit = permit.inspect_err(|_| self.again.soon()).ok()?;
        Some(Leave { again: self.again.clone(), _permit: permit })
    }

    /// The kernel tells of what is executed from now on.
    pub(super) fn are_told(&mut self) {
        self.is_told = true;
    }

    /// Whether a sweep is due in this turn: seldom, where the kernel tells.
    pub(super) fn is_turn(&mut self) -> bool {
        self.turns = (self.turns + 1) % SELDOM;
        self.turns == 0 || !self.is_told
    }

    /// What a sweep need not look at again: as long as the kernel tells what else it executes.
    pub(super) fn passed(&self) -> Arc<Mutex<Passed>> {
        if self.is_told { self.passed.clone() } else { Arc::default() }
    }

    /// A sweep begins.
    pub(super) fn sweeps(&mut self) {
        self.is_sweeping = true;
    }

    /// A sweep ended. Where the kernel tells of what is executed, so that one is seldom due, another is to follow after `again`.
    pub(super) fn swept(&mut self, again: Option<Duration>) {
        self.is_sweeping = false;
        if let Some(after) = again.filter(|_| self.is_told) {
            let another = self.again();
            tokio::spawn(async move {
                sleep(after).await;
                another.soon();
            });
        }
    }

    /// Has another sweep begin, whenever that is wanted.
    pub(super) fn again(&self) -> SweepAgain {
        self.again.clone()
    }

    /// Whether a sweep is due since some were not looked at; it must begin after that.
    pub(super) fn is_overrun(&self) -> bool {
        !self.is_sweeping && self.again.take()
    }
}

impl Outlets {
    /// Passes an event on. Ends are of watched QEMUs alone, one of each: their statuses are never lost.
    ///
    /// # Errors
    /// The loop has ended.
    pub(super) fn pass(&self, event: ProcessEvent) -> Result<(), ()> {
        match event.kind {
            PROCESS_EXEC => {
                if self.started.try_send(event.pid).is_err() {
                    self.again.soon();
                }
                Ok(())
            }
            PROCESS_EXIT => {
                let status = Message::Status(event.pid, event.status);
                self.messages.send(status).map_err(drop)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_flood_of_starts_takes_one_sweep_and_no_room_and_loses_no_end() {
        let (messages, mut inbox) = unbounded_channel();
        let (mut starts, outlets, mut started) = Starts::new(messages);
        assert!(!starts.is_overrun());
        let event = |kind, pid| ProcessEvent { kind, pid, status: 9, reserved: 0 };
        for pid in 0..100_000 {
            outlets.pass(event(PROCESS_EXEC, pid)).expect("the loop is there");
        }
        outlets.pass(event(PROCESS_EXIT, 7)).expect("the loop is there");
        assert!(matches!(inbox.try_recv(), Ok(Message::Status(7, 9))));
        let passed = std::iter::from_fn(|| started.try_recv().ok()).count();
        assert_eq!(passed, WAITING);
        starts.sweeps();
        assert!(!starts.is_overrun(), "the sweep under way may have passed them by");
        starts.swept(None);
        assert!(starts.is_overrun() && !starts.is_overrun());
    }

    #[test]
    fn what_can_not_be_looked_at_at_once_is_left_to_a_sweep() {
        let (messages, _inbox) = unbounded_channel();
        let (starts, _outlets, _started) = Starts::new(messages);
        let leaves: Vec<_> = (0..LOOKED_AT).filter_map(|_| starts.may_look()).collect();
        assert!(leaves.len() == LOOKED_AT && !starts.is_overrun());
        assert!(starts.may_look().is_none() && starts.is_overrun());
        drop(leaves);
        assert!(starts.may_look().is_some() && !starts.is_overrun());
    }
}
