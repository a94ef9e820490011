//! Plans as a table: owner, configuration and run state against the steps, or the refusal.

use super::{ActuatorPlan, ActuatorStep, Check, MonitorSays, Situation, restart_plan, start_plan};
use crate::config::{Actuator, ActuatorConfig, QmpTransport};
use flatline_qemu::{
    discover::{LibvirtScope, Owner, Ownership, ResetAction, Vm},
    program::Program,
};
use flatline_samples::RunState;

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

fn text(text: &str) -> String {
    text.to_owned()
}

fn libvirt(scope: LibvirtScope) -> Owner {
    Owner::Libvirt { domain: text("web-1"), uuid: text(UUID), scope }
}

fn unit() -> Owner {
    Owner::SystemdUnit { unit: text("qemu@web.service") }
}

fn actuation(actuator: Actuator) -> ActuatorConfig {
    ActuatorConfig { actuator, ..ActuatorConfig::default() }
}

fn with_command(actuator: Actuator) -> ActuatorConfig {
    ActuatorConfig { command: vec![text("/bin/again"), text("now")], ..actuation(actuator) }
}

fn restart(
    owner: Owner,
    actuation: &ActuatorConfig,
    monitor: MonitorSays,
    reboot_action: ResetAction,
) -> Result<ActuatorPlan, String> {
    let ownership = Ownership { owner, is_certain: true, ..Ownership::bare() };
    again(&ownership, actuation, monitor, reboot_action, 0)
}

/// The plan after so many restarts that brought no life.
fn again(
    ownership: &Ownership,
    actuation: &ActuatorConfig,
    monitor: MonitorSays,
    reboot_action: ResetAction,
    attempts: usize,
) -> Result<ActuatorPlan, String> {
    let vm = &Vm::stand_in(ownership.clone(), &[]);
    let situation = Situation { vm, actuation, monitor, reboot_action, pid: 4711, attempts };
    restart_plan(&situation).map_err(|refusal| refusal.to_string())
}

/// The plan for a guest that crashed while it ran.
fn running(owner: Owner, actuation: &ActuatorConfig) -> Result<ActuatorPlan, String> {
    restart(owner, actuation, MonitorSays::Is(RunState::Running), ResetAction::Reset)
}

/// The lines of a plan's programs, checks in brackets.
fn lines(steps: &[ActuatorStep]) -> Vec<String> {
    let line = |step: &ActuatorStep| match step {
        ActuatorStep::Check(program, check) => format!("[{}] {check:?}", program.line()),
        ActuatorStep::SetRebootAction(action) => format!("set-action {action:?}"),
        ActuatorStep::Tell(program) | ActuatorStep::Run(program) => program.line(),
    };
    steps.iter().map(line).collect()
}

fn steps(plan: Result<ActuatorPlan, String>) -> Vec<String> {
    match plan {
        Ok(ActuatorPlan::Steps { steps, .. }) => lines(&steps),
        other => panic!("no steps: {other:?}"),
    }
}

#[test]
fn without_a_word_each_owner_has_its_own_way() {
    let auto = ActuatorConfig::default();
    assert_eq!(running(Owner::Bare, &auto), Ok(ActuatorPlan::Qmp));
    assert_eq!(running(unit(), &auto), Ok(ActuatorPlan::Qmp));
    assert_eq!(steps(running(Owner::Proxmox { vmid: 100 }, &auto)), ["qm reset 100"]);
    let threads = format!(
        "[virsh -q -c qemu:///system qemu-monitor-command --domain {UUID} -- \
         {{\"execute\":\"query-cpus-fast\"}}] AreThreadsOf(4711)"
    );
    let reset = format!("virsh -q -c qemu:///system reset --domain {UUID}");
    assert_eq!(steps(running(libvirt(LibvirtScope::System), &auto)), [threads, reset]);
}

#[test]
fn a_number_that_a_qemu_gave_itself_resets_and_ends_no_vm_but_itself() {
    let owner = Owner::Proxmox { vmid: 100 };
    let ownership = Ownership { owner, is_certain: false, ..Ownership::bare() };
    let plan = |actuation: &ActuatorConfig| {
        again(&ownership, actuation, MonitorSays::Is(RunState::Running), ResetAction::Reset, 1)
    };
    let cycled = ActuatorConfig { power_cycle_after: 1, ..ActuatorConfig::default() };
    for actuation in [ActuatorConfig::default(), cycled] {
        assert_eq!(plan(&actuation), Ok(ActuatorPlan::Qmp));
    }
    // The operator knows better.
    let named = actuation(Actuator::Proxmox);
    assert_eq!(steps(plan(&named)), ["qm reset 100"]);
    let cycled = ActuatorConfig { power_cycle_after: 1, ..named };
    assert_eq!(steps(plan(&cycled)), ["qm stop 100", "qm start 100"]);
}

#[test]
fn an_owner_without_a_way_is_refused_with_what_to_configure_and_done_by_a_command() {
    for (owner, part) in [
        (
            Owner::Ganeti { instance: text("w.example") },
            "gnt-instance reboot --type hard w.example",
        ),
        (
            Owner::Incus { product: "incus", project: text("p"), instance: text("v1") },
            "\"/usr/bin/incus\", \"restart\", \"--force\", \"--project\", \"p\", \"v1\"",
        ),
        (
            Owner::Incus { product: "lxd", project: text("default"), instance: text("v1") },
            "\"/usr/bin/lxc\", \"restart\"",
        ),
        (
            Owner::KubeVirt { namespace: text("ns"), name: text("vm") },
            "virtctl reset --namespace ns vm",
        ),
        (Owner::Kata { sandbox: text("4ab1") }, "\"stopp\", \"4ab1\""),
        (Owner::Unclear { product: "libvirt", why: text("it has no UUID") }, "it has no UUID"),
    ] {
        let refusal = running(owner.clone(), &ActuatorConfig::default()).unwrap_err();
        assert!(refusal.contains(part) && refusal.contains("recovery.command"), "{refusal}");
        assert_eq!(
            steps(running(owner.clone(), &with_command(Actuator::Auto))),
            ["/bin/again now"],
            "{owner:?}"
        );
        assert_eq!(running(owner, &actuation(Actuator::Qmp)), Ok(ActuatorPlan::Qmp));
    }
}

#[test]
fn after_restarts_without_life_its_owner_ends_it_and_starts_it_again_where_that_is_wanted() {
    let after = |owner: &Owner, actuation: &ActuatorConfig, attempts| {
        let ownership = Ownership { owner: owner.clone(), is_certain: true, ..Ownership::bare() };
        let monitor = MonitorSays::Is(RunState::Running);
        again(&ownership, actuation, monitor, ResetAction::Reset, attempts)
    };
    let twice = ActuatorConfig { power_cycle_after: 2, ..ActuatorConfig::default() };
    for (owner, programs) in [
        (unit(), &["systemctl restart -- qemu@web.service"][..]),
        (Owner::Proxmox { vmid: 100 }, &["qm stop 100", "qm start 100"]),
        (libvirt(LibvirtScope::System), &["destroy --domain", "start --domain"]),
    ] {
        let reset = after(&owner, &twice, 1);
        assert_eq!(reset, after(&owner, &ActuatorConfig::default(), 9), "{owner:?}");
        let plan = after(&owner, &twice, 2);
        assert!(matches!(plan, Ok(ActuatorPlan::Steps { replaces_qemu: true, .. })), "{plan:?}");
        let lines = steps(plan);
        let run: Vec<_> = lines.iter().filter(|line| !line.starts_with('[')).collect();
        assert_eq!(run.len(), programs.len(), "{lines:?}");
        assert!(run.iter().zip(programs).all(|(line, part)| line.contains(part)), "{lines:?}");
    }
    // Nothing else can: what was done is done again, or a command's.
    assert_eq!(after(&Owner::Bare, &twice, 2), Ok(ActuatorPlan::Qmp));
    let command = ActuatorConfig { power_cycle_after: 2, ..with_command(Actuator::Auto) };
    assert_eq!(after(&Owner::Bare, &command, 1), Ok(ActuatorPlan::Qmp));
    assert_eq!(steps(after(&Owner::Bare, &command, 2)), ["/bin/again now"]);
}

#[test]
fn one_that_hangs_is_replaced_by_what_can_be_sure_of_it() {
    let hung = |owner: Owner, actuation: &ActuatorConfig| {
        let plan = restart(owner, actuation, MonitorSays::Hangs, ResetAction::Reset);
        assert!(!matches!(
            plan,
            Ok(ActuatorPlan::Qmp | ActuatorPlan::Steps { replaces_qemu: false, .. })
        ));
        plan
    };
    let auto = ActuatorConfig::default();
    let expected = [
        "[systemctl show --property=MainPID -- qemu@web.service] IsMainProcess(4711)",
        "systemctl kill --kill-who=main --signal=SIGKILL -- qemu@web.service",
        "systemctl restart -- qemu@web.service",
    ];
    assert_eq!(steps(hung(unit(), &auto)), expected);
    for owner in [Owner::Bare, libvirt(LibvirtScope::System), Owner::Proxmox { vmid: 100 }] {
        let refusal = hung(owner.clone(), &auto).unwrap_err();
        assert!(refusal.contains("hangs") && refusal.contains("recovery.command"), "{refusal}");
        assert_eq!(steps(hung(owner.clone(), &with_command(Actuator::Auto))), ["/bin/again now"]);
        assert_eq!(steps(hung(owner, &with_command(Actuator::Command))), ["/bin/again now"]);
    }
    assert!(hung(Owner::Bare, &actuation(Actuator::Qmp)).is_err());
    assert!(hung(unit(), &actuation(Actuator::None)).is_err());
}

#[test]
fn a_user_s_libvirt_is_spoken_to_only_by_the_uri_that_is_configured() {
    let refusal = running(libvirt(LibvirtScope::Session), &ActuatorConfig::default()).unwrap_err();
    assert!(refusal.contains("recovery.libvirt_uri"), "{refusal}");
    let command = with_command(Actuator::Auto);
    assert_eq!(steps(running(libvirt(LibvirtScope::Session), &command)), ["/bin/again now"]);
    let actuation =
        ActuatorConfig { libvirt_uri: Some(text("qemu:///session")), ..ActuatorConfig::default() };
    let steps = steps(running(libvirt(LibvirtScope::Session), &actuation));
    assert!(steps.iter().all(|step| step.contains("virsh -q -c qemu:///session ")), "{steps:?}");
}

#[test]
fn what_a_reset_leaves_standing_is_told_to_go_on() {
    for run_state in [RunState::GuestPanicked, RunState::InternalError, RunState::Watchdog] {
        let says = MonitorSays::Is(run_state);
        let plan = restart(
            Owner::Proxmox { vmid: 100 },
            &ActuatorConfig::default(),
            says.clone(),
            ResetAction::Reset,
        );
        assert_eq!(steps(plan), ["qm reset 100", "qm resume 100"]);
        let owner = libvirt(LibvirtScope::System);
        let lines = steps(restart(owner, &ActuatorConfig::default(), says, ResetAction::Reset));
        assert!(lines[1].contains(" reset ") && lines[2].contains(" resume "), "{lines:?}");
    }
}

#[test]
fn a_qemu_that_a_reset_would_end_is_told_otherwise_before() {
    let says = MonitorSays::Is(RunState::Running);
    let vm = Owner::Proxmox { vmid: 100 };
    let plan = restart(vm, &ActuatorConfig::default(), says.clone(), ResetAction::Shutdown);
    assert_eq!(steps(plan), ["set-action Reset", "qm reset 100"]);
    let owner = libvirt(LibvirtScope::System);
    let lines = steps(restart(owner, &ActuatorConfig::default(), says, ResetAction::Shutdown));
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[1].contains(r#"{"reboot":"reset"}"#) && lines[2].contains(" reset "),
        "{lines:?}"
    );
}

#[test]
fn no_actuator_resets_what_was_stopped() {
    let owners = [
        Owner::Bare,
        unit(),
        libvirt(LibvirtScope::System),
        Owner::Proxmox { vmid: 100 },
        Owner::Ganeti { instance: text("a") },
    ];
    for name in ["paused", "shutdown", "suspended", "io-error", "prelaunch", "inmigrate", "odd"] {
        for owner in &owners {
            for actuation in [with_command(Actuator::Auto), with_command(Actuator::Command)] {
                let says = MonitorSays::Is(RunState::parse(name));
                let plan = restart(owner.clone(), &actuation, says, ResetAction::Reset);
                assert!(plan.is_err(), "{owner:?} {name} {plan:?}");
            }
        }
    }
}

#[test]
fn a_monitor_that_says_nothing_now_is_waited_for_whatever_the_owner_is() {
    for actuation in
        [ActuatorConfig::default(), with_command(Actuator::Command), actuation(Actuator::Systemd)]
    {
        let says = MonitorSays::Nothing(text("QMP is being connected"));
        let plan = restart(unit(), &actuation, says, ResetAction::Reset);
        assert_eq!(plan, Err(text("QMP is being connected")));
    }
}

#[test]
fn without_a_monitor_a_unit_is_restarted_if_it_is_about_this_qemu() {
    let none = || MonitorSays::IsNotThere;
    let plan = restart(unit(), &ActuatorConfig::default(), none(), ResetAction::Reset);
    assert!(matches!(plan, Ok(ActuatorPlan::Steps { replaces_qemu: true, .. })), "{plan:?}");
    assert_eq!(
        steps(plan),
        [
            "[systemctl show --property=MainPID -- qemu@web.service] IsMainProcess(4711)",
            "systemctl restart -- qemu@web.service"
        ]
    );
    let command = with_command(Actuator::Auto);
    assert_eq!(
        steps(restart(Owner::Bare, &command, none(), ResetAction::Reset)),
        ["/bin/again now"]
    );
    let refusal =
        restart(Owner::Bare, &ActuatorConfig::default(), none(), ResetAction::Reset).unwrap_err();
    assert!(refusal.contains("recovery.command"), "{refusal}");
}

#[test]
fn an_actuator_of_another_owner_and_none_at_all_are_refused() {
    for (actuator, owner) in [
        (Actuator::Libvirt, Owner::Bare),
        (Actuator::Proxmox, libvirt(LibvirtScope::System)),
        (Actuator::Systemd, Owner::Bare),
    ] {
        let refusal = running(owner, &actuation(actuator)).unwrap_err();
        assert!(refusal.contains(actuator.as_str()), "{refusal}");
    }
    let refusal = running(Owner::Bare, &actuation(Actuator::None)).unwrap_err();
    assert!(refusal.contains("nothing is touched"), "{refusal}");
    assert!(running(Owner::Bare, &actuation(Actuator::Command)).is_err());
    let held = ActuatorConfig { qmp: QmpTransport::Keep, ..ActuatorConfig::default() };
    let refusal = running(Owner::Proxmox { vmid: 100 }, &held).unwrap_err();
    assert!(refusal.contains("\"brief\""), "{refusal}");
}

fn start(owner: Owner, is_certain: bool, actuation: ActuatorConfig) -> Result<Vec<String>, String> {
    let ownership = Ownership { owner, is_certain, ..Ownership::bare() };
    let actuation = ActuatorConfig { start_exited: true, ..actuation };
    let vm = Vm::stand_in(ownership, &[]);
    start_plan(&vm, &actuation).map(|steps| lines(&steps)).map_err(|why| why.to_string())
}

#[test]
fn a_qemu_that_is_gone_is_started_by_its_owner_s_name_for_it() {
    let auto = ActuatorConfig::default;
    assert_eq!(start(Owner::Proxmox { vmid: 100 }, true, auto()), Ok(vec![text("qm start 100")]));
    assert_eq!(
        start(unit(), true, auto()).unwrap(),
        [
            "[systemctl show --property=ActiveState -- qemu@web.service] IsDown",
            "systemctl start -- qemu@web.service"
        ]
    );
    assert_eq!(
        start(libvirt(LibvirtScope::System), true, auto()).unwrap(),
        [
            format!("[virsh -q -c qemu:///system domname --domain {UUID}] IsCalled(\"web-1\")"),
            format!("[virsh -q -c qemu:///system domstate --domain {UUID} --reason] Crashed"),
            format!("virsh -q -c qemu:///system start --domain {UUID}")
        ]
    );
    for owner in [Owner::Bare, Owner::Kata { sandbox: text("a") }] {
        assert_eq!(
            start(owner, false, with_command(Actuator::Auto)),
            Ok(vec![text("/bin/again now")])
        );
    }
}

#[test]
fn nothing_that_is_gone_is_started_on_its_own_word_or_without_being_configured() {
    let ownership = Ownership { owner: unit(), is_certain: true, ..Ownership::bare() };
    let vm = Vm::stand_in(ownership, &[]);
    let refusal = start_plan(&vm, &ActuatorConfig::default()).unwrap_err();
    assert!(refusal.to_string().contains("recovery.start_exited"), "{refusal}");
    for owner in [libvirt(LibvirtScope::System), Owner::Proxmox { vmid: 100 }, unit()] {
        assert!(start(owner, false, ActuatorConfig::default()).is_err());
    }
    // What the operator says is believed.
    assert!(start(libvirt(LibvirtScope::System), false, actuation(Actuator::Libvirt)).is_ok());
    for (owner, actuation) in [
        (Owner::Bare, ActuatorConfig::default()),
        (Owner::Ganeti { instance: text("a") }, ActuatorConfig::default()),
        (Owner::Bare, actuation(Actuator::Qmp)),
        (unit(), actuation(Actuator::None)),
    ] {
        assert!(start(owner, true, actuation).is_err());
    }
}

#[test]
fn every_check_comes_before_the_first_step_that_changes_anything() {
    let none = MonitorSays::IsNotThere;
    let says = MonitorSays::Is(RunState::GuestPanicked);
    for (owner, monitor) in [(libvirt(LibvirtScope::System), says), (unit(), none)] {
        let plan = restart(owner, &ActuatorConfig::default(), monitor, ResetAction::Shutdown);
        let Ok(ActuatorPlan::Steps { steps, .. }) = plan else { panic!("{plan:?}") };
        let is_check = |step: &ActuatorStep| matches!(step, ActuatorStep::Check(..));
        let first = steps.iter().position(|step| !is_check(step)).unwrap();
        assert!(first > 0 && !steps[first..].iter().any(is_check), "{steps:?}");
    }
}

#[test]
fn a_line_for_people_shows_where_a_word_ends() {
    let program = Program { words: ["/bin/a", "b c", "", "d"].map(text).to_vec() };
    assert_eq!(program.line(), r#"/bin/a "b c" "" d"#);
    let check = Check::IsCalled(text("x"));
    assert_eq!(lines(&[ActuatorStep::Check(program, check)]).len(), 1);
}
