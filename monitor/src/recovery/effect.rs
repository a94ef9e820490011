//! Effects: what recovery wants done that waits or concerns others. The owner of the loop carries them out, in their order.

use super::{Step, actuator::RestartContext, journal::RestartJournal};
use flatline_qemu::{
    discover::{ResetAction, VmId},
    qmp::QmpHandle,
};

/// Something to be carried out. Those that take time end with a message to [`Supervisor`](super::Supervisor).
#[derive(Debug)]
pub(crate) enum Effect {
    /// Restart a guest. What is shown of it is to be among the evidence.
    Restart { vm: VmId, context: Box<RestartContext>, journal: RestartJournal },
    /// Start a VM whose QEMU is gone.
    Start { vm: VmId, context: Box<RestartContext>, journal: RestartJournal },
    /// Take the steps that are left of a restart.
    Finish {
        vm: VmId,
        qmp: QmpHandle,
        steps: Vec<Step>,
        configured: ResetAction,
        journal: RestartJournal,
    },
    /// Come back for [`Supervisor::put_back`](super::Supervisor::put_back) after a while, of restart `number`.
    PutBackLater { vm: VmId, number: u64, configured: ResetAction },
    /// Tell QEMU again what it was configured to do at a reset.
    PutBack { name: String, qmp: QmpHandle, configured: ResetAction },
    /// Ask for the run state.
    AskRunState(VmId),
    /// The guest boots anew: what was learned of the boot before says nothing of this one.
    ForgetBoot(VmId),
}
