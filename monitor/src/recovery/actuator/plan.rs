//! What would be done for whom, step by step: pure.

use super::programs;
use crate::{
    config::{Actuator, ActuatorConfig, QmpTransport},
    recovery::{Refusal, plan},
};
use flatline_qemu::{
    discover::{LibvirtScope, Owner, Ownership, ResetAction},
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
    /// Who started the QEMU.
    pub ownership: &'a Ownership,
    /// What is configured.
    pub actuation: &'a ActuatorConfig,
    /// What QEMU says; of one that is gone, it doesn't matter.
    pub monitor: MonitorSays,
    /// What a guest's reboot leads to.
    pub reboot_action: ResetAction,
    /// The process.
    pub pid: u32,
    /// Restarts for this crash that brought no life.
    pub attempts: usize,
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
    /// The program prints that the domain ended, and that nobody stopped it.
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

/// What does it for this owner, with nothing but what is configured looked at.
///
/// # Errors
/// If there is nothing, with what to configure.
pub(crate) fn chosen(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
) -> Result<Actuator, Refusal> {
    let owner = &ownership.owner;
    let fits = match actuation.actuator {
        Actuator::Auto => return by_owner(ownership, actuation),
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
        Ok(actuation.actuator)
    } else {
        let found = owner.kind();
        Err(Refusal(format!("recovery.actuator is \"{word}\", but its owner is {found}")))
    }
}

fn by_owner(ownership: &Ownership, actuation: &ActuatorConfig) -> Result<Actuator, Refusal> {
    let owner = &ownership.owner;
    match owner {
        Owner::Bare | Owner::SystemdUnit { .. } => Ok(Actuator::Qmp),
        Owner::Libvirt { scope, .. } => match libvirt_uri(*scope, actuation) {
            Err(_) if !actuation.command.is_empty() => Ok(Actuator::Command),
            uri => uri.map(|_| Actuator::Libvirt),
        },
        Owner::Proxmox { .. } if ownership.is_certain => Ok(Actuator::Proxmox),
        // A number that a QEMU gave itself may be somebody else's, who would be reset; its own monitor is its own.
        Owner::Proxmox { .. } => Ok(Actuator::Qmp),
        _ if !actuation.command.is_empty() => Ok(Actuator::Command),
        _ => Err(Refusal(what_to_configure(owner))),
    }
}

/// What an operator can do for an owner that nothing is built in for. The commands are those of the products' own
/// manuals: gnt-instance(8), `incus restart --help`, KubeVirt's pkg/virtctl/reset/reset.go, crictl(1).
fn what_to_configure(owner: &Owner) -> String {
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
        Owner::Bare => "nobody is known who started it: set recovery.command".to_owned(),
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

/// Plans the restart of a crashed guest.
///
/// # Errors
/// If there is a reason not to; it says what to configure where that is the reason.
pub(crate) fn restart_plan(situation: &Situation<'_>) -> Result<ActuatorPlan, Refusal> {
    let Situation { ownership, actuation, monitor, reboot_action, pid, attempts } = situation;
    let mut actuator = chosen(ownership, actuation)?;
    let run_state = match monitor {
        MonitorSays::Is(run_state) => {
            // Whoever does it, a run state that somebody chose is none to be reset out of.
            plan(run_state)?;
            Some(run_state)
        }
        MonitorSays::Nothing(why) => return Err(Refusal(why.clone())),
        MonitorSays::Hangs => return replacement(ownership, actuation, *pid),
        MonitorSays::IsNotThere => None,
    };
    if actuation.actuator == Actuator::Auto && run_state.is_none() && actuator == Actuator::Qmp {
        actuator = match &ownership.owner {
            Owner::SystemdUnit { .. } => Actuator::Systemd,
            _ if !actuation.command.is_empty() => Actuator::Command,
            _ => actuator,
        };
    }
    if let Some(steps) = power_cycle(ownership, actuation, *pid, *attempts) {
        return Ok(ActuatorPlan::Steps { steps, replaces_qemu: true });
    }
    let stands = run_state.is_some_and(|run_state| *run_state != RunState::Running);
    let shuts_down = *reboot_action == ResetAction::Shutdown;
    let mut steps = Vec::new();
    match (actuator, &ownership.owner) {
        (Actuator::Qmp, _) if run_state.is_none() => {
            let why = "no QMP socket is known, by which it could be reset: set recovery.command";
            return Err(Refusal(why.to_owned()));
        }
        (Actuator::Qmp, _) => return Ok(ActuatorPlan::Qmp),
        (Actuator::Libvirt, Owner::Libvirt { uuid, scope, .. }) => {
            let virsh = Virsh::new(&libvirt_uri(*scope, actuation)?, uuid);
            steps.push(threads_of(&virsh, *pid));
            let told = |action| ActuatorStep::Tell(programs::set_reboot_action(&virsh, action));
            if shuts_down {
                steps.push(told(ResetAction::Reset));
            }
            steps.push(ActuatorStep::Run(virsh.on_domain("reset")));
            if stands {
                steps.push(ActuatorStep::Run(virsh.on_domain("resume")));
            }
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => {
            if actuation.qmp == QmpTransport::Keep {
                let why = "recovery.qmp = \"keep\" holds the socket that `qm` needs: set it to \
                           \"brief\", or recovery.actuator = \"qmp\"";
                return Err(Refusal(why.to_owned()));
            }
            if shuts_down {
                steps.push(ActuatorStep::SetRebootAction(ResetAction::Reset));
            }
            steps.push(ActuatorStep::Run(programs::qm("reset", *vmid)));
            if stands {
                steps.push(ActuatorStep::Run(programs::qm("resume", *vmid)));
            }
        }
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => {
            steps.push(is_main(unit, *pid));
            steps.push(ActuatorStep::Run(programs::systemctl("restart", unit)));
            return Ok(ActuatorPlan::Steps { steps, replaces_qemu: true });
        }
        (Actuator::Command, _) => {
            steps.push(by_command(actuation));
        }
        (Actuator::Libvirt | Actuator::Proxmox | Actuator::Systemd, _)
        | (Actuator::Auto | Actuator::None, _) => {
            return Err(Refusal(what_to_configure(&ownership.owner)));
        }
    }
    Ok(ActuatorPlan::Steps { steps, replaces_qemu: false })
}

/// Whether the next restart ends this QEMU, and has its owner start another one, since so many brought no life.
pub(crate) fn is_power_cycle(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
    attempts: usize,
) -> bool {
    power_cycle(ownership, actuation, 0, attempts).is_some()
}

/// Its owner's way to do that; `None` if it is not due, or there is none: then what was done before is done again.
fn power_cycle(
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
            Some(vec![is_main(unit, pid), ActuatorStep::Run(programs::systemctl("restart", unit))])
        }
        (Actuator::Libvirt, Owner::Libvirt { uuid, scope, .. }) => {
            let virsh = Virsh::new(&libvirt_uri(*scope, actuation).ok()?, uuid);
            Some(vec![
                threads_of(&virsh, pid),
                ActuatorStep::Run(virsh.on_domain("destroy")),
                ActuatorStep::Run(virsh.on_domain("start")),
            ])
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => Some(vec![
            ActuatorStep::Run(programs::qm("stop", *vmid)),
            ActuatorStep::Run(programs::qm("start", *vmid)),
        ]),
        (Actuator::Qmp, _) if !actuation.command.is_empty() => Some(vec![by_command(actuation)]),
        _ => None,
    }
}

/// Makes sure that the unit is about this QEMU.
fn is_main(unit: &str, pid: u32) -> ActuatorStep {
    ActuatorStep::Check(programs::unit_property("MainPID", unit), Check::IsMainProcess(pid))
}

/// The configured command.
fn by_command(actuation: &ActuatorConfig) -> ActuatorStep {
    ActuatorStep::Run(Program { words: actuation.command.clone() })
}

/// Makes sure that the vCPUs of libvirt's domain are this QEMU's.
fn threads_of(virsh: &Virsh, pid: u32) -> ActuatorStep {
    let threads = serde_json::json!({ "execute": "query-cpus-fast" });
    ActuatorStep::Check(virsh.monitor_command(&threads), Check::AreThreadsOf(pid))
}

/// Plans another QEMU in the place of one that hangs, which takes no commands and obeys no polite signal.
///
/// # Errors
/// If its owner has no way that makes sure that it is this one.
fn replacement(
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
            is_main(unit, pid),
            // systemd waits 90 s for a unit that doesn't obey.
            ActuatorStep::Run(programs::kill_main_process(unit)),
            ActuatorStep::Run(programs::systemctl("restart", unit)),
        ],
        (Actuator::Command, _) => {
            vec![by_command(actuation)]
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
    // It could have named anybody's; what the operator says counts more.
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
                ActuatorStep::Run(virsh.on_domain("start")),
            ]
        }
        (Actuator::Proxmox, Owner::Proxmox { vmid }) => {
            vec![ActuatorStep::Run(programs::qm("start", *vmid))]
        }
        (Actuator::Systemd, Owner::SystemdUnit { unit }) => vec![
            ActuatorStep::Check(programs::unit_property("ActiveState", unit), Check::IsDown),
            ActuatorStep::Run(programs::systemctl("start", unit)),
        ],
        (Actuator::Command, _) => {
            vec![by_command(actuation)]
        }
        (_, owner) => return Err(Refusal(what_to_configure(owner))),
    })
}
