//! Carries out what was planned for an owner.

use super::{
    ActuatorPlan, ActuatorStep, MonitorSays, RestartContext, Situation,
    checks::{Domain, check_all, domain},
    chosen, is_power_cycle, on_crash, proxmox, restart_plan, start_plan,
    steps::take_all,
};
use crate::{
    config::Actuator,
    recovery::{
        Journal, Kept, Refusal, Restart, RestartError,
        evidence::{self, Evidence},
        execute, nmi,
    },
};
use flatline_qemu::{discover::ResetAction, qmp::QmpHandle};
use flatline_samples::RunState;

/// The name of the evidence that programs leave.
const EVIDENCE: &str = "actuator.txt";

/// A plan whose checks hold.
struct Checked {
    steps: Vec<ActuatorStep>,
    replaces_qemu: bool,
    /// What the programs of the checks said.
    told: String,
}

/// Restarts a crashed guest by what its owner has for that. `writes` tells how many writes it has submitted so far,
/// as for [`execute::restart`], which does it where QMP is the way.
///
/// # Errors
/// As there; [`RestartError::Refused`], [`RestartError::Locked`] and [`RestartError::Unlocked`] leave the guest untouched.
pub(crate) async fn restart(
    context: &RestartContext,
    writes: impl Fn() -> Option<u64>,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let context = &proxmox::cleared(context).await?;
    let RestartContext { vm, actuation, attempts, .. } = context;
    let chosen = chosen(vm, actuation);
    let says = match &context.monitor {
        // Nothing is asked twice: where QMP is the way, the run state is looked at there.
        Ok(qmp)
            if matches!(chosen, Ok(Actuator::Qmp)) && !is_power_cycle(vm, actuation, *attempts) =>
        {
            let wanted = &context.evidence;
            let (action, overtaken) = (vm.reboot_action, &context.overtaken);
            return execute::restart(qmp, action, wanted, overtaken, writes, journal).await;
        }
        Ok(qmp) => MonitorSays::Is(qmp.query_status().await.map_err(RestartError::Unknown)?),
        Err(_) if context.hangs => MonitorSays::Hangs,
        Err(Some(why)) => MonitorSays::Nothing(why.clone()),
        Err(None) => MonitorSays::IsNotThere,
    };
    let Domain { reboot_action, on_crash } = domain(context).await?;
    if let (Ok(qmp), MonitorSays::Is(before)) = (&context.monitor, &says) {
        on_crash::leave_to_libvirt(context, qmp, before, on_crash.as_deref()).await?;
    }
    let checked = checked(context, says.clone(), reboot_action).await?;
    let before = match says {
        MonitorSays::Is(run_state) => run_state,
        MonitorSays::Nothing(_) | MonitorSays::Hangs | MonitorSays::IsNotThere => unknown(),
    };
    let (checked, evidence) = match &context.monitor {
        Ok(qmp) => prepare(context, qmp, &before, reboot_action, checked, writes).await?,
        Err(_) => (checked, Evidence::default()),
    };
    let Checked { steps, replaces_qemu, told } = checked;
    // Gathering took its time.
    proxmox::still_unlocked(vm).await?;
    if let Err(error) = context.overtaken.none_yet() {
        return Err(error.with(evidence.keep().await));
    }
    journal.begun(&before, steps.iter().map(ActuatorStep::words).collect()).await;
    // Pictures are compressed while its owner acts.
    let kept = evidence.keep();
    let done = take_all(context, &steps, "restart", told, journal).await;
    let mut kept = kept.await;
    let done = match done {
        Ok(done) => done,
        Err(error) => return Err(error.with(kept)),
    };
    kept.files.push((EVIDENCE, done.told.into_bytes()));
    let after = match &context.monitor {
        Ok(qmp) if !replaces_qemu => execute::settled(qmp).await.unwrap_or_else(|_| unknown()),
        _ => unknown(),
    };
    let runs = matches!(after, RunState::Running | RunState::Other(_));
    // A command may do what takes longer than that.
    if !runs && !matches!(chosen, Ok(Actuator::Command)) {
        let (reset_at, kept) = (Some(done.at), Box::new(kept));
        return Err(RestartError::NotRunning { run_state: after, reset_at, kept });
    }
    Ok(Restart {
        at: done.at,
        run_states: (before, after),
        action: done.action,
        kept,
        put_back: if replaces_qemu { ResetAction::Reset } else { reboot_action },
    })
}

/// The plan for what the monitor `says`, once all of its checks hold.
async fn checked(
    context: &RestartContext,
    says: MonitorSays,
    reboot_action: ResetAction,
) -> Result<Checked, RestartError> {
    let situation = Situation {
        vm: &context.vm,
        actuation: &context.actuation,
        monitor: says,
        reboot_action,
        pid: context.vm.id.pid,
        attempts: context.attempts,
    };
    match restart_plan(&situation).map_err(RestartError::Refused)? {
        ActuatorPlan::Steps { steps, replaces_qemu } => {
            let told = check_all(&steps).await?;
            Ok(Checked { steps, replaces_qemu, told })
        }
        // QMP is taken before where it is the way and there.
        ActuatorPlan::Qmp => Err(refused("no QMP socket is known")),
    }
}

/// Gathers what is wanted of a guest in the run state `before`; what took its time is followed by another look at the
/// plan and its checks.
async fn prepare(
    context: &RestartContext,
    qmp: &QmpHandle,
    before: &RunState,
    reboot_action: ResetAction,
    mut plan: Checked,
    writes: impl Fn() -> Option<u64>,
) -> Result<(Checked, Evidence), RestartError> {
    let wanted = &context.evidence;
    let (writes_on, mut evidence) = tokio::join!(
        execute::still_writing(before, &writes, wanted),
        evidence::gather(qmp, before, wanted)
    );
    if writes_on {
        return Err(RestartError::StillWriting);
    }
    if evidence::dump_memory(qmp, wanted, &mut evidence).await {
        // An operator may have stopped the guest meanwhile.
        if qmp.query_status().await.map_err(RestartError::Unknown)? != *before {
            return Err(refused("its run state changed while its memory was dumped"));
        }
        plan.told = check_all(&plan.steps).await?;
    }
    match nmi::own_dump(qmp, before, wanted, &writes).await {
        nmi::Came::NotSent => {}
        nmi::Came::Dump => return Err(RestartError::StillWriting),
        nmi::Came::Nothing => {
            let now = qmp.query_status().await.map_err(RestartError::Unknown)?;
            plan = checked(context, MonitorSays::Is(now), reboot_action).await?;
        }
    }
    // An owner's program has a way of its own; a step of ours needs a QEMU that answers, whatever it was asked before.
    if plan.steps.iter().any(|step| matches!(step, ActuatorStep::SetRebootAction(_)))
        && let Err(source) = execute::answering(qmp, execute::ANSWERS_WITHIN).await
    {
        return Err(RestartError::Lost { kept: Box::new(evidence.keep().await), source });
    }
    Ok((plan, evidence))
}

fn refused(why: &str) -> RestartError {
    RestartError::Refused(Refusal(why.to_owned()))
}

/// Starts a VM whose QEMU is gone by what its owner has for that.
///
/// # Errors
/// [`RestartError::Refused`] and [`RestartError::Locked`] where nothing was tried.
pub(crate) async fn start(
    context: &RestartContext,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let steps = start_plan(&context.vm, &context.actuation).map_err(RestartError::Refused)?;
    proxmox::may_start(context).await?;
    let told = check_all(&steps).await?;
    journal.begun(&unknown(), steps.iter().map(ActuatorStep::words).collect()).await;
    let done = take_all(context, &steps, "start", told, journal).await?;
    Ok(Restart {
        at: done.at,
        run_states: (unknown(), unknown()),
        action: done.action,
        kept: Kept { files: vec![(EVIDENCE, done.told.into_bytes())], was_up: None },
        put_back: ResetAction::Reset,
    })
}

fn unknown() -> RunState {
    RunState::Other("not known".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{
        config::ActuatorConfig,
        recovery::{Overtaken, evidence::Wanted},
    };
    use flatline_qemu::{
        discover::{Ownership, Vm},
        text::error_chain,
    };

    /// What was written down, in order.
    #[derive(Default)]
    struct Noted(Vec<String>);

    impl Journal for Noted {
        async fn begun(&mut self, run_state: &RunState, steps: Vec<String>) {
            self.0.push(format!("begun: {run_state}: {}", steps.join("; ")));
        }

        async fn told(&mut self, _at: SystemTime) {
            self.0.push("told".to_owned());
        }
    }

    /// A VM without a monitor, for which a shell runs `script`.
    fn scene(script: &str) -> RestartContext {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let text = |text: &str| text.to_owned();
        let vm = Arc::new(Vm::stand_in(Ownership::bare(), &[]));
        RestartContext {
            evidence: Wanted::nothing(vm.clone(), text("20261122T100001Z-web-1")),
            vm,
            actuation: ActuatorConfig {
                actuator: Actuator::Command,
                command,
                command_limit: Duration::from_secs(20),
                start_exited: true,
                ..ActuatorConfig::default()
            },
            monitor: Err(None),
            attempts: 0,
            hangs: false,
            was_locked: false,
            incident: (text("20261122T100001Z-web-1"), text("halted"), text("why\nnot $(id)")),
            overtaken: Overtaken::default(),
        }
    }

    #[tokio::test]
    async fn a_command_is_written_down_before_it_runs_and_kept_with_what_it_printed() {
        let mut noted = Noted::default();
        let said =
            "echo $FLATLINE_ACTION $FLATLINE_VM $FLATLINE_CAUSE; echo \"$FLATLINE_REASON\" >&2";
        let done = restart(&scene(said), || None, &mut noted).await.unwrap();
        let [begun, told] = &noted.0[..] else { panic!("{:?}", noted.0) };
        assert!(begun.starts_with("begun: not known: /bin/sh -c ") && told == "told", "{begun}");
        assert!(done.action.starts_with("/bin/sh -c "), "{}", done.action);
        let printed = done.kept.files.iter().find(|(name, _)| *name == EVIDENCE).unwrap();
        let printed = String::from_utf8(printed.1.clone()).unwrap();
        assert!(printed.contains("\nrestart web-1 halted\nwhy?not $(id)\n"), "{printed}");
        let done = start(&scene("echo $FLATLINE_ACTION"), &mut noted).await.unwrap();
        let printed = String::from_utf8(done.kept.files[0].1.clone()).unwrap();
        assert!(printed.ends_with("\nstart\n"), "{printed}");
    }

    #[tokio::test]
    async fn a_command_that_fails_may_have_done_it_all_the_same() {
        let mut noted = Noted::default();
        let failed = restart(&scene("exit 7"), || None, &mut noted).await.unwrap_err();
        assert!(matches!(failed, RestartError::Owner { reset_at: Some(_), .. }), "{failed:?}");
        assert!(error_chain(&failed).contains("exited with code 7"), "{}", error_chain(&failed));
        assert_eq!(noted.0.len(), 2);
    }

    #[tokio::test]
    async fn what_is_refused_is_neither_run_nor_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let mut scene = scene(&format!("touch {}", mark.display()));
        scene.monitor = Err(Some("QMP is being connected".to_owned()));
        let mut noted = Noted::default();
        let refused = restart(&scene, || None, &mut noted).await.unwrap_err();
        assert!(matches!(refused, RestartError::Refused(_)), "{refused:?}");
        scene.actuation.start_exited = false;
        let refused = start(&scene, &mut noted).await.unwrap_err();
        assert!(matches!(refused, RestartError::Refused(_)), "{refused:?}");
        assert!(noted.0.is_empty() && !mark.exists());
    }
}
