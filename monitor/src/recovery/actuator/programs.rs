//! Steps of the owners' programs, as argument vectors.

use serde_json::json;

use super::{ActuatorStep, Check};
use crate::config::ActuatorConfig;
use flatline_qemu::program::{Program, virsh::Virsh};

/// Tells QEMU through libvirt that a reset resets, and doesn't end it.
pub(super) fn reset_on_reboot(virsh: &Virsh) -> ActuatorStep {
    let qmp = json!({ "execute": "set-action", "arguments": { "reboot": "reset" } });
    ActuatorStep::Tell(virsh.monitor_command(&qmp.to_string()))
}

/// `virsh` on a domain.
pub(super) fn virsh(virsh: &Virsh, command: &str) -> ActuatorStep {
    ActuatorStep::Run(virsh.on_domain(command))
}

/// Makes sure that the vCPUs of libvirt's domain are this QEMU's.
pub(super) fn threads_of(virsh: &Virsh, pid: u32) -> ActuatorStep {
    let threads = json!({ "execute": "query-cpus-fast" });
    ActuatorStep::Check(virsh.monitor_command(&threads.to_string()), Check::AreThreadsOf(pid))
}

/// `qm`, which takes a VM's number as its first argument.
pub(super) fn qm(command: &str, vmid: u32) -> ActuatorStep {
    ActuatorStep::Run(Program::new(["qm", command, &vmid.to_string()]))
}

/// `systemctl` on a unit.
pub(super) fn systemctl(command: &str, unit: &str) -> ActuatorStep {
    ActuatorStep::Run(Program::new(["systemctl", command, "--", unit]))
}

/// Ends a unit's main process at once. (`--kill-who` has a newer name since systemd 252, which takes both.)
pub(super) fn kill_main_process(unit: &str) -> ActuatorStep {
    let words = ["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "--", unit];
    ActuatorStep::Run(Program::new(words))
}

/// Makes sure that the unit is about this QEMU.
pub(super) fn is_main(unit: &str, pid: u32) -> ActuatorStep {
    unit_property("MainPID", unit, Check::IsMainProcess(pid))
}

/// Makes sure that the unit is down, and stays down.
pub(super) fn is_down(unit: &str) -> ActuatorStep {
    unit_property("ActiveState", unit, Check::IsDown)
}

fn unit_property(property: &str, unit: &str, check: Check) -> ActuatorStep {
    let property = format!("--property={property}");
    ActuatorStep::Check(Program::new(["systemctl", "show", &property, "--", unit]), check)
}

/// The configured command.
pub(super) fn command(actuation: &ActuatorConfig) -> ActuatorStep {
    ActuatorStep::Run(Program { words: actuation.command.clone() })
}
