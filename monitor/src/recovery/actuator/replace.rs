//! Plans that put another QEMU in the place of one that brings no life, hangs or is gone: pure.

use super::{
    ActuatorPlan, ActuatorStep, Check,
    choice::{chosen, libvirt_uri, what_to_configure},
    programs, vouch,
};
use crate::{
    config::{Actuator, ActuatorConfig},
    recovery::Refusal,
};
use flatline_qemu::{
    discover::{Owner, Vm},
    program::virsh::Virsh,
};

/// Whether the next restart ends this QEMU, and has its owner start another one, since so many brought no life.
pub(crate) fn is_power_cycle(vm: &Vm, actuation: &ActuatorConfig, attempts: usize) -> bool {
    power_cycle(vm, actuation, 0, attempts).is_some()
}

/// Its owner's way to do that; `None` if it is not due, or there is none: then what was done before is done again.
pub(super) fn power_cycle(
    vm: &Vm,
    actuation: &ActuatorConfig,
    pid: u32,
    attempts: usize,
) -> Option<Vec<ActuatorStep>> {
    let after = usize::try_from(actuation.power_cycle_after).ok().filter(|after| *after > 0)?;
    if attempts < after {
        return None;
    }
    match (chosen(vm, actuation).ok()?, &vm.ownership.owner) {
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
            vouch::command(vm, actuation, |unit| programs::is_main(unit, pid)).ok()
        }
        _ => None,
    }
}

/// Plans another QEMU in the place of one that hangs, which takes no commands and obeys no polite signal.
///
/// # Errors
/// If its owner has no way that makes sure that it is this one.
pub(super) fn replacement(
    vm: &Vm,
    actuation: &ActuatorConfig,
    pid: u32,
) -> Result<ActuatorPlan, Refusal> {
    let is_auto = actuation.actuator == Actuator::Auto;
    let actuator = match (chosen(vm, actuation)?, &vm.ownership.owner) {
        (Actuator::Qmp, Owner::SystemdUnit { .. }) if is_auto => Actuator::Systemd,
        (_, _) if is_auto && !actuation.command.is_empty() => Actuator::Command,
        (actuator, _) => actuator,
    };
    let steps = match (actuator, &vm.ownership.owner) {
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => vec![
            programs::is_main(unit, pid),
            // systemd waits 90 s for a unit that doesn't obey.
            programs::kill_main_process(unit),
            programs::systemctl("restart", unit),
        ],
        (Actuator::Command, _) => {
            vouch::command(vm, actuation, |unit| programs::is_main(unit, pid))?
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
    vm: &Vm,
    actuation: &ActuatorConfig,
) -> Result<Vec<ActuatorStep>, Refusal> {
    let refuse = |why: &str| Err(Refusal(why.to_owned()));
    if !actuation.start_exited {
        return refuse("only its owner can start it again, and recovery.start_exited is not set");
    }
    let is_auto = actuation.actuator == Actuator::Auto;
    let actuator = match (chosen(vm, actuation)?, &vm.ownership.owner) {
        (Actuator::Qmp, Owner::SystemdUnit { .. }) if is_auto => Actuator::Systemd,
        (Actuator::Qmp, _) if is_auto && !actuation.command.is_empty() => Actuator::Command,
        (Actuator::Qmp, Owner::Proxmox { .. }) if is_auto => Actuator::Proxmox,
        (Actuator::Qmp, owner) if is_auto => return Err(Refusal(what_to_configure(owner))),
        (Actuator::Qmp, _) => {
            return refuse("QMP starts no QEMU: set recovery.actuator or recovery.command");
        }
        (actuator, _) => actuator,
    };
    // It could have named another one's; what the operator says of its user's counts more.
    if actuator != Actuator::Command && !vm.ownership.is_certain {
        if is_auto {
            return Err(Refusal(format!(
                "nothing but its own command line said that {} started it: set recovery.actuator, or \
                 recovery.command",
                vm.ownership.owner.kind()
            )));
        }
        vouch::for_owner(vm, actuation)?;
    }
    Ok(match (actuator, &vm.ownership.owner) {
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
        (Actuator::Command, _) => vouch::command(vm, actuation, programs::is_down)?,
        (_, owner) => return Err(Refusal(what_to_configure(owner))),
    })
}
