//! Plan of a crashed guest's restart by its owner's means, step by step: pure.

use super::{
    choice::{chosen, libvirt_uri, what_to_configure},
    programs,
    replace::{power_cycle, replacement},
    vouch,
};
use crate::{
    config::{Actuator, ActuatorConfig, QmpTransport},
    recovery::{Refusal, plan},
};
use flatline_qemu::{
    discover::{Owner, ResetAction, Vm},
    program::{Program, virsh::Virsh},
};
use flatline_samples::RunState;

/// What QEMU's monitor says of a guest that was convicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MonitorSays {
    /// Its run state.
    Is(RunState),
    /// Nothing now, and why.
    Nothing(String),
    /// Nothing for so long that QEMU itself stands convicted of hanging.
    Hangs,
    /// QEMU has no monitor that could ever be asked. Such a guest is only convicted while its vCPUs run.
    IsNotThere,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub(crate) struct Situation<'a> {
    /// The VM: what started its QEMU, and whose it is.
    pub(crate) vm: &'a Vm,
    /// What is configured.
    pub(crate) actuation: &'a ActuatorConfig,
    /// What QEMU says; of one that is gone, it doesn't matter.
    pub(crate) monitor: MonitorSays,
    /// What a guest's reboot leads to.
    pub(crate) reboot_action: ResetAction,
    /// The process.
    pub(crate) pid: u32,
    /// Restarts for this crash that brought no life.
    pub(crate) attempts: usize,
}

/// Something that must be so before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The program prints that this is the unit's main process.
    IsMainProcess(u32),
    /// The program prints vCPU threads, and all are threads of this process.
    AreThreadsOf(u32),
    /// The program prints that the unit is neither up nor about to be.
    IsDown,
    /// The program prints exactly this name.
    IsCalled(String),
    /// The program prints that the domain ended, and was not stopped.
    Crashed,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActuatorStep {
    /// Nothing goes on unless this is so.
    Check(Program, Check),
    /// What a reset leads to, told by QMP.
    SetRebootAction(ResetAction),
    /// The same through libvirt, which passes QEMU's answer on.
    Tell(Program),
    /// A program that does it.
    Run(Program),
}

impl ActuatorStep {
    /// As it is written down before it is taken.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Check(program, _) => format!("{}, to be sure", program.line()),
            Self::SetRebootAction(action) => format!("set-action reboot={}", action.as_str()),
            Self::Tell(program) | Self::Run(program) => program.line(),
        }
    }
}

/// A complete plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActuatorPlan {
    /// By QMP, as [`recovery::plan`](crate::recovery::plan()) has it.
    Qmp,
    /// By these steps.
    Steps {
        /// All of them, in order.
        steps: Vec<ActuatorStep>,
        /// Whether this QEMU ends by that, and another comes in its place.
        replaces_qemu: bool,
    },
}

/// Plans the restart of a crashed guest.
///
/// # Errors
/// If there is a reason not to; it says what to configure where that is the reason.
pub(crate) fn restart_plan(situation: &Situation<'_>) -> Result<ActuatorPlan, Refusal> {
    let Situation { vm, actuation, monitor, reboot_action, pid, attempts } = situation;
    let owner = &vm.ownership.owner;
    let mut actuator = chosen(vm, actuation)?;
    let run_state = match monitor {
        MonitorSays::Is(run_state) => {
            // A run state that an operator chose is none to be reset out of, by whatever means.
            plan(run_state)?;
            Some(run_state)
        }
        MonitorSays::Nothing(why) => return Err(Refusal(why.clone())),
        MonitorSays::Hangs => return replacement(vm, actuation, *pid),
        MonitorSays::IsNotThere => None,
    };
    if actuation.actuator == Actuator::Auto && run_state.is_none() && actuator == Actuator::Qmp {
        actuator = match owner {
            Owner::SystemdUnit { .. } => Actuator::Systemd,
            _ if !actuation.command.is_empty() => Actuator::Command,
            _ => actuator,
        };
    }
    if let Some(steps) = power_cycle(vm, actuation, *pid, *attempts) {
        return Ok(ActuatorPlan::Steps { steps, replaces_qemu: true });
    }
    let is_stopped = run_state.is_some_and(|run_state| *run_state != RunState::Running);
    let shuts_down = *reboot_action == ResetAction::Shutdown;
    let steps = match (actuator, owner) {
        (Actuator::Qmp, _) if run_state.is_none() => {
            let why = "no QMP socket is known, by which it could be reset: set recovery.command";
            return Err(Refusal(why.to_owned()));
        }
        (Actuator::Qmp, _) => return Ok(ActuatorPlan::Qmp),
        (Actuator::Libvirt, Owner::Libvirt { uuid, scope, .. }) => {
            let virsh = Virsh::new(&libvirt_uri(*scope, actuation)?, uuid);
            let mut steps = vec![programs::threads_of(&virsh, *pid)];
            steps.extend(shuts_down.then(|| programs::reset_on_reboot(&virsh)));
            steps.push(programs::virsh(&virsh, "reset"));
            steps.extend(is_stopped.then(|| programs::virsh(&virsh, "resume")));
            steps
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => {
            if actuation.qmp == QmpTransport::Keep {
                let why = "recovery.qmp = \"keep\" holds the socket that `qm` needs: set it to \
                           \"brief\", or recovery.actuator = \"qmp\"";
                return Err(Refusal(why.to_owned()));
            }
            let set = shuts_down.then_some(ActuatorStep::SetRebootAction(ResetAction::Reset));
            let resume = is_stopped.then(|| programs::qm("resume", *vmid));
            set.into_iter().chain([programs::qm("reset", *vmid)]).chain(resume).collect()
        }
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => {
            let steps = vec![programs::is_main(unit, *pid), programs::systemctl("restart", unit)];
            return Ok(ActuatorPlan::Steps { steps, replaces_qemu: true });
        }
        (Actuator::Command, _) => {
            vouch::command(vm, actuation, |unit| programs::is_main(unit, *pid))?
        }
        (Actuator::Libvirt | Actuator::Proxmox | Actuator::Systemd, _)
        | (Actuator::Auto | Actuator::None, _) => {
            return Err(Refusal(what_to_configure(owner)));
        }
    };
    Ok(ActuatorPlan::Steps { steps, replaces_qemu: false })
}
