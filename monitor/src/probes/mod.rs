//! The witnesses that a suspect is asked, each in a module of its own and bounded in time and size.
//!
//! A new witness is a module and a row in [`WITNESSES`]: the verdict goes by the kind of an answer, and
//! knows none of them by name. One round asks all rows at the same time and ends within [`ROUND_LIMIT`]; what a
//! witness has to remember from one round to the next (a counter to compare with, a question that waits for its
//! answer) it puts into its [`Note`].

mod aarch64;
mod agent;
pub mod arp;
mod balloon;
pub(crate) mod console;
mod ethernet;
mod host;
pub(crate) mod kvm;
pub mod ndp;
mod operations;
mod probing;
mod registers;
mod requests;
mod socket;
mod stage;

use std::{any::Any, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
pub(crate) use host::memory_stalls;
pub(crate) use kvm::{KvmTurn, KvmWay};
pub(crate) use probing::TapTarget;
pub use socket::ProbeSocket;
use tokio::time::timeout;

use crate::{balloon::Turns, insight::Insight, sampler::CounterMaps};
use flatline_detector::verdict::{Answer, Questions, Statement, Testimony};
use flatline_qemu::{discover::Vm, qmp::QmpHandle};
use flatline_samples::printable;

/// A round takes so long at most, whatever a witness waits for.
pub(crate) const ROUND_LIMIT: Duration = Duration::from_secs(8);
/// An answer's text is cut here.
const TEXT_CHARS: usize = 400;

/// What a witness keeps from one round to the next; each has its own type in it.
#[derive(Debug, Default)]
struct Note(Option<Box<dyn Any + Send>>);

impl Note {
    /// Takes out what the round before put in.
    fn take<T: 'static>(&mut self) -> Option<T> {
        self.0.take()?.downcast().ok().map(|kept| *kept)
    }

    /// Keeps something for the next round.
    fn put<T: Send + 'static>(&mut self, kept: T) {
        self.0 = Some(Box::new(kept));
    }
}

/// The notes of all witnesses of one VM, in the order of [`WITNESSES`].
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Note>);

/// What there is to ask with.
pub(crate) struct ProbeContext {
    /// Which questions this round has.
    pub(crate) questions: Questions,
    /// The VM, as it was found.
    pub(crate) vm: Arc<Vm>,
    /// Its vCPUs' threads, as (vCPU index, thread id).
    pub(crate) vcpu_threads: Vec<(u32, u32)>,
    /// How long this boot lasts already, as far as it was watched. Time in which the VM was held is left out,
    /// so that it may be less, and never more.
    pub(crate) boot_age: Duration,
    /// Time since the guest was last seen or heard to live, whatever held it since; what acquitted it is a sign of life,
    /// too. Where it never was: since it is watched.
    pub(crate) silence: Duration,
    /// The slot it is counted in, or why it isn't.
    pub(crate) slot: Result<u32, String>,
    /// The maps.
    pub(crate) counters: Arc<CounterMaps>,
    /// The way to what KVM's tracepoints count.
    pub(crate) kvm: KvmWay,
    /// QEMU's monitor, where it takes commands, or why it doesn't.
    pub(crate) qmp: Result<QmpHandle, String>,
    /// Whether its registers can be read.
    pub(crate) insight: Insight,
    /// Turns of those that poll its balloon.
    pub(crate) balloon: Turns,
    /// Taps to probe, which lead to a guest with a known address, or why there is none.
    pub(crate) targets: Result<Vec<TapTarget>, String>,
    /// Whether some of its requests can't be seen by the host.
    pub(crate) unseen_storage: bool,
}

impl ProbeContext {
    /// QEMU's monitor.
    ///
    /// # Errors
    /// Why it takes no commands.
    fn qmp(&self) -> Result<&QmpHandle, String> {
        self.qmp.as_ref().map_err(Clone::clone)
    }
}

/// What asking a witness comes to: an answer, or why it was not asked.
type Asked<'a> = Pin<Box<dyn Future<Output = Result<Answer, String>> + Send + 'a>>;

/// One witness.
pub(crate) struct Witness {
    /// Its name, for people, recordings and calibration; it stays.
    pub(crate) name: &'static str,
    /// What it takes for an answer, for people.
    pub(crate) looks_for: &'static str,
    /// In which rounds it is asked.
    pub(crate) asked_in: fn(Questions) -> bool,
    /// Asks it.
    ask: for<'a> fn(&'a ProbeContext, &'a mut Note) -> Asked<'a>,
}

/// All of them.
pub(crate) const WITNESSES: &[Witness] = &[
    arp::WITNESS,
    ndp::WITNESS,
    agent::WITNESS,
    balloon::WITNESS,
    registers::WITNESS,
    kvm::WITNESS,
    requests::WITNESS,
    console::WITNESS,
    operations::WITNESS,
    host::WITNESS,
    stage::WITNESS,
];

/// Rounds of a witness that is asked only when a guest is suspected.
pub(crate) const fn of_suspects(questions: Questions) -> bool {
    matches!(questions, Questions::DuringBoot | Questions::All | Questions::Recovering)
}

/// Rounds of a witness that has to answer once before its silence means anything, and that may disturb a guest that boots.
pub(crate) const fn of_calibrated(questions: Questions) -> bool {
    matches!(questions, Questions::Calibrate | Questions::All | Questions::Recovering)
}

/// Asks one round of questions. The notes come back with what was learned.
pub(crate) async fn ask(context: &ProbeContext, notes: Notes) -> (Testimony, Notes) {
    let Notes(mut notes) = notes;
    notes.resize_with(WITNESSES.len(), Note::default);
    let rounds = WITNESSES.iter().zip(&mut notes).map(async |(witness, note)| {
        if !(witness.asked_in)(context.questions) {
            return None;
        }
        let asked = timeout(ROUND_LIMIT, (witness.ask)(context, note)).await;
        let answer = asked.unwrap_or_else(|_| {
            *note = Note::default();
            Err(format!("it took longer than {} s", ROUND_LIMIT.as_secs()))
        });
        let answer = bounded(answer.unwrap_or_else(Answer::NotAsked));
        Some(Statement { witness: witness.name.into(), answer })
    });
    let said = join_all(rounds).await;
    (Testimony { statements: said.into_iter().flatten().collect() }, Notes(notes))
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
    }
}
