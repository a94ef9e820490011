//! The terms on which VMs are judged, as the host has them and as a rule for single VMs changes them.

use std::time::Duration;

use toml::Spanned;

use super::actuation::{ActuatorConfig, Given};
use super::evidence::{self, EvidencePolicy};
use super::values::{DAY, HOUR, MINUTE, Problem, SECOND, count, duration, pattern, say};
use super::{Mode, Policy, VmRule, raw};

/// More than this within a window is a loop that a person should see, not a budget.
pub(super) const MAX_RESTARTS: u32 = 1000;
/// A QEMU whose host is busy may be as long about an answer.
const LEAST_UNRESPONSIVE: Duration = Duration::from_secs(30);
/// No more of a guest's own resets are remembered.
const MAX_BOOT_LOOP_RESETS: u32 = 100;

/// The keys that may stand for the host and in a rule.
pub(super) struct Terms {
    pub(super) mode: Option<Mode>,
    pub(super) flat_for: Option<Spanned<String>>,
    pub(super) unconfirmed_flat_for: Option<Spanned<String>>,
    pub(super) unresponsive_for: Option<Spanned<String>>,
    pub(super) heartbeat_lost_after: Option<Spanned<String>>,
    pub(super) boot_grace: Option<Spanned<String>>,
    pub(super) boot_loop_resets: Option<Spanned<i64>>,
    pub(super) boot_loop_window: Option<Spanned<String>>,
    pub(super) max_restarts: Option<Spanned<i64>>,
    pub(super) window: Option<Spanned<String>>,
    pub(super) pause: Option<Spanned<String>>,
    pub(super) restart_without_heartbeat: Option<bool>,
}

impl Terms {
    /// These terms put over `base`. `place` is where a contradiction is reported if none of the
    /// keys in question stands here.
    pub(super) fn over(
        self,
        base: &Policy,
        sample_interval: Duration,
        place: usize,
    ) -> Result<Policy, Problem> {
        let Self {
            mode,
            flat_for,
            unconfirmed_flat_for,
            unresponsive_for,
            heartbeat_lost_after,
            boot_grace,
            boot_loop_resets,
            boot_loop_window,
            max_restarts,
            window,
            pause,
            restart_without_heartbeat,
        } = self;
        let policy = Policy {
            mode: mode.unwrap_or(base.mode),
            flat_for: duration(flat_for.as_ref(), base.flat_for, SECOND, DAY)?,
            unconfirmed_flat_for: duration(
                unconfirmed_flat_for.as_ref(),
                base.unconfirmed_flat_for,
                SECOND,
                7 * DAY,
            )?,
            unresponsive_for: duration(
                unresponsive_for.as_ref(),
                base.unresponsive_for,
                Duration::ZERO,
                DAY,
            )?,
            heartbeat_lost_after: match &heartbeat_lost_after {
                None => base.heartbeat_lost_after,
                given => Some(duration(given.as_ref(), SECOND, 2 * SECOND, DAY)?),
            },
            boot_grace: duration(boot_grace.as_ref(), base.boot_grace, SECOND, DAY)?,
            boot_loop_resets: count(
                boot_loop_resets.as_ref(),
                base.boot_loop_resets,
                2..=MAX_BOOT_LOOP_RESETS,
            )?,
            boot_loop_window: duration(
                boot_loop_window.as_ref(),
                base.boot_loop_window,
                10 * SECOND,
                DAY,
            )?,
            max_restarts: count(max_restarts.as_ref(), base.max_restarts, 0..=MAX_RESTARTS)?,
            window: duration(window.as_ref(), base.window, MINUTE, 30 * DAY)?,
            pause: duration(pause.as_ref(), base.pause, Duration::ZERO, HOUR)?,
            restart_without_heartbeat: restart_without_heartbeat
                .unwrap_or(base.restart_without_heartbeat),
        };
        let start = |value: &Option<Spanned<String>>| value.as_ref().map(|v| v.span().start);
        if policy.flat_for < 2 * sample_interval {
            return Err(Problem {
                offset: start(&flat_for).unwrap_or(place),
                message: format!(
                    "flat_for ({}) must be at least twice detection.sample_interval ({}): one \
                     sample in which nothing moved is no silence",
                    say(policy.flat_for),
                    say(sample_interval)
                ),
            });
        }
        if policy.unconfirmed_flat_for < policy.flat_for {
            return Err(Problem {
                offset: start(&unconfirmed_flat_for).or(start(&flat_for)).unwrap_or(place),
                message: format!(
                    "unconfirmed_flat_for ({}) must not be shorter than flat_for ({})",
                    say(policy.unconfirmed_flat_for),
                    say(policy.flat_for)
                ),
            });
        }
        if !policy.unresponsive_for.is_zero() && policy.unresponsive_for < LEAST_UNRESPONSIVE {
            return Err(Problem {
                offset: start(&unresponsive_for).unwrap_or(place),
                message: format!(
                    "unresponsive_for must be \"0s\", which is never, or at least {}: a QEMU on a \
                     busy host may be as long about an answer",
                    say(LEAST_UNRESPONSIVE)
                ),
            });
        }
        Ok(policy)
    }
}

/// How often memory is read: `given`, or the default.
pub(super) fn every(
    given: Option<&Spanned<String>>,
    default: Duration,
) -> Result<Duration, Problem> {
    let every = duration(given, default, Duration::ZERO, HOUR)?;
    match given {
        Some(value) if !every.is_zero() && every < SECOND => {
            let text = value.get_ref();
            Err(Problem::at(
                value,
                format!("{text} is neither \"0s\", which is never, nor 1s or more"),
            ))
        }
        _ => Ok(every),
    }
}

/// A rule's terms, put over the host's.
pub(super) fn vm_rule(
    rule: Spanned<raw::Vm>,
    host: &Policy,
    evidence_policy: EvidencePolicy,
    host_actuation: &ActuatorConfig,
    host_memory_every: Duration,
    sample_interval: Duration,
) -> Result<VmRule, Problem> {
    let place = rule.span().start;
    let raw::Vm {
        r#match,
        mode,
        sample_interval: refused,
        storm_vms,
        storm_share,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        heartbeat_lost_after,
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        memory_every,
        max_restarts,
        window,
        evidence_limit,
        memory_dump,
        memory_dump_limit,
        inject_nmi,
        evidence_keep,
        evidence_max_mib,
        memory_dump_dir,
        memory_dump_quota_mib,
        pause,
        restart_without_heartbeat,
        max_restarts_per_minute,
        actuator,
        command,
        command_user,
        command_limit,
        power_cycle_after,
        start_exited,
        qmp,
        libvirt_uri,
    } = rule.into_inner();
    let given = Given {
        actuator,
        command,
        command_user,
        command_limit,
        power_cycle_after,
        start_exited,
        qmp,
        libvirt_uri,
    };
    let actuation = given.over(host_actuation)?;
    if let Some(value) = refused {
        return Err(Problem::at(
            &value,
            "all VMs of the host are sampled together; set it in [detection]",
        ));
    }
    if let Some(value) = storm_vms.or(storm_share) {
        return Err(Problem::at(&value, "a storm is the host's; set it in [detection]"));
    }
    let kept = evidence_keep.or(evidence_max_mib).or(memory_dump_dir).or(memory_dump_quota_mib);
    if let Some(value) = kept {
        return Err(Problem::at(
            &value,
            "evidence is kept for all VMs alike; set it in [recovery]",
        ));
    }
    if let Some(value) = max_restarts_per_minute {
        return Err(Problem::at(&value, "it is the host's limit; set it in [recovery]"));
    }
    let Some(names) = r#match else {
        let message = "the key `match` is missing: a pattern of VM names".to_owned();
        return Err(Problem { offset: place, message });
    };
    let terms = Terms {
        mode,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        heartbeat_lost_after,
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        max_restarts,
        window,
        pause,
        restart_without_heartbeat,
    };
    let policy = terms.over(host, sample_interval, place)?;
    let evidence_policy =
        evidence::Keys { evidence_limit, memory_dump, memory_dump_limit, inject_nmi }
            .over(evidence_policy)?;
    let memory_every = every(memory_every.as_ref(), host_memory_every)?;
    Ok(VmRule { pattern: pattern(&names)?, policy, evidence_policy, actuation, memory_every })
}
