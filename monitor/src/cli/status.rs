//! `flatline status`: a row for each VM.

use std::fmt::Write;

use flatline::config::Config;
use flatline::report::control::Request;
use flatline::report::view::{HostView, ProbeState, StatusView, VmView};

use super::ask::ask;
use super::table::{duration, or_dash, safe, seconds, table, time};
use super::{Answer, Failure, json};

pub(super) fn run(config: &Config, as_json: bool) -> Result<Answer, Failure> {
    let view: StatusView = ask(config, &Request::Status)?;
    Ok(Answer::good(if as_json { json(&view)? } else { text(&view) }))
}

fn text(view: &StatusView) -> String {
    let mut out = host(&view.host);
    if view.vms.is_empty() {
        return out + "no VMs\n";
    }
    let rows = view.vms.iter().map(row).collect::<Vec<_>>();
    let header =
        ["VM", "PID", "STATE", "CAUSE", "SINCE", "FLAT", "RESTARTS", "RUN STATE", "REASON"];
    out.push_str(&table(header, &rows));
    out
}

fn row(vm: &VmView) -> [String; 9] {
    [
        vm.name.clone(),
        vm.pid.to_string(),
        vm.state.clone(),
        or_dash(vm.cause.as_ref()),
        time(Some(vm.since)),
        seconds(vm.flat_seconds),
        vm.restarts_in_window.to_string(),
        or_dash(vm.run_state.as_ref()),
        match vm.hold {
            Some(_) => format!("(on hold) {}", vm.reason),
            None => vm.reason.clone(),
        },
    ]
}

fn host(host: &HostView) -> String {
    let uptime = duration(std::time::Duration::from_secs(host.uptime_seconds));
    let mut out = format!(
        "flatline {} on {}, Linux {}, up {uptime}, mode {}, VMs: {}\n",
        safe(&host.version),
        safe(host.hostname.as_deref().unwrap_or("this host")),
        safe(&host.kernel),
        host.mode.as_str(),
        host.vms,
    );
    // Writing to a string cannot fail.
    if let Some(degraded) = &host.degraded {
        let _ = writeln!(out, "degraded: {}", safe(degraded));
    }
    for probe in &host.probes {
        let state = match probe.state {
            ProbeState::Attached => continue,
            ProbeState::Failed => "failed",
            ProbeState::Unsupported => "unsupported",
        };
        let _ = writeln!(out, "probe {} {state}: {}", safe(&probe.name), safe(&probe.detail));
    }
    out
}
