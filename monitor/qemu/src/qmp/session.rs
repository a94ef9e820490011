//! One task a VM that owns the QMP connection: it connects, reconnects, and reports what it hears.
//!
//! ```text
//!              connected, greeted,           a command's time is up
//! Connecting ─┬─ negotiated ──────► Ready ◄──────────────────────► Unresponsive
//!             │                       │          any reply comes        │
//!             ├─ no vCPUs yet ────────┼──► NotStarted (again in 500 ms) │
//!             ├─ no greeting in 2 s ──┼──► Busy      (and waits for it) │
//!             ├─ cannot connect, EOF ─┼──► Closed    (again in 250 ms, doubling to 15 s) ◄┤
//!             └─ impostor, nonsense, ─┴──► Refused   (again in 60 s) ◄──────────────────┘
//!                flood
//! ```
//!
//! A connection that is not greeted is kept, and greeted once its turn has come: those that are given up would fill the
//! socket's short queue. Of several sockets, each is tried, and the first that greets is the one. `sockets` has that.
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
//! So it is where the socket is ours alone. Where its owner needs it as well, each connection is brief (`attempts`);
//! where libvirt holds it, a session goes `through_libvirt`. Callers see no difference but in what is heard: [`Transport`].

mod attempts;
mod conversation;
mod disconnect;
mod flood;
mod limits;
mod notice;
mod outbox;
mod reading;
mod requests;
mod room;
mod sockets;
#[cfg(test)]
mod tests;
mod through_libvirt;

use std::{collections::VecDeque, path::Path};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use limits::Limits;
pub use notice::{QmpError, QmpNotice, QmpState};
pub use requests::QmpHandle;
pub use room::Room;

use attempts::attempts;
use conversation::Style;
use outbox::Outbox;
use requests::{Ended, Inbox};

use crate::{
    discover::{ListeningSocket, ThreadsTold, VmId},
    libvirt::{Domain, Link},
    program::virsh::Virsh,
};

/// Which QEMU to talk to, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpTarget {
    /// The QEMU process.
    pub vm: VmId,
    /// Its sockets, as QEMU was told; the first that serves is used.
    pub sockets: Vec<ListeningSocket>,
    /// What it was told of its threads.
    pub threads: ThreadsTold,
    /// Its user.
    pub uid: u32,
}

impl QmpTarget {
    /// One socket, where QEMU doesn't wait for a client.
    pub fn at_path(vm: VmId, path: impl AsRef<Path>) -> Self {
        Self {
            vm,
            sockets: vec![ListeningSocket::at_path(path)],
            threads: ThreadsTold::default(),
            uid: 0,
        }
    }
}

/// By which way a QEMU is talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// One connection to its socket, kept open.
    Keep(QmpTarget),
    /// A connection for each batch of commands; events are not heard.
    Brief(QmpTarget),
    /// libvirt, which holds the monitor.
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
    /// The same libvirt by its own protocol, and the domain; `None` where it is no socket of this host.
    pub link: Option<(Link, Domain)>,
    /// Its user, of which a libvirt that is not root's must be.
    pub uid: u32,
}

/// Starts a session's task, on the current tokio runtime. What it holds of unfinished messages is in `room`.
#[must_use]
pub fn spawn(
    transport: Transport,
    notices: mpsc::Sender<(VmId, QmpNotice)>,
    limits: Limits,
    room: Room,
) -> QmpHandle {
    let (sender, requests) = mpsc::channel(limits.unanswered.max(1));
    let closing = CancellationToken::new();
    let mut inbox = Inbox { requests, closing: closing.clone(), kept: VecDeque::new(), keeps: 0 };
    let mut outbox = Outbox { vm: transport.vm(), notices, last: None, wait: limits.notice };
    tokio::spawn(async move {
        let (inbox, outbox) = (&mut inbox, &mut outbox);
        let ended = match &transport {
            Transport::Keep(target) => {
                attempts(target, Style::Kept, inbox, outbox, limits, &room).await
            }
            Transport::Brief(target) => {
                attempts(target, Style::Brief, inbox, outbox, limits, &room).await
            }
            // In a box: it takes many times the room of the others, which most sessions are.
            Transport::Libvirt(target) => {
                Box::pin(through_libvirt::attempts(target, inbox, outbox, limits)).await
            }
        };
        // Its only outcome is that it is wanted no more.
        let Err(Ended) = ended;
    });
    QmpHandle { requests: sender, closing }
}
