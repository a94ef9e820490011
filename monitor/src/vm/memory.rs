//! Readings of each VM's memory, every so often: what its QEMU takes, and what its guest tells through its balloon.
//!
//! A reading is a task of its own, one a VM at a time, so that a hung one delays no other. It sends QEMU one command
//! after the other, none of which waits for the guest; between two it holds nothing, so that a session on a socket which others
//! need lets go of it meanwhile. A round of questions and a restart end it, and none begins while a guest
//! is suspected or restarted: what is at stake then is not worth a figure. Of a guest without a balloon, there is only its QEMU's to be
//! read: when a client asks for it, and while its guest is silent.

mod when_asked;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::WatchedVm;
use crate::{
    api::view::MemoryView,
    balloon::{Balloon, Turns, Wait, last_update},
    sampler::memory::MemoryReader,
};
use flatline_detector::verdict::{Input, Monitor, State};
use flatline_qemu::{
    discover::{Vm, VmId},
    qmp::{QmpError, QmpHandle, Transport},
};
use flatline_samples::{GuestMemory, Memory, Missing, QemuMemory, Reading, RunState, Strain};

/// How an answer is waited for. Looks are further apart than a brief session keeps its connection (100 ms), and a guest
/// that thrashes may take longer than the 25 ms of one that is well.
const WAIT: Wait = Wait { within: Duration::from_secs(1), look_every: Duration::from_millis(250) };
/// Where a guest can't be asked yet, it is tried again after this, or sooner where it is read more often.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A guest that hasn't told anything for so many readings isn't said to thrash any more.
const FRESH_READINGS: u32 = 2;
/// And for so much longer: a telling may have come late.
const FRESH_MARGIN: Duration = Duration::from_secs(10);

const WHAT: &str = "its memory";
const NO_BALLOON: &str = "it has no balloon";

/// What is told of a VM's memory.
#[derive(Clone, Debug)]
pub(crate) struct MemoryTold {
    /// Time between two readings; zero: none.
    every: Duration,
    /// When the next one is due, since the host's start.
    due: Duration,
    /// The last reading, and when it was taken.
    latest: Option<(SystemTime, Arc<Memory>)>,
}

/// The memory of one VM.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    told: MemoryTold,
    /// Whether the balloon may be polled where no other client does. Not through libvirt, where each command is a program's
    /// start, and which polls it itself if its domain is configured so.
    polls: bool,
    /// Ends the reading that is under way.
    reading: Option<CancellationToken>,
    balloon: Option<Balloon>,
    /// Shared with the witness.
    pub(crate) turns: Turns,
    /// When the last reading was recorded.
    recorded: Option<Duration>,
    was_thrashing: bool,
}

impl MemoryTold {
    /// For people and scripts.
    pub(crate) fn view(&self) -> MemoryView {
        match &self.latest {
            Some((read, memory)) => MemoryView::new(memory, *read),
            None => MemoryView {
                guest_missing: Some(
                    if self.every.is_zero() { "it is not read" } else { "it was not read yet" }
                        .to_owned(),
                ),
                ..MemoryView::default()
            },
        }
    }

    /// What was read last; `None` before that.
    pub(crate) fn latest(&self) -> Option<Arc<Memory>> {
        self.latest.as_ref().map(|(_, memory)| memory.clone())
    }

    /// That the guest thrashes, in words, where it does.
    pub(crate) fn thrashing(&self) -> Option<String> {
        let (_, memory) = self.latest.as_ref()?;
        let strain = memory.strain.filter(Strain::is_thrashing)?;
        let age = Duration::from_secs(unix_now().saturating_sub(self.told_at()?));
        let fresh = self.every.saturating_mul(FRESH_READINGS).saturating_add(FRESH_MARGIN);
        (age <= fresh).then(|| strain.describe())
    }

    /// When the guest told what is known; `None` where nothing is.
    fn told_at(&self) -> Option<u64> {
        let (_, memory) = self.latest.as_ref()?;
        Some(memory.guest.as_ref().ok()?.told_at)
    }
}

/// What a reading brought.
#[derive(Debug)]
pub(crate) struct MemoryRead {
    /// When the guest's boot began that was read.
    boot_began: Duration,
    balloon: Option<Balloon>,
    guest: Result<GuestMemory, Unread>,
    qemu: Reading<QemuMemory>,
}

/// Why a guest's memory wasn't read.
#[derive(Debug)]
enum Unread {
    /// It will not be, as long as the VM is as it is.
    Untold(String),
    /// It may be soon.
    NotNow(String),
}

/// A reading of a VM whose guest is not asked, which waits for nothing.
pub(crate) struct QemuReading {
    vm: Arc<Vm>,
    reader: Arc<MemoryReader>,
    boot_began: Duration,
    balloon: Option<Balloon>,
    why: Unread,
}

/// What it takes to read a guest's memory.
struct Errand {
    qmp: QmpHandle,
    balloon: Option<Balloon>,
    polls: bool,
    turns: Turns,
    stop: CancellationToken,
}

impl MemoryWatch {
    pub(crate) fn new(every: Duration, transport: Option<&Transport>, now: Duration) -> Self {
        Self {
            told: MemoryTold { every, due: now, latest: None },
            polls: !matches!(transport, Some(Transport::Libvirt(_))),
            reading: None,
            balloon: None,
            turns: Turns::default(),
            recorded: None,
            was_thrashing: false,
        }
    }

    /// It is read so often from now on.
    pub(crate) fn set_every(&mut self, every: Duration) {
        let told = &mut self.told;
        told.due = told.due.saturating_sub(told.every.saturating_sub(every));
        told.every = every;
    }

    /// Ends a reading that is under way: QEMU has something else to do.
    pub(crate) fn give_up(&self) {
        if let Some(stop) = &self.reading {
            stop.cancel();
        }
    }

    /// The guest boots anew: what it told before says nothing of this boot.
    pub(crate) fn forget_guest(&mut self) {
        self.was_thrashing = false;
        if let Some((_, memory)) = &mut self.told.latest {
            let memory = Arc::make_mut(memory);
            (memory.guest, memory.strain) = (missing("it told nothing in this boot"), None);
        }
    }

    /// When the next reading is due; `None` while one is under way, and where it is not read.
    pub(crate) fn due(&self) -> Option<Duration> {
        (!self.told.every.is_zero() && self.reading.is_none()).then_some(self.told.due)
    }

    /// What is told of it.
    pub(crate) fn told(&self) -> &MemoryTold {
        &self.told
    }

    /// Takes in what a reading brought; returns it as one with what is known from before.
    fn take(&mut self, read: MemoryRead, same_boot: bool) -> Arc<Memory> {
        let MemoryRead { boot_began: _, balloon, guest, qemu } = read;
        self.balloon = balloon;
        let before = self.told.latest.as_ref().map(|(_, memory)| memory);
        let known = before.and_then(|memory| Some((memory.guest.as_ref().ok()?, memory.strain)));
        let guest = match guest {
            Ok(_) if !same_boot => Err(Unread::NotNow("it booted meanwhile".to_owned())),
            guest => guest,
        };
        let (guest, strain) = match (guest, known) {
            // Nothing new was told.
            (Ok(guest), Some((known, strain))) if known.told_at == guest.told_at => {
                (Ok(guest), strain)
            }
            (Ok(guest), known) => {
                let strain = known.and_then(|(known, _)| Strain::between(known, &guest));
                (Ok(guest), strain)
            }
            // What it told last says when that was.
            (Err(Unread::NotNow(_)), Some((known, strain))) => (Ok(*known), strain),
            (Err(Unread::NotNow(why) | Unread::Untold(why)), _) => (missing(&why), None),
        };
        let memory = Arc::new(Memory { guest, strain, qemu });
        self.told.latest = Some((SystemTime::now(), memory.clone()));
        memory
    }
}

impl WatchedVm {
    /// Begins a reading of its memory by `reader`, which the future carries out, or the other where its guest is not asked.
    pub(crate) fn begin_memory_reading(
        &mut self,
        reader: &Arc<MemoryReader>,
        now: Duration,
    ) -> Result<impl Future<Output = MemoryRead> + Send + use<>, QemuReading> {
        let stop = CancellationToken::new();
        self.memory.reading = Some(stop.clone());
        self.memory.told.due = now + self.memory.told.every;
        let (vm, boot_began) = (self.vm.clone(), self.detector.watch.boot.began);
        let reader = reader.clone();
        match errand(self, stop) {
            Ok(errand) => Ok(async move {
                let qemu = reader.read(vm.id.pid, &vm.pidfd);
                let (guest, balloon) = errand.run().await;
                MemoryRead { boot_began, balloon, guest, qemu }
            }),
            Err(why) => {
                let balloon = self.memory.balloon.clone();
                Err(QemuReading { vm, reader, boot_began, balloon, why })
            }
        }
    }

    /// Its memory was read.
    pub(crate) fn memory_read(&mut self, read: MemoryRead, now: Duration) {
        self.memory.reading = None;
        if self.is_read_when_asked() {
            self.memory.told.due = now + self.memory.told.every;
        }
        let before = self.memory.told.told_at();
        if before.is_none() && matches!(read.guest, Err(Unread::NotNow(_))) {
            self.memory.told.due = self.memory.told.due.min(now + AGAIN_AFTER);
        }
        let same_boot = read.boot_began == self.detector.watch.boot.began;
        let memory = self.memory.take(read, same_boot);
        let thrashes = memory.strain.filter(Strain::is_thrashing);
        if thrashes.is_some() != self.memory.was_thrashing {
            self.memory.was_thrashing = thrashes.is_some();
            let strain = memory.strain.map_or("nothing is told".to_owned(), |it| it.describe());
            let change = if thrashes.is_some() { "" } else { "no longer thrashing: " };
            info!(vm = self.vm.name, "{change}{strain}");
        }
        let due = |recorded: Duration| now.saturating_sub(recorded) >= self.memory.told.every;
        if self.memory.told.told_at() != before || self.memory.recorded.is_none_or(due) {
            self.memory.recorded = Some(now);
            self.step(&Input::Memory(memory), now);
        }
    }
}

impl QemuReading {
    /// Carries it out.
    pub(crate) fn read(self) -> (VmId, MemoryRead) {
        let Self { vm, reader, boot_began, balloon, why } = self;
        let qemu = reader.read(vm.id.pid, &vm.pidfd);
        (vm.id, MemoryRead { boot_began, balloon, guest: Err(why), qemu })
    }
}

/// What it takes to read its guest's memory just now, or why that isn't done.
fn errand(watched: &WatchedVm, stop: CancellationToken) -> Result<Errand, Unread> {
    if !watched.vm.has_balloon {
        return Err(Unread::Untold(NO_BALLOON.to_owned()));
    }
    let not_now = |why: &str| Err(Unread::NotNow(why.to_owned()));
    let is_calm = matches!(watched.detector.watch.state, State::Alive | State::Unobservable);
    if !is_calm || watched.detector.notes.is_none() || watched.recovery.is_restarting() {
        return not_now("it is asked only while nothing else is going on with it");
    }
    let MemoryWatch { balloon, polls, turns, .. } = &watched.memory;
    match (watched.link.monitor(), &watched.link.qmp) {
        (Monitor::Answers(RunState::Running), Some(qmp)) => Ok(Errand {
            qmp: qmp.clone(),
            balloon: balloon.clone(),
            polls: *polls,
            turns: turns.clone(),
            stop,
        }),
        (_, None) => Err(Unread::Untold("no QMP socket is known".to_owned())),
        (Monitor::Answers(_), _) => not_now("it isn't running"),
        (Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why), _) => {
            not_now(&why)
        }
    }
}

impl Errand {
    /// What the guest tells, and its balloon, for the next time.
    async fn run(mut self) -> (Result<GuestMemory, Unread>, Option<Balloon>) {
        let told = self.told().await;
        if matches!(told, Err(Unread::Untold(_))) {
            // Another one may have been plugged in by then.
            self.balloon = None;
        }
        (told, self.balloon)
    }

    async fn told(&mut self) -> Result<GuestMemory, Unread> {
        let Some(turn) = self.turns.try_take() else {
            return Err(Unread::NotNow("it is being asked by a witness".to_owned()));
        };
        let balloon = match &self.balloon {
            Some(balloon) => balloon.clone(),
            None => {
                let found = Balloon::find(&self.qmp).await.map_err(Unread::from)?;
                found.ok_or_else(|| Unread::Untold("QEMU names no balloon".to_owned()))?
            }
        };
        self.balloon = Some(balloon.clone());
        let mut told = balloon.statistics(&self.qmp).await?;
        let is_polled = balloon.interval_seconds(&self.qmp).await? != 0;
        if self.stop.is_cancelled() {
            return Err(Unread::NotNow("it was given up".to_owned()));
        }
        if !is_polled && self.polls {
            let last = last_update(&told)?;
            told = balloon.renew(&self.qmp, last, WAIT, Some(turn), self.stop.clone()).await?;
        }
        GuestMemory::parse(&told, unix_now()).ok_or_else(|| {
            Unread::Untold(
                if is_polled || self.polls {
                    "its guest tells nothing: has it a driver for its balloon?"
                } else {
                    "libvirt polls its balloon only if its <memballoon> has <stats period='10'/>"
                }
                .to_owned(),
            )
        })
    }
}

impl From<QmpError> for Unread {
    fn from(error: QmpError) -> Self {
        match error {
            // A balloon without the property, or one that was plugged out.
            QmpError::Command { .. } => Self::Untold(error.to_string()),
            _ => Self::NotNow(error.to_string()),
        }
    }
}

fn missing<T>(why: &str) -> Reading<T> {
    Err(Missing::new(WHAT, why))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
