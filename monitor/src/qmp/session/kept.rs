//! Sessions that keep their connection, and how a connection is made.

use tokio::{net::UnixStream, time::timeout};

use super::{
    QmpTarget,
    conversation::{self, Style},
    limits::Limits,
    notice::{QmpState, in_words},
    outbox::Outbox,
    parting::{Parting, Pauses},
    requests::{Ended, Inbox},
};
use crate::{error_text::in_full, qmp::peer};

pub(super) async fn attempts(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<std::convert::Infallible, Ended> {
    let mut pauses = Pauses::new(limits);
    outbox.state_at_last(QmpState::Connecting, inbox).await?;
    loop {
        let parting = match connect(target, inbox, outbox, limits).await? {
            Err(parting) => parting,
            Ok(stream) => {
                let parting =
                    conversation::hold(stream, inbox, outbox, limits, Style::Kept).await?;
                if matches!(outbox.last, Some(QmpState::Ready | QmpState::Unresponsive { .. })) {
                    pauses.reset();
                }
                parting
            }
        };
        pauses.after(parting, inbox, outbox).await?;
    }
}

/// A connection to the right process, not yet greeted.
pub(super) async fn connect(
    target: &QmpTarget,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    limits: Limits,
) -> Result<Result<UnixStream, Parting>, Ended> {
    let QmpTarget { vm, socket } = target.clone();
    // The path may lead through a file system that a hostile QEMU serves itself and that never
    // answers. Such a look-up occupies one thread of the blocking pool, and no second one is begun.
    let mut lookup = tokio::task::spawn_blocking(move || peer::resolve(vm.pid, &socket));
    let found = inbox.meanwhile("connecting", timeout(limits.greeting, &mut lookup)).await?;
    let found = match found {
        Ok(found) => found,
        Err(_) => {
            let reason = "looking up the path of the socket takes too long".to_owned();
            let state = QmpState::Closed { reason };
            outbox.state_at_last(state.clone(), inbox).await?;
            inbox.meanwhile(in_words(&state), lookup).await?
        }
    };
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Ok(Err(error.into())),
        Err(error) => return Ok(Err(Parting::Closed(in_full(&error)))),
    };
    let connected = peer::connect(vm, found, &target.socket);
    let connected = inbox.meanwhile("connecting", timeout(limits.greeting, connected)).await?;
    Ok(match connected {
        Ok(connected) => connected.map_err(Parting::from),
        Err(_) => Err(Parting::Busy),
    })
}
