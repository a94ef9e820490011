//! When a VM counts as crashed, and how often it may be restarted: what the verdict and its recordings are about.

use std::time::Duration;

use super::{
    Mode, Policy,
    keys::{Layers, keys},
    values::{
        Count, DAY, HOUR, MINUTE, MS, NeverOr, Optional, Problem, Rule, SECOND, Within, any, say,
        typed,
    },
};

/// More than this within a window is a loop that a person should see, not a budget.
pub(super) const MAX_RESTARTS: u32 = 1000;

keys! { for Policy {
    /// or "observe": decide and record, touch nothing
    root.mode = "recover", any::<Mode>();
    /// silence before a VM is suspected; at least twice `sample_interval`
    detection.flat_for = "10s", Within(SECOND..=DAY);
    /// silence before a VM that cannot be probed may be restarted; at least `flat_for`
    detection.unconfirmed_flat_for = "120s", Within(SECOND..=7 * DAY);
    /// time without a word of QEMU's monitor or a sign of its guest, after which QEMU itself hangs, and is replaced by its
    /// unit or command; "0s": never. On a busy host a QEMU may take 30s to answer
    detection.unresponsive_for = "0s", NeverOr(30 * SECOND..=DAY);
    /// beats of a guest's agent that stay away; by default three of its intervals and 2 s
    detection.heartbeat_lost_after = none like "5s", Optional(Within(2 * SECOND..=DAY));
    /// no suspicion so long after a start or reset, or until the first sign of life
    detection.boot_grace = "60s", Within(SECOND..=DAY);
    /// a guest that resets itself so often within `boot_loop_window` is given up, and a person is called
    detection.boot_loop_resets = 5, Count(2..=100);
    /// the time over which those are counted
    detection.boot_loop_window = "5m", Within(10 * SECOND..=DAY);
    /// restarts within the window, the guest's own resets among them; then a person is needed; 0: never
    recovery.max_restarts = 3, Count(0..=MAX_RESTARTS);
    /// the time over which restarts are counted
    recovery.window = "1h", Within(MINUTE..=30 * DAY);
    /// time from one restart to the next, then twice as long, and so on; up to an hour
    recovery.pause = "10s", Within(Duration::ZERO..=HOUR);
    /// or true: a guest with a kernel that lives, and an agent that no longer beats or says that its check failed, is restarted; else
    /// that is only told
    recovery.restart_without_heartbeat = false, any::<bool>();
} }

keys! {
    /// What is one and the same for all VMs of the host.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) struct HostLimits {
        /// time between two samples of all VMs
        detection.sample_interval: Duration = "1s", Within(100 * MS..=MINUTE),
            host "all VMs of the host are sampled together; set it in [detection]";
        /// so many VMs that fall silent together, and such a share of all, are the host's fault: one incident, and none is restarted
        /// for its silence, for three minutes or as long as the host shows a fault of its own
        detection.storm_vms: u32 = 5, Count(2..=1_000_000),
            host "a storm is the host's; set it in [detection]";
        /// the share of all VMs of the host; where they are of several users, the mean of each one's share, and that of two of
        /// them (three of five or more) themselves
        detection.storm_share: f64 = 0.5, Share, host "a storm is the host's; set it in [detection]";
        /// restarts of all VMs of this host; further ones wait, by turns of their users, of which each takes at most half of what
        /// others leave
        recovery.max_restarts_per_minute: u32 = 10, Count(1..=MAX_RESTARTS),
            host "it is the host's limit; set it in [recovery]";
    }
}

keys! {
    /// How often memory is read.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) struct MemoryReading {
        /// each VM's memory is read so often, through its balloon where it has one, and else when a client asks or it is silent; "0s": never
        detection.memory_every: Duration = "30s", NeverOr(SECOND..=HOUR);
    }
}

/// A share of all, above 0 and at most 1.
struct Share;

impl Rule for Share {
    type Value = f64;

    fn read(&self, value: toml::Spanned<toml::de::DeValue<'_>>) -> Result<f64, Problem> {
        let share = typed::<f64>(value)?;
        if *share.get_ref() > 0.0 && *share.get_ref() <= 1.0 {
            Ok(share.into_inner())
        } else {
            Err(Problem::at(&share, "must be above 0, and at most 1"))
        }
    }

    fn allowed(&self) -> String {
        "above 0, at most 1".to_owned()
    }
}

/// That the values of `policy` fit each other and the host's interval.
pub(super) fn check(
    policy: &Policy,
    sample_interval: Duration,
    layers: &Layers<'_>,
) -> Result<(), Problem> {
    const FLAT_FOR: (&str, &str) = ("detection", "flat_for");
    const UNCONFIRMED: (&str, &str) = ("detection", "unconfirmed_flat_for");
    let Policy { flat_for, unconfirmed_flat_for, .. } = policy;
    if *flat_for < 2 * sample_interval {
        // A long interval alone may contradict the default of `flat_for`: then it is what is wrong.
        let offset = layers.place_or_start(&[FLAT_FOR, ("detection", "sample_interval")]);
        let message = format!(
            "flat_for ({}) must be at least twice detection.sample_interval ({}): one sample in \
             which nothing moved is no silence",
            say(*flat_for),
            say(sample_interval)
        );
        return Err(Problem { offset, message });
    }
    if unconfirmed_flat_for < flat_for {
        let offset = layers.place_or_start(&[UNCONFIRMED, FLAT_FOR]);
        let message = format!(
            "unconfirmed_flat_for ({}) must not be shorter than flat_for ({})",
            say(*unconfirmed_flat_for),
            say(*flat_for)
        );
        return Err(Problem { offset, message });
    }
    Ok(())
}
