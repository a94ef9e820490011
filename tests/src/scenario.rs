//! Named scenarios: what can become of a guest, and the verdict that is due for it.
//!
//! A [`Scenario`] is data: the guests, what is done to the first of them, and what is [`Expected`]. [`run()`]
//! plays one on a [`Stage`] of its own and tells the [`Outcome`]. In each an idle guest that nothing is done to
//! runs beside.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::guest::GuestConfig;
pub use kvm::{runs as kvm_runs, scenarios as under_kvm};
pub use media::{lacks, needs};
pub use run::{Outcome, run};
pub use stage::{Place, Programs, Stage};

mod arm;
pub mod arm_host;
mod crashes;
mod healthy;
mod host;
mod kvm;
mod lifecycle;
mod lockups;
mod media;
mod run;
pub mod sensors;
mod stage;
mod withheld;

/// Silence before a VM is suspected: the configuration's default.
pub const FLAT_FOR: Duration = Duration::from_secs(10);
/// Silence before one is restarted for which no witness ever answered: shorter than the default, so that a
/// scenario that lasts 40 s would show it.
pub const UNCONFIRMED_FLAT_FOR: Duration = Duration::from_secs(20);
/// Time for a guest to begin.
pub const BOOT_GRACE: Duration = Duration::from_secs(5);

/// Something that can become of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name: lower case, with hyphens.
    pub name: &'static str,
    /// One sentence.
    pub what: &'static str,
    /// The guests, of which the first is the one that it is about; the others are to be left alone.
    pub guests: fn(&mut Place) -> Result<Vec<GuestConfig>>,
    /// Whether they are Linux, and come up before the fault. If not, the fault begins with the start.
    pub boots: bool,
    /// How many of the host's CPUs it keeps busy: other scenarios that do so have to wait.
    pub pins: usize,
    /// Does it, and tells when that was.
    pub fault: fn(&Stage) -> Result<SystemTime>,
    /// What is due.
    pub expected: Expected,
}

/// The verdict that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An incident, with one of these causes; and where it `recovers`, one restart brings it back.
    Crashed {
        /// Any of these will do.
        causes: &'static [&'static str],
        /// Whether a restart helps.
        recovers: bool,
    },
    /// It may go on answering or not, which is up to the guest's kernel: convicted for one of these causes if
    /// it sends nothing any more, and left alone as long as it does.
    AsItAnswers {
        /// Any of these will do.
        causes: &'static [&'static str],
    },
    /// No incident and no reset, and one of these states in the end.
    LeftAlone {
        /// Any of these will do.
        states: &'static [&'static str],
    },
    /// Held for a reason with these words, and no incident.
    Held {
        /// Part of the reason.
        reason_contains: &'static str,
    },
    /// QEMU ended by itself, rightly: no incident.
    Gone,
    /// The guest came back by itself: no incident, and no reset from outside.
    SelfReboot,
    /// Restarts don't help, and end: a person is called.
    Failed {
        /// Any of these will do.
        causes: &'static [&'static str],
    },
}

/// All scenarios, in the order in which they are shown.
pub fn all() -> Vec<Scenario> {
    [
        crashes::SCENARIOS,
        lockups::SCENARIOS,
        healthy::SCENARIOS,
        arm::SCENARIOS,
        media::SCENARIOS,
        lifecycle::SCENARIOS,
        host::SCENARIOS,
        withheld::SCENARIOS,
    ]
    .concat()
}

impl Expected {
    /// In words, for a table.
    pub fn words(self) -> String {
        match self {
            Self::Crashed { causes, recovers } => {
                let end = if recovers { ", back" } else { "" };
                format!("crashed ({}){end}", causes.join(" or "))
            }
            Self::AsItAnswers { causes } => {
                format!("crashed ({}) if it stops answering", causes.join(" or "))
            }
            Self::LeftAlone { states } => format!("left alone ({})", states.join(" or ")),
            Self::Held { reason_contains } => format!("held: {reason_contains}"),
            Self::Gone => "gone".to_owned(),
            Self::SelfReboot => "rebooted itself".to_owned(),
            Self::Failed { causes } => format!("failed ({})", causes.join(" or ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_that_fits_a_socket_path() {
        let all = [all(), under_kvm(), arm_host::scenarios()].concat();
        let names: BTreeSet<&str> = all.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all.len());
        for name in names {
            let plain = |letter: char| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-'
            };
            assert!(name.chars().all(plain) && name.len() <= 40, "{name}");
        }
    }

    #[test]
    fn what_is_expected_is_told_in_words() {
        let crashed = Expected::Crashed { causes: &["halted", "silent"], recovers: true };
        assert_eq!(crashed.words(), "crashed (halted or silent), back");
        assert_eq!(Expected::Held { reason_contains: "paused" }.words(), "held: paused");
    }
}
