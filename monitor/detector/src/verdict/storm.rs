//! Storms: many VMs that fall silent at the same moment. The host is at fault then, and restarting guests won't mend it.
//!
//! Pure, like all of the verdict. All VMs are read in one tick, so that those which fell silent together are
//! suspected in the same tick or the next: a conviction waits for the second of those, where it matters.

use std::time::Duration;

use super::{Cause, State, Tally, Watch};
use crate::policy::Storm;

/// A VM that was convicted of silence so long ago still counts.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What all VMs together show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StormAssessment {
    /// Too few are silent for more than a coincidence.
    Few,
    /// Enough may be: some were not heard yet.
    Undecided,
    /// So many are, in words; no guest is at fault.
    Storm(String),
}

/// Assesses whether the host has a storm, from all of its VMs: `watches`, and so many that live beside these.
pub fn assess_storm<'a>(
    watches: impl Iterator<Item = &'a Watch>,
    living: usize,
    storm: &Storm,
    now: Duration,
) -> StormAssessment {
    let living = u32::try_from(living).unwrap_or(u32::MAX);
    let (mut all, mut silent, mut unheard) = (living, 0_u32, 0_u32);
    for watch in watches {
        match vote(watch, now) {
            StormVote::Elsewhere => continue,
            StormVote::Lives => {}
            StormVote::Unheard => unheard += 1,
            StormVote::Silent => silent += 1,
        }
        all += 1;
    }
    let enough = |vms: u32| vms >= storm.vms && f64::from(vms) >= storm.share * f64::from(all);
    if enough(silent) {
        StormAssessment::Storm(format!(
            "{silent} of {all} VMs fell silent at the same moment: the host is ill, and nobody is restarted"
        ))
    } else if enough(silent + unheard) {
        StormAssessment::Undecided
    } else {
        StormAssessment::Few
    }
}

/// Whether this VM is one of those that are silent together.
pub fn is_silent(watch: &Watch, now: Duration) -> bool {
    matches!(vote(watch, now), StormVote::Silent)
}

enum StormVote {
    /// Says nothing of the host: it is stopped, or can't be seen.
    Elsewhere,
    Lives,
    /// Silent, and its witnesses have not answered yet.
    Unheard,
    Silent,
}

fn vote(watch: &Watch, now: Duration) -> StormVote {
    match &watch.state {
        State::Held if watch.storm.is_some() => StormVote::Silent,
        State::Held | State::Unobservable | State::Failed { .. } => StormVote::Elsewhere,
        // Agents that fall silent together have one reason.
        State::Starting | State::Alive => match watch.missed_beats() {
            Some(missed) if now.saturating_sub(missed.since) < REMEMBERED => StormVote::Silent,
            _ => StormVote::Lives,
        },
        State::Suspect { tally } => match tally {
            Tally { rounds: 0, .. } => StormVote::Unheard,
            // Guests that boot together do nothing that can be seen, either, and nothing speaks against them.
            Tally { halted: 0, stuck: 0, silent: 0, last_words: 0, .. } => StormVote::Lives,
            Tally { .. } => StormVote::Silent,
        },
        State::Crashed { cause } | State::Recovering { cause, .. } => {
            let recent = now.saturating_sub(watch.since) < REMEMBERED;
            match cause {
                Cause::Halted
                | Cause::Spinning
                | Cause::Silent
                | Cause::QemuUnresponsive
                | Cause::UserlandDead
                    if recent =>
                {
                    StormVote::Silent
                }
                // A guest that announced its crash did not fall silent.
                Cause::Panicked
                | Cause::InternalError
                | Cause::Watchdog
                | Cause::BootLoop
                | Cause::ServiceDead => StormVote::Elsewhere,
                Cause::Halted
                | Cause::Spinning
                | Cause::Silent
                | Cause::QemuExited
                | Cause::QemuUnresponsive
                | Cause::UserlandDead => StormVote::Lives,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const STORM: Storm = Storm { vms: 3, share: 0.5 };

    fn in_state(state: State) -> Watch {
        let mut watch = Watch::begin(NOW, Duration::from_secs(900), Duration::from_secs(60));
        watch.state = state;
        watch
    }

    fn suspect(rounds: u32) -> Watch {
        in_state(State::Suspect { tally: Tally { rounds, stuck: rounds, ..Tally::default() } })
    }

    fn judge(watches: &[Watch]) -> StormAssessment {
        assess_storm(watches.iter(), 0, &STORM, NOW)
    }

    #[test]
    fn as_many_and_as_large_a_share_as_configured_are_a_storm() {
        let alive = || in_state(State::Alive);
        let three = [suspect(1), suspect(1), suspect(1)];
        assert!(matches!(judge(&three), StormAssessment::Storm(_)));
        assert_eq!(judge(&three[..2]), StormAssessment::Few);
        assert!(matches!(assess_storm(three.iter(), 3, &STORM, NOW), StormAssessment::Storm(_)));
        assert_eq!(assess_storm(three.iter(), 4, &STORM, NOW), StormAssessment::Few);
        let of_six = [three.to_vec(), vec![alive(), alive(), alive()]].concat();
        assert!(matches!(judge(&of_six), StormAssessment::Storm(_)));
        assert_eq!(judge(&[of_six, vec![alive()]].concat()), StormAssessment::Few);
    }

    #[test]
    fn a_vm_that_was_not_heard_yet_leaves_it_undecided() {
        assert_eq!(judge(&[suspect(1), suspect(0), suspect(0)]), StormAssessment::Undecided);
        assert_eq!(judge(&[suspect(1), suspect(0), in_state(State::Alive)]), StormAssessment::Few);
    }

    #[test]
    fn guests_that_nothing_speaks_against_are_no_storm_however_many() {
        let mut booting = suspect(1);
        booting.state = State::Suspect { tally: Tally { rounds: 1, ..Tally::default() } };
        assert_eq!(judge(&[booting.clone(), booting.clone(), booting]), StormAssessment::Few);
    }

    #[test]
    fn the_paused_say_nothing_and_those_held_in_a_storm_go_on_counting() {
        let held = || in_state(State::Held);
        let mut stormy = held();
        stormy.storm = Some("3 of 3".to_owned());
        assert!(matches!(
            judge(&[stormy.clone(), stormy.clone(), stormy, held()]),
            StormAssessment::Storm(_)
        ));
        assert_eq!(judge(&[held(), held(), held()]), StormAssessment::Few);
    }

    #[test]
    fn the_convicted_count_for_a_while_unless_they_said_so_themselves() {
        let crashed = |cause, ago| {
            let mut watch = in_state(State::Crashed { cause });
            watch.since = NOW - Duration::from_secs(ago);
            watch
        };
        let three = |cause, ago| [crashed(cause, ago), crashed(cause, ago), crashed(cause, ago)];
        assert!(matches!(judge(&three(Cause::Halted, 29)), StormAssessment::Storm(_)));
        assert_eq!(judge(&three(Cause::Halted, 31)), StormAssessment::Few);
        assert_eq!(judge(&three(Cause::Panicked, 1)), StormAssessment::Few);
    }
}
