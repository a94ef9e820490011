//! What libvirt does by itself at a panic that a guest announced (`<on_crash>` of its domain): that comes first.
//!
//! libvirt hears the event when flatline does, and acts in a thread of its own: it resets the guest, or ends its QEMU, within
//! milliseconds, or once it has dumped the guest's memory (`processGuestPanicEvent` in its src/qemu/qemu_driver.c). A reset of
//! ours beside that would be a second one, or meet a domain that is locked by the dump.

use std::time::{Duration, Instant};

use super::RestartContext;
use crate::recovery::{Refusal, RestartError};
use flatline_qemu::qmp::QmpHandle;
use flatline_samples::RunState;

/// For libvirt to reset a guest or to end its QEMU, which takes it milliseconds.
const ACTS_WITHIN: Duration = Duration::from_secs(10);
/// For a dump of the guest's memory before that, at the pace of a disk.
const DUMPS_WITHIN: Duration = Duration::from_secs(300);
/// From one look at the run state to the next.
const LOOKED_EVERY: Duration = Duration::from_millis(250);

/// How long libvirt is waited for that does this at a panic; `None` if it leaves the guest as it is.
fn patience(on_crash: &str) -> Option<Duration> {
    match on_crash {
        "restart" | "destroy" => Some(ACTS_WITHIN),
        "coredump-restart" | "coredump-destroy" => Some(DUMPS_WITHIN),
        // `preserve`, and what a later libvirt may know.
        _ => None,
    }
}

/// Leaves a guest in the run state `before` to libvirt, if that does something by itself about a panic. Returns once it is
/// flatline's: at once, or when libvirt has not done it within its time.
///
/// # Errors
/// [`RestartError::Overtaken`] once the guest was reset; [`RestartError::Unknown`] if QEMU doesn't answer, as one that is gone
/// does; [`RestartError::Refused`] if something else became of it.
pub(super) async fn leave_to_libvirt(
    context: &RestartContext,
    qmp: &QmpHandle,
    before: &RunState,
    on_crash: Option<&str>,
) -> Result<(), RestartError> {
    // Of a panic that was not announced, libvirt knows nothing.
    let Some(patience) = on_crash.and_then(patience).filter(|_| *before == RunState::GuestPanicked)
    else {
        return Ok(());
    };
    let begun = Instant::now();
    while begun.elapsed() < patience {
        context.overtaken.none_yet()?;
        match qmp.query_status().await.map_err(RestartError::Unknown)? {
            RunState::GuestPanicked => {}
            RunState::Running | RunState::Prelaunch => {
                // The event is on its way.
                context.overtaken.note(false);
            }
            other => {
                let why = format!("its run state became {other} while it was left to libvirt");
                return Err(RestartError::Refused(Refusal(why)));
            }
        }
        tokio::time::sleep(LOOKED_EVERY).await;
    }
    context.overtaken.none_yet()
}
