//! Carries out what was planned for an owner.

use super::{
    ActuatorPlan, ActuatorStep, MonitorSays, RestartContext, Situation,
    checks::{check_all, reboot_action},
    chosen, is_power_cycle, restart_plan, start_plan,
    steps::take_all,
};
use crate::{
    config::Actuator,
    recovery::{Journal, Kept, Refusal, Restart, RestartError, evidence, execute, nmi},
};
use flatline_qemu::discover::ResetAction;
use flatline_samples::RunState;

/// The name of the evidence that programs leave.
const EVIDENCE: &str = "actuator.txt";

/// Restarts a crashed guest by what its owner has for that. `writes` tells how many writes it has submitted so far,
/// as for [`recovery::restart`](crate::recovery::restart()), which does it where QMP is the way.
///
/// # Errors
/// As there; [`RestartError::Refused`] leaves the guest untouched.
pub(crate) async fn restart(
    scene: &RestartContext,
    writes: impl Fn() -> Option<u64>,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let wanted = &scene.evidence;
    let says = match &scene.monitor {
        Ok(qmp) => {
            // Nothing is asked twice: where QMP is the way, that is looked at there.
            let is_reset = !is_power_cycle(&scene.vm.ownership, &scene.actuation, scene.attempts);
            if let Ok(Actuator::Qmp) = chosen(&scene.vm.ownership, &scene.actuation)
                && is_reset
            {
                let configured = scene.vm.reboot_action;
                return execute::restart(qmp, configured, wanted, writes, journal).await;
            }
            MonitorSays::Is(qmp.query_status().await.map_err(RestartError::Unknown)?)
        }
        Err(_) if scene.hangs => MonitorSays::Hangs,
        Err(Some(why)) => MonitorSays::Nothing(why.clone()),
        Err(None) => MonitorSays::IsNotThere,
    };
    let reboot_action = reboot_action(scene).await?;
    let planned = |monitor: MonitorSays| {
        restart_plan(&Situation {
            ownership: &scene.vm.ownership,
            actuation: &scene.actuation,
            monitor,
            reboot_action,
            pid: scene.vm.id.pid,
            attempts: scene.attempts,
        })
    };
    let (mut steps, mut replaces_qemu) = match (planned(says.clone()), &scene.monitor) {
        (Ok(ActuatorPlan::Steps { steps, replaces_qemu }), _) => (steps, replaces_qemu),
        (Ok(ActuatorPlan::Qmp), Ok(qmp)) => {
            let configured = scene.vm.reboot_action;
            return execute::restart(qmp, configured, wanted, writes, journal).await;
        }
        (Ok(ActuatorPlan::Qmp), Err(why)) => {
            let why = why.clone().unwrap_or_else(|| "no QMP socket is known".to_owned());
            return Err(RestartError::Refused(Refusal(why)));
        }
        (Err(refusal), _) => return Err(RestartError::Refused(refusal)),
    };
    let before = match says {
        MonitorSays::Is(run_state) => run_state,
        MonitorSays::Nothing(_) | MonitorSays::Hangs | MonitorSays::IsNotThere => unknown(),
    };
    let mut told = check_all(&steps).await?;
    let (writes_on, gathered) =
        tokio::join!(execute::still_writing(&before, &writes, wanted), async {
            match &scene.monitor {
                Ok(qmp) => Some(evidence::gather(qmp, &before, wanted).await),
                Err(_) => None,
            }
        });
    if writes_on {
        return Err(RestartError::StillWriting);
    }
    let mut gathered = gathered.unwrap_or_default();
    if let Ok(qmp) = &scene.monitor
        && evidence::dump_memory(qmp, wanted, &mut gathered).await
    {
        // It took its time, and somebody may have laid hands on the guest meanwhile.
        if qmp.query_status().await.map_err(RestartError::Unknown)? != before {
            let why = "its run state changed while its memory was dumped";
            return Err(RestartError::Refused(Refusal(why.to_owned())));
        }
        told = check_all(&steps).await?;
    }
    if let Ok(qmp) = &scene.monitor {
        match nmi::own_dump(qmp, &before, wanted, &writes).await {
            nmi::Came::NotSent => {}
            nmi::Came::Dump => return Err(RestartError::StillWriting),
            nmi::Came::Nothing => {
                let now = qmp.query_status().await.map_err(RestartError::Unknown)?;
                match planned(MonitorSays::Is(now)).map_err(RestartError::Refused)? {
                    ActuatorPlan::Steps { steps: now, replaces_qemu: replaces } => {
                        (steps, replaces_qemu) = (now, replaces);
                    }
                    // Whoever's way it was to begin with, it still is.
                    ActuatorPlan::Qmp => {}
                }
                told = check_all(&steps).await?;
            }
        }
    }
    let was_up = gathered.was_up();
    // An owner's program has a way of its own; a step of ours needs a QEMU that answers, whatever it was asked before.
    if let Ok(qmp) = &scene.monitor
        && steps.iter().any(|step| matches!(step, ActuatorStep::SetRebootAction(_)))
        && let Err(source) = execute::answering(qmp, execute::ANSWERS_WITHIN).await
    {
        let files = tokio::task::spawn_blocking(|| gathered.into_files()).await;
        let kept = Box::new(Kept { files: files.unwrap_or_default(), was_up });
        return Err(RestartError::Lost { kept, source });
    }
    journal.begun(&before, steps.iter().map(ActuatorStep::words).collect()).await;
    // Pictures are compressed while its owner acts.
    let files = tokio::task::spawn_blocking(|| gathered.into_files());
    let done = take_all(scene, &steps, "restart", told, journal).await;
    let mut kept = Kept { files: files.await.unwrap_or_default(), was_up };
    let done = match done {
        Ok(done) => done,
        Err(error) => return Err(error.with(kept)),
    };
    kept.files.push((EVIDENCE, done.told.into_bytes()));
    let after = match &scene.monitor {
        Ok(qmp) if !replaces_qemu => execute::settled(qmp).await.unwrap_or_else(|_| unknown()),
        _ => unknown(),
    };
    let runs = matches!(after, RunState::Running | RunState::Other(_));
    // A command may do what takes longer than that.
    let by_command = matches!(chosen(&scene.vm.ownership, &scene.actuation), Ok(Actuator::Command));
    if !runs && !by_command {
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

/// Starts a VM whose QEMU is gone by what its owner has for that.
///
/// # Errors
/// [`RestartError::Refused`] where nothing was tried.
pub(crate) async fn start(
    scene: &RestartContext,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let steps = start_plan(&scene.vm.ownership, &scene.actuation).map_err(RestartError::Refused)?;
    let told = check_all(&steps).await?;
    journal.begun(&unknown(), steps.iter().map(ActuatorStep::words).collect()).await;
    let done = take_all(scene, &steps, "start", told, journal).await?;
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
    use crate::{config::ActuatorConfig, recovery::evidence::Wanted};
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
            incident: (text("20261122T100001Z-web-1"), text("halted"), text("why\nnot $(id)")),
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
