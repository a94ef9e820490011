//! Policies by which VMs are judged and restarted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Whether verdicts are acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Crashed guests are restarted.
    Recover,
    /// Verdicts are given and recorded; no guest is touched.
    Observe,
}

impl Mode {
    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recover => "recover",
            Self::Observe => "observe",
        }
    }
}

/// When VMs that fall silent at the same moment are a storm: the host is at fault, and restarting guests won't mend it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Storm {
    /// The least number of VMs.
    pub vms: u32,
    /// The least share of all VMs, from 0 to 1.
    pub share: f64,
}

/// The policy by which one VM is judged and restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whether verdicts are acted upon.
    pub mode: Mode,
    /// Silence before the VM is suspected.
    pub flat_for: Duration,
    /// Silence before a VM for which no probe ever answered may be restarted; never below
    /// `flat_for`.
    pub unconfirmed_flat_for: Duration,
    /// Time in which QEMU's monitor must not have answered, nor anything been seen of the guest, before QEMU itself
    /// counts as hung; zero: it never does.
    pub unresponsive_for: Duration,
    /// How long the beats of a guest's agent may stay away before the guest is suspected; `None`: three of its
    /// intervals and 2 s.
    pub heartbeat_lost_after: Option<Duration>,
    /// After a start or reset, or until the first sign of life: no suspicion.
    pub boot_grace: Duration,
    /// Resets of the guest's own within `boot_loop_window` that make a boot loop, in which a person is called.
    pub boot_loop_resets: u32,
    /// The time over which those are counted.
    pub boot_loop_window: Duration,
    /// Restarts within `window` before a person is called; 0: never restart.
    pub max_restarts: u32,
    /// The time over which restarts are counted.
    pub window: Duration,
    /// Time from one restart to the second within `window`; twice as long to the third, and so on.
    pub pause: Duration,
    /// Whether a guest is restarted that has a living kernel, but an agent that no longer beats or says that what it checks has
    /// failed; otherwise that is only told.
    pub restart_without_heartbeat: bool,
}
