//! What vouches for the name of a VM, by which a program is chosen for it: pure.
//!
//! Any user can run a process that has a QEMU's path, in a mount namespace of its own, and call it as another user's VM. Whose
//! process it is the kernel tells. So a program that runs as root is run for a VM of root's, for one of a user that
//! the configuration names beside the VM's name, and for one whose owner is certain and names it.

use super::{ActuatorStep, programs};
use crate::{
    config::{ActuatorConfig, CommandUser},
    recovery::Refusal,
};
use flatline_qemu::discover::{Owner, Vm};

/// The steps of the configured command. Where nothing but a unit vouches for the VM, `check` has systemd asked first
/// whether the unit is about this QEMU: a user's job may be a process of a unit, too, such as cron's.
///
/// # Errors
/// If nothing vouches for the VM's name, with what to configure.
pub(super) fn command(
    vm: &Vm,
    actuation: &ActuatorConfig,
    check: impl Fn(&str) -> ActuatorStep,
) -> Result<Vec<ActuatorStep>, Refusal> {
    let unit = for_command(vm, actuation)?;
    Ok(unit.map(check).into_iter().chain([programs::command(actuation)]).collect())
}

/// That the configured command may be run for this VM; and the unit, if that is all that vouches for it.
///
/// # Errors
/// As above.
pub(super) fn for_command<'a>(
    vm: &'a Vm,
    actuation: &ActuatorConfig,
) -> Result<Option<&'a str>, Refusal> {
    // As the VM's user it can do no more than that user could by itself.
    if is_users(vm, actuation) || actuation.command_user == CommandUser::Vm {
        return Ok(None);
    }
    let refused = || {
        let advice = "or recovery.command_user = \"vm\", with which it runs as that user";
        Err(refusal("recovery.command", vm, advice))
    };
    match &vm.ownership.owner {
        _ if !vm.ownership.is_certain => refused(),
        // That a pod is one is certain, and not what a process in it calls itself.
        Owner::Unclear { .. } | Owner::KubeVirt { .. } => refused(),
        Owner::SystemdUnit { unit } => Ok(Some(unit)),
        _ => Ok(None),
    }
}

/// That an owner's program may be run by the name that this VM goes by with its owner.
///
/// # Errors
/// If that is not certain, and nothing else vouches for it, with what to configure.
pub(super) fn for_owner(vm: &Vm, actuation: &ActuatorConfig) -> Result<(), Refusal> {
    if vm.ownership.is_certain || is_users(vm, actuation) {
        return Ok(());
    }
    let program = format!("the program of its owner ({})", vm.ownership.owner.kind());
    Err(refusal(&program, vm, "or recovery.command"))
}

/// Why the configured command is not run for this VM, where there is one.
pub(crate) fn command_refusal(vm: &Vm, actuation: &ActuatorConfig) -> Option<Refusal> {
    (!actuation.command.is_empty()).then(|| for_command(vm, actuation).err()).flatten()
}

/// Whether none but a user whom the configuration trusts with the VM's name can have given it.
fn is_users(vm: &Vm, actuation: &ActuatorConfig) -> bool {
    // A rule with users is for their VMs alone.
    vm.origin.uid == 0 || !actuation.user.is_empty()
}

fn refusal(program: &str, vm: &Vm, otherwise: &str) -> Refusal {
    let (name, uid) = (&vm.name, vm.origin.uid);
    Refusal(format!(
        "{program} is not run as root on the word of a process of the user {uid} that it is {name:?}: if that user may have \
         it run, set user = {uid} in a [[vm]] that matches the name, {otherwise}"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{ActuatorPlan, MonitorSays, Situation, restart_plan, start_plan};
    use super::*;
    use crate::config::{Actuator, Config};
    use flatline_qemu::discover::{LibvirtScope, Origin, Ownership, ResetAction};
    use flatline_samples::RunState;

    fn vm(owner: Owner, is_certain: bool, uid: u32) -> Vm {
        let ownership = Ownership { owner, is_certain, ..Ownership::bare() };
        Vm { origin: Origin { uid, ..Origin::default() }, ..Vm::stand_in(ownership, &[]) }
    }

    fn actuation(keys: &str) -> ActuatorConfig {
        let text = format!("[[vm]]\nmatch = \"web-*\"\ncommand = [\"/bin/again\"]\n{keys}");
        Config::parse(&text, "").expect("valid").actuation_for("web-1", 1000)
    }

    fn libvirt() -> Owner {
        let (domain, uuid) =
            ("web-1".to_owned(), "c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned());
        Owner::Libvirt { domain, uuid, scope: LibvirtScope::System }
    }

    #[test]
    fn a_strangers_word_is_none_and_what_to_add_is_said() {
        let plain = actuation("");
        for owner in [Owner::Bare, libvirt(), Owner::Ganeti { instance: "web-1".to_owned() }] {
            let stranger = vm(owner, false, 1000);
            let said = command_refusal(&stranger, &plain).expect("refused").to_string();
            assert!(
                said.contains("set user = 1000 in a [[vm]]") && said.contains("\"web-1\""),
                "{said}"
            );
            let said = for_owner(&stranger, &plain).expect_err("refused").to_string();
            assert!(said.contains("user = 1000"), "{said}");
        }
        let none = ActuatorConfig { command: Vec::new(), ..plain };
        assert_eq!(command_refusal(&vm(Owner::Bare, false, 1000), &none), None);
    }

    #[test]
    fn root_a_named_user_a_certain_owner_and_the_vms_own_rights_are_enough() {
        let plain = actuation("");
        assert_eq!(for_command(&vm(Owner::Bare, false, 0), &plain), Ok(None));
        assert_eq!(for_command(&vm(libvirt(), true, 1000), &plain), Ok(None));
        let stranger = vm(Owner::Bare, false, 1000);
        assert_eq!(for_command(&stranger, &actuation("user = 1000\n")), Ok(None));
        assert_eq!(for_command(&stranger, &actuation("command_user = \"vm\"\n")), Ok(None));
        assert!(for_owner(&stranger, &actuation("command_user = \"vm\"\n")).is_err());
        assert!(for_owner(&stranger, &actuation("user = 1000\n")).is_ok());
    }

    #[test]
    fn a_process_of_a_unit_or_a_pod_is_not_by_that_what_it_calls_itself() {
        let plain = actuation("");
        let unit = vm(Owner::SystemdUnit { unit: "cron.service".to_owned() }, true, 1000);
        assert_eq!(for_command(&unit, &plain), Ok(Some("cron.service")));
        let steps = command(&unit, &plain, |unit| programs::is_main(unit, 7)).expect("checked");
        assert!(matches!(&steps[..], [ActuatorStep::Check(..), ActuatorStep::Run(_)]), "{steps:?}");
        let text = |text: &str| text.to_owned();
        for owner in [
            Owner::KubeVirt { namespace: text("ns"), name: text("web-1") },
            Owner::Unclear { product: "libvirt", why: text("its group is another's") },
        ] {
            assert!(for_command(&vm(owner, true, 1000), &plain).is_err());
        }
    }

    fn restart(
        vm: &Vm,
        actuation: &ActuatorConfig,
        monitor: MonitorSays,
    ) -> Result<ActuatorPlan, String> {
        let (reboot_action, pid, attempts) = (ResetAction::Reset, 4711, 3);
        let situation = Situation { vm, actuation, monitor, reboot_action, pid, attempts };
        restart_plan(&situation).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn no_plan_runs_a_program_on_a_users_own_word() {
        let bare = vm(Owner::Bare, false, 1000);
        let keys = "start_exited = true\npower_cycle_after = 1\n";
        let (open, named) = (actuation(keys), actuation(&format!("{keys}user = 1000\n")));
        let running = || MonitorSays::Is(RunState::Running);
        for says in [MonitorSays::IsNotThere, MonitorSays::Hangs] {
            let refusal = restart(&bare, &open, says.clone()).expect_err("refused");
            assert!(refusal.contains("user = 1000"), "{refusal}");
            let plan = restart(&bare, &named, says);
            assert!(matches!(plan, Ok(ActuatorPlan::Steps { .. })), "{plan:?}");
        }
        let always = ActuatorConfig { actuator: Actuator::Command, ..open.clone() };
        let refusal = restart(&bare, &always, running()).expect_err("refused");
        assert!(refusal.contains("user = 1000"), "{refusal}");
        let refusal = start_plan(&bare, &open).expect_err("refused").to_string();
        assert!(refusal.contains("user = 1000"), "{refusal}");
        assert!(start_plan(&bare, &named).is_ok());
        // Its own monitor is its own: it is reset again, instead of being replaced.
        assert_eq!(restart(&bare, &open, running()), Ok(ActuatorPlan::Qmp));
        let by_virsh = |config: &ActuatorConfig| {
            let config = ActuatorConfig { actuator: Actuator::Libvirt, ..config.clone() };
            start_plan(&vm(libvirt(), false, 1000), &config).is_ok()
        };
        assert!(!by_virsh(&open) && by_virsh(&named));
    }
}
