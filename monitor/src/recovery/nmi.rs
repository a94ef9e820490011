//! An NMI before the reset, where that is wanted: a kernel that is told to panic at one may save a dump of its own,
//! which says more of its crash than anything that is taken from outside.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::evidence::Wanted;
use flatline_qemu::{qmp::QmpHandle, text::error_chain};
use flatline_samples::RunState;

/// From one look at what the guest writes to the next.
const LOOKS: Duration = Duration::from_millis(250);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// The guest began to write.
    Dump,
    /// It did not, within its time, or can't be sent one.
    Nothing,
    /// None was sent: it is not configured, or the guest has had its chance.
    NotSent,
}

/// Sends a guest that runs an NMI where that is `wanted`, and waits for so long for it to write. `writes` tells how many
/// writes it has submitted.
pub(super) async fn own_dump(
    qmp: &QmpHandle,
    run_state: &RunState,
    wanted: &Wanted,
    writes: impl Fn() -> Option<u64>,
) -> Came {
    let (vm, patience) = (&wanted.vm.name, wanted.own_dump);
    // A guest that said that it panicked has had its chance.
    if *run_state != RunState::Running || wanted.announced || patience.is_zero() || !wanted.asks {
        return Came::NotSent;
    }
    let before = writes();
    if let Err(error) = qmp.execute("inject-nmi", None, super::execute::STEP_LIMIT).await {
        warn!(vm, "no NMI: {}", error_chain(&error));
        return Came::Nothing;
    }
    info!(vm, "an NMI was sent; its own dump is waited for, up to {patience:?}");
    let sent = Instant::now();
    while sent.elapsed() < patience {
        tokio::time::sleep(LOOKS.min(patience)).await;
        if let (Some(before), Some(now)) = (before, writes())
            && now > before
        {
            return Came::Dump;
        }
        // It said that it panicked, and stands still now.
        if qmp.query_status().await.is_ok_and(|run_state| run_state != RunState::Running) {
            return Came::Nothing;
        }
    }
    Came::Nothing
}
