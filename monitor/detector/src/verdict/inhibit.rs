//! What inhibits a verdict: the VM was stopped, its host is at fault, a figure is missing, or it writes its own dump.

use std::time::Duration;

use super::{
    Act, Cause, DUMP_BOOTS_WITHIN, DUMP_PATIENCE, Dump, Monitor, STALLED_AFTER, State, Tick, Watch,
    outcome::{convict_suspect, hold},
};
use crate::{activity::Activity, policy::Policy};
use flatline_samples::{Missing, ProcessState, RunState};

/// Why a guest is left to its crash kernel.
const SAVES_DUMP: &str = "the guest panicked, and is writing its own crash dump";

/// Why this VM was stopped on purpose, so that it can show no life; `None`: it was not.
pub(super) fn pause_reason(tick: &Tick) -> Option<String> {
    if let Monitor::Answers(run_state) = &tick.monitor
        && *run_state != RunState::Running
    {
        return Some(match run_state {
            RunState::Paused => "paused by someone".to_owned(),
            RunState::Suspended => "the guest suspended itself".to_owned(),
            RunState::Shutdown => "the guest powered itself off; QEMU was told to stay".to_owned(),
            RunState::Inmigrate => "waiting for a migration to come in".to_owned(),
            RunState::FinishMigrate | RunState::Postmigrate => {
                "it is migrating, or has migrated, to another host".to_owned()
            }
            RunState::SaveVm | RunState::RestoreVm => "a snapshot is at work".to_owned(),
            RunState::Debug => "a debugger stopped it".to_owned(),
            RunState::Prelaunch => "not started yet".to_owned(),
            RunState::IoError => {
                "paused by a storage error: mend the storage, then `cont`; a reset would lose data"
                    .to_owned()
            }
            other => format!("its run state is {other}"),
        });
    }
    if let Monitor::NotStarted(why) = &tick.monitor {
        return Some(format!("not started yet: {why}"));
    }
    match tick.activity.process {
        ProcessState::Stopped => {
            Some("QEMU itself is stopped by a signal (SIGSTOP) or a debugger".to_owned())
        }
        ProcessState::Frozen => Some("QEMU itself is frozen (cgroup freezer)".to_owned()),
        ProcessState::Gone => Some("QEMU is ending".to_owned()),
        ProcessState::Uninterruptible if matches!(tick.monitor, Monitor::Unresponsive(_)) => Some(
            "QEMU itself hangs in the kernel (D state), as on a stalled or frozen store".to_owned(),
        ),
        ProcessState::Running | ProcessState::Uninterruptible => None,
    }
}

/// What is wrong with the host, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostFault {
    /// Its storage is stalled.
    Storage(String),
    /// It hardly lets the guest run. A guest that says itself that it dies is dead all the same.
    Starved(String),
}

/// The host's fault that explains the silence of this VM, so that it says nothing about the guest.
pub(super) fn host_fault(watch: &Watch, tick: &Tick) -> Option<HostFault> {
    if let Ok(storage) = tick.activity.storage
        && storage.in_flight > 0
        && storage.oldest.is_none_or(|oldest| oldest >= STALLED_AFTER)
    {
        let requests = counted(storage.in_flight, "request");
        let oldest = storage.oldest.map_or_else(String::new, |oldest| {
            format!(", the oldest for {:.1} s", oldest.as_secs_f64())
        });
        return Some(HostFault::Storage(format!(
            "{requests} in flight and none completes{oldest}: the host's storage is stalled"
        )));
    }
    watch.liveness.is_starved().then(|| {
        HostFault::Starved("its vCPUs want to run, and the host hardly lets them".to_owned())
    })
}

/// Whether the last tick showed that its storage is stalled.
pub(super) fn storage_stalls(watch: &Watch) -> bool {
    let last = watch.last.as_ref();
    last.is_some_and(|(_, tick)| matches!(host_fault(watch, tick), Some(HostFault::Storage(_))))
}

/// Whether nothing is asked about it after this tick, and no answer convicts it: it was stopped, its store stalls, it writes
/// its dump, or a figure is missing.
pub(super) fn is_unjudged(watch: &Watch, tick: &Tick) -> bool {
    pause_reason(tick).is_some()
        || watch.boot.dump.is_some()
        || missing_signal(&tick.activity).is_some()
        || matches!(host_fault(watch, tick), Some(HostFault::Storage(_)))
}

impl Watch {
    /// That its guest panicked, in words, and is left to the crash kernel that it started, or is taken to have started.
    pub fn saves_own_dump(&self) -> Option<&'static str> {
        (self.boot.dump.is_some() && !self.state.is_convicted()).then_some(SAVES_DUMP)
    }

    /// Whether it is held, by what the last tick saw, because of its host: storage that stalls or failed, or CPU time that
    /// it doesn't get. A storm is told of as one.
    pub fn is_held_by_host(&self) -> bool {
        let Some((_, tick)) = &self.last else { return false };
        let hangs_in_kernel = tick.activity.process == ProcessState::Uninterruptible
            && matches!(tick.monitor, Monitor::Unresponsive(_));
        let failed_storage = tick.monitor == Monitor::Answers(RunState::IoError);
        let is_hosts = hangs_in_kernel
            || failed_storage
            || pause_reason(tick).is_none() && host_fault(self, tick).is_some();
        self.state == State::Held && self.storm.is_none() && is_hosts
    }
}

/// Waits for a guest that writes its own crash dump, as long as it does write; `None` for any other.
pub(super) fn dumping(
    watch: &mut Watch,
    tick: &Tick,
    policy: &Policy,
    now: Duration,
) -> Option<Act> {
    let mut dump = watch.boot.dump?;
    dump.unheard |= !matches!(tick.monitor, Monitor::Answers(_));
    // A tick without a write was between: what its dead kernel had asked for has ended, and this is another's.
    let was_quiet = now.saturating_sub(dump.last_write) > tick.activity.elapsed.mul_f64(1.5);
    match writes(&tick.activity) {
        // It has booted its other kernel: from now on a pause is the end.
        Some(true) if was_quiet => {
            dump = Dump { last_write: now, quiet_for: policy.flat_for, ..dump };
        }
        // What isn't known is no silence; the patience with it has its end all the same.
        Some(true) | None => dump.last_write = now,
        Some(false) if watch.storm.is_some() || host_fault(watch, tick).is_some() => {
            dump.last_write = now;
        }
        Some(false) => {}
    }
    watch.boot.dump = Some(dump);
    let ended = if now.saturating_sub(dump.since) >= DUMP_PATIENCE {
        format!("has been writing its crash dump for {} s", DUMP_PATIENCE.as_secs())
    } else if now.saturating_sub(dump.last_write) >= dump.quiet_for {
        format!("has written nothing for {} s", now.saturating_sub(dump.last_write).as_secs())
    } else {
        return Some(hold(watch, SAVES_DUMP.to_owned(), tick.activity.elapsed, now));
    };
    watch.boot.dump = None;
    if dump.unheard || watch.state.is_convicted() {
        // From here on it is judged by what it shows, as any other guest.
        return None;
    }
    let reason = format!("the guest panicked, and {ended}");
    Some(convict_suspect(watch, Cause::Panicked, reason, now))
}

/// Whether a dump is being written, to a disk or over the network, or a request is in flight; `None` where that is not known.
fn writes(activity: &Activity) -> Option<bool> {
    let stores = activity
        .storage
        .as_ref()
        .map(|storage| storage.submitted > 0 || storage.completed > 0 || storage.in_flight > 0);
    let network = activity.network.as_ref();
    let sends = network.map(|network| network.is_some_and(|network| network.guest_packets > 0));
    match (stores, sends) {
        (Ok(true), _) | (_, Ok(true)) => Some(true),
        (Ok(false), Ok(false)) => Some(false),
        (Err(_), _) | (_, Err(_)) => None,
    }
}

/// Leaves out of a dump's time that in which the VM was stopped.
pub(super) fn pause_dump(watch: &mut Watch, elapsed: Duration, now: Duration) {
    if let Some(dump) = &mut watch.boot.dump {
        dump.since = now.min(dump.since + elapsed);
        dump.last_write = now.min(dump.last_write + elapsed);
    }
}

/// Holds a guest whose kernel began to panic and has not ended it, for the time that a crash kernel takes to boot, and as long
/// as it writes. Its console alone says so: afterwards it is judged by what it shows.
pub(super) fn may_save_dump(watch: &mut Watch, now: Duration) -> Act {
    watch.boot.dump = Some(Dump { unheard: true, ..Dump::new(now, DUMP_BOOTS_WITHIN) });
    hold(watch, SAVES_DUMP.to_owned(), Duration::ZERO, now)
}

/// Holds a guest that panicked, and was found to be writing still.
pub(super) fn still_writing(watch: &mut Watch, policy: &Policy, now: Duration) {
    watch.boot.dump = Some(Dump::new(now, policy.flat_for));
    watch.enter(State::Held, SAVES_DUMP.to_owned(), now);
}

/// The figure that is missing, without which silence can't be told from blindness.
pub(super) fn missing_signal(activity: &Activity) -> Option<&Missing> {
    activity.network.as_ref().err().or(activity.storage.as_ref().err())
}

/// A number of things, in words.
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
