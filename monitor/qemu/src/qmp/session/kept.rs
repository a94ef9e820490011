//! Sessions that keep their connection.

use super::{
    QmpTarget,
    conversation::{self, Style},
    limits::Limits,
    notice::QmpState,
    outbox::Outbox,
    parting::Pauses,
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
        let parting = match sockets.connect(inbox, outbox, limits.greeting).await? {
            Err(parting) => parting,
            Ok(stream) => {
                let parting =
                    conversation::hold(stream, inbox, outbox, limits, Style::Kept).await?;
                if matches!(outbox.last, Some(QmpState::Ready | QmpState::Unresponsive { .. })) {
                    pauses.reset();
                    parting
                } else {
                    match sockets.failed(parting) {
                        Some(parting) => parting,
                        None => continue,
                    }
                }
            }
        };
        pauses.after(parting, inbox, outbox).await?;
    }
}
