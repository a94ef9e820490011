//! The policy by which a VM is judged, as JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use flatline_detector::policy::{Mode, Policy};

/// How a [`Policy`] is written as JSON: durations as they would stand in the configuration.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Policy")]
pub(crate) struct PolicyView {
    pub mode: Mode,
    #[serde(with = "humantime_serde")]
    pub flat_for: Duration,
    #[serde(with = "humantime_serde")]
    pub unconfirmed_flat_for: Duration,
    #[serde(with = "humantime_serde")]
    pub unresponsive_for: Duration,
    #[serde(with = "humantime_serde", default)]
    pub heartbeat_lost_after: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub boot_grace: Duration,
    pub boot_loop_resets: u32,
    #[serde(with = "humantime_serde")]
    pub boot_loop_window: Duration,
    pub max_restarts: u32,
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
    #[serde(default)]
    pub restart_without_heartbeat: bool,
}
