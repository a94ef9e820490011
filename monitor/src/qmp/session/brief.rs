//! Sessions that leave the socket free: a connection for each batch of commands.
//!
//! ```text
//!              a command, or a poll is due           nothing is unanswered for a moment
//! (no connection) ───────────────────► negotiated, run state asked ──────────────────► (no connection)
//! ```
//!
//! Whoever owns the QEMU needs its only socket, too, and would wait for a client that keeps it: Proxmox VE opens it
//! for each of its own commands. No event is heard so; the run state, which is asked with each connection, tells what
//! they would have. The peer is checked each time anew. A socket that is in use for a moment is asked again before
//! that is reported.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    QmpTarget,
    conversation::{self, Style},
    kept::connect,
    limits::Limits,
    notice::QmpState,
    outbox::Outbox,
    parting::{Parting, Pauses},
    requests::{Ended, Inbox},
};

/// Attempts in a row that may find the socket in use before that is reported.
const BUSY_ATTEMPTS: u32 = 5;
/// The pause between them.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn attempts(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut pauses = Pauses::new(limits);
    let mut busy = 0;
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        inbox.keeps = limits.unanswered;
        let parting = match connect(target, inbox, outbox, limits).await? {
            Err(parting) => parting,
            Ok(stream) => conversation::hold(stream, inbox, outbox, limits, Style::Brief).await?,
        };
        match parting {
            Parting::Done => {
                busy = 0;
                pauses.reset();
                inbox.first_or(sleep(limits.brief_poll)).await?;
            }
            Parting::Busy if busy < BUSY_ATTEMPTS => {
                busy += 1;
                inbox.meanwhile("another client holds the socket", sleep(BUSY_PAUSE)).await?;
            }
            Parting::Busy | Parting::Refused(_) | Parting::Closed(_) => {
                pauses.after(parting, inbox, outbox).await?;
            }
        }
    }
}
