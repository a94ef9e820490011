//! QMP events, as far as they say something about a guest's life.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::{MAX_TEXT_CHARS, printable};

/// An event of a QEMU. Texts are at most [`MAX_TEXT_CHARS`] printable ASCII characters; a text that
/// the event lacks is empty, a truth value that it lacks is `false`.
///
/// Events are not replayed to a client that connects late, and one reset gives several
/// [`QmpEvent::Reset`]: ask for the run state, and count bursts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QmpEvent {
    /// The guest reported its panic (pvpanic, Hyper-V, s390).
    GuestPanicked {
        /// What QEMU does about it: `pause`, `poweroff` or `run`.
        action: String,
    },
    /// The guest panicked and has loaded a crash kernel: it is saving its own dump.
    GuestCrashloaded,
    /// The machine was reset.
    Reset {
        /// By the guest, not by a client of QEMU.
        guest: bool,
    },
    /// The machine shuts down; QEMU exits unless it is told otherwise.
    Shutdown {
        /// By the guest, not by a client or a signal.
        guest: bool,
        /// QEMU's `ShutdownCause`: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-signal`, ...
        reason: String,
    },
    /// The vCPUs were stopped, for whatever reason.
    Stop,
    /// The vCPUs go on.
    Resume,
    /// The guest suspended to RAM.
    Suspend,
    /// The guest woke from suspend.
    Wakeup,
    /// The watchdog device fired.
    Watchdog {
        /// QEMU's `WatchdogAction`: `reset`, `pause`, `poweroff`, `none`, ...
        action: String,
    },
    /// A block device failed.
    BlockIoError {
        /// What QEMU does about it: `ignore`, `report` or `stop`.
        action: String,
    },
    /// An outgoing or incoming migration's new status (needs the `events` migration capability).
    MigrationStatus(String),
    /// A device was unplugged.
    DeviceDeleted,
    /// Any other event's name.
    Other(String),
}

impl QmpEvent {
    /// The event of this name and data; never fails.
    #[must_use]
    pub fn parse(name: &str, data: &Value) -> Self {
        let text = |field: &str| {
            let value = data.get(field).and_then(Value::as_str).unwrap_or_default();
            printable(value, MAX_TEXT_CHARS)
        };
        let truth = |field: &str| data.get(field).and_then(Value::as_bool).unwrap_or(false);
        match name {
            "GUEST_PANICKED" => Self::GuestPanicked { action: text("action") },
            "GUEST_CRASHLOADED" => Self::GuestCrashloaded,
            "RESET" => Self::Reset { guest: truth("guest") },
            "SHUTDOWN" => Self::Shutdown { guest: truth("guest"), reason: text("reason") },
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "SUSPEND" => Self::Suspend,
            "WAKEUP" => Self::Wakeup,
            "WATCHDOG" => Self::Watchdog { action: text("action") },
            "BLOCK_IO_ERROR" => Self::BlockIoError { action: text("action") },
            "MIGRATION" => Self::MigrationStatus(text("status")),
            "DEVICE_DELETED" => Self::DeviceDeleted,
            other => Self::Other(printable(other, MAX_TEXT_CHARS)),
        }
    }

    /// Whether a surplus of this event may be left out: it changes nothing that a verdict rests on
    /// (a block error that stops the VM comes with a [`QmpEvent::Stop`] of its own, and a machine that can't come up may reset
    /// itself hundreds of times a second: all that counts is that it does).
    pub fn is_expendable(&self) -> bool {
        match self {
            Self::BlockIoError { .. }
            | Self::DeviceDeleted
            | Self::Reset { guest: true }
            | Self::Other(_) => true,
            Self::GuestPanicked { .. }
            | Self::GuestCrashloaded
            | Self::Reset { guest: false }
            | Self::Shutdown { .. }
            | Self::Stop
            | Self::Resume
            | Self::Suspend
            | Self::Wakeup
            | Self::Watchdog { .. }
            | Self::MigrationStatus(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::QmpEvent;

    #[test]
    fn each_event_is_known_with_its_fields() {
        let cases = [
            (
                "GUEST_PANICKED",
                json!({"action": "pause", "info": {"type": "hyper-v"}}),
                QmpEvent::GuestPanicked { action: "pause".into() },
            ),
            ("GUEST_CRASHLOADED", json!({"action": "run"}), QmpEvent::GuestCrashloaded),
            (
                "RESET",
                json!({"guest": true, "reason": "guest-reset"}),
                QmpEvent::Reset { guest: true },
            ),
            (
                "SHUTDOWN",
                json!({"guest": true, "reason": "guest-panic"}),
                QmpEvent::Shutdown { guest: true, reason: "guest-panic".into() },
            ),
            ("STOP", Value::Null, QmpEvent::Stop),
            ("RESUME", Value::Null, QmpEvent::Resume),
            ("SUSPEND", Value::Null, QmpEvent::Suspend),
            ("WAKEUP", Value::Null, QmpEvent::Wakeup),
            ("WATCHDOG", json!({"action": "reset"}), QmpEvent::Watchdog { action: "reset".into() }),
            (
                "BLOCK_IO_ERROR",
                json!({"device": "d", "operation": "write", "action": "stop"}),
                QmpEvent::BlockIoError { action: "stop".into() },
            ),
            ("MIGRATION", json!({"status": "active"}), QmpEvent::MigrationStatus("active".into())),
            ("DEVICE_DELETED", json!({"path": "/x"}), QmpEvent::DeviceDeleted),
            ("RTC_CHANGE", json!({"offset": 1}), QmpEvent::Other("RTC_CHANGE".into())),
        ];
        for (name, data, expected) in cases {
            assert_eq!(QmpEvent::parse(name, &data), expected);
        }
    }

    #[test]
    fn missing_and_mistyped_fields_take_their_defaults() {
        assert_eq!(QmpEvent::parse("RESET", &Value::Null), QmpEvent::Reset { guest: false });
        assert_eq!(
            QmpEvent::parse("SHUTDOWN", &json!({"guest": "yes", "reason": 7})),
            QmpEvent::Shutdown { guest: false, reason: String::new() }
        );
        assert_eq!(
            QmpEvent::parse("GUEST_PANICKED", &json!([1, 2])),
            QmpEvent::GuestPanicked { action: String::new() }
        );
    }

    #[test]
    fn a_hostile_text_is_cut_and_made_printable() {
        let data = json!({"action": format!("\u{1b}{}", "a".repeat(10_000))});
        assert_eq!(
            QmpEvent::parse("WATCHDOG", &data),
            QmpEvent::Watchdog { action: format!("?{}", "a".repeat(63)) }
        );
    }
}
