//! What would be done, and whether it may be: pure.

use std::fmt;

use crate::{
    config::{Mode, Policy},
    discover::ResetAction,
    qmp::RunState,
};

/// One command to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `set-action reboot=...`: under `-no-reboot`, a bare `system_reset` would end QEMU.
    SetRebootAction(ResetAction),
    /// `system_reset`.
    SystemReset,
    /// `cont`: out of every run state but *running*, a reset leads to *prelaunch*.
    ContinueFromPrelaunch,
}

/// The steps for one restart, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All of them.
    pub steps: Vec<Step>,
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Plans the restart of a crashed guest whose QEMU is in `run_state`, and which leaves QEMU as it was:
/// `configured` is the reboot action of its command line.
pub fn plan(run_state: &RunState, configured: ResetAction) -> Result<Plan, Refusal> {
    let refuse = |why: &str| Err(Refusal(format!("its run state is {run_state}: {why}")));
    match run_state {
        RunState::Running
        | RunState::GuestPanicked
        | RunState::InternalError
        | RunState::Watchdog => {}
        RunState::Paused | RunState::Debug => return refuse("somebody stopped it on purpose"),
        RunState::Shutdown => return refuse("the guest powered itself off"),
        RunState::Suspended => return refuse("the guest suspended itself"),
        RunState::IoError => {
            return refuse("mend the storage, then `cont`; a reset would lose data");
        }
        RunState::Prelaunch => return refuse("it was not started yet"),
        _ => return refuse("no restart is known that brings it back"),
    }
    let mut steps = vec![
        Step::SetRebootAction(ResetAction::Reset),
        Step::SystemReset,
        Step::ContinueFromPrelaunch,
    ];
    if configured == ResetAction::Shutdown {
        steps.push(Step::SetRebootAction(configured));
    }
    Ok(Plan { steps })
}

/// Whether policy lets a crashed guest be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clearance {
    /// It does.
    Granted,
    /// Only watching was asked for.
    ObserveOnly,
    /// There were too many restarts lately.
    LimitReached(String),
}

/// Asks policy, after `restarts` within its window.
pub fn clearance(policy: &Policy, restarts: u32) -> Clearance {
    if policy.mode == Mode::Observe {
        return Clearance::ObserveOnly;
    }
    if restarts >= policy.max_restarts {
        return Clearance::LimitReached(format!(
            "{restarts} of {} restarts within {} are used up: a person is needed",
            policy.max_restarts,
            humantime::format_duration(policy.window)
        ));
    }
    Clearance::Granted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_reset_is_always_preceded_by_the_action_that_keeps_qemu_alive() {
        let plan = plan(&RunState::Running, ResetAction::Reset).unwrap();
        assert_eq!(
            plan.steps,
            [
                Step::SetRebootAction(ResetAction::Reset),
                Step::SystemReset,
                Step::ContinueFromPrelaunch
            ]
        );
    }

    #[test]
    fn a_qemu_that_was_told_not_to_reboot_is_told_so_again_afterwards() {
        let plan = plan(&RunState::GuestPanicked, ResetAction::Shutdown).unwrap();
        assert_eq!(plan.steps.last(), Some(&Step::SetRebootAction(ResetAction::Shutdown)));
    }

    #[test]
    fn no_run_state_that_somebody_chose_is_answered_with_a_reset() {
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
            let refusal = plan(&RunState::parse(name), ResetAction::Reset).unwrap_err();
            assert!(refusal.to_string().contains(name), "{refusal}");
        }
    }

    #[test]
    fn policy_grants_up_to_its_limit_and_never_in_observe_mode() {
        let mut policy = Config::parse("", "").unwrap().policy;
        assert_eq!(clearance(&policy, policy.max_restarts - 1), Clearance::Granted);
        assert!(matches!(clearance(&policy, policy.max_restarts), Clearance::LimitReached(_)));
        policy.mode = Mode::Observe;
        assert_eq!(clearance(&policy, 0), Clearance::ObserveOnly);
    }
}
