//! Sessions that keep their connection.

use super::{
    QmpTarget,
    conversation::{self, Style},
    disconnect::Pauses,
    limits::Limits,
    notice::QmpState,
    outbox::Outbox,
    requests::{Ended, Inbox},
    sockets::Sockets,
};

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
        let disconnect = match sockets.connect(inbox, outbox, limits.greeting).await? {
            Err(disconnect) => disconnect,
            Ok(stream) => {
                let disconnect =
                    conversation::hold(stream, inbox, outbox, limits, Style::Kept).await?;
                if matches!(outbox.last, Some(QmpState::Ready | QmpState::Unresponsive { .. })) {
                    pauses.reset();
                    disconnect
                } else {
                    match sockets.failed(disconnect) {
                        Some(disconnect) => disconnect,
                        None => continue,
                    }
                }
            }
        };
        pauses.after(disconnect, inbox, outbox).await?;
    }
}
