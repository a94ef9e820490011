//! The witnesses that a suspect is asked, each in a module of its own and bounded in time and size.
//!
//! A new witness is a module and a row in [`WITNESSES`]: the verdict goes by the kind of an answer, and
//! knows none of them by name. One round asks all rows at the same time and ends within [`ROUND_LIMIT`]; what a
//! witness has to remember from one round to the next (a counter to compare with, a question that waits for its
//! answer) it writes into its [`Note`].

pub(crate) mod aarch64;
pub(crate) mod agent;
pub mod arp;
pub(crate) mod balloon;
pub(crate) mod console;
mod ethernet;
pub(crate) mod host;
pub(crate) mod kvm;
pub mod ndp;
pub(crate) mod operations;
mod probing;
pub(crate) mod registers;
pub(crate) mod requests;
mod socket;
pub(crate) mod stage;

use std::{any::Any, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;
pub(crate) use probing::TapTarget;
pub use socket::ProbeSocket;
use tokio::time::timeout;

use crate::{
    balloon::Turns,
    bpf::KvmHooks,
    insight::Insight,
    sampler::{CounterMaps, KvmReader},
};
use flatline_detector::verdict::{Answer, Questions, Statement, Testimony};
use flatline_qemu::{discover::Vm, qmp::QmpHandle};
use flatline_samples::printable;

/// A round takes so long at most, whatever a witness waits for.
pub(crate) const ROUND_LIMIT: Duration = Duration::from_secs(8);
/// An answer's text is cut here.
const TEXT_CHARS: usize = 400;

/// What a witness keeps from one round to the next; each has its own type in it.
pub(crate) type Note = Option<Box<dyn Any + Send>>;

/// The notes of all witnesses of one VM, in the order of [`WITNESSES`].
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Note>);

/// What there is to ask with.
#[derive(Clone)]
pub struct ProbeContext {
    /// Which questions this round has.
    pub questions: Questions,
    /// The VM, as it was found.
    pub vm: Arc<Vm>,
    /// Its vCPUs' threads, as (vCPU index, thread id).
    pub vcpu_threads: Vec<(u32, u32)>,
    /// How long this boot lasts already, as far as it was watched. Time in which the VM was held is left out,
    /// so that it may be less, and never more.
    pub boot_age: Duration,
    /// Time since the guest was last seen or heard to live, whatever held it since; what acquitted it is a sign of life,
    /// too. Where it never was: since it is watched.
    pub silence: Duration,
    /// The slot it is counted in, or why it isn't.
    pub slot: Result<u32, String>,
    /// The maps.
    pub counters: Arc<CounterMaps>,
    /// What is counted of KVM, where it runs any guest.
    pub kvm: Option<Arc<KvmReader>>,
    /// Which of KVM's tracepoints are attached.
    pub kvm_hooks: KvmHooks,
    /// QEMU's monitor, where it takes commands, or why it doesn't.
    pub qmp: Result<QmpHandle, String>,
    /// Whether its registers can be read.
    pub insight: Insight,
    /// Whose turn it is with its balloon.
    pub balloon: Turns,
    /// Taps to probe, of whose guest an address is known, or why there is none.
    pub targets: Result<Vec<TapTarget>, String>,
    /// Whether some of its requests can't be seen by the host.
    pub unseen_storage: bool,
}

/// What asking a witness comes to: an answer, and the note for the next round.
pub(crate) type Asked = Pin<Box<dyn Future<Output = (Answer, Note)> + Send>>;

/// One witness.
pub struct Witness {
    /// Its name, for people, recordings and calibration; it stays.
    pub name: &'static str,
    /// What it takes for an answer, for people.
    pub looks_for: &'static str,
    /// In which rounds it is asked.
    pub asked_in: fn(Questions) -> bool,
    /// Asks it.
    pub ask: fn(Arc<ProbeContext>, Note) -> Asked,
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

/// Whoever is asked only when a guest is suspected.
pub(crate) const fn of_suspects(questions: Questions) -> bool {
    matches!(questions, Questions::DuringBoot | Questions::All | Questions::Recovering)
}

/// Whoever has to answer once, before its silence means anything, and may disturb a guest that boots.
pub(crate) const fn of_calibrated(questions: Questions) -> bool {
    matches!(questions, Questions::Calibrate | Questions::All | Questions::Recovering)
}

/// Asks one round of questions. The notes come back with what was learned.
pub(crate) async fn ask(scene: Arc<ProbeContext>, notes: Notes) -> (Testimony, Notes) {
    let Notes(mut notes) = notes;
    notes.resize_with(WITNESSES.len(), || None);
    let rounds = WITNESSES.iter().zip(notes).map(|(witness, note)| {
        let scene = scene.clone();
        async move {
            if !(witness.asked_in)(scene.questions) {
                return (None, note);
            }
            let asked = timeout(ROUND_LIMIT, (witness.ask)(scene, note)).await;
            let (answer, note) = asked.unwrap_or_else(|_| {
                let seconds = ROUND_LIMIT.as_secs();
                (Answer::NotAsked(format!("it took longer than {seconds} s")), None)
            });
            let answer = bounded(answer);
            (Some(Statement { witness: witness.name.into(), answer }), note)
        }
    });
    let (said, notes): (Vec<_>, Vec<_>) = join_all(rounds).await.into_iter().unzip();
    (Testimony { statements: said.into_iter().flatten().collect() }, Notes(notes))
}

/// Whatever a guest or a QEMU put into an answer is cut, and cleared of control characters.
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

/// The note of a witness, where it is of its type: the one of the round before.
fn noted<T: 'static>(note: Note) -> Option<T> {
    note?.downcast().ok().map(|note| *note)
}

/// A note for the next round.
fn note<T: Send + 'static>(note: T) -> Note {
    Some(Box::new(note))
}
