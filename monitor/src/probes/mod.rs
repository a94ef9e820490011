//! The witnesses that a suspect is asked, each in a module of its own and bounded in time and size.
//!
//! A new witness is a module and a row in [`WITNESSES`]: the verdict goes by the kind of an answer, and
//! knows none of them by name. One round asks all rows at the same time and ends within [`ROUND_LIMIT`]; what a
//! witness has to remember from one round to the next (a counter to compare with, a question that waits for its
//! answer) it puts into its [`Note`].
//!
//! Most suspects are healthy guests that have nothing to do, whose registers say so at once. A witness that can only
//! excuse is asked a moment later, and only where none has acquitted by then: of one that lives, no excuse is wanted.

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
mod round;
mod socket;
mod stage;

use std::{any::Any, pin::Pin, sync::Arc, time::Duration};

pub(crate) use host::memory_stalls;
pub(crate) use kvm::{KvmTurn, KvmWay};
pub(crate) use probing::TapTarget;
pub(crate) use round::ask;
pub use socket::ProbeSocket;

use crate::{balloon::Turns, insight::Insight, sampler::CounterMaps};
use flatline_detector::verdict::{Answer, Questions};
use flatline_qemu::{discover::Vm, qmp::QmpHandle};

/// A round takes so long at most, whatever a witness waits for.
pub(crate) const ROUND_LIMIT: Duration = Duration::from_secs(8);

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
    /// Whether all that it can say for a guest is an excuse: of one that another witness acquits, it is not asked.
    only_excuses: bool,
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
