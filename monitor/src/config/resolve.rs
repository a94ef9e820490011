//! From the raw file to valid values: with `terms`, `actuation` and `evidence`, the only place that knows defaults and
//! limits.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use glob::Pattern;
use toml::Spanned;

use super::evidence::{self, EvidencePolicy};
use super::{
    Config, Discovery, EvidenceReaders, Metrics, Mode, Paths, Policy, ProbeLog, Probes, Recorder,
    Storm, TapHook,
    actuation::{ActuatorConfig, Given},
    executables,
    notify::{self, Secrets},
    passwd, raw,
    terms::{MAX_RESTARTS, Terms, every, vm_rule},
    values::{HOUR, MINUTE, MS, Problem, SECOND, count, directory, duration, pattern},
};

/// Sizes of maps. Below the least, nothing would be saved.
const LEAST_SIZE: u32 = 16;
const MOST_SIZE: u32 = 1 << 20;

/// Where figures are served if nothing is said: to this host alone.
const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// The most that recordings may be told to take on disk: a TiB.
const MOST_RECORDED_MIB: u32 = 1 << 20;

pub(super) fn parse(text: &str, secrets: Secrets) -> Result<Config, Problem> {
    let file: raw::File = toml::from_str(text).map_err(|error| Problem {
        offset: error.span().map_or(0, |span| span.start),
        message: error.message().to_owned(),
    })?;
    // Destructured in full: a new key must be handled here.
    let raw::File {
        mode,
        paths,
        discovery,
        probes,
        detection,
        recovery,
        recorder,
        metrics,
        tell,
        vm,
    } = file;
    let raw::Detection {
        sample_interval,
        flat_for,
        unconfirmed_flat_for,
        unresponsive_for,
        heartbeat_lost_after,
        boot_grace,
        boot_loop_resets,
        boot_loop_window,
        storm_vms,
        storm_share,
        memory_every,
    } = detection;
    let raw::Recovery {
        max_restarts,
        window,
        evidence_limit,
        evidence_keep,
        evidence_max_mib,
        memory_dump,
        memory_dump_limit,
        inject_nmi,
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
    } = recovery;
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
    let actuation = given.over(&ActuatorConfig::default())?;

    let place = sample_interval.as_ref().map_or(0, |value| value.span().start);
    let sample_interval = duration(sample_interval.as_ref(), SECOND, 100 * MS, MINUTE)?;
    let defaults = Policy {
        mode: Mode::Recover,
        flat_for: 10 * SECOND,
        unconfirmed_flat_for: 120 * SECOND,
        unresponsive_for: Duration::ZERO,
        heartbeat_lost_after: None,
        boot_grace: 60 * SECOND,
        boot_loop_resets: 5,
        boot_loop_window: 5 * MINUTE,
        max_restarts: 3,
        window: HOUR,
        pause: 10 * SECOND,
        restart_without_heartbeat: false,
    };
    let host = Terms {
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
    // A long interval alone may contradict the default of `flat_for`: then it is what is wrong.
    let policy = host.over(&defaults, sample_interval, place)?;
    let evidence_policy =
        evidence::Keys { evidence_limit, memory_dump, memory_dump_limit, inject_nmi }
            .over(EvidencePolicy::DEFAULT)?;
    let memory_every = every(memory_every.as_ref(), 30 * SECOND)?;
    let rule =
        |rule| vm_rule(rule, &policy, evidence_policy, &actuation, memory_every, sample_interval);
    let vms = vm.into_iter().map(rule);
    let vms = vms.collect::<Result<Vec<_>, _>>()?;
    let paths = resolve_paths(paths)?;
    let retention = evidence::retention(
        evidence_keep.as_ref(),
        evidence_max_mib.as_ref(),
        memory_dump_dir,
        memory_dump_quota_mib.as_ref(),
        &paths.state_dir,
    )?;

    Ok(Config {
        mode: policy.mode,
        paths,
        discovery: resolve_discovery(discovery)?,
        probes: resolve_probes(probes)?,
        storm: resolve_storm(storm_vms.as_ref(), storm_share.as_ref())?,
        max_restarts_per_minute: count(max_restarts_per_minute.as_ref(), 10, 1..=MAX_RESTARTS)?,
        sample_interval,
        memory_every,
        recorder: resolve_recorder(recorder)?,
        metrics: resolve_metrics(metrics)?,
        notify: notify::resolve(tell, secrets)?,
        policy,
        evidence_policy,
        retention,
        actuation,
        vms,
    })
}

fn resolve_paths(paths: raw::Paths) -> Result<Paths, Problem> {
    let raw::Paths { state_dir, runtime_dir, bpffs_dir } = paths;
    Ok(Paths {
        state_dir: directory(state_dir, "/var/lib/flatline")?,
        runtime_dir: directory(runtime_dir, "/run/flatline")?,
        bpffs_dir: directory(bpffs_dir, "/sys/fs/bpf/flatline")?,
    })
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

fn resolve_metrics(metrics: raw::Metrics) -> Result<Metrics, Problem> {
    let raw::Metrics { listen, page, hosts, evidence } = metrics;
    Ok(Metrics {
        listen: resolve_listen(listen)?,
        page: page.unwrap_or(true),
        hosts: hosts.unwrap_or_default().into_iter().map(host).collect::<Result<_, _>>()?,
        evidence: evidence.unwrap_or(EvidenceReaders::Root),
    })
}

fn resolve_listen(listen: Option<Spanned<String>>) -> Result<Option<SocketAddr>, Problem> {
    let Some(listen) = listen else {
        return Ok(Some(METRICS_ADDRESS));
    };
    if matches!(listen.get_ref().as_str(), "" | "off") {
        return Ok(None);
    }
    let address = listen.get_ref().parse().ok();
    // Port 0 is any that is free, which nobody would find.
    let address = address.filter(|address: &SocketAddr| address.port() != 0).ok_or_else(|| {
        let message =
            "not an address with a port, such as 127.0.0.1:9477 or [::1]:9477, nor \"off\"";
        Problem::at(&listen, message)
    })?;
    Ok(Some(address))
}

/// A host's name alone, as it stands in a browser's address bar before the port.
fn host(name: Spanned<String>) -> Result<String, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.get_ref().is_empty() || !name.get_ref().chars().all(plain) {
        let message = "not a host's name, such as \"hypervisor-1.example.org\", without a port";
        return Err(Problem::at(&name, message));
    }
    Ok(name.into_inner())
}

fn resolve_discovery(discovery: raw::Discovery) -> Result<Discovery, Problem> {
    let raw::Discovery { executables, users } = discovery;
    let executables = match executables {
        Some(list) if list.get_ref().is_empty() => {
            return Err(Problem::at(&list, "is empty: no VM would ever be found"));
        }
        Some(list) => list.into_inner().iter().map(executable).collect::<Result<_, _>>()?,
        None => executables::default(),
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
