//! Reason for the end of a QEMU: pure.
//!
//! Told by its last `SHUTDOWN` event, whose reason is QEMU's `ShutdownCause` (qapi/run-state.json), where one was
//! heard, and by its exit status. The event may have been lost, and is never heard where the monitor isn't kept open:
//! so one that left in good order without it counts as stopped on purpose, and is never started again.

use flatline_detector::verdict::Cause;
use flatline_samples::QmpEvent;

/// Why a QEMU is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The guest powered itself off, or reset itself where that ends its QEMU.
    GuestPoweredOff,
    /// It was ended on purpose: by a signal that QEMU obeys, by QMP, or from its window.
    OperatorStopped,
    /// It left in good order, and did not say why: one of the two above.
    InOrder,
    /// The guest panicked, and QEMU is told to end then.
    ExitedOnPanic,
    /// It ended without having been asked to.
    Crashed {
        /// How.
        how: String,
    },
    /// Neither its status nor anything else is known.
    Unknown,
}

impl ExitReason {
    /// Whether it is a crash: of QEMU, or of the guest.
    pub(crate) fn is_crash(&self) -> bool {
        match self {
            Self::Crashed { .. } | Self::ExitedOnPanic => true,
            Self::GuestPoweredOff | Self::OperatorStopped | Self::InOrder | Self::Unknown => false,
        }
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::GuestPoweredOff => "the guest powered itself off".to_owned(),
            Self::OperatorStopped => "it was stopped".to_owned(),
            Self::InOrder => "it exited with code 0".to_owned(),
            Self::ExitedOnPanic => "it exited because the guest panicked".to_owned(),
            Self::Crashed { how } => how.clone(),
            Self::Unknown => "it ended, with a status that is not known".to_owned(),
        }
    }
}

/// Why it is gone: of the process the status of `wait(2)`, the last `SHUTDOWN` event, and what the guest stood
/// convicted of.
pub(crate) fn exit_reason(
    status: Option<i32>,
    shutdown: Option<&QmpEvent>,
    convicted: Option<Cause>,
) -> ExitReason {
    let reason = match shutdown {
        Some(QmpEvent::Shutdown { reason, .. }) => reason.as_str(),
        _ => "",
    };
    match reason {
        "guest-panic" => return ExitReason::ExitedOnPanic,
        "guest-shutdown" => return ExitReason::GuestPoweredOff,
        // One that crashed before may have been reset by its own watchdog or by a kernel with `panic=5`.
        "guest-reset" if convicted.is_none() => return ExitReason::GuestPoweredOff,
        "guest-reset" => {
            let how = "the crashed guest reset itself, which ends its QEMU".to_owned();
            return ExitReason::Crashed { how };
        }
        "host-signal" | "host-qmp-quit" | "host-ui" => return ExitReason::OperatorStopped,
        "host-error" => {
            let how = "QEMU gave up because of an error of the host's".to_owned();
            return ExitReason::Crashed { how };
        }
        // Another one, or none: the status tells.
        _ => {}
    }
    let Some(status) = status else { return ExitReason::Unknown };
    match (status & 0x7f, status >> 8 & 0xff) {
        // Before QEMU handles it, or from within; it was asked to all the same.
        (libc::SIGTERM | libc::SIGINT | libc::SIGHUP, _) => ExitReason::OperatorStopped,
        (0, 0) if convicted == Some(Cause::Panicked) => ExitReason::ExitedOnPanic,
        (0, 0) => ExitReason::InOrder,
        (0, code) => ExitReason::Crashed { how: format!("it exited with code {code}") },
        (signal, _) => ExitReason::Crashed { how: format!("signal {signal} ended it") },
    }
}

#[cfg(test)]
mod tests {
    use super::{ExitReason, exit_reason};
    use flatline_detector::verdict::Cause;
    use flatline_samples::QmpEvent;

    const KILLED: Option<i32> = Some(9);
    const DUMPED: Option<i32> = Some(11 | 0x80);
    const GOOD: Option<i32> = Some(0);
    const BAD: Option<i32> = Some(1 << 8);

    fn said(reason: &str) -> QmpEvent {
        QmpEvent::Shutdown { guest: reason.starts_with("guest"), reason: reason.to_owned() }
    }

    #[test]
    fn what_was_said_last_counts_more_than_the_status() {
        for status in [GOOD, None, KILLED, BAD] {
            for (reason, expected) in [
                ("guest-shutdown", ExitReason::GuestPoweredOff),
                ("guest-reset", ExitReason::GuestPoweredOff),
                ("guest-panic", ExitReason::ExitedOnPanic),
                ("host-signal", ExitReason::OperatorStopped),
                ("host-qmp-quit", ExitReason::OperatorStopped),
                ("host-ui", ExitReason::OperatorStopped),
            ] {
                assert_eq!(exit_reason(status, Some(&said(reason)), None), expected, "{reason}");
            }
            let gave_up = exit_reason(status, Some(&said("host-error")), None);
            assert!(gave_up.is_crash(), "{gave_up:?}");
        }
    }

    #[test]
    fn an_operator_who_stops_a_crashed_guest_has_stopped_it() {
        for cause in [Cause::Panicked, Cause::Spinning, Cause::Silent] {
            let stopped = exit_reason(GOOD, Some(&said("host-signal")), Some(cause));
            assert_eq!(stopped, ExitReason::OperatorStopped);
        }
        assert_eq!(exit_reason(Some(15), None, None), ExitReason::OperatorStopped);
    }

    #[test]
    fn a_crashed_guest_that_resets_itself_has_not_powered_itself_off() {
        let reset = exit_reason(GOOD, Some(&said("guest-reset")), Some(Cause::Spinning));
        assert!(reset.is_crash(), "{reset:?}");
    }

    #[test]
    fn without_a_word_the_status_tells() {
        assert_eq!(exit_reason(GOOD, None, None), ExitReason::InOrder);
        assert_eq!(exit_reason(GOOD, None, Some(Cause::Spinning)), ExitReason::InOrder);
        assert_eq!(exit_reason(GOOD, None, Some(Cause::Panicked)), ExitReason::ExitedOnPanic);
        assert_eq!(exit_reason(None, None, Some(Cause::Panicked)), ExitReason::Unknown);
        let how = |status| exit_reason(status, None, None).words();
        assert_eq!(how(KILLED), "signal 9 ended it");
        assert_eq!(how(DUMPED), "signal 11 ended it");
        assert_eq!(how(BAD), "it exited with code 1");
        for status in [KILLED, DUMPED, BAD] {
            assert!(exit_reason(status, None, None).is_crash());
        }
    }

    #[test]
    fn a_reason_of_a_later_qemu_says_nothing() {
        assert_eq!(exit_reason(GOOD, Some(&said("snapshot-load")), None), ExitReason::InOrder);
        assert!(exit_reason(KILLED, Some(&said("anything-new")), None).is_crash());
    }

    #[test]
    fn nothing_is_a_crash_that_may_have_been_asked_for() {
        for ending in [
            ExitReason::GuestPoweredOff,
            ExitReason::OperatorStopped,
            ExitReason::InOrder,
            ExitReason::Unknown,
        ] {
            assert!(!ending.is_crash(), "{ending:?}");
        }
    }
}
