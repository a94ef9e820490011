//! A fault that is under way: what is waited for, what undoes it, and when it is over.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use rustix::process::Signal;
use serde_json::Value;

use super::MISSED_AFTER;
use super::faults::Fault;
use super::judge::{Judge, load};
use super::member::{BOOT_LIMIT, Member};
use super::summary::Verdict;
use crate::broadcast::Broadcast;
use crate::scenario::FLAT_FOR;

/// How long a guest is disturbed.
const DISTURBED_FOR: Duration = Duration::from_secs(20);
/// Long enough for several rounds of questions.
const NETWORK_DOWN_FOR: Duration = Duration::from_secs(40);
const BOMBED_FOR: Duration = Duration::from_secs(15);
/// A guest that is found no sooner will not be.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(90);
/// For a restarted guest to be back.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// For a QEMU to end by itself.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Whether a fault goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    GoesOn,
    Over,
}

/// The fault.
#[derive(Debug)]
pub(super) struct Ongoing {
    /// The guests that it came to.
    pub(super) at: usize,
    pub(super) fault: Fault,
    made: SystemTime,
    load: f64,
    /// Incidents that the guest had before.
    before: usize,
    /// How often it had come up before.
    banners: usize,
    broadcast: Option<Broadcast>,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    /// As it was made.
    Made,
    /// Convicted after so long; a sign of life is waited for since then.
    Convicted { took: Duration, cause: String, since: Instant },
    /// It boots, or ends, by itself since then.
    Boots { since: Instant },
}

impl Ongoing {
    pub(super) fn new(
        at: usize,
        fault: Fault,
        made: SystemTime,
        before: usize,
        banners: usize,
        broadcast: Option<Broadcast>,
    ) -> Self {
        Self { at, fault, made, load: load(), before, banners, broadcast, phase: Phase::Made }
    }

    /// Goes on as far as it can without waiting, but for a guest's start.
    pub(super) fn advance(
        &mut self,
        member: &mut Member,
        judge: &mut Judge,
        say: impl Fn(&str),
    ) -> Result<Step> {
        match self.phase.clone() {
            Phase::Made if self.fault.is_crash() => self.await_verdict(member, judge, say),
            Phase::Made => self.disturb(member),
            Phase::Convicted { took, cause, since } => {
                self.await_recovery(member, judge, (took, cause, since), say)
            }
            Phase::Boots { since } => self.await_boot(member, judge, since, say),
        }
    }

    fn age(&self) -> Duration {
        self.made.elapsed().unwrap_or_default()
    }

    fn await_verdict(
        &mut self,
        member: &mut Member,
        judge: &mut Judge,
        say: impl Fn(&str),
    ) -> Result<Step> {
        let (age, name) = (self.age(), member.name().to_owned());
        if let Some(incident) = judge.incident_of(&name, self.before) {
            let cause = incident["cause"].as_str().unwrap_or("none").to_owned();
            say(&format!("{name}: {cause} after {:.1} s", age.as_secs_f64()));
            if age > FLAT_FOR + MISSED_AFTER {
                let why = format!(
                    "{name}: {} was found only after {:.1} s (load {:.1}): {incident}",
                    self.fault.name(),
                    age.as_secs_f64(),
                    self.load
                );
                judge.missed(&name);
                judge.failed(why, say);
            }
            self.phase = Phase::Convicted { took: age, cause, since: Instant::now() };
            return Ok(Step::GoesOn);
        }
        if age < GIVEN_UP_AFTER {
            return Ok(Step::GoesOn);
        }
        judge.missed(&name);
        let why = format!("{name}: {} was not found (load {:.1})", self.fault.name(), self.load);
        judge.failed(why, say);
        member.replace()?;
        Ok(Step::Over)
    }

    fn await_recovery(
        &mut self,
        member: &mut Member,
        judge: &mut Judge,
        (took, cause, since): (Duration, String, Instant),
        say: impl Fn(&str),
    ) -> Result<Step> {
        let incident = judge.incident_of(member.name(), self.before);
        let recovered = incident.is_some_and(|incident| incident["outcome"] == "recovered");
        let booted = member.guest.banner_count() > self.banners;
        let back = recovered && booted;
        if !back && since.elapsed() < BACK_WITHIN {
            return Ok(Step::GoesOn);
        }
        if back {
            say(&format!("{}: back", member.name()));
            member.greet()?;
        } else {
            let banner = if booted { "came up" } else { "did not come up" };
            let incident = incident.map(ToString::to_string).unwrap_or_default();
            let why = format!("{} {banner}, and is not recovered: {incident}", member.name());
            judge.failed(why, &say);
            if !booted {
                member.replace()?;
            }
        }
        let back = back.then(|| since.elapsed());
        let fault = self.fault.name();
        judge.found(Verdict { fault, cause, took, back, load: self.load });
        Ok(Step::Over)
    }

    fn disturb(&mut self, member: &mut Member) -> Result<Step> {
        let lasts = match self.fault {
            Fault::NetworkDown => NETWORK_DOWN_FOR,
            Fault::ForkBomb => BOMBED_FOR,
            Fault::Reboot | Fault::PanicReboots | Fault::PowerOff => Duration::ZERO,
            _ => DISTURBED_FOR,
        };
        if self.age() < lasts {
            return Ok(Step::GoesOn);
        }
        match self.fault {
            Fault::QmpStop => drop(member.guest.qmp("cont", &Value::Null)?),
            Fault::SigStop => member.guest.signal(Signal::CONT)?,
            Fault::Broadcasts => self.broadcast = None,
            Fault::ForkBomb => member.guest.send("stop-load")?,
            // Nothing else brings its address back as it was.
            Fault::NetworkDown => member.guest.send("reboot")?,
            _ => {}
        }
        match self.fault {
            Fault::NetworkDown | Fault::Reboot | Fault::PanicReboots | Fault::PowerOff => {
                self.phase = Phase::Boots { since: Instant::now() };
                Ok(Step::GoesOn)
            }
            _ => Ok(Step::Over),
        }
    }

    fn await_boot(
        &mut self,
        member: &mut Member,
        judge: &mut Judge,
        since: Instant,
        say: impl Fn(&str),
    ) -> Result<Step> {
        let name = member.name().to_owned();
        if self.fault == Fault::PowerOff {
            if member.guest.is_running() && since.elapsed() < GONE_WITHIN {
                return Ok(Step::GoesOn);
            }
            if member.guest.is_running() {
                judge.failed(format!("{name} did not power itself off"), say);
            }
            member.replace()?;
            return Ok(Step::Over);
        }
        if member.guest.banner_count() > self.banners {
            member.greet()?;
            return Ok(Step::Over);
        }
        if since.elapsed() < BOOT_LIMIT {
            return Ok(Step::GoesOn);
        }
        judge.failed(format!("{name} did not come up after {}", self.fault.name()), say);
        member.replace()?;
        Ok(Step::Over)
    }
}
