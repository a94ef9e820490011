//! Plan of a restart by QMP, and whether policy lets it be: pure.

use std::time::{Duration, SystemTime};

use flatline_detector::policy::{Mode, Policy};
use flatline_qemu::discover::ResetAction;
use flatline_samples::RunState;

/// One command to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `set-action reboot=...`: under `-no-reboot`, a bare `system_reset` would end QEMU.
    SetRebootAction(ResetAction),
    /// `system_reset`.
    SystemReset,
    /// `cont`: out of every run state but *running*, a reset leads to *prelaunch*.
    ContinueFromPrelaunch,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);

/// Steps for the restart of a crashed guest whose QEMU is in `run_state`, in order. What QEMU was told to do at a reset is put back
/// later ([`PUT_BACK_AFTER`]): firmware resets the machine once more while it boots.
pub(crate) fn plan(run_state: &RunState) -> Result<Vec<Step>, Refusal> {
    let refuse = |why: &str| Err(Refusal(format!("its run state is {run_state}: {why}")));
    match run_state {
        RunState::Running
        | RunState::GuestPanicked
        | RunState::InternalError
        | RunState::Watchdog => {}
        RunState::Paused | RunState::Debug => return refuse("it was stopped on purpose"),
        RunState::Shutdown => return refuse("the guest powered itself off"),
        RunState::Suspended => return refuse("the guest suspended itself"),
        RunState::IoError => {
            return refuse("mend the storage, then `cont`; a reset would lose data");
        }
        RunState::Prelaunch => return refuse("it was not started yet"),
        _ => return refuse("no restart is known that brings it back"),
    }
    Ok(vec![
        Step::SetRebootAction(ResetAction::Reset),
        Step::SystemReset,
        Step::ContinueFromPrelaunch,
    ])
}

impl Step {
    /// In QEMU's words.
    pub(crate) fn words(self) -> String {
        match self {
            Self::SetRebootAction(action) => format!("set-action reboot={}", action.as_str()),
            Self::SystemReset => "system_reset".to_owned(),
            Self::ContinueFromPrelaunch => "cont, if it does not run by itself".to_owned(),
        }
    }
}

/// How long after its reset a QEMU is told again what to do at the next one. Firmware may reset the machine up to three
/// times more while it boots, which would end or stop a QEMU that was told so already.
pub(crate) const PUT_BACK_AFTER: Duration = Duration::from_secs(10);

/// What is left of a restart that an earlier daemon began and was ended in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remainder {
    /// QEMU was not told to reset the guest: all of it.
    All,
    /// These steps.
    Steps(Vec<Step>),
    /// Nothing but to wait for life.
    Nothing,
}

/// What is left of a restart whose record says that QEMU `was_told` to reset the guest, or doesn't say so yet, now that
/// it is in `run_state`.
///
/// The daemon that told QEMU may have been ended before that was written down. A guest that runs was then either reset or not
/// reached: to wait for its life does no harm, and one that is dead will be found so. A run state that says that it
/// crashed is left by no other way than a reset.
pub(crate) fn remainder(run_state: &RunState, was_told: bool) -> Remainder {
    match run_state {
        RunState::GuestPanicked | RunState::InternalError | RunState::Watchdog if !was_told => {
            Remainder::All
        }
        RunState::Prelaunch => Remainder::Steps(vec![Step::ContinueFromPrelaunch]),
        _ => Remainder::Nothing,
    }
}

/// Whether a crashed guest may be restarted now, as far as that is its own matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clearance {
    /// It may; which restart this is, in words.
    Granted(String),
    /// Not before so long, and why.
    Wait(Duration, String),
    /// Only watching was asked for.
    ObserveOnly,
    /// An operator wants it left alone, and which.
    Held(String),
    /// There were too many restarts lately.
    LimitReached(String),
}

/// What policy looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances<'a> {
    /// The VM's terms.
    pub(crate) policy: &'a Policy,
    /// Why it is to be left alone.
    pub(crate) held: Option<&'a str>,
    /// When it was restarted, or restarted itself, within its window.
    pub(crate) restarts: &'a [SystemTime],
    /// Now.
    pub(crate) now: SystemTime,
}

/// The time over which restarts of all VMs of a host are counted.
pub(crate) const HOST_WINDOW: Duration = Duration::from_secs(60);

/// No pause between two restarts is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Asks policy.
pub(crate) fn clearance(circumstances: &Circumstances<'_>) -> Clearance {
    let Circumstances { policy, held, restarts, now } = *circumstances;
    if policy.mode == Mode::Observe {
        return Clearance::ObserveOnly;
    }
    if let Some(why) = held {
        return Clearance::Held(why.to_owned());
    }
    let count = u32::try_from(restarts.len()).unwrap_or(u32::MAX);
    let window = humantime::format_duration(policy.window);
    if count >= policy.max_restarts {
        return Clearance::LimitReached(format!(
            "{count} of {} restarts within {window} are used up: a person is needed",
            policy.max_restarts,
        ));
    }
    let left = |last: &SystemTime, pause: Duration| {
        // A restart in the future, because the clock was set back, has just been.
        let since = now.duration_since(*last).unwrap_or_default();
        pause.checked_sub(since).filter(|left| !left.is_zero())
    };
    let pause = policy.pause.saturating_mul(2_u32.saturating_pow(count.saturating_sub(1)));
    let pause = pause.min(LONGEST_PAUSE);
    if let Some(left) = restarts.last().and_then(|last| left(last, pause)) {
        let why = format!("it was restarted {count} times within {window}");
        return Clearance::Wait(left, why);
    }
    let number = count.saturating_add(1);
    Clearance::Granted(format!("restart {number} of {} within {window}", policy.max_restarts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_reset_is_always_preceded_by_the_action_that_keeps_qemu_alive() {
        let steps = plan(&RunState::Running).unwrap();
        let action = Step::SetRebootAction(ResetAction::Reset);
        assert_eq!(steps, [action, Step::SystemReset, Step::ContinueFromPrelaunch]);
    }

    #[test]
    fn no_run_state_that_was_chosen_is_answered_with_a_reset() {
        for name in [
            "paused",
            "debug",
            "shutdown",
            "suspended",
            "io-error",
            "prelaunch",
            "inmigrate",
            "postmigrate",
            "finish-migrate",
            "save-vm",
            "restore-vm",
            "colo",
            "anything-new",
        ] {
            let refusal = plan(&RunState::parse(name)).unwrap_err();
            assert!(refusal.to_string().contains(name), "{refusal}");
        }
    }

    fn cleared(
        change: impl FnOnce(&mut Policy),
        restarts_ago: &[u64],
        held: Option<&str>,
    ) -> Clearance {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let times = |ago: &[u64]| -> Vec<_> {
            ago.iter().map(|ago| now - Duration::from_secs(*ago)).collect()
        };
        let mut policy = Config::parse("", "").unwrap().policy;
        change(&mut policy);
        clearance(&Circumstances { policy: &policy, held, restarts: &times(restarts_ago), now })
    }

    #[test]
    fn policy_grants_up_to_its_limit_and_never_in_observe_mode_or_on_hold() {
        let granted = |number: u32| Clearance::Granted(format!("restart {number} of 3 within 1h"));
        assert_eq!(cleared(|_| {}, &[], None), granted(1));
        assert_eq!(cleared(|_| {}, &[900, 600], None), granted(3));
        let limit = cleared(|_| {}, &[900, 600, 300], None);
        assert!(matches!(limit, Clearance::LimitReached(_)), "{limit:?}");
        let none = cleared(|policy| policy.max_restarts = 0, &[], None);
        assert!(matches!(none, Clearance::LimitReached(_)), "{none:?}");
        let observed = cleared(|policy| policy.mode = Mode::Observe, &[], None);
        assert_eq!(observed, Clearance::ObserveOnly);
        let held = cleared(|_| {}, &[], Some("it is held"));
        assert_eq!(held, Clearance::Held("it is held".to_owned()));
    }

    #[test]
    fn each_restart_is_followed_by_a_pause_twice_as_long_as_the_one_before() {
        let wait = |restarts_ago: &[u64]| match cleared(
            |policy| policy.max_restarts = 100,
            restarts_ago,
            None,
        ) {
            Clearance::Wait(left, _) => left.as_secs(),
            _ => 0,
        };
        assert_eq!(wait(&[1]), 9);
        assert_eq!(wait(&[10]), 0);
        assert_eq!(wait(&[100, 1]), 19);
        assert_eq!(wait(&[300, 100, 1]), 39);
        let many: Vec<u64> = (1..60).rev().collect();
        assert_eq!(wait(&many), 3599);
    }

    #[test]
    fn a_restart_that_was_cut_short_is_never_begun_again_where_it_may_have_taken_place() {
        use Remainder::{All, Nothing, Steps};
        let left = |run_state: RunState, was_told| remainder(&run_state, was_told);
        for crashed in [RunState::GuestPanicked, RunState::InternalError, RunState::Watchdog] {
            assert_eq!(left(crashed.clone(), false), All);
            // It crashed again since.
            assert_eq!(left(crashed, true), Nothing);
        }
        for was_told in [false, true] {
            assert_eq!(left(RunState::Running, was_told), Nothing);
            assert_eq!(left(RunState::Paused, was_told), Nothing);
            let cont = Steps(vec![Step::ContinueFromPrelaunch]);
            assert_eq!(left(RunState::Prelaunch, was_told), cont);
        }
    }
}
