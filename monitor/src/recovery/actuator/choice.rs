//! Choice of the actuator for a VM, by its owner and the configuration: pure.

use crate::{
    config::{Actuator, ActuatorConfig},
    recovery::Refusal,
};
use flatline_qemu::discover::{LibvirtScope, Owner, Vm};

use super::vouch;

/// What does it for this VM, with nothing but its owner, its user and what is configured looked at.
///
/// # Errors
/// If there is nothing, with what to configure.
pub(crate) fn chosen(vm: &Vm, actuation: &ActuatorConfig) -> Result<Actuator, Refusal> {
    let owner = &vm.ownership.owner;
    let fits = match actuation.actuator {
        Actuator::Auto => return by_owner(vm, actuation),
        Actuator::None => {
            return Err(Refusal("recovery.actuator is \"none\": nothing is touched".to_owned()));
        }
        Actuator::Qmp | Actuator::Command => true,
        Actuator::Libvirt => matches!(owner, Owner::Libvirt { .. }),
        Actuator::Proxmox => matches!(owner, Owner::Proxmox { .. }),
        Actuator::Systemd => matches!(owner, Owner::SystemdUnit { .. }),
    };
    let word = actuation.actuator.as_str();
    if actuation.actuator == Actuator::Command && actuation.command.is_empty() {
        Err(Refusal(
            "recovery.actuator is \"command\", and there is no recovery.command".to_owned(),
        ))
    } else if fits {
        match actuation.actuator {
            Actuator::Command => vouch::for_command(vm, actuation).map(drop)?,
            Actuator::Proxmox => vouch::for_owner(vm, actuation)?,
            _ => {}
        }
        Ok(actuation.actuator)
    } else {
        let found = owner.kind();
        Err(Refusal(format!("recovery.actuator is \"{word}\", but its owner is {found}")))
    }
}

fn by_owner(vm: &Vm, actuation: &ActuatorConfig) -> Result<Actuator, Refusal> {
    let owner = &vm.ownership.owner;
    let command = || vouch::for_command(vm, actuation).map(|_| Actuator::Command);
    match owner {
        Owner::Bare | Owner::SystemdUnit { .. } => Ok(Actuator::Qmp),
        Owner::Libvirt { scope, .. } => match libvirt_uri(*scope, actuation) {
            Err(_) if !actuation.command.is_empty() => command(),
            uri => uri.map(|_| Actuator::Libvirt),
        },
        Owner::Proxmox { .. } if vm.ownership.is_certain => Ok(Actuator::Proxmox),
        // A number that a QEMU gave itself may be another VM's, which would be reset; its own monitor is its own.
        Owner::Proxmox { .. } => Ok(Actuator::Qmp),
        _ if !actuation.command.is_empty() => command(),
        _ => Err(Refusal(what_to_configure(owner))),
    }
}

/// What an operator can do for an owner that nothing is built in for. The commands are those of the products' own
/// manuals: gnt-instance(8), `incus restart --help`, KubeVirt's pkg/virtctl/reset/reset.go, crictl(1).
pub(super) fn what_to_configure(owner: &Owner) -> String {
    match owner {
        Owner::Ganeti { instance } => format!(
            "Ganeti started it, and only the cluster's master can be told: set recovery.command to one that runs \
             `gnt-instance reboot --type hard {instance}` there, or recovery.actuator = \"qmp\""
        ),
        Owner::Incus { product, project, instance } => {
            let program = if *product == "lxd" { "lxc" } else { "incus" };
            format!(
                "{product} started it and holds its monitor: set recovery.command = [\"/usr/bin/{program}\", \
                 \"restart\", \"--force\", \"--project\", \"{project}\", \"{instance}\"]"
            )
        }
        Owner::KubeVirt { namespace, name } => format!(
            "KubeVirt started it, in a pod: set recovery.command to one that runs `virtctl reset --namespace \
             {namespace} {name}` with a credential of the cluster's"
        ),
        Owner::Kata { sandbox } => format!(
            "Kata Containers started it for a pod, which the kubelet makes anew once it is stopped: set \
             recovery.command = [\"/usr/bin/crictl\", \"stopp\", \"{sandbox}\"]"
        ),
        Owner::Unclear { product, why } => format!(
            "{product} seems to have started it, but can't be told so: {why}; set recovery.command, or \
             recovery.actuator = \"qmp\""
        ),
        Owner::Bare => "what started it is not known: set recovery.command".to_owned(),
        Owner::SystemdUnit { .. } | Owner::Libvirt { .. } | Owner::Proxmox { .. } => {
            "set recovery.actuator or recovery.command".to_owned()
        }
    }
}

/// How libvirt is reached for a domain.
///
/// # Errors
/// If it is a user's own libvirt, which root doesn't speak to unless told how.
pub(crate) fn libvirt_uri(
    scope: LibvirtScope,
    actuation: &ActuatorConfig,
) -> Result<String, Refusal> {
    match (&actuation.libvirt_uri, scope) {
        (Some(uri), _) => Ok(uri.clone()),
        (None, LibvirtScope::System) => Ok("qemu:///system".to_owned()),
        (None, LibvirtScope::Session) => Err(Refusal(
            "its domain is of a user's own libvirt: set recovery.libvirt_uri, such as \
             \"qemu+unix:///session?socket=/run/user/1000/libvirt/virtqemud-sock\", or \
             recovery.command"
                .to_owned(),
        )),
    }
}
