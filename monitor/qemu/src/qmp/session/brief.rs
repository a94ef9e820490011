//! Sessions that leave the socket free: a connection for each batch of commands.
//!
//! ```text
//!              a command, or a poll is due           nothing is unanswered for a moment
//! (no connection) ───────────────────► negotiated, run state asked ──────────────────► (no connection)
//! ```
//!
//! Whoever owns the QEMU needs its only socket, too, and would wait for a client that keeps it: Proxmox VE opens it
//! for each of its own commands. No event is heard so; the run state, which is asked with each connection, tells what
//! they would have. The peer is checked each time anew. A socket that is in use for a moment is waited for before that
//! is reported.

use tokio::time::sleep;

use super::{
    QmpTarget,
    conversation::{self, Style},
    disconnect::{Disconnect, Pauses},
    limits::Limits,
    notice::QmpState,
    outbox::Outbox,
    requests::{Ended, Inbox},
    sockets::Sockets,
};

/// So many times as long as a greeting may take, the socket may be in use before that is reported.
const GREETINGS: u32 = 5;

pub(super) async fn attempts(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut pauses = Pauses::new(limits);
    let mut sockets = Sockets::new(target, limits);
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        inbox.keeps = limits.unanswered;
        let patience = limits.greeting * GREETINGS;
        let disconnect = match sockets.connect(inbox, outbox, patience).await? {
            Err(disconnect) => disconnect,
            Ok(stream) => {
                // It may have been in use for so long that nobody's commands were kept any more.
                inbox.keeps = limits.unanswered;
                match conversation::hold(stream, inbox, outbox, limits, Style::Brief).await? {
                    Disconnect::Done => Disconnect::Done,
                    disconnect if outbox.last == Some(QmpState::Ready) => disconnect,
                    disconnect => match sockets.failed(disconnect) {
                        Some(disconnect) => disconnect,
                        None => continue,
                    },
                }
            }
        };
        if let Disconnect::Done = disconnect {
            pauses.reset();
            inbox.first_or(sleep(limits.brief_poll)).await?;
        } else {
            pauses.after(disconnect, inbox, outbox).await?;
        }
    }
}
