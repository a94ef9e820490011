//! Messages to the loop: what the parts that may wait report to it, and the ways on which they come.

use std::{collections::HashSet, time::Duration};

use tokio::sync::mpsc::{Sender, UnboundedSender};

use super::{starts::Starts, watchers::Looked};
use crate::{
    config::{Config, ConfigError},
    probes::Notes,
    recovery::{Restart, RestartError},
    storage::incident::Attempt,
    vm::MemoryRead,
};
use flatline_detector::verdict::Testimony;
use flatline_qemu::{
    discover::{ResetAction, Vm, VmId},
    libvirt::Links,
    qmp::{QmpNotice, Room},
};
use flatline_samples::RunState;

/// What the parts that may wait report to the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// A QEMU, found by a sweep or because it started.
    Found(Box<Vm>),
    /// A sweep ended; `all` are the QEMUs there are, and another sweep is to follow after `again`.
    Swept { all: HashSet<VmId>, again: Option<Duration> },
    /// A watched QEMU's main thread ended with this status of `wait(2)`.
    Status(u32, i32),
    /// A watched QEMU is gone.
    Gone(VmId),
    /// What may have changed of VMs was looked at again.
    Refreshed(Vec<(VmId, Looked)>),
    /// Its vCPU threads, by QEMU's own account.
    Cpus(VmId, Vec<(u32, u32)>),
    /// Its run state, asked for after an event; the number orders the questions.
    RunState(VmId, u64, RunState),
    /// Its witnesses answered, of the boot that began then.
    Round { id: VmId, boot_began: Duration, testimony: Testimony, notes: Notes },
    /// VMs' memory was read.
    Memory(Vec<(VmId, MemoryRead)>),
    /// Its restart ended; these are all restarts of its incident so far.
    Restarted(VmId, Vec<Attempt>, Result<Restart, RestartError>),
    /// QEMU is to be told again what to do at a reset, after the restart with this number.
    PutBack(VmId, u64, ResetAction),
    /// The configuration was read again.
    Configured(Result<Box<Config>, ConfigError>),
    /// What was left of an earlier daemon's restart is done, in QEMU's words.
    Finished(VmId, Vec<Attempt>, Result<String, RestartError>),
}

/// The senders' ends of the loop's channels.
pub(super) struct Inboxes {
    pub(super) messages: UnboundedSender<Message>,
    pub(super) notices: Sender<(VmId, QmpNotice)>,
    /// What all sessions hold of unfinished messages.
    pub(super) room: Room,
    /// The connections to libvirt, which the sessions of its domains share.
    pub(super) links: Links,
    /// Which of the processes that start may be looked at one by one.
    pub(super) starts: Starts,
}

impl Inboxes {
    /// Runs `task`, and reports what it ends with, if that is a message.
    pub(super) fn report<M>(&self, task: impl Future<Output = M> + Send + 'static)
    where
        M: Into<Option<Message>> + Send,
    {
        let messages = self.messages.clone();
        tokio::spawn(async move {
            if let Some(message) = task.await.into() {
                // The loop may have ended.
                let _ = messages.send(message);
            }
        });
    }
}
