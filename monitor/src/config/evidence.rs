//! What is kept of a crash: how much of it, for how long, and whether the guest's memory is among it.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::values::{DAY, HOUR, MINUTE, Problem, SECOND, count, directory, duration};

/// The most that evidence, or memory dumps, may be told to take on disk: 16 TiB.
const MOST_MIB: u32 = 16 << 20;
/// Longer than this nobody waits for a guest to be restarted.
const LONGEST_EVIDENCE: Duration = Duration::from_secs(30);
/// A kernel that boots another one for its dump has written something by then.
const LONGEST_NMI: Duration = Duration::from_secs(120);
/// Dumps of the largest guests to the slowest disks are done by then.
const LONGEST_DUMP: Duration = HOUR;

/// What is gathered of a crashed guest before it is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidencePolicy {
    /// The time for all evidence but the memory; zero: none is gathered.
    pub limit: Duration,
    /// Whether the guest's memory is dumped as well.
    pub memory: bool,
    /// The time for that.
    pub memory_limit: Duration,
    /// The time that the guest has to begin a dump of its own after an NMI; zero: it is sent none.
    pub own_dump: Duration,
}

/// What is kept of it, on the whole host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// How long an incident keeps its evidence; the record itself stays.
    pub keep: Duration,
    /// The most that the evidence of all incidents may take together.
    pub max_mib: u32,
    /// Where memory dumps go.
    pub memory_dir: PathBuf,
    /// The most that those may take together.
    pub memory_quota_mib: u32,
}

/// The keys that may stand for the host and in a rule.
pub(super) struct Keys {
    pub(super) evidence_limit: Option<Spanned<String>>,
    pub(super) memory_dump: Option<super::MemoryDump>,
    pub(super) memory_dump_limit: Option<Spanned<String>>,
    pub(super) inject_nmi: Option<Spanned<String>>,
}

impl EvidencePolicy {
    /// What holds where nothing is said.
    pub(super) const DEFAULT: Self = Self {
        limit: Duration::from_secs(2),
        memory: false,
        memory_limit: MINUTE,
        own_dump: Duration::ZERO,
    };
}

impl Keys {
    /// These put over `base`.
    pub(super) fn over(&self, base: EvidencePolicy) -> Result<EvidencePolicy, Problem> {
        let limit = self.evidence_limit.as_ref();
        let memory_limit = self.memory_dump_limit.as_ref();
        Ok(EvidencePolicy {
            limit: duration(limit, base.limit, Duration::ZERO, LONGEST_EVIDENCE)?,
            memory: self.memory_dump.map_or(base.memory, |dump| dump == super::MemoryDump::On),
            memory_limit: duration(memory_limit, base.memory_limit, SECOND, LONGEST_DUMP)?,
            own_dump: duration(
                self.inject_nmi.as_ref(),
                base.own_dump,
                Duration::ZERO,
                LONGEST_NMI,
            )?,
        })
    }
}

/// The keys that stand for the host alone.
pub(super) fn retention(
    keep: Option<&Spanned<String>>,
    max_mib: Option<&Spanned<i64>>,
    memory_dir: Option<Spanned<PathBuf>>,
    memory_quota_mib: Option<&Spanned<i64>>,
    state_dir: &std::path::Path,
) -> Result<RetentionConfig, Problem> {
    let memory_dir = match memory_dir {
        None => state_dir.join("memory"),
        given => directory(given, "")?,
    };
    Ok(RetentionConfig {
        keep: duration(keep, 90 * DAY, HOUR, 3660 * DAY)?,
        max_mib: count(max_mib, 1024, 1..=MOST_MIB)?,
        memory_dir,
        memory_quota_mib: count(memory_quota_mib, 16 << 10, 1..=MOST_MIB)?,
    })
}
