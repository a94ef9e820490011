//! What is kept of a crash: how much of it, for how long, and whether the guest's memory is among it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::keys::keys;
use super::values::{Count, DAY, Directory, HOUR, SECOND, Within, any};

/// The most that evidence, or memory dumps, may be told to take on disk: 16 TiB.
const MOST_MIB: u32 = 16 << 20;

/// Whether the memory of crashed guests is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MemoryDump {
    /// It is not.
    Off,
    /// It is, before the restart.
    On,
}

keys! {
    /// What is gathered of a crashed guest before it is restarted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct EvidencePolicy {
        /// time for all that is gathered before a restart; "0s": nothing is
        recovery.evidence_limit: Duration = "2s", Within(Duration::ZERO..=30 * SECOND);
        /// or "on": the guest's memory as well, which delays its restart
        recovery.memory_dump: MemoryDump = "off", any::<MemoryDump>();
        /// a dump that isn't done by then is given up
        recovery.memory_dump_limit: Duration = "60s", Within(SECOND..=HOUR);
        /// or so long: before its reset, a silent guest is sent an NMI, and has that time to begin a dump of its own, which is
        /// then waited for; where its QMP is to be had
        recovery.inject_nmi: Duration = "0s", Within(Duration::ZERO..=120 * SECOND);
    }
}

keys! {
    /// What is kept of it, on the whole host.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct RetentionConfig {
        /// how long evidence is kept; the incidents' records stay, the newest 10,000 of them
        recovery.evidence_keep: Duration = "90d", Within(HOUR..=3660 * DAY),
            host "evidence is kept for all VMs alike; set it in [recovery]";
        /// MiB of all evidence together; the user of whose VMs there is most gives up its oldest
        recovery.evidence_max_mib: u32 = 1024, Count(1..=MOST_MIB),
            host "evidence is kept for all VMs alike; set it in [recovery]";
        /// where memory dumps go; without it, `memory` in state_dir
        recovery.memory_dump_dir: PathBuf = "/var/lib/flatline/memory", Directory,
            host "evidence is kept for all VMs alike; set it in [recovery]";
        /// MiB of all dumps there; the user that has most makes room with its oldest, and 5 % of the disk stays free
        recovery.memory_dump_quota_mib: u32 = 16384, Count(1..=MOST_MIB),
            host "evidence is kept for all VMs alike; set it in [recovery]";
    }
}
