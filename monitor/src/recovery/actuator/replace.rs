//! Plans that put another QEMU in the place of one that brings no life, hangs or is gone: pure.

use super::{
    ActuatorPlan, ActuatorStep, Check,
    choice::{chosen, libvirt_uri, what_to_configure},
    programs,
};
use crate::{
    config::{Actuator, ActuatorConfig},
    recovery::Refusal,
};
use flatline_qemu::{
    discover::{Owner, Ownership},
    program::virsh::Virsh,
};

/// Whether the next restart ends this QEMU, and has its owner start another one, since so many brought no life.
pub(crate) fn is_power_cycle(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
    attempts: usize,
) -> bool {
    power_cycle(ownership, actuation, 0, attempts).is_some()
}

/// Its owner's way to do that; `None` if it is not due, or there is none: then what was done before is done again.
pub(super) fn power_cycle(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
    pid: u32,
    attempts: usize,
) -> Option<Vec<ActuatorStep>> {
    let after = usize::try_from(actuation.power_cycle_after).ok().filter(|after| *after > 0)?;
    if attempts < after {
        return None;
    }
    match (chosen(ownership, actuation).ok()?, &ownership.owner) {
        (Actuator::Qmp | Actuator::Systemd, Owner::SystemdUnit { unit }) => {
            Some(vec![programs::is_main(unit, pid), programs::systemctl("restart", unit)])
        }
        (Actuator::Libvirt, Owner::Libvirt { uuid, scope, .. }) => {
            let virsh = Virsh::new(&libvirt_uri(*scope, actuation).ok()?, uuid);
            Some(vec![
                programs::threads_of(&virsh, pid),
                programs::virsh(&virsh, "destroy"),
                programs::virsh(&virsh, "start"),
            ])
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => {
            Some(vec![programs::qm("stop", *vmid), programs::qm("start", *vmid)])
        }
        (Actuator::Qmp, _) if !actuation.command.is_empty() => {
            Some(vec![programs::command(actuation)])
        }
        _ => None,
    }
}

/// Plans another QEMU in the place of one that hangs, which takes no commands and obeys no polite signal.
///
/// # Errors
/// If its owner has no way that makes sure that it is this one.
pub(super) fn replacement(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
    pid: u32,
) -> Result<ActuatorPlan, Refusal> {
    let is_auto = actuation.actuator == Actuator::Auto;
    let actuator = match (chosen(ownership, actuation)?, &ownership.owner) {
        (Actuator::Qmp, Owner::SystemdUnit { .. }) if is_auto => Actuator::Systemd,
        (_, _) if is_auto && !actuation.command.is_empty() => Actuator::Command,
        (actuator, _) => actuator,
    };
    let steps = match (actuator, &ownership.owner) {
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => vec![
            programs::is_main(unit, pid),
            // systemd waits 90 s for a unit that doesn't obey.
            programs::kill_main_process(unit),
            programs::systemctl("restart", unit),
        ],
        (Actuator::Command, _) => {
            vec![programs::command(actuation)]
        }
        _ => {
            let why = "QEMU hangs, and neither takes commands nor tells whose it is: set \
                       recovery.command to one that ends it and starts it again";
            return Err(Refusal(why.to_owned()));
        }
    };
    Ok(ActuatorPlan::Steps { steps, replaces_qemu: true })
}

/// Plans the start of a VM whose QEMU is gone without having been asked to.
///
/// # Errors
/// If it is not to be started, or not known how; it says what to configure.
pub(crate) fn start_plan(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
) -> Result<Vec<ActuatorStep>, Refusal> {
    let refuse = |why: &str| Err(Refusal(why.to_owned()));
    if !actuation.start_exited {
        return refuse("only its owner can start it again, and recovery.start_exited is not set");
    }
    let is_auto = actuation.actuator == Actuator::Auto;
    let actuator = match (chosen(ownership, actuation)?, &ownership.owner) {
        (Actuator::Qmp, Owner::SystemdUnit { .. }) if is_auto => Actuator::Systemd,
        (Actuator::Qmp, _) if is_auto && !actuation.command.is_empty() => Actuator::Command,
        (Actuator::Qmp, Owner::Proxmox { .. }) if is_auto => Actuator::Proxmox,
        (Actuator::Qmp, owner) if is_auto => return Err(Refusal(what_to_configure(owner))),
        (Actuator::Qmp, _) => {
            return refuse("QMP starts no QEMU: set recovery.actuator or recovery.command");
        }
        (actuator, _) => actuator,
    };
    // It could have named another one's; what the operator says counts more.
    if is_auto && actuator != Actuator::Command && !ownership.is_certain {
        return Err(Refusal(format!(
            "nothing but its own command line said that {} started it: set recovery.actuator, or \
             recovery.command",
            ownership.owner.kind()
        )));
    }
    Ok(match (actuator, &ownership.owner) {
        (Actuator::Libvirt, Owner::Libvirt { domain, uuid, scope }) => {
            let virsh = Virsh::new(&libvirt_uri(*scope, actuation)?, uuid);
            let name = virsh.on_domain("domname");
            vec![
                ActuatorStep::Check(name, Check::IsCalled(domain.clone())),
                ActuatorStep::Check(virsh.state(), Check::Crashed),
                programs::virsh(&virsh, "start"),
            ]
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => {
            vec![programs::qm("start", *vmid)]
        }
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => {
            vec![programs::is_down(unit), programs::systemctl("start", unit)]
        }
        (Actuator::Command, _) => {
            vec![programs::command(actuation)]
        }
        (_, owner) => return Err(Refusal(what_to_configure(owner))),
    })
}
