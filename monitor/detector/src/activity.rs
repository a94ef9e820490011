//! Activity: what moved between two samples of a VM, or what is missing and why.
//!
//! Pure: no clock, no I/O. A figure that could not be read stays a [`Missing`] all the way into the
//! verdict, where it can never count as silence.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use flatline_samples::{Heartbeats, Missing, ProcessState, Reading, VcpuTime, VmSample};

/// What one VM did during the last tick.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Time between the two samples.
    pub elapsed: Duration,
    /// Packets that crossed its taps; `Ok(None)` for a VM that has no tap.
    pub network: Reading<Option<NetworkActivity>>,
    /// Requests that were submitted to the block layer for it.
    pub storage: Reading<StorageActivity>,
    /// One row a vCPU thread, by vCPU index.
    pub vcpus: Reading<Vec<VcpuActivity>>,
    /// Whether QEMU itself can run.
    pub process: ProcessState,
    /// What its guest's agent said; `Ok(None)` where it said nothing.
    pub heartbeat: Reading<Option<HeartbeatActivity>>,
}

/// Packets since the last sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkActivity {
    /// Sent by the guest of its own accord: a sign of life.
    pub guest_packets: u64,
    /// Sent to the guest; a dead guest receives as well. `None`: that is not counted on all of its taps.
    #[serde(with = "unseen")]
    pub packets_to_guest: Option<u64>,
    /// Answers to our own probes.
    pub probe_answers: u64,
}

impl Default for NetworkActivity {
    /// All is counted, and nothing moved.
    fn default() -> Self {
        Self { guest_packets: 0, packets_to_guest: Some(0), probe_answers: 0 }
    }
}

/// A count that may not be known. Recordings have a number there: the highest one, which no count comes to, stands for
/// none.
mod unseen {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(
        count: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            count.serialize(serializer)
        } else {
            count.unwrap_or(u64::MAX).serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        if deserializer.is_human_readable() {
            Option::deserialize(deserializer)
        } else {
            u64::deserialize(deserializer).map(|count| (count != u64::MAX).then_some(count))
        }
    }
}

/// What a guest's agent said since the last sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatActivity {
    /// Number of beats.
    pub(crate) beats: u64,
    /// Its last frame says that its check failed.
    pub(crate) failed: bool,
    /// Its last frame says that its guest goes down in good order.
    pub(crate) leaving: bool,
    /// Time from one beat to the next, by its own account.
    pub(crate) interval: Duration,
    /// A number that another boot does not have.
    pub(crate) boot: u64,
    /// Name of what it checks; empty where it checks nothing.
    pub(crate) check: String,
}

/// Requests since the last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageActivity {
    /// Submitted for the guest, or by QEMU for itself.
    pub submitted: u64,
    /// Completed: a sign of life, since the guest asked for it.
    pub completed: u64,
    /// Submitted and not yet completed, now.
    pub in_flight: u64,
    /// Age of the oldest of those, where that was looked at.
    pub oldest: Option<Duration>,
}

/// How one vCPU thread spent the tick, as shares of the elapsed time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuActivity {
    /// vCPU index.
    pub index: u32,
    /// Host thread id.
    pub tid: u32,
    /// Share spent running, 0 to 1.
    pub busy: f64,
    /// Share spent runnable, but waiting for a host CPU.
    pub waiting: f64,
}

impl Activity {
    /// Of a VM that was not sampled for `elapsed`.
    pub fn unseen(elapsed: Duration) -> Self {
        let missing = |what| Missing::new(what, "it was not sampled");
        Self {
            elapsed,
            network: Err(missing("network")),
            storage: Err(missing("storage")),
            vcpus: Err(missing("vCPU time")),
            process: ProcessState::Running,
            heartbeat: Err(missing("heartbeats")),
        }
    }

    /// The activity from `previous` to `current`, which were taken `elapsed` apart.
    pub fn between(previous: &VmSample, current: &VmSample, elapsed: Duration) -> Self {
        Self {
            elapsed,
            network: both(&previous.network, &current.network).and_then(|pair| match pair {
                (Some(before), Some(now)) => {
                    let answers = delta(before.probe_answers, now.probe_answers, "network")?;
                    let sent = delta(before.guest_tx_packets, now.guest_tx_packets, "network")?;
                    let beats = delta(before.heartbeats, now.heartbeats, "network")?;
                    Ok(Some(NetworkActivity {
                        guest_packets: sent.saturating_sub(answers).saturating_sub(beats),
                        packets_to_guest: if previous.sees_to_guest && current.sees_to_guest {
                            Some(delta(before.guest_rx_packets, now.guest_rx_packets, "network")?)
                        } else {
                            None
                        },
                        probe_answers: answers,
                    }))
                }
                (None, Some(_)) => {
                    Err(Missing::new("network", "the first tap was attached just now"))
                }
                (_, None) => Ok(None),
            }),
            storage: both(&previous.storage, &current.storage).and_then(|(before, now)| {
                Ok(StorageActivity {
                    submitted: delta(before.submitted(), now.submitted(), "storage")?,
                    completed: delta(before.completed_ops, now.completed_ops, "storage")?,
                    in_flight: now.in_flight(),
                    oldest: current.in_flight.map(|ages| ages.oldest),
                })
            }),
            vcpus: both(&previous.vcpus, &current.vcpus)
                .map(|(before, now)| vcpu_activities(before, now, elapsed)),
            process: current.process,
            heartbeat: both(&previous.heartbeats, &current.heartbeats)
                .and_then(|(before, now)| heartbeat(before, now))
                .and_then(|on_cards| {
                    let (before, now) = both(&previous.port, &current.port)?;
                    Ok(heartbeat(before, now)?.or(on_cards))
                }),
        }
    }
}

fn heartbeat(before: &Heartbeats, now: &Heartbeats) -> Reading<Option<HeartbeatActivity>> {
    let delta = |before, now| delta(before, now, "heartbeats");
    let beats = delta(before.beats, now.beats)?;
    let others = delta(before.failures, now.failures)?.max(delta(before.leavings, now.leavings)?);
    Ok(now.last.as_ref().filter(|_| beats.max(others) > 0).map(|last| HeartbeatActivity {
        beats,
        failed: last.failed,
        leaving: last.leaving,
        interval: last.interval,
        boot: last.boot,
        check: last.check.clone(),
    }))
}

fn both<'a, T>(previous: &'a Reading<T>, current: &'a Reading<T>) -> Reading<(&'a T, &'a T)> {
    match (previous, current) {
        (_, Err(missing)) | (Err(missing), _) => Err(missing.clone()),
        (Ok(previous), Ok(current)) => Ok((previous, current)),
    }
}

/// A counter that ran backwards was replaced under us: what moved meanwhile is unknown, not zero.
fn delta(before: u64, now: u64, what: &'static str) -> Reading<u64> {
    now.checked_sub(before).ok_or_else(|| Missing::new(what, "its counter was replaced just now"))
}

/// What each vCPU did that was there before, too. A QEMU may say that it has as many as it has threads.
fn vcpu_activities(before: &[VcpuTime], now: &[VcpuTime], elapsed: Duration) -> Vec<VcpuActivity> {
    let are_the_same = before.iter().map(|vcpu| vcpu.tid).eq(now.iter().map(|vcpu| vcpu.tid));
    if are_the_same {
        let pairs = before.iter().zip(now);
        return pairs.map(|(before, now)| vcpu_activity(before, now, elapsed)).collect();
    }
    let before: HashMap<u32, &VcpuTime> = before.iter().map(|vcpu| (vcpu.tid, vcpu)).collect();
    // One that was plugged in since the last sample did nothing that is known.
    let both = now.iter().filter_map(|now| Some((before.get(&now.tid)?, now)));
    both.map(|(before, now)| vcpu_activity(before, now, elapsed)).collect()
}

fn vcpu_activity(earlier: &VcpuTime, now: &VcpuTime, elapsed: Duration) -> VcpuActivity {
    let share = |from: u64, to: u64| {
        Duration::from_nanos(to.saturating_sub(from)).as_secs_f64()
            / elapsed.as_secs_f64().max(1e-9)
    };
    VcpuActivity {
        index: now.index,
        tid: now.tid,
        busy: share(earlier.run_ns, now.run_ns),
        waiting: share(earlier.wait_ns, now.wait_ns),
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::{NetworkCounters, StorageCounters};

    use super::*;
    use flatline_samples::{Heard, LastBeat};

    fn sample() -> VmSample {
        VmSample {
            network: Ok(Some(NetworkCounters::default())),
            sees_to_guest: true,
            storage: Ok(StorageCounters::default()),
            in_flight: None,
            vcpus: Ok(vec![VcpuTime { index: 0, tid: 7, run_ns: 0, wait_ns: 0 }]),
            process: ProcessState::Running,
            heartbeats: Ok(Heartbeats::default()),
            port: Ok(Heartbeats::default()),
        }
    }

    fn beaten(beats: u64, leavings: u64) -> Heartbeats {
        let last = LastBeat {
            heard: Heard::Jiffies(9),
            leaving: leavings > 0,
            failed: false,
            interval: Duration::from_secs(1),
            boot: 5,
            sequence: beats,
            check: "web".to_owned(),
        };
        Heartbeats { beats, leavings, last: Some(last), ..Heartbeats::default() }
    }

    #[test]
    fn packets_that_are_not_counted_are_none_and_recorded_where_a_number_stood() {
        let unseen = VmSample { sees_to_guest: false, ..sample() };
        let second = Duration::from_secs(1);
        for (before, now) in [(&unseen, &sample()), (&sample(), &unseen)] {
            let network = Activity::between(before, now, second).network.unwrap().unwrap();
            assert_eq!((network.guest_packets, network.packets_to_guest), (0, None));
            let recorded = postcard::to_stdvec(&network).unwrap();
            assert_eq!(recorded, postcard::to_stdvec(&(0_u64, u64::MAX, 0_u64)).unwrap());
            assert_eq!(postcard::from_bytes::<NetworkActivity>(&recorded).unwrap(), network);
            let shown = serde_json::to_value(network).unwrap();
            assert!(shown["packets_to_guest"].is_null(), "{shown}");
            assert_eq!(serde_json::from_value::<NetworkActivity>(shown).unwrap(), network);
        }
        let counted = Activity::between(&sample(), &sample(), second).network.unwrap().unwrap();
        let recorded = postcard::to_stdvec(&counted).unwrap();
        assert_eq!(recorded, postcard::to_stdvec(&(0_u64, 0_u64, 0_u64)).unwrap());
    }

    #[test]
    fn what_an_agent_said_is_told_once_and_its_frames_are_no_traffic() {
        let mut now = sample();
        now.heartbeats = Ok(beaten(2, 0));
        now.network = Ok(Some(NetworkCounters {
            guest_tx_packets: 3,
            heartbeats: 2,
            ..NetworkCounters::default()
        }));
        let second = Duration::from_secs(1);
        let activity = Activity::between(&sample(), &now, second);
        let said = activity.heartbeat.unwrap().unwrap();
        assert_eq!(
            (said.beats, said.boot, said.leaving, said.check.as_str()),
            (2, 5, false, "web")
        );
        assert_eq!(activity.network.unwrap().unwrap().guest_packets, 1);
        assert_eq!(Activity::between(&now, &now, second).heartbeat, Ok(None));
        let mut later = now.clone();
        later.heartbeats = Ok(beaten(2, 3));
        let activity = Activity::between(&now, &later, second);
        assert!(activity.heartbeat.unwrap().unwrap().leaving);
        // The other way round, counters were replaced.
        assert!(Activity::between(&later, &now, second).heartbeat.is_err());
        let mut by_port = now.clone();
        by_port.port = Ok(beaten(5, 0));
        let said = Activity::between(&now, &by_port, second).heartbeat.unwrap().unwrap();
        assert_eq!(said.beats, 5);
        by_port.port = Err(Missing::new("heartbeats", "its port is not connected"));
        assert!(Activity::between(&now, &by_port, second).heartbeat.is_err());
    }

    #[test]
    fn an_answer_to_a_probe_is_no_packet_of_the_guests_own() {
        let mut now = sample();
        now.network = Ok(Some(NetworkCounters {
            guest_tx_packets: 3,
            probe_answers: 1,
            ..NetworkCounters::default()
        }));
        let activity = Activity::between(&sample(), &now, Duration::from_secs(1));
        assert_eq!(
            activity.network,
            Ok(Some(NetworkActivity {
                guest_packets: 2,
                packets_to_guest: Some(0),
                probe_answers: 1
            }))
        );
    }

    #[test]
    fn a_figure_that_either_sample_misses_is_missing_and_not_zero() {
        let missing = Missing::new("storage", "the program is not attached");
        for torn in [0, 1] {
            let mut pair = [sample(), sample()];
            pair[torn].storage = Err(missing.clone());
            let activity = Activity::between(&pair[0], &pair[1], Duration::from_secs(1));
            assert_eq!(activity.storage, Err(missing.clone()));
        }
    }

    #[test]
    fn a_counter_that_ran_backwards_is_missing() {
        let mut before = sample();
        before.storage = Ok(StorageCounters { completed_ops: 5, ..StorageCounters::default() });
        let activity = Activity::between(&before, &sample(), Duration::from_secs(1));
        assert!(activity.storage.is_err());
    }

    #[test]
    fn run_and_wait_are_shares_of_the_time_that_really_passed() {
        let mut now = sample();
        now.vcpus =
            Ok(vec![VcpuTime { index: 0, tid: 7, run_ns: 1_000_000_000, wait_ns: 500_000_000 }]);
        let activity = Activity::between(&sample(), &now, Duration::from_secs(2));
        let vcpus = activity.vcpus.unwrap();
        assert!((vcpus[0].busy - 0.5).abs() < 1e-9 && (vcpus[0].waiting - 0.25).abs() < 1e-9);
    }

    #[test]
    fn in_flight_is_what_was_followed_and_did_not_complete() {
        let mut now = sample();
        now.storage = Ok(StorageCounters {
            read_ops: 9,
            tracked_ops: 7,
            completed_ops: 4,
            ..StorageCounters::default()
        });
        let activity = Activity::between(&sample(), &now, Duration::from_secs(1));
        assert_eq!(
            activity.storage,
            Ok(StorageActivity { submitted: 9, completed: 4, in_flight: 3, oldest: None })
        );
    }
}
