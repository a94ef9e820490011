//! The programs of VMs' owners, and how much room they have here.

use std::path::Path;

use super::{Item, Verdict, facts::capability_set, item, read};
use crate::config::{Actuator, ActuatorConfig, CommandUser, Config};
use flatline_qemu::program;

/// A program, what of this host says that it is in use, and what for.
const PROGRAMS: [(&str, &str, &str, &str); 3] = [
    ("systemctl", "/run/systemd/system", "QEMUs that are systemd units", "install systemd"),
    ("virsh", "/run/libvirt", "libvirt's guests", "install libvirt-clients"),
    ("qm", "/etc/pve", "Proxmox VE's guests", "install qemu-server"),
];

pub(super) fn programs() -> Vec<Item> {
    PROGRAMS
        .map(|(name, trace, guests, remedy)| {
            let (verdict, detail) = judge_program(
                program::find(name).map(|path| path.display().to_string()),
                Path::new(trace).exists(),
            );
            item(name, false, verdict, detail, &format!("restarting and starting {guests}"))
                .or_else(&format!("{guests} are watched, and not restarted by their owner"), remedy)
        })
        .into()
}

/// The verdict on a program, from its path, and whether this host has what it is for.
pub(super) fn judge_program(found: Option<String>, is_in_use: bool) -> (Verdict, String) {
    match (found, is_in_use) {
        (Some(path), _) => (Verdict::Ok, path),
        (None, false) => (Verdict::Ok, "not there, and nothing here needs it".to_owned()),
        (None, true) => (Verdict::Gap, "not there".to_owned()),
    }
}

/// Commands that name no user, which are not run on the word of users' processes.
pub(super) fn commands(config: &Config) -> Item {
    let names_no_user = |actuation: &ActuatorConfig| {
        let may_run = matches!(actuation.actuator, Actuator::Auto | Actuator::Command);
        let runs_as_root = actuation.command_user == CommandUser::Root;
        let has_one = !actuation.command.is_empty();
        may_run && runs_as_root && has_one && actuation.user.is_empty()
    };
    let of_host = names_no_user(&config.actuation);
    // A rule that leaves the host's command as it is, is no place to mend it.
    let is_own =
        |actuation: &ActuatorConfig| !of_host || actuation.command != config.actuation.command;
    let rules = config.vms.iter().filter(|rule| names_no_user(&rule.actuation));
    let rules = rules.filter(|rule| is_own(&rule.actuation));
    let rules = rules.map(|rule| format!("[[vm]] match = {:?}", rule.pattern.as_str()));
    let open: Vec<_> = of_host.then(|| "[recovery]".to_owned()).into_iter().chain(rules).collect();
    let (verdict, detail) = if open.is_empty() {
        (Verdict::Ok, "each names its user, or runs as that".to_owned())
    } else {
        (Verdict::Gap, format!("no user is named for the command of {}", open.join(", ")))
    };
    let needed_for = "commands that are run as root for VMs of users, who may call any process of theirs as another's VM";
    item("users of commands", false, verdict, detail, needed_for).or_else(
        "they are run for VMs of root's and those whose owner is certain, and refused for others",
        "if they are for others, set user = \"NAME\" beside match in the [[vm]] that has the command, or command_user = \"vm\"",
    )
}

/// Programs that start QEMUs by themselves inherit what this process may not.
pub(super) fn bounds(config: &Config) -> Item {
    let starts =
        |actuation: &ActuatorConfig| actuation.start_exited || !actuation.command.is_empty();
    let is_needed =
        starts(&config.actuation) || config.vms.iter().any(|rule| starts(&rule.actuation));
    let bound = |path: &str| capability_set(&read(path).ok()?, "CapBnd:");
    let (verdict, detail) =
        judge_bounds(is_needed, bound("/proc/self/status"), bound("/proc/1/status"));
    let needed_for = "commands and `qm start`, which start QEMUs by themselves";
    item("room for owners' programs", false, verdict, detail, needed_for).or_else(
        "they, and the QEMUs that they start, have no more rights than flatline",
        "install examples/unbounded.conf, or have the command use systemd-run (docs/packages.md)",
    )
}

/// The verdict, from whether the configuration has such programs, and the bounds of this process and of the host's first.
pub(super) fn judge_bounds(
    is_needed: bool,
    own: Option<u64>,
    host: Option<u64>,
) -> (Verdict, String) {
    let detail = |text: &str| text.to_owned();
    match (is_needed, own, host) {
        (false, ..) => (Verdict::Ok, detail("no such program is configured")),
        (true, Some(own), Some(host)) if own & host == host => {
            (Verdict::Ok, detail("all capabilities of this host"))
        }
        (true, Some(own), Some(host)) => {
            let lacking = (host & !own).count_ones();
            (Verdict::Gap, format!("{lacking} of the host's capabilities are out of their reach"))
        }
        (true, ..) => (Verdict::Unknown, detail("the bounds can't be read")),
    }
}
