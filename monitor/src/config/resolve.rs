//! From the raw file to valid values; the only place that knows defaults and limits.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use glob::Pattern;
use toml::Spanned;

use super::evidence::{self, Gathering};
use super::{
    Config, Discovery, Metrics, Mode, Paths, Policy, ProbeLog, Probes, Recorder, Storm, TapHook,
    VmRule,
    means::{Given, Means},
    passwd, raw,
};

const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

const EXECUTABLES: [&str; 3] = ["/usr/bin/qemu-system-*", "/usr/bin/kvm", "/usr/libexec/qemu-kvm"];

/// More than this within a window is a loop that a person should see, not a budget.
const MAX_RESTARTS: u32 = 1000;
/// A QEMU whose host is busy may be as long about an answer.
const LEAST_UNRESPONSIVE: Duration = Duration::from_secs(30);
/// No more of a guest's own resets are remembered.
const MAX_BOOT_LOOP_RESETS: u32 = 100;

/// Sizes of maps. Below the least, nothing would be saved.
const LEAST_SIZE: u32 = 16;
const MOST_SIZE: u32 = 1 << 20;

/// The most that recordings may be told to take on disk: a TiB.
const MOST_RECORDED_MIB: u32 = 1 << 20;

/// What is wrong, and at which byte of the text.
pub(super) struct Problem {
    pub(super) offset: usize,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn at<T>(value: &Spanned<T>, message: impl Into<String>) -> Self {
        Self { offset: value.span().start, message: message.into() }
    }
}

pub(super) fn parse(text: &str) -> Result<Config, Problem> {
    let file: raw::File = toml::from_str(text).map_err(|error| Problem {
        offset: error.span().map_or(0, |span| span.start),
        message: error.message().to_owned(),
    })?;
    // Destructured in full: a new key must be handled here.
    let raw::File { mode, paths, discovery, probes, detection, recovery, recorder, metrics, vm } =
        file;
    let raw::Detection {
        sample_interval,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        storm_vms,
        storm_share,
    } = detection;
    let raw::Recovery {
        max_restarts,
        window,
        evidence_limit,
        evidence_keep,
        evidence_max_mib,
        memory_dump,
        memory_dump_limit,
        memory_dump_dir,
        memory_dump_quota_mib,
        pause,
        max_restarts_per_minute,
        actuator,
        command,
        command_user,
        command_limit,
        start_exited,
        qmp,
        libvirt_uri,
    } = recovery;
    let given =
        Given { actuator, command, command_user, command_limit, start_exited, qmp, libvirt_uri };
    let means = given.over(&Means::default())?;

    let place = sample_interval.as_ref().map_or(0, |value| value.span().start);
    let sample_interval = duration(sample_interval.as_ref(), SECOND, 100 * MS, MINUTE)?;
    let defaults = Policy {
        mode: Mode::Recover,
        flat_for: 10 * SECOND,
        unconfirmed_flat_for: 120 * SECOND,
        unresponsive_for: Duration::ZERO,
        boot_grace: 60 * SECOND,
        boot_loop_resets: 5,
        boot_loop_window: 5 * MINUTE,
        max_restarts: 3,
        window: HOUR,
        pause: 10 * SECOND,
    };
    let host = Terms {
        mode,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        max_restarts,
        window,
        pause,
    };
    // A long interval alone may contradict the default of `flat_for`: then it is what is wrong.
    let policy = host.over(&defaults, sample_interval, place)?;
    let gathering = evidence::Keys { evidence_limit, memory_dump, memory_dump_limit }
        .over(Gathering::DEFAULT)?;
    let vms = vm.into_iter().map(|rule| vm_rule(rule, &policy, gathering, &means, sample_interval));
    let vms = vms.collect::<Result<Vec<_>, _>>()?;
    let paths = resolve_paths(paths)?;
    let keeping = evidence::keeping(
        evidence_keep.as_ref(),
        evidence_max_mib.as_ref(),
        memory_dump_dir,
        memory_dump_quota_mib.as_ref(),
        &paths.state_dir,
    )?;

    let raw::Metrics { listen } = metrics;
    let listen = listen.map_or(Ok(([127, 0, 0, 1], 9477).into()), |listen| {
        listen.get_ref().parse().map_err(|_| {
            Problem::at(&listen, "not an address with a port, such as 127.0.0.1:9477 or [::1]:9477")
        })
    })?;
    Ok(Config {
        mode: policy.mode,
        paths,
        discovery: resolve_discovery(discovery)?,
        probes: resolve_probes(probes)?,
        storm: resolve_storm(storm_vms.as_ref(), storm_share.as_ref())?,
        max_restarts_per_minute: count(max_restarts_per_minute.as_ref(), 10, 1..=MAX_RESTARTS)?,
        sample_interval,
        recorder: resolve_recorder(recorder)?,
        metrics: Metrics { listen },
        policy,
        gathering,
        keeping,
        means,
        vms,
    })
}

/// The keys that may stand for the host and in a rule.
struct Terms {
    mode: Option<Mode>,
    flat_for: Option<Spanned<String>>,
    unconfirmed_flat_for: Option<Spanned<String>>,
    unresponsive_for: Option<Spanned<String>>,
    boot_grace: Option<Spanned<String>>,
    boot_loop_resets: Option<Spanned<i64>>,
    boot_loop_window: Option<Spanned<String>>,
    max_restarts: Option<Spanned<i64>>,
    window: Option<Spanned<String>>,
    pause: Option<Spanned<String>>,
}

impl Terms {
    /// These terms put over `base`. `place` is where a contradiction is reported if none of the
    /// keys in question stands here.
    fn over(
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
            boot_grace,
            boot_loop_resets,
            boot_loop_window,
            max_restarts,
            window,
            pause,
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

fn vm_rule(
    rule: Spanned<raw::Vm>,
    host: &Policy,
    gathering: Gathering,
    host_means: &Means,
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
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        max_restarts,
        window,
        evidence_limit,
        memory_dump,
        memory_dump_limit,
        evidence_keep,
        evidence_max_mib,
        memory_dump_dir,
        memory_dump_quota_mib,
        pause,
        max_restarts_per_minute,
        actuator,
        command,
        command_user,
        command_limit,
        start_exited,
        qmp,
        libvirt_uri,
    } = rule.into_inner();
    let given =
        Given { actuator, command, command_user, command_limit, start_exited, qmp, libvirt_uri };
    let means = given.over(host_means)?;
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
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        max_restarts,
        window,
        pause,
    };
    let policy = terms.over(host, sample_interval, place)?;
    let gathering =
        evidence::Keys { evidence_limit, memory_dump, memory_dump_limit }.over(gathering)?;
    Ok(VmRule { pattern: pattern(&names)?, policy, gathering, means })
}

fn resolve_paths(paths: raw::Paths) -> Result<Paths, Problem> {
    let raw::Paths { state_dir, runtime_dir, bpffs_dir } = paths;
    Ok(Paths {
        state_dir: directory(state_dir, "/var/lib/flatline")?,
        runtime_dir: directory(runtime_dir, "/run/flatline")?,
        bpffs_dir: directory(bpffs_dir, "/sys/fs/bpf/flatline")?,
    })
}

pub(super) fn directory(
    given: Option<Spanned<PathBuf>>,
    default: &str,
) -> Result<PathBuf, Problem> {
    let Some(path) = given else {
        return Ok(PathBuf::from(default));
    };
    if !path.get_ref().is_absolute() {
        return Err(Problem::at(&path, "must be an absolute path"));
    }
    Ok(path.into_inner())
}

fn resolve_probes(probes: raw::Probes) -> Result<Probes, Problem> {
    let raw::Probes { tap_hook, log, keep, max_vms, max_taps, max_in_flight } = probes;
    Ok(Probes {
        tap_hook: tap_hook.unwrap_or(TapHook::Auto),
        log: log.unwrap_or(ProbeLog::Off),
        keep: keep.unwrap_or(false),
        max_vms: size(max_vms.as_ref(), 1024)?,
        // Rows are found by masking, so that their number has to be a power of two.
        max_taps: size(max_taps.as_ref(), 4096)?.next_power_of_two(),
        max_in_flight: size(max_in_flight.as_ref(), 65536)?.next_power_of_two(),
    })
}

/// The size of a map. A row of `vms` takes 192 bytes for each CPU.
fn size(given: Option<&Spanned<i64>>, default: u32) -> Result<u32, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    u32::try_from(*given.get_ref())
        .ok()
        .filter(|size| (LEAST_SIZE..=MOST_SIZE).contains(size))
        .ok_or_else(|| Problem::at(given, format!("must be between {LEAST_SIZE} and {MOST_SIZE}")))
}

fn resolve_recorder(recorder: raw::Recorder) -> Result<Recorder, Problem> {
    let raw::Recorder { keep, disk, max_mib } = recorder;
    Ok(Recorder {
        keep: duration(keep.as_ref(), 5 * MINUTE, Duration::ZERO, HOUR)?,
        disk: disk.unwrap_or(false),
        max_mib: count(max_mib.as_ref(), 256, 1..=MOST_RECORDED_MIB)?,
    })
}

fn resolve_discovery(discovery: raw::Discovery) -> Result<Discovery, Problem> {
    let raw::Discovery { executables, users } = discovery;
    let executables = match executables {
        Some(list) if list.get_ref().is_empty() => {
            return Err(Problem::at(&list, "is empty: no VM would ever be found"));
        }
        Some(list) => list.into_inner().iter().map(executable).collect::<Result<_, _>>()?,
        None => EXECUTABLES.iter().filter_map(|text| Pattern::new(text).ok()).collect(),
    };
    let users = users.unwrap_or_default().iter().map(user).collect::<Result<_, _>>()?;
    Ok(Discovery { executables, users })
}

fn executable(text: &Spanned<String>) -> Result<Pattern, Problem> {
    if !text.get_ref().starts_with('/') {
        return Err(Problem::at(text, "must be an absolute path or a pattern of such"));
    }
    pattern(text)
}

fn pattern(text: &Spanned<String>) -> Result<Pattern, Problem> {
    if text.get_ref().is_empty() {
        return Err(Problem::at(text, "is empty and would match nothing"));
    }
    Pattern::new(text.get_ref())
        .map_err(|error| Problem::at(text, format!("not a valid pattern: {}", error.msg)))
}

fn user(user: &Spanned<raw::User>) -> Result<u32, Problem> {
    match user.get_ref() {
        raw::User::Id(id) => {
            u32::try_from(*id).map_err(|_| Problem::at(user, format!("{id} is no user id")))
        }
        raw::User::Name(name) => {
            let text = std::fs::read_to_string(passwd::PASSWD).map_err(|error| {
                let message = format!("can't look up `{name}` in {}: {error}", passwd::PASSWD);
                Problem::at(user, message)
            })?;
            passwd::uid_of(&text, name).ok_or_else(|| {
                let message = format!(
                    "no user `{name}` in {}; give the number of a user who is known elsewhere",
                    passwd::PASSWD
                );
                Problem::at(user, message)
            })
        }
    }
}

/// The number `given` or the default, if it lies in `range`.
pub(super) fn count(
    given: Option<&Spanned<i64>>,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    u32::try_from(*given.get_ref()).ok().filter(|count| range.contains(count)).ok_or_else(|| {
        Problem::at(given, format!("must be between {} and {}", range.start(), range.end()))
    })
}

fn resolve_storm(
    vms: Option<&Spanned<i64>>,
    share: Option<&Spanned<f64>>,
) -> Result<Storm, Problem> {
    let vms = count(vms, 5, 2..=1_000_000)?;
    let share = match share {
        None => 0.5,
        Some(share) if *share.get_ref() > 0.0 && *share.get_ref() <= 1.0 => *share.get_ref(),
        Some(share) => return Err(Problem::at(share, "must be above 0, and at most 1")),
    };
    Ok(Storm { vms, share })
}

/// The duration `given` or the default, if it lies between `least` and `most`.
pub(super) fn duration(
    given: Option<&Spanned<String>>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    let text = given.get_ref();
    let value = humantime::parse_duration(text).map_err(|error| {
        Problem::at(given, format!("`{text}` is no duration such as \"10s\": {error}"))
    })?;
    if value < least || value > most {
        let message = format!("{text} is not between {} and {}", say(least), say(most));
        return Err(Problem::at(given, message));
    }
    Ok(value)
}

fn say(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}
