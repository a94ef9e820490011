//! Carries out what was planned for an owner.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    ActuatorPlan, ActuatorStep, Check, MonitorSays, Situation, chosen, libvirt_uri, restart_plan,
    start_plan,
};
use crate::{
    config::{Actuator, Means},
    discover::{self, Owner, ResetAction, Vm},
    error_text::in_full,
    program::{Program, Ran, RunError, run, virsh::Virsh},
    qmp::{MAX_TEXT_CHARS, QmpHandle, RunState, is_up, parse_registers, printable},
    recover::{
        Journal, OwnerError, Refusal, Restart, RestartError, Step,
        evidence::{self, Wanted},
        execute,
    },
};

/// Time for a check, which reads something that its program knows.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// The name of the evidence that programs leave.
const EVIDENCE: &str = "actuator.txt";

/// Whom it is about, and what may be used.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its means.
    pub means: Means,
    /// Its monitor, or why it can't be asked; the latter is `None` where there is none at all.
    pub monitor: Result<QmpHandle, Option<String>>,
    /// The incident's id, cause and reason, for the configured command.
    pub incident: (String, String, String),
    /// What is to be gathered of the guest before it is restarted.
    pub evidence: Wanted,
}

impl Scene {
    /// What a command finds in its environment. Only values come from outside, and a value can't become anything
    /// else; what can't stand in one (a null character) was replaced long before.
    fn environment(&self, action: &str) -> Vec<(&'static str, String)> {
        let (id, cause, reason) = &self.incident;
        let ownership = &self.vm.ownership;
        let clean = |text: &str| text.replace(char::is_control, "?");
        vec![
            ("FLATLINE_ACTION", action.to_owned()),
            ("FLATLINE_VM", clean(&self.vm.name)),
            ("FLATLINE_UUID", self.vm.uuid.clone().unwrap_or_default()),
            ("FLATLINE_PID", self.vm.id.pid.to_string()),
            ("FLATLINE_OWNER", ownership.owner.kind().to_owned()),
            ("FLATLINE_OWNER_NAME", clean(&ownership.owner.name().unwrap_or_default())),
            ("FLATLINE_INCIDENT", clean(id)),
            ("FLATLINE_CAUSE", clean(cause)),
            ("FLATLINE_REASON", clean(reason)),
        ]
    }
}

/// Restarts a crashed guest by what its owner has for that. `writes` tells how many writes it has submitted so far,
/// as for [`recover::restart`](crate::recover::restart()), which does it where QMP is the way.
///
/// # Errors
/// As there; [`RestartError::Refused`] leaves the guest untouched.
pub async fn restart(
    scene: &Scene,
    writes: impl Fn() -> Option<u64>,
    journal: &mut impl Journal,
) -> Result<Restart, RestartError> {
    let wanted = &scene.evidence;
    let says = match &scene.monitor {
        Ok(qmp) => {
            // Nothing is asked twice: where QMP is the way, that is looked at there.
            if let Ok(Actuator::Qmp) = chosen(&scene.vm.ownership, &scene.means) {
                let configured = scene.vm.reboot_action;
                return execute::restart(qmp, configured, wanted, writes, journal).await;
            }
            MonitorSays::Is(qmp.query_status().await.map_err(RestartError::Unknown)?)
        }
        Err(Some(why)) => MonitorSays::Nothing(why.clone()),
        Err(None) => MonitorSays::IsNotThere,
    };
    let reboot_action = reboot_action(scene).await?;
    let situation = Situation {
        ownership: &scene.vm.ownership,
        means: &scene.means,
        monitor: says.clone(),
        reboot_action,
        pid: scene.vm.id.pid,
    };
    let (steps, replaces_qemu) = match (restart_plan(&situation), &scene.monitor) {
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
        MonitorSays::Nothing(_) | MonitorSays::IsNotThere => unknown(),
    };
    let mut told = check_all(&steps).await?;
    let (writes_on, gathered) = tokio::join!(execute::still_writing(&before, writes), async {
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
    let was_up = gathered
        .registers()
        .is_some_and(|text| parse_registers(text).is_ok_and(|vcpus| is_up(&vcpus)));
    journal.begun(&before, steps.iter().map(ActuatorStep::words).collect()).await;
    // Pictures are compressed while its owner acts.
    let files = tokio::task::spawn_blocking(|| gathered.into_files());
    let done = take_all(scene, &steps, "restart", told, journal).await;
    let mut evidence = files.await.unwrap_or_default();
    let done = match done {
        Ok(done) => done,
        Err(error) => return Err(error.with_evidence(evidence)),
    };
    evidence.push((EVIDENCE, done.told.into_bytes()));
    let after = match &scene.monitor {
        Ok(qmp) if !replaces_qemu => execute::settled(qmp).await.unwrap_or_else(|_| unknown()),
        _ => unknown(),
    };
    let runs = matches!(after, RunState::Running | RunState::Other(_));
    // A command may do what takes longer than that.
    let by_command = matches!(chosen(&scene.vm.ownership, &scene.means), Ok(Actuator::Command));
    if !runs && !by_command {
        let evidence = evidence.into();
        return Err(RestartError::NotRunning { run_state: after, evidence });
    }
    Ok(Restart {
        at: done.at,
        run_states: (before, after),
        was_up,
        action: done.action,
        evidence,
        put_back: if replaces_qemu { ResetAction::Reset } else { reboot_action },
    })
}

/// Starts a VM whose QEMU is gone by what its owner has for that.
///
/// # Errors
/// [`RestartError::Refused`] where nothing was tried.
pub async fn start(scene: &Scene, journal: &mut impl Journal) -> Result<Restart, RestartError> {
    let steps = start_plan(&scene.vm.ownership, &scene.means).map_err(RestartError::Refused)?;
    let told = check_all(&steps).await?;
    journal.begun(&unknown(), steps.iter().map(ActuatorStep::words).collect()).await;
    let done = take_all(scene, &steps, "start", told, journal).await?;
    Ok(Restart {
        at: done.at,
        run_states: (unknown(), unknown()),
        was_up: false,
        action: done.action,
        evidence: vec![(EVIDENCE, done.told.into_bytes())],
        put_back: ResetAction::Reset,
    })
}

fn unknown() -> RunState {
    RunState::Other("not known".to_owned())
}

/// What a reset leads to. libvirt tells QEMU only once it runs (`qemuProcessSetupLifecycleActions` in its
/// src/qemu/qemu_process.c), so that the command line doesn't say, and the domain's XML does.
async fn reboot_action(scene: &Scene) -> Result<ResetAction, RestartError> {
    let told = scene.vm.reboot_action;
    let Owner::Libvirt { uuid, scope, .. } = &scene.vm.ownership.owner else { return Ok(told) };
    if !matches!(chosen(&scene.vm.ownership, &scene.means), Ok(Actuator::Libvirt)) {
        return Ok(told);
    }
    let uri = libvirt_uri(*scope, &scene.means).map_err(RestartError::Refused)?;
    let xml = run(&Virsh::new(&uri, uuid).on_domain("dumpxml"), &[], CHECK_LIMIT).await;
    let xml = xml.map_err(RestartError::NotAsked)?;
    Ok(match on_reboot(&String::from_utf8_lossy(&xml.stdout)) {
        Some("restart") | None => told,
        Some(_) => ResetAction::Shutdown,
    })
}

/// The domain's `<on_reboot>`. Text in a domain's description is escaped, so that nothing else can look like it.
fn on_reboot(xml: &str) -> Option<&str> {
    let (_, rest) = xml.split_once("<on_reboot>")?;
    rest.split_once("</on_reboot>").map(|(action, _)| action)
}

/// What was done, and what was told.
struct Done {
    at: SystemTime,
    action: String,
    told: String,
}

/// Makes sure of all that has to be so; returns what was told. Nothing counts as a restart until then.
async fn check_all(steps: &[ActuatorStep]) -> Result<String, RestartError> {
    let mut told = String::new();
    for step in steps {
        let ActuatorStep::Check(program, check) = step else { continue };
        let ran = run(program, &[], CHECK_LIMIT).await;
        note(&mut told, program, &ran);
        let ran = ran.map_err(RestartError::NotAsked)?;
        holds(check, &String::from_utf8_lossy(&ran.stdout))
            .map_err(|why| RestartError::Refused(Refusal(why)))?;
    }
    Ok(told)
}

async fn take_all(
    scene: &Scene,
    steps: &[ActuatorStep],
    action: &str,
    mut told: String,
    journal: &mut impl Journal,
) -> Result<Done, RestartError> {
    let environment = scene.environment(action);
    let (mut at, mut done) = (None, Vec::new());
    for step in steps {
        match step {
            ActuatorStep::Check(..) => {}
            ActuatorStep::SetRebootAction(wanted) => {
                let Ok(qmp) = &scene.monitor else { continue };
                let step = Step::SetRebootAction(*wanted);
                let set = execute::take(qmp, step, scene.vm.reboot_action).await;
                set.map_err(|(step, source)| failed(step, at, source))?;
            }
            ActuatorStep::Tell(program) => {
                let ran = run(program, &[], CHECK_LIMIT).await;
                note(&mut told, program, &ran);
                let ran = ran.map_err(|source| failed("set-action", at, source))?;
                if !is_return(&ran.stdout) {
                    return Err(failed("set-action", at, OwnerError::Answer(ran)));
                }
            }
            ActuatorStep::Run(program) => {
                let begin = SystemTime::now();
                let ran = run(program, &environment, scene.means.command_limit).await;
                note(&mut told, program, &ran);
                // One that failed may have done it all the same.
                if at.is_none() {
                    at = Some(begin);
                    journal.told(begin).await;
                }
                ran.map_err(|source| failed("its owner's program", at, source))?;
                done.push(program.line());
            }
        }
    }
    Ok(Done { at: at.unwrap_or_else(SystemTime::now), action: done.join(", "), told })
}

fn failed(
    step: &'static str,
    reset_at: Option<SystemTime>,
    source: impl Into<OwnerError>,
) -> RestartError {
    RestartError::Owner { step, reset_at, evidence: Box::default(), source: source.into() }
}

/// Adds a program and what it wrote to the evidence.
fn note(told: &mut String, program: &Program, ran: &Result<Ran, RunError>) {
    told.push_str(&format!("$ {}\n", program.line()));
    let (wrote, failure) = match ran {
        Ok(ran) => (Some(ran), None),
        Err(error) => (error.ran(), Some(in_full(error))),
    };
    for part in wrote.into_iter().flat_map(|ran| [&ran.stdout, &ran.stderr]) {
        let text = String::from_utf8_lossy(part);
        told.extend(text.chars().filter(|c| *c == '\n' || !c.is_control()));
    }
    if let Some(failure) = failure {
        told.push_str(&format!("{failure}\n"));
    }
}

/// Whether QEMU's reply is a result and no error.
fn is_return(reply: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(reply)
        .is_ok_and(|reply| reply.get("return").is_some())
}

/// Whether what a program printed is as it must be; else why not.
fn holds(check: &Check, printed: &str) -> Result<(), String> {
    let property = |name: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim().to_owned()
    };
    match check {
        Check::IsMainProcess(pid) => {
            let main = property("MainPID");
            if main == pid.to_string() {
                Ok(())
            } else {
                let main: String = main.chars().filter(char::is_ascii_digit).take(10).collect();
                Err(format!("its unit is about process {main:?}, and not about this QEMU"))
            }
        }
        Check::IsDown => match property("ActiveState").as_str() {
            "failed" | "inactive" => Ok(()),
            "activating" => Err("systemd is starting its unit by itself".to_owned()),
            "" => Err("systemd doesn't tell how its unit does".to_owned()),
            _ => Err("its unit is up, or about to go down".to_owned()),
        },
        Check::IsCalled(name) => match printed.lines().next() {
            Some(first) if first == name => Ok(()),
            _ => Err("libvirt has another domain under its UUID".to_owned()),
        },
        Check::Crashed => match printed.lines().next().unwrap_or_default().trim() {
            // `shut off (crashed)`; one that somebody stopped is `shut off (destroyed)`.
            state if state.ends_with("(crashed)") || state == "crashed (panicked)" => Ok(()),
            state => Err(format!("libvirt says that it is {:?}", printable(state, MAX_TEXT_CHARS))),
        },
        Check::AreThreadsOf(pid) => {
            let threads = threads(printed).ok_or("libvirt doesn't tell its vCPUs' threads")?;
            if !threads.is_empty() && threads.iter().all(|tid| discover::has_thread(*pid, *tid)) {
                Ok(())
            } else {
                Err("the vCPUs of libvirt's domain are not those of this QEMU".to_owned())
            }
        }
    }
}

/// The threads in a reply to `query-cpus-fast`.
fn threads(reply: &str) -> Option<Vec<u32>> {
    let reply: serde_json::Value = serde_json::from_str(reply).ok()?;
    let vcpus = reply.get("return")?.as_array()?;
    let thread = |vcpu: &serde_json::Value| u32::try_from(vcpu.get("thread-id")?.as_u64()?).ok();
    vcpus.iter().map(thread).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::discover::Ownership;

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
    fn scene(script: &str) -> Scene {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let text = |text: &str| text.to_owned();
        let vm = Arc::new(Vm::stand_in(Ownership::bare(), &[]));
        Scene {
            evidence: Wanted::nothing(vm.clone(), text("20261122T100001Z-web-1")),
            vm,
            means: Means {
                actuator: Actuator::Command,
                command,
                command_limit: Duration::from_secs(20),
                start_exited: true,
                ..Means::default()
            },
            monitor: Err(None),
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
        let printed = done.evidence.iter().find(|(name, _)| *name == EVIDENCE).unwrap();
        let printed = String::from_utf8(printed.1.clone()).unwrap();
        assert!(printed.contains("\nrestart web-1 halted\nwhy?not $(id)\n"), "{printed}");
        let done = start(&scene("echo $FLATLINE_ACTION"), &mut noted).await.unwrap();
        let printed = String::from_utf8(done.evidence[0].1.clone()).unwrap();
        assert!(printed.ends_with("\nstart\n"), "{printed}");
    }

    #[tokio::test]
    async fn a_command_that_fails_may_have_done_it_all_the_same() {
        let mut noted = Noted::default();
        let failed = restart(&scene("exit 7"), || None, &mut noted).await.unwrap_err();
        assert!(matches!(failed, RestartError::Owner { reset_at: Some(_), .. }), "{failed:?}");
        assert!(in_full(&failed).contains("exited with code 7"), "{}", in_full(&failed));
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
        scene.means.start_exited = false;
        let refused = start(&scene, &mut noted).await.unwrap_err();
        assert!(matches!(refused, RestartError::Refused(_)), "{refused:?}");
        assert!(noted.0.is_empty() && !mark.exists());
    }

    #[tokio::test]
    async fn a_check_that_fails_ends_a_plan_before_its_first_step() {
        let check = Program::new(["/bin/echo", "MainPID=1"]);
        let steps = [ActuatorStep::Check(check, Check::IsMainProcess(4711))];
        let refused = check_all(&steps).await.unwrap_err();
        assert!(matches!(refused, RestartError::Refused(_)), "{refused:?}");
        let nobody = Program::new(["no-such-program"]);
        let steps = [ActuatorStep::Check(nobody, Check::IsDown)];
        let unknown = check_all(&steps).await.unwrap_err();
        assert!(matches!(unknown, RestartError::NotAsked(_)), "{unknown:?}");
        let check = Program::new(["/bin/echo", "MainPID=4711"]);
        let steps = [ActuatorStep::Check(check, Check::IsMainProcess(4711))];
        assert!(check_all(&steps).await.unwrap().contains("MainPID=4711"));
    }

    #[test]
    fn a_unit_is_only_restarted_if_it_is_about_this_very_process() {
        assert!(holds(&Check::IsMainProcess(4711), "MainPID=4711\n").is_ok());
        for printed in ["MainPID=0\n", "MainPID=47110\n", "", "Main\n", "XMainPID=4711\n"] {
            assert!(holds(&Check::IsMainProcess(4711), printed).is_err(), "{printed}");
        }
    }

    #[test]
    fn a_unit_is_only_started_if_it_is_down_and_stays_down() {
        let down = |state: &str| holds(&Check::IsDown, &format!("ActiveState={state}\n")).is_ok();
        assert!(down("failed") && down("inactive"));
        for state in ["active", "activating", "deactivating", "reloading", "", "x"] {
            assert!(!down(state), "{state}");
        }
    }

    #[test]
    fn a_domain_is_told_by_its_name_as_a_whole() {
        let called = |printed: &str| holds(&Check::IsCalled("web-1".to_owned()), printed).is_ok();
        assert!(called("web-1\n\n"));
        assert!(!called("web-10\n") && !called("") && !called("\nweb-1\n"));
    }

    #[test]
    fn a_domain_that_somebody_stopped_is_not_started() {
        let crashed = |printed: &str| holds(&Check::Crashed, printed);
        assert!(crashed("shut off (crashed)\n\n").is_ok());
        for state in ["shut off (destroyed)", "shut off (shutdown)", "running (booted)", ""] {
            assert!(crashed(state).is_err(), "{state}");
        }
    }

    #[test]
    fn a_domain_whose_vcpus_are_anothers_is_not_reset() {
        let own = std::process::id();
        let check =
            |reply: serde_json::Value| holds(&Check::AreThreadsOf(own), &reply.to_string()).is_ok();
        assert!(check(json!({"return": [{"thread-id": own}], "id": "libvirt-12"})));
        assert!(!check(json!({"return": [{"thread-id": own}, {"thread-id": 1}]})));
        assert!(!check(json!({"return": []})));
        assert!(!check(json!({"return": [{"thread-id": -1}]})));
        assert!(!check(json!({"error": {"class": "GenericError", "desc": "x"}})));
        assert!(holds(&Check::AreThreadsOf(own), "no JSON").is_err());
    }

    #[test]
    fn what_a_domain_does_on_a_reboot_is_read_from_its_xml() {
        let xml =
            "<domain>\n  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>destroy</on_reboot>";
        assert_eq!(on_reboot(xml), Some("destroy"));
        assert_eq!(on_reboot("<domain><description>&lt;on_reboot&gt;x</description>"), None);
    }

    #[test]
    fn an_answer_with_an_error_is_no_success() {
        assert!(is_return(br#"{"return":{},"id":"libvirt-12"}"#));
        assert!(!is_return(br#"{"id":"x","error":{"class":"CommandNotFound","desc":"d"}}"#));
        assert!(!is_return(b"") && !is_return(b"error: x"));
    }
}
