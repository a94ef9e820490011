//! Guests of others: those that nothing is done to, and those that crash again and again.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{MARGIN, Plan, ground::Known, summary::Answer};
use crate::{
    boot_sector::BootSector,
    cpu,
    guest::{Guest, GuestConfig, GuestKind},
    qmp::time_of,
    tenants::Homes,
};

/// For a guest of a few bytes to boot beside many others, for the first time.
const BOOTS_WITHIN: Duration = Duration::from_secs(120);
/// From a restart to the next crash: it is up, past its grace, and alive by then.
const LIVES_FOR: Duration = Duration::from_secs(9);
/// What is longer than it may take is waited for so many times as long, and then missed.
const WAITED_FOR: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Victims {
    healthy: Vec<Guest>,
    crashing: Vec<Crashing>,
    flat_for: Duration,
    answers: Vec<Answer>,
    missed: Vec<String>,
    /// Resets of guests that crash beyond the one that each crash is due.
    unasked: usize,
}

#[derive(Debug)]
struct Crashing {
    guest: Guest,
    user: u32,
    uuid: String,
    state: State,
    /// How often it crashed.
    crashes: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Lives { since: Instant },
    Crashed { at: SystemTime, withheld: Duration },
}

/// How a guest ends: it halts for good, or reports a panic.
fn manner(crashes: u32) -> (&'static str, &'static str) {
    if crashes.is_multiple_of(2) { ("hang", "x") } else { ("panic", "p") }
}

impl Victims {
    /// Starts them, and waits until each runs.
    pub(super) fn start(plan: &Plan, homes: &Homes, qemu: &Path, first: u32) -> Result<Self> {
        let user = |number: usize| -> Result<u32> {
            Ok(first + u32::try_from(number)? % plan.users.max(1))
        };
        let mut healthy = Vec::new();
        for number in 0..plan.healthy {
            let (user, name) = (user(number)?, format!("healthy-{number}"));
            // Some read their disks, and the others are idle, with nothing to be asked but their registers.
            let config = if number % 3 == 0 {
                homes.obeys(qemu, user, &name)?
            } else {
                let kind = GuestKind::BootSector(BootSector::StiHlt);
                let mut config = GuestConfig::new(&name, kind, qemu, &homes.of(user)?);
                config.user = Some(user);
                config
            };
            healthy.push(config.start()?);
        }
        let mut crashing = Vec::new();
        for number in 0..plan.crashing {
            let (user, name) = (user(number)?, format!("crashing-{number}"));
            let mut config = homes.obeys(qemu, user, &name)?;
            let uuid = format!("7f3b6a10-58e2-4c6d-9a37-0d1c5e2b4f{number:02x}");
            config.extra_args.extend(["-uuid".to_owned(), uuid.clone()]);
            let state = State::Lives { since: Instant::now() };
            crashing.push(Crashing { guest: config.start()?, user, uuid, state, crashes: 0 });
        }
        for guest in healthy.iter().chain(crashing.iter().map(|one| &one.guest)) {
            crate::interrupt::wait_until("a boot sector to run", BOOTS_WITHIN, || {
                Ok(guest.runs_its_boot_sector()?.then_some(()))
            })
            .with_context(|| guest.name().to_owned())?;
            guest.events()?;
        }
        let (answers, missed) = (Vec::new(), Vec::new());
        Ok(Self { healthy, crashing, flat_for: plan.flat_for, answers, missed, unasked: 0 })
    }

    /// What an attacker may know of those that crash.
    pub(super) fn known(&self, homes: &Homes) -> Result<Vec<Known>> {
        let known = |one: &Crashing| {
            let (name, pid) = (one.guest.name().to_owned(), one.guest.pid());
            let dir = homes.of(one.user)?;
            Ok(Known { name, uuid: one.uuid.clone(), pid, user: one.user, dir })
        };
        self.crashing.iter().map(known).collect()
    }

    /// Whether a restart is due.
    pub(super) fn are_awaited(&self) -> bool {
        self.crashing.iter().any(|one| matches!(one.state, State::Crashed { .. }))
    }

    /// Takes note of restarts, and has those crash that lived for a while, if any are to.
    /// The names of those that were not restarted are returned.
    pub(super) fn tend(
        &mut self,
        daemon: u32,
        crash: bool,
        say: impl Fn(&str),
    ) -> Result<Vec<String>> {
        let allowed = self.flat_for + MARGIN;
        let mut missed = Vec::new();
        for one in &mut self.crashing {
            let resets = outer_resets(&one.guest)?;
            let withheld = || anyhow::Ok(cpu::withheld(daemon)? + cpu::withheld(one.guest.pid())?);
            let name = one.guest.name().to_owned();
            match one.state {
                State::Lives { since } => {
                    self.unasked += resets.len();
                    if crash && since.elapsed() > LIVES_FOR {
                        one.state = State::Crashed { at: SystemTime::now(), withheld: withheld()? };
                        one.guest.send(manner(one.crashes).1)?;
                    }
                }
                State::Crashed { at, withheld: before } => {
                    let waited = at.elapsed().unwrap_or_default();
                    let how = manner(one.crashes).0;
                    if let Some(reset) = resets.first() {
                        self.unasked += resets.len() - 1;
                        let took = reset.duration_since(at).unwrap_or_default();
                        let withheld = withheld()?.saturating_sub(before);
                        if took > allowed {
                            say(&format!(
                                "{name}: reset {took:.1?} after its {how}; {withheld:.1?} were withheld by the host"
                            ));
                        }
                        self.answers.push(Answer { how, took, withheld });
                    } else if waited > allowed * WAITED_FOR {
                        say(&format!("{name}: not reset {waited:.1?} after its {how}"));
                        self.missed.push(format!("{name} ({how})"));
                        missed.push(name);
                        one.guest.qmp("system_reset", &Value::Null)?;
                        one.guest.qmp("cont", &Value::Null)?;
                        one.guest.events()?;
                    } else {
                        continue;
                    }
                    one.crashes += 1;
                    one.state = State::Lives { since: Instant::now() };
                }
            }
        }
        Ok(missed)
    }

    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    pub(super) fn take_missed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.missed)
    }

    /// Resets from outside that no crash was due, by the QEMUs' own account.
    pub(super) fn wrong_resets(&self) -> Result<usize> {
        let of_healthy: Vec<usize> = self
            .healthy
            .iter()
            .map(|guest| Ok(outer_resets(guest)?.len()))
            .collect::<Result<_>>()?;
        Ok(of_healthy.iter().sum::<usize>() + self.unasked)
    }
}

/// When a guest was reset from outside since it was last asked.
fn outer_resets(guest: &Guest) -> Result<Vec<SystemTime>> {
    let events = guest.events()?;
    let outer = |event: &&Value| event["event"] == "RESET" && event["data"]["guest"] == false;
    events.iter().filter(outer).map(time_of).collect()
}
