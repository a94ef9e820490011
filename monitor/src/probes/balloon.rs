//! The balloon's statistics: the guest's kernel hands them over whenever QEMU asks for them (see
//! [`crate::balloon`]). Where no client polls, a round has it asked once, and looks whether it answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Note, ProbeContext, Witness, of_calibrated};
use crate::balloon::{Balloon, Wait, last_update};
use flatline_detector::verdict::Answer;
use flatline_qemu::qmp::{QmpError, QmpHandle};

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "balloon statistics",
    looks_for: "that they are renewed when QEMU asks for them",
    asked_in: of_calibrated,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// How long a round waits for an answer: ten times what was measured. A later one counts in the next round.
const WAIT: Wait =
    Wait { within: Duration::from_millis(300), look_every: Duration::from_millis(50) };
/// How long it waits for its turn. Its holder gives it up as soon as a round begins, if QEMU answers.
const TURN_WITHIN: Duration = WAIT.within;
/// A guest is silent that answered nothing for so long, and for one more interval where others poll. Not
/// measured: a hundred times what an answer took.
const SILENT_AFTER: Duration = Duration::from_millis(2500);
/// An older look belongs to another suspicion.
const RECENT: Duration = Duration::from_secs(10);

/// What is kept from round to round.
struct BalloonMemory {
    balloon: Balloon,
    look: Option<BalloonReading>,
}

/// What was seen of the statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BalloonReading {
    /// Since when the guest has been asked, and there was no answer.
    since: Instant,
    /// When this was seen.
    at: Instant,
    /// The time of the last answer, in seconds; 0 if there was none.
    last_update: u64,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    if !context.vm.has_balloon {
        return Err("it has no balloon".to_owned());
    }
    question(context.qmp()?, context, note).await.map_err(|error| error.to_string())
}

async fn question(
    qmp: &QmpHandle,
    context: &ProbeContext,
    note: &mut Note,
) -> Result<Answer, QmpError> {
    let BalloonMemory { balloon, look } = match note.take() {
        Some(known) => known,
        None => match Balloon::find(qmp).await? {
            Some(balloon) => BalloonMemory { balloon, look: None },
            None => return Ok(Answer::NotAsked("QEMU names no balloon".to_owned())),
        },
    };
    // What the turn's holder has set is no other client's interval. Without the turn, a round goes on all the same.
    let turn = context.balloon.take_within(TURN_WITHIN).await;
    let now = Instant::now();
    let interval = balloon.interval_seconds(qmp).await?;
    let told = last_update(&balloon.statistics(qmp).await?)?;
    // An answer of another boot says nothing of this one.
    let within = RECENT.min(context.boot_age);
    let before = look.filter(|look| now.saturating_duration_since(look.at) <= within);
    let before = before.unwrap_or(BalloonReading { since: now, at: now, last_update: told });
    let mut seen = BalloonReading { at: now, last_update: told, ..before };
    if interval == 0 && seen.last_update == before.last_update {
        let wait = wait(told, SystemTime::now());
        let renewed = balloon.renew(qmp, told, wait, turn, CancellationToken::new()).await?;
        seen.last_update = last_update(&renewed)?;
        seen.at = Instant::now();
    }
    let answer = compare(before, seen, Duration::from_secs(interval));
    if matches!(answer, Answer::Lives(_)) {
        seen.since = seen.at;
    }
    note.put(BalloonMemory { balloon, look: Some(seen) });
    Ok(answer)
}

/// How an answer after `told` is waited for. Times have whole seconds: one in the second of the last can't be told from
/// that, but QEMU asks once more a second later.
fn wait(told: u64, now: SystemTime) -> Wait {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let longer = if told >= now { Duration::from_secs(1) } else { Duration::ZERO };
    Wait { within: WAIT.within + longer, ..WAIT }
}

/// What two looks say. `interval` is that of a client that polls as well, or zero.
fn compare(before: BalloonReading, now: BalloonReading, interval: Duration) -> Answer {
    if now.last_update != before.last_update {
        return Answer::Lives("its balloon's statistics were renewed".to_owned());
    }
    let unanswered = now.at.saturating_duration_since(now.since);
    if unanswered >= SILENT_AFTER.saturating_add(interval) {
        let seconds = unanswered.as_secs_f64();
        return Answer::Silent(format!("its balloon's statistics are {seconds:.1} s overdue"));
    }
    Answer::Nothing("its balloon's statistics are not renewed so far".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_the_second_of_the_last_one_is_given_time_to_be_told_from_it() {
        let now = UNIX_EPOCH + Duration::from_millis(5900);
        assert_eq!(wait(4, now).within, WAIT.within);
        assert_eq!(wait(5, now).within, WAIT.within + Duration::from_secs(1));
    }

    #[test]
    fn only_statistics_that_move_acquit_and_only_a_long_wait_is_silence() {
        let began = Instant::now();
        let look = |ms, last_update| BalloonReading {
            since: began,
            at: began + Duration::from_millis(ms),
            last_update,
        };
        let none = Duration::ZERO;
        let before = look(0, 1_795_564_036);
        assert!(matches!(compare(before, look(300, 1_795_564_037), none), Answer::Lives(_)));
        assert!(matches!(compare(look(0, 0), look(300, 9), none), Answer::Lives(_)));
        assert!(matches!(compare(before, before, none), Answer::Nothing(_)));
        let at = |ms| look(ms, before.last_update);
        assert!(matches!(compare(before, at(2499), none), Answer::Nothing(_)));
        assert!(matches!(compare(before, at(2500), none), Answer::Silent(_)));
    }

    #[test]
    fn a_guest_that_is_polled_by_others_is_given_their_interval_as_well_however_long() {
        let began = Instant::now();
        let look = |seconds| BalloonReading {
            since: began,
            at: began + Duration::from_secs(seconds),
            last_update: 5,
        };
        let wait = Duration::from_secs(10);
        assert!(matches!(compare(look(0), look(12), wait), Answer::Nothing(_)));
        assert!(matches!(compare(look(0), look(13), wait), Answer::Silent(_)));
        assert!(matches!(compare(look(0), look(13), Duration::MAX), Answer::Nothing(_)));
    }
}
