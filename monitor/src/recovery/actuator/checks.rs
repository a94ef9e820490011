//! Checks before anything is touched, and what a reset would lead to: asked of the owner's programs.

use std::time::Duration;

use super::{ActuatorStep, Check, RestartContext, chosen, libvirt_uri, steps::note};
use crate::{
    config::Actuator,
    recovery::{Refusal, RestartError},
};
use flatline_qemu::{
    discover::{self, Owner, ResetAction},
    program::{run, virsh::Virsh},
};
use flatline_samples::{MAX_TEXT_CHARS, printable};

/// Time for a check, which reads something that its program knows.
pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// Makes sure of all that has to be so; returns what was told. Nothing counts as a restart until then.
pub(super) async fn check_all(steps: &[ActuatorStep]) -> Result<String, RestartError> {
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
            // `shut off (crashed)`; one that was stopped is `shut off (destroyed)`.
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

/// What a VM's owner has said that is done with its guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Domain {
    /// What a reset leads to.
    pub(super) reboot_action: ResetAction,
    /// What libvirt does by itself at a panic that the guest announces; `None`: it isn't libvirt's, or doesn't say.
    pub(super) on_crash: Option<String>,
}

/// What is to become of a guest at a reset and a panic. libvirt tells QEMU only once it runs
/// (`qemuProcessSetupLifecycleActions` in its src/qemu/qemu_process.c), so that the command line doesn't say, and the domain's XML
/// does.
pub(super) async fn domain(context: &RestartContext) -> Result<Domain, RestartError> {
    let told = context.vm.reboot_action;
    let of_command_line = Domain { reboot_action: told, on_crash: None };
    let Owner::Libvirt { uuid, scope, .. } = &context.vm.ownership.owner else {
        return Ok(of_command_line);
    };
    if !matches!(chosen(&context.vm, &context.actuation), Ok(Actuator::Libvirt)) {
        return Ok(of_command_line);
    }
    let uri = libvirt_uri(*scope, &context.actuation).map_err(RestartError::Refused)?;
    let xml = run(&Virsh::new(&uri, uuid).on_domain("dumpxml"), &[], CHECK_LIMIT).await;
    let xml = xml.map_err(RestartError::NotAsked)?;
    let xml = String::from_utf8_lossy(&xml.stdout);
    let reboot_action = match lifecycle(&xml, "on_reboot") {
        Some("restart") | None => told,
        Some(_) => ResetAction::Shutdown,
    };
    Ok(Domain { reboot_action, on_crash: lifecycle(&xml, "on_crash").map(str::to_owned) })
}

/// What a domain's XML says in such an element, as `<on_reboot>` is. Text in a domain's description is escaped, so that nothing
/// else can look like it.
fn lifecycle<'a>(xml: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{element}>"))?;
    rest.split_once(&format!("</{element}>")).map(|(action, _)| action)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use flatline_qemu::program::Program;

    #[tokio::test]
    async fn a_check_that_fails_ends_a_plan_before_its_first_step() {
        let check = Program::new(["/bin/echo", "MainPID=1"]);
        let steps = [ActuatorStep::Check(check, Check::IsMainProcess(4711))];
        let refused = check_all(&steps).await.unwrap_err();
        assert!(matches!(refused, RestartError::Refused(_)), "{refused:?}");
        let missing = Program::new(["no-such-program"]);
        let steps = [ActuatorStep::Check(missing, Check::IsDown)];
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
    fn a_domain_that_was_stopped_is_not_started() {
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
        assert_eq!(lifecycle(xml, "on_reboot"), Some("destroy"));
        assert_eq!(lifecycle(xml, "on_crash"), None);
        let escaped = "<domain><description>&lt;on_reboot&gt;x</description>";
        assert_eq!(lifecycle(escaped, "on_reboot"), None);
    }
}
