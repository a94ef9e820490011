//! Storms: many VMs that fall silent at the same moment. The host is at fault then, and restarting guests won't mend it.
//!
//! A storm holds VMs of others, so it is told by owners and not by heads. Each user that has VMs here has one vote, the share
//! of its VMs that are silent: neither many dead nor many living VMs of one user decide about another's. Where the VMs are of
//! several users, at least [`owners_needed`] of them take part in a storm, each with so large a share of its own VMs. Where all
//! are of one user, as libvirt's and Proxmox's are, its own share decides.
//!
//! Guests that are deaf by their registers have a vote, and are not held (see `step`). How long the others may be held is said
//! by [`StormTime`](super::StormTime).
//!
//! Pure, like all of the verdict. All VMs are read in one tick, so that those which fell silent together are
//! suspected in the same tick or the next: a conviction waits for the second of those, where it matters.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Cause, State, Tally, Watch, inhibit};
use crate::policy::Storm;

/// A VM that was convicted of silence so long ago still counts.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Of so many users, three take part in a storm; of fewer, two.
const MANY_OWNERS: usize = 5;

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

/// What the VMs of one user show.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    all: u32,
    silent: u32,
    unheard: u32,
}

/// Assesses whether the host has a storm, from all of its VMs: `watches`, each with the id of its user, and so many of each
/// user that live beside these.
pub fn assess_storm<'a>(
    watches: impl Iterator<Item = (u32, &'a Watch)>,
    living: &BTreeMap<u32, u32>,
    storm: &Storm,
    now: Duration,
) -> StormAssessment {
    let mut owners: BTreeMap<u32, Owner> = BTreeMap::new();
    for (uid, watch) in watches {
        let (silent, unheard) = match vote(watch, now) {
            StormVote::Elsewhere => continue,
            StormVote::Lives => (0, 0),
            StormVote::Unheard => (0, 1),
            StormVote::Silent => (1, 0),
        };
        let owner = owners.entry(uid).or_default();
        owner.all += 1;
        owner.silent += silent;
        owner.unheard += unheard;
    }
    for (uid, living) in living.iter().filter(|(_, living)| **living > 0) {
        owners.entry(*uid).or_default().all += living;
    }
    if is_enough(&owners, storm, |owner| owner.silent) {
        StormAssessment::Storm(in_words(&owners))
    } else if is_enough(&owners, storm, |owner| owner.silent + owner.unheard) {
        StormAssessment::Undecided
    } else {
        StormAssessment::Few
    }
}

/// Whether those that `count` counts are enough for a storm.
fn is_enough(owners: &BTreeMap<u32, Owner>, storm: &Storm, count: fn(&Owner) -> u32) -> bool {
    if owners.values().map(count).sum::<u32>() < storm.vms {
        return false;
    }
    let shares: Vec<f64> =
        owners.values().map(|owner| f64::from(count(owner)) / f64::from(owner.all)).collect();
    let users = u32::try_from(shares.len()).unwrap_or(u32::MAX);
    let mean = shares.iter().sum::<f64>() / f64::from(users);
    if mean < storm.share {
        return false;
    }
    // One user whose VMs are all dead is half of two by itself.
    let taking_part = shares.iter().filter(|share| **share >= storm.share).count();
    taking_part >= owners_needed(shares.len())
}

/// How many users take part in a storm, where so many have VMs that can be seen.
fn owners_needed(owners: usize) -> usize {
    match owners {
        0 | 1 => 1,
        _ if owners < MANY_OWNERS => 2,
        _ => 3,
    }
}

fn in_words(owners: &BTreeMap<u32, Owner>) -> String {
    let sum = |count: fn(&Owner) -> u32| owners.values().map(count).sum::<u32>();
    let (silent, all) = (sum(|owner| owner.silent), sum(|owner| owner.all));
    let users = owners.values().filter(|owner| owner.silent > 0).count();
    let of = if owners.len() > 1 { format!(", of {users} users,") } else { String::new() };
    format!(
        "{silent} of {all} VMs{of} fell silent at the same moment: the host is ill, and none is restarted for that"
    )
}

/// Whether storage stalls for so many VMs that the host is at fault, by what their last ticks showed: for those of as many users
/// as a storm takes, or for two where all are of one user.
pub fn storage_stalls<'a>(watches: impl Iterator<Item = (u32, &'a Watch)>, owners: usize) -> bool {
    let stalled: Vec<u32> =
        watches.filter(|(_, watch)| inhibit::storage_stalls(watch)).map(|(uid, _)| uid).collect();
    let users: BTreeSet<u32> = stalled.iter().copied().collect();
    stalled.len() >= 2 && users.len() >= owners_needed(owners)
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
        let of_one = watches.iter().map(|watch| (0, watch));
        assess_storm(of_one, &BTreeMap::new(), &STORM, NOW)
    }

    #[test]
    fn as_many_and_as_large_a_share_as_configured_are_a_storm() {
        let alive = || in_state(State::Alive);
        let three = [suspect(1), suspect(1), suspect(1)];
        assert!(matches!(judge(&three), StormAssessment::Storm(_)));
        assert_eq!(judge(&three[..2]), StormAssessment::Few);
        let beside = |living| {
            let watches = three.iter().map(|watch| (0, watch));
            assess_storm(watches, &BTreeMap::from([(0, living)]), &STORM, NOW)
        };
        assert!(matches!(beside(3), StormAssessment::Storm(_)));
        assert_eq!(beside(4), StormAssessment::Few);
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

    /// A host on which so many VMs of each user are silent, and so many live.
    fn shared(users: &[(usize, u32)]) -> StormAssessment {
        let silent = |(uid, (silent, _))| vec![(uid, suspect(1)); silent];
        let numbered = || (0..).zip(users.iter().copied());
        let watches: Vec<(u32, Watch)> = numbered().flat_map(silent).collect();
        let living = numbered().map(|(uid, (_, living))| (uid, living)).collect();
        assess_storm(watches.iter().map(|(uid, watch)| (*uid, watch)), &living, &STORM, NOW)
    }

    fn is_storm(users: &[(usize, u32)]) -> bool {
        match shared(users) {
            StormAssessment::Storm(seen) => {
                assert!(seen.contains("users, fell silent"), "{seen}");
                true
            }
            other => {
                assert_eq!(other, StormAssessment::Few, "{users:?}");
                false
            }
        }
    }

    #[test]
    fn dead_vms_of_one_user_are_no_storm_for_others_however_many() {
        for dead in [3, 5, 100, 5000] {
            assert!(!is_storm(&[(dead, 0), (0, 1)]), "{dead}");
            assert!(!is_storm(&[(dead, 0), (1, 2)]), "one of another's three is dead, too");
            assert!(!is_storm(&[(dead, 0), (1, 19), (0, 1)]));
            assert!(!is_storm(&[(dead, 0), (dead, 0), (0, 1), (0, 1), (0, 1)]), "two of five");
        }
    }

    #[test]
    fn living_vms_of_one_user_hide_no_storm_among_the_others() {
        assert!(is_storm(&[(2, 0), (1, 0), (0, 5000)]));
        assert!(!is_storm(&[(2, 0), (1, 0), (0, 1), (0, 1), (0, 1)]));
    }

    #[test]
    fn a_storm_is_of_two_users_or_where_there_are_five_of_three() {
        assert!(is_storm(&[(2, 0), (1, 0)]));
        assert!(is_storm(&[(2, 2), (1, 0)]));
        assert!(is_storm(&[(1, 0), (1, 0), (1, 0), (0, 1)]));
        assert!(is_storm(&[(2, 0), (2, 0), (0, 1), (0, 1)]));
        assert!(is_storm(&[(1, 0), (1, 0), (1, 0), (0, 1), (0, 1)]));
        assert!(!is_storm(&[(1, 0), (1, 0)]), "fewer VMs than a storm has");
    }

    #[test]
    fn users_of_whom_nothing_can_be_seen_have_no_vote() {
        let watches = [suspect(1), suspect(1), suspect(1), in_state(State::Held)];
        let of = |n: usize| if n < 3 { 1 } else { 2 };
        let watches = watches.iter().enumerate().map(|(n, watch)| (of(n), watch));
        let judged = assess_storm(watches, &BTreeMap::from([(2, 0)]), &STORM, NOW);
        assert!(matches!(judged, StormAssessment::Storm(_)), "{judged:?}");
    }

    #[test]
    fn vms_of_several_users_that_were_not_heard_yet_leave_it_undecided() {
        let watches = [(1, suspect(1)), (1, suspect(0)), (2, suspect(0))];
        let watches = || watches.iter().map(|(uid, watch)| (*uid, watch));
        let judged = assess_storm(watches(), &BTreeMap::new(), &STORM, NOW);
        assert_eq!(judged, StormAssessment::Undecided);
        let others_live = BTreeMap::from([(2, 3)]);
        assert_eq!(assess_storm(watches(), &others_live, &STORM, NOW), StormAssessment::Few);
    }
}
