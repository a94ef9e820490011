//! The programs of the owners, as argument vectors.

use serde_json::json;

use flatline_qemu::{
    discover::ResetAction,
    program::{Program, virsh::Virsh},
};

/// What a reset leads to, told through libvirt.
pub(super) fn set_reboot_action(virsh: &Virsh, action: ResetAction) -> Program {
    let arguments = json!({ "reboot": action.as_str() });
    let qmp = json!({ "execute": "set-action", "arguments": arguments });
    virsh.monitor_command(&qmp)
}

/// `qm`, which takes a VM's number as its first argument.
pub(super) fn qm(command: &str, vmid: u32) -> Program {
    Program::new(["qm", command, &vmid.to_string()])
}

/// `systemctl` on a unit.
pub(super) fn systemctl(command: &str, unit: &str) -> Program {
    Program::new(["systemctl", command, "--", unit])
}

/// Ends a unit's main process at once. (`--kill-who` has a newer name since systemd 252, which takes both.)
pub(super) fn kill_main_process(unit: &str) -> Program {
    Program::new(["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "--", unit])
}

/// Asks systemd for properties of a unit.
pub(super) fn unit_property(property: &str, unit: &str) -> Program {
    Program::new(["systemctl", "show", &format!("--property={property}"), "--", unit])
}
