//! One round of questions: all witnesses are asked at the same time, but for those that can only excuse. These wait for a
//! moment, and are not asked where another has acquitted by then.

use std::{
    borrow::Cow,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    join,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{Note, Notes, ProbeContext, ROUND_LIMIT, WITNESSES, Witness};
use flatline_detector::verdict::{Answer, Statement, Testimony};
use flatline_samples::printable;

/// How long those wait that can only excuse: for two looks at the registers, and for what a guest's kernel takes to answer.
/// What they take then themselves is no longer than until the third look, so that no round lasts longer for it; and they
/// always wait for as long, so that their own looks of two rounds are apart as the rounds are.
const EXCUSES_AFTER: Duration = Duration::from_millis(300);
/// An answer's text is cut here.
const TEXT_CHARS: usize = 400;

/// Asks one round of questions. The notes come back with what was learned.
pub(crate) async fn ask(context: &ProbeContext, notes: Notes) -> (Testimony, Notes) {
    let Notes(mut notes) = notes;
    notes.resize_with(WITNESSES.len(), Note::default);
    let rows = WITNESSES.iter().zip(&mut notes).enumerate();
    let asked = rows.filter(|(_, (witness, _))| (witness.asked_in)(context.questions));
    let (excuses, others): (Vec<_>, Vec<_>) =
        asked.partition(|(_, (witness, _))| witness.only_excuses);
    let question = |(at, (witness, note)): (usize, (&'static Witness, _))| Question {
        at,
        witness: witness.name,
        answer: answer(witness, context, note),
    };
    let others = others.into_iter().map(question).collect();
    let excuses = excuses.into_iter().map(question).collect();
    let mut said = answers(others, excuses).await;
    said.sort_unstable_by_key(|(at, _)| *at);
    let statements = said.into_iter().map(|(_, statement)| statement).collect();
    (Testimony { statements }, Notes(notes))
}

/// A witness that is asked once its answer is waited for.
struct Question<A> {
    /// Its place in the table.
    at: usize,
    witness: &'static str,
    answer: A,
}

/// What they say, each with its place, in any order.
async fn answers<A: Future<Output = Answer>>(
    others: Vec<Question<A>>,
    excuses: Vec<Question<A>>,
) -> Vec<(usize, Statement)> {
    let waits_until = Instant::now() + EXCUSES_AFTER;
    let (certain, acquitted, last_words) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
    // A kernel that said its last words may answer a probe all the same.
    let is_acquitted = || is(&certain) || is(&acquitted) && !is(&last_words);
    let ask = async |question: Question<A>| {
        let Question { at, witness, answer } = question;
        let answer = answer.await;
        certain.fetch_or(answer.acquits_for_certain(), Ordering::Relaxed);
        acquitted.fetch_or(answer.acquits(), Ordering::Relaxed);
        last_words.fetch_or(matches!(answer, Answer::LastWords(_)), Ordering::Relaxed);
        (at, Statement { witness: witness.into(), answer })
    };
    let mut others = pin!(join_all(others.into_iter().map(&ask)));
    let answered = timeout_at(waits_until, &mut others).await.ok();
    if answered.is_some() && !excuses.is_empty() && !is_acquitted() {
        sleep_until(waits_until).await;
    }
    let excuses = async {
        if !is_acquitted() {
            return join_all(excuses.into_iter().map(&ask)).await;
        }
        let unasked = |Question { at, witness, .. }| {
            let answer = Answer::NotAsked("another witness says that it lives".to_owned());
            (at, Statement { witness: Cow::Borrowed(witness), answer })
        };
        excuses.into_iter().map(unasked).collect()
    };
    let (mut said, excuses) = match answered {
        Some(said) => (said, excuses.await),
        None => join!(others, excuses),
    };
    said.extend(excuses);
    said
}

/// What one witness says, within the round's limit.
async fn answer(witness: &Witness, context: &ProbeContext, note: &mut Note) -> Answer {
    let asked = timeout(ROUND_LIMIT, (witness.ask)(context, note)).await;
    let answer = asked.unwrap_or_else(|_| {
        *note = Note::default();
        Err(format!("it took longer than {} s", ROUND_LIMIT.as_secs()))
    });
    bounded(answer.unwrap_or_else(Answer::NotAsked))
}

/// The answer, with all that a guest or a QEMU put into it cut and cleared of control characters.
fn bounded(answer: Answer) -> Answer {
    let text = |text: String| printable(&text, TEXT_CHARS);
    match answer {
        Answer::Halted => Answer::Halted,
        Answer::NotAsked(said) => Answer::NotAsked(text(said)),
        Answer::Lives(said) => Answer::Lives(text(said)),
        Answer::UserSpaceLives(said) => Answer::UserSpaceLives(text(said)),
        Answer::Silent(said) => Answer::Silent(text(said)),
        Answer::Stuck(said) => Answer::Stuck(text(said)),
        Answer::Motionless(said) => Answer::Motionless(text(said)),
        Answer::LastWords(said) => Answer::LastWords(text(said)),
        Answer::Neither(said) => Answer::Neither(text(said)),
        Answer::Nothing(said) => Answer::Nothing(text(said)),
        Answer::NotUp(said) => Answer::NotUp(text(said)),
        Answer::Unresponsive(said) => Answer::Unresponsive(text(said)),
        Answer::Excuse(said) => Answer::Excuse(text(said)),
        Answer::Starved(said) => Answer::Starved(text(said)),
        Answer::Opaque(said) => Answer::Opaque(text(said)),
        Answer::ServesInterrupts(said) => Answer::ServesInterrupts(text(said)),
        Answer::Loops(said) => Answer::Loops(text(said)),
        Answer::OwnDump(said) => Answer::OwnDump(text(said)),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::Pin};

    use tokio::time::sleep;

    use super::*;

    type Says<'a> = Pin<Box<dyn Future<Output = Answer> + 'a>>;

    fn question<'a>(at: usize, says: impl Future<Output = Answer> + 'a) -> Question<Says<'a>> {
        Question { at, witness: "one", answer: Box::pin(says) }
    }

    async fn after_ms(ms: u64, answer: Answer) -> Answer {
        sleep(Duration::from_millis(ms)).await;
        answer
    }

    /// What a round says in which the others answer so, and when the one that can only excuse was asked.
    async fn round(others: Vec<(u64, Answer)>) -> (Vec<(usize, Answer)>, Option<Duration>) {
        let (begun, asked) = (Instant::now(), Cell::new(None));
        let others = others.into_iter().enumerate();
        let others = others.map(|(at, (ms, answer))| question(at + 1, after_ms(ms, answer)));
        let excuse = async {
            asked.set(Some(begun.elapsed()));
            Answer::Excuse("frozen".to_owned())
        };
        let said = answers(others.collect(), vec![question(0, excuse)]).await;
        let mut said: Vec<_> = said.into_iter().map(|(at, said)| (at, said.answer)).collect();
        said.sort_unstable_by_key(|(at, _)| *at);
        (said, asked.get())
    }

    fn lives() -> Answer {
        Answer::Lives("waits with interrupts on".to_owned())
    }

    #[tokio::test]
    async fn of_a_guest_that_another_witness_acquits_no_excuse_is_asked() {
        let (said, asked) = round(vec![(1, lives()), (2, Answer::Halted)]).await;
        assert_eq!(asked, None);
        assert!(matches!(said[0], (0, Answer::NotAsked(_))), "{said:?}");
        assert_eq!(said[1..], [(1, lives()), (2, Answer::Halted)]);
        // Others are waited for all the same.
        let (said, asked) = round(vec![(1, lives()), (600, Answer::Halted)]).await;
        assert_eq!((asked, said.len()), (None, 3));
    }

    #[tokio::test]
    async fn where_none_acquits_in_time_an_excuse_is_asked_at_a_set_time() {
        for others in [vec![], vec![(1, Answer::Halted)], vec![(600, Answer::Halted)]] {
            let (said, asked) = round(others).await;
            let asked = asked.expect("it was asked");
            assert!(asked >= EXCUSES_AFTER, "{asked:?}");
            assert_eq!(said[0], (0, Answer::Excuse("frozen".to_owned())));
        }
        let (said, asked) = round(vec![(2_000, lives())]).await;
        assert!(asked.is_some() && said[1] == (1, lives()), "an acquittal that comes late");
    }
}
