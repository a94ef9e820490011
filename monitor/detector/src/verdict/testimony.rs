//! Answers of the witnesses about a suspect, and how many rounds in a row they agreed.
//!
//! The verdict knows no witness by name: what counts is the kind of an answer. So a new witness needs no
//! rule here, but a module and a row in the table of witnesses.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::ROUNDS_TO_CONVICT;

/// Which witnesses to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Questions {
    /// Those of which a later silence only counts if they answered before: all is well.
    Calibrate,
    /// All of them, but nothing that would disturb a guest which is still booting (RFC 5227, RFC 4862).
    DuringBoot,
    /// All of them.
    All,
    /// All of them, and whether a restarted guest has come further than its firmware.
    Recovering,
    /// That alone, of a restarted guest that shows life.
    IsItUp,
}

/// The name of a witness, as it stands in the table.
pub type WitnessName = Cow<'static, str>;

/// One round of answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Testimony {
    /// One for each witness that was asked, or would have been.
    pub statements: Vec<Statement>,
}

/// What one witness said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// Which one.
    pub witness: WitnessName,
    /// What.
    pub answer: Answer,
}

/// An answer, by what it says of the guest. The texts are for people, printable and bounded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It wasn't asked, or can't be, and why. Says nothing.
    NotAsked(String),
    /// Only a living guest does this: it acquits.
    Lives(String),
    /// It was asked, and did not answer. Counts against a guest of which it answered before in this boot.
    Silent(String),
    /// Every vCPU was halted with interrupts off in every look.
    Halted,
    /// A vCPU runs on in kernel mode where no interrupt can reach it, or leaves one alone that it has let in itself; and no
    /// other may live.
    Stuck(String),
    /// The guest's kernel said that it dies.
    LastWords(String),
    /// The vCPUs were seen, and say neither.
    Neither(String),
    /// It was asked, and has nothing to say either way.
    Nothing(String),
    /// The guest is still in its firmware or boot loader: whatever it does there, it is not up.
    NotUp(String),
    /// QEMU's monitor did not answer in time, though it had before: QEMU may be frozen with its guest in it.
    Unresponsive(String),
    /// The host or another program is at fault, or at work on this VM: no verdict while that lasts.
    Excuse(String),
    /// Only a living user space does this: it acquits, and says that more than the kernel lives.
    UserSpaceLives(String),
    /// A vCPU stands at one spot with interrupts off, and nothing waits for it: a dead guest does so, and a healthy one
    /// that waits. Says nothing by itself.
    Motionless(String),
    /// The host withholds its CPU time: an excuse, but for a guest that says itself that it dies.
    Starved(String),
    /// Its vCPUs can never be looked at, and why. Nothing tells then one that waits from one that is halted for good.
    Opaque(String),
    /// Its kernel serves interrupts: it acquits, unless that kernel has said that it dies. One that ended its panic may
    /// go on serving them, and answer what is asked of its network.
    ServesInterrupts(String),
    /// A vCPU runs on in kernel mode at one depth of its stack, with interrupts on, and no other was seen to run. So does a
    /// kernel after its last words, and so may one that computes: says nothing by itself.
    Loops(String),
    /// Its kernel panicked and went no further, as one does that starts its crash kernel: it may be saving its dump.
    OwnDump(String),
}

impl Answer {
    /// Whether only a living guest says this, or one that has said its last words.
    pub fn acquits(&self) -> bool {
        self.acquits_for_certain() || matches!(self, Self::ServesInterrupts(_))
    }

    /// Whether only a living guest says this, whatever its kernel has said.
    pub fn acquits_for_certain(&self) -> bool {
        matches!(self, Self::Lives(_) | Self::UserSpaceLives(_))
    }

    /// A word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotAsked(_) | Self::Opaque(_) => "not asked",
            Self::Lives(_) | Self::UserSpaceLives(_) | Self::ServesInterrupts(_) => "lives",
            Self::Silent(_) => "silent",
            Self::Halted => "halted",
            Self::Stuck(_) => "stuck",
            Self::Motionless(_) => "motionless",
            Self::LastWords(_) => "last words",
            Self::Neither(_) | Self::Loops(_) => "neither",
            Self::Nothing(_) => "nothing",
            Self::NotUp(_) => "not up",
            Self::Unresponsive(_) => "no answer",
            Self::Excuse(_) | Self::Starved(_) => "excuse",
            Self::OwnDump(_) => "own dump",
        }
    }

    /// What was seen, for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Halted => "every vCPU is halted with interrupts off",
            Self::NotAsked(text)
            | Self::Lives(text)
            | Self::Silent(text)
            | Self::Stuck(text)
            | Self::Motionless(text)
            | Self::LastWords(text)
            | Self::Neither(text)
            | Self::Nothing(text)
            | Self::NotUp(text)
            | Self::Unresponsive(text)
            | Self::Excuse(text)
            | Self::UserSpaceLives(text)
            | Self::Starved(text)
            | Self::Opaque(text)
            | Self::ServesInterrupts(text)
            | Self::Loops(text)
            | Self::OwnDump(text) => text,
        }
    }
}

impl Testimony {
    /// Whether some answer is of a kind.
    pub(crate) fn any(&self, wanted: impl Fn(&Answer) -> bool) -> bool {
        self.statements.iter().any(|said| wanted(&said.answer))
    }

    /// An answer that only a living guest gives; where `words_stand`, only one that no dying kernel gives either.
    pub(crate) fn acquittal(&self, words_stand: bool) -> Option<String> {
        let acquits = |said: &&Statement| {
            said.answer.acquits_for_certain() || !words_stand && said.answer.acquits()
        };
        let said = self.statements.iter().find(acquits)?;
        Some(format!("no I/O, but {}: {}", said.witness, said.answer.text()))
    }

    /// Whether the guest answered as its kernel's interrupt handlers do, which outlive a panic.
    pub(crate) fn serves_interrupts(&self) -> bool {
        self.any(|answer| matches!(answer, Answer::ServesInterrupts(_)))
    }

    /// Whether its vCPUs look as they do after a kernel's last words. A kernel that computes is seen elsewhere, one that
    /// idles waits, and vCPUs that were not seen fit nothing.
    pub(crate) fn fits_last_words(&self) -> bool {
        self.any(|answer| matches!(answer, Answer::Stuck(_) | Answer::Loops(_)))
    }

    /// Whether the guest's user space lives, and not only its kernel.
    pub(crate) fn user_space_lives(&self) -> bool {
        self.any(|answer| matches!(answer, Answer::UserSpaceLives(_)))
    }

    /// Why the silence is not the guest's fault. That the host starves it is no excuse where it speaks against itself.
    pub(crate) fn excuse(&self, speaks_against_itself: bool) -> Option<&str> {
        self.statements.iter().find_map(|said| match &said.answer {
            Answer::Excuse(why) => Some(why.as_str()),
            Answer::Starved(why) if !speaks_against_itself => Some(why.as_str()),
            _ => None,
        })
    }

    /// Whether what the guest said or shows speaks against it, and not how late it is: its last words, or vCPUs that no
    /// interrupt can reach.
    pub(crate) fn proves(&self) -> bool {
        self.any(|answer| matches!(answer, Answer::LastWords(_) | Answer::Stuck(_)))
    }

    /// Whether no interrupt can reach the guest, be it halted or not, or it said its last words. A healthy guest whose host is
    /// ill does not look so: it waits with interrupts on, or its vCPUs don't run, can't be asked, or stand still.
    pub(crate) fn shows_deafness(&self) -> bool {
        self.proves() || self.any(|answer| *answer == Answer::Halted)
    }

    /// Whether it may be saving a dump of its own.
    pub(crate) fn may_save_dump(&self) -> bool {
        self.any(|answer| matches!(answer, Answer::OwnDump(_)))
    }

    /// Why a guest that shows life isn't up all the same.
    pub(crate) fn not_up(&self) -> Option<&str> {
        self.statements.iter().find_map(|said| match &said.answer {
            Answer::NotUp(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// The witnesses that answered, so that their silence counts from now on.
    pub(crate) fn answered(&self) -> impl Iterator<Item = &WitnessName> {
        let lives = |said: &&Statement| said.answer.acquits();
        self.statements.iter().filter(lives).map(|said| &said.witness)
    }

    /// The answers in a sentence.
    pub(crate) fn summary(&self) -> String {
        let said = |said: &Statement| match &said.answer {
            // Witnesses that could not be asked, or had nothing to say, are left to `show`.
            Answer::NotAsked(_) | Answer::Opaque(_) | Answer::Nothing(_) => None,
            answer => Some(format!("{}: {}", said.witness, answer.text())),
        };
        let said: Vec<String> = self.statements.iter().filter_map(said).collect();
        if said.is_empty() { "nobody could be asked".to_owned() } else { said.join("; ") }
    }
}

/// Answers of the same kind, given one round after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Rounds asked since the suspicion began.
    pub(crate) rounds: u32,
    /// Rounds in a row in which every vCPU was halted with interrupts off.
    pub(crate) halted: u32,
    /// Rounds in a row in which a vCPU was stuck.
    pub(crate) stuck: u32,
    /// Rounds in a row in which no witness could be asked, or all that could be said is that the guest doesn't move.
    pub(crate) unseen: u32,
    /// Rounds in a row in which every witness that had answered in this boot, and could be asked, did not.
    pub(crate) silent: u32,
    /// When the first of those ended.
    pub(crate) silent_since: Option<Duration>,
    /// Rounds since the guest's kernel said that it dies, or since one in which it answered and its vCPUs didn't fit that.
    pub(crate) last_words: u32,
    /// Rounds in a row in which a restarted guest whose time is up was still in its firmware.
    pub(crate) not_up: u32,
}

impl Tally {
    /// Whether the last round was of a guest that is deaf, or an earlier one heard its last words.
    pub(crate) fn shows_deafness(&self) -> bool {
        self.halted.max(self.stuck).max(self.last_words) > 0
    }

    /// Whether as many rounds agree in that as a conviction takes.
    pub(crate) fn proves_deafness(&self) -> bool {
        self.halted.max(self.stuck).max(self.last_words) >= ROUNDS_TO_CONVICT
    }

    /// Counts one more round, which ended at `now`; an answer of another kind starts a row anew. `calibrated` are
    /// the witnesses that answered before in this boot.
    #[must_use]
    pub(crate) fn count(
        self,
        testimony: &Testimony,
        calibrated: &BTreeSet<WitnessName>,
        now: Duration,
    ) -> Self {
        let row = |length: u32, goes_on: bool| if goes_on { length.saturating_add(1) } else { 0 };
        let counts = |said: &Statement| {
            matches!(said.answer, Answer::Silent(_)) && calibrated.contains(&said.witness)
        };
        let answers = testimony.any(Answer::acquits);
        let silent = testimony.statements.iter().any(counts) && !answers;
        let last_words = testimony.any(|answer| matches!(answer, Answer::LastWords(_)));
        // What is answered all the same is outweighed by rounds in a row alone.
        let contradicted = testimony.serves_interrupts() && !testimony.fits_last_words();
        Self {
            rounds: self.rounds.saturating_add(1),
            halted: row(self.halted, testimony.any(|answer| *answer == Answer::Halted)),
            stuck: row(self.stuck, testimony.any(|answer| matches!(answer, Answer::Stuck(_)))),
            unseen: row(
                self.unseen,
                !testimony.any(|answer| {
                    matches!(
                        answer,
                        Answer::Halted
                            | Answer::Stuck(_)
                            | Answer::Neither(_)
                            | Answer::Loops(_)
                            | Answer::Unresponsive(_)
                    )
                }) && !silent
                    && !answers,
            ),
            silent: row(self.silent, silent),
            silent_since: silent.then(|| self.silent_since.unwrap_or(now)),
            last_words: row(self.last_words, !contradicted && (last_words || self.last_words > 0)),
            // Counted where it is known whether its time is up.
            not_up: self.not_up,
        }
    }
}
