//! Attempts to have a connection to the socket, one after the other, and the two ways to use it.
//!
//! A kept connection lasts until it ends. A brief one leaves the socket free:
//!
//! ```text
//!              a command, or a poll is due           nothing is unanswered for a moment
//! (no connection) ───────────────────► negotiated, run state asked ──────────────────► (no connection)
//! ```
//!
//! An owner needs the QEMU's only socket, too, and would wait for a client that keeps it: Proxmox VE opens it for each of
//! its own commands. No event is heard so; the run state, which is asked with each connection, tells what they would
//! have. The peer is checked each time anew. A socket that is in use for a moment is waited for before that is reported.

use tokio::time::sleep;

use super::{
    QmpTarget,
    conversation::{self, Style},
    disconnect::{Disconnect, Pauses},
    limits::Limits,
    notice::QmpState,
    outbox::Outbox,
    requests::{Ended, Inbox},
    room::Room,
    sockets::Sockets,
};

/// So many times as long as a greeting may take, the socket may be in use before a brief session reports that.
const GREETINGS: u32 = 5;

/// Connects and talks, again and again, until the session has ended.
pub(super) async fn attempts(
    target: &QmpTarget,
    style: Style,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
    room: &Room,
) -> Result<std::convert::Infallible, Ended> {
    let (keeps, patience) = match style {
        Style::Kept => (0, limits.greeting),
        Style::Brief => (limits.unanswered, limits.greeting * GREETINGS),
    };
    let mut pauses = Pauses::new(limits);
    let mut sockets = Sockets::new(target, limits);
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        inbox.keeps = keeps;
        // In a box, since the room for it is kept by no session that is connected.
        let disconnect = match Box::pin(sockets.connect(inbox, outbox, patience)).await? {
            Err(disconnect) => disconnect,
            Ok(stream) => {
                // It may have been in use for so long that no commands were kept any more.
                inbox.keeps = keeps;
                let place = room.place(target.uid);
                let disconnect =
                    conversation::hold(stream, inbox, outbox, limits, style, place).await?;
                let has_served = match (style, &outbox.last) {
                    (Style::Kept, last) => {
                        matches!(last, Some(QmpState::Ready | QmpState::Unresponsive { .. }))
                    }
                    (Style::Brief, last) => {
                        matches!(disconnect, Disconnect::Done) || *last == Some(QmpState::Ready)
                    }
                };
                if has_served {
                    if style == Style::Kept {
                        pauses.reset();
                    }
                    disconnect
                } else if let Some(disconnect) = sockets.failed(disconnect) {
                    disconnect
                } else {
                    continue;
                }
            }
        };
        if let Disconnect::Done = disconnect {
            pauses.reset();
            inbox.first_or(sleep(limits.brief_poll)).await?;
        } else {
            Box::pin(pauses.after(disconnect, inbox, outbox)).await?;
        }
    }
}
