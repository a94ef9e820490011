//! What can come to a guest in a soak, to which one, and when.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::fleet::Fleet;
use super::judge::{Judge, load};
use super::member::{Kind, Member};
use super::ongoing::{Ongoing, Step};
use super::random::Random;
use crate::broadcast::Broadcast;
use crate::daemon::Daemon;
use crate::interrupt;
use crate::stopped::Stopped;

/// How long the daemon is stopped.
const DAEMON_STOPS_FOR: Duration = Duration::from_secs(15);
/// For a console to say what is wrong, or a host that is busy otherwise.
const SAYS_WITHIN: Duration = Duration::from_secs(60);
/// A VM is restarted three times an hour at most.
const MOST_RESETS: u32 = 3;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Panic,
    Halt,
    HardLockup,
    Spinlock,
    PvpanicPause,
    InitKilled,
    QmpStop,
    SigStop,
    NetworkDown,
    Broadcasts,
    ForkBomb,
    Reboot,
    PanicReboots,
    PowerOff,
    DaemonStopped,
    DaemonKilled,
}

use Fault::{
    Broadcasts, DaemonKilled, DaemonStopped, ForkBomb, Halt, HardLockup, InitKilled, NetworkDown,
    Panic, PanicReboots, PowerOff, PvpanicPause, QmpStop, Reboot, SigStop, Spinlock,
};

/// The crashes, and then the disturbances. Crashes come as often as disturbances do.
const CRASHES: [Fault; 6] = [Panic, Halt, HardLockup, Spinlock, PvpanicPause, InitKilled];
const DISTURBANCES: [Fault; 10] = [
    QmpStop,
    SigStop,
    NetworkDown,
    Broadcasts,
    ForkBomb,
    Reboot,
    PanicReboots,
    PowerOff,
    DaemonStopped,
    DaemonKilled,
];

/// Faults that are to be, and that are under way.
#[derive(Debug)]
pub(super) struct Schedule {
    gaps: Random,
    /// The mean time between faults.
    gap: Duration,
    due: Instant,
    /// Chosen already, and did not fit beside what is under way.
    waits: Option<Fault>,
    ongoing: Vec<Ongoing>,
}

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Panic => "panic",
            Halt => "halt",
            HardLockup => "hard lockup of all vCPUs",
            Spinlock => "spinlock taken twice",
            PvpanicPause => "panic through pvpanic",
            InitKilled => "init killed",
            QmpStop => "QMP stop for 20 s",
            SigStop => "SIGSTOP of QEMU for 20 s",
            NetworkDown => "network down",
            Broadcasts => "broadcasts for 20 s",
            ForkBomb => "fork bomb for 15 s",
            Reboot => "reboot by the guest",
            PanicReboots => "panic that reboots",
            PowerOff => "power-off",
            DaemonStopped => "SIGSTOP of the daemon for 15 s",
            DaemonKilled => "SIGKILL of the daemon",
        }
    }

    pub(super) fn is_crash(self) -> bool {
        CRASHES.contains(&self)
    }

    fn is_of_daemon(self) -> bool {
        matches!(self, DaemonStopped | DaemonKilled)
    }

    /// Whether it keeps a CPU busy, or boots a guest: only one such at a time.
    fn is_heavy(self) -> bool {
        self.is_crash() || matches!(self, ForkBomb | Reboot | PanicReboots | PowerOff | NetworkDown)
    }

    /// Whether the guest boots anew in the end.
    fn resets(self) -> bool {
        self.is_crash() || matches!(self, Reboot | PanicReboots | NetworkDown)
    }

    /// Whether it may come to this guest.
    fn befits(self, member: &Member) -> bool {
        if member.is_at_fault || (self.resets() && member.all_resets() >= MOST_RESETS) {
            return false;
        }
        let has_address = member.config.ip.is_some();
        match self {
            PvpanicPause => member.kind == Kind::Pvpanic,
            // Its panic would be heard through pvpanic at once.
            Panic | InitKilled => matches!(member.kind, Kind::Idle | Kind::Trickles(_)),
            Halt | HardLockup => matches!(member.kind, Kind::Idle | Kind::Trickles(_)),
            Spinlock => member.kind == Kind::Idle && member.config.vcpus == 1,
            // The register witness alone is left, or the agent.
            NetworkDown => member.kind == Kind::Idle && has_address,
            Broadcasts => member.kind.obeys() && member.config.tap.is_some(),
            ForkBomb | Reboot | PanicReboots | PowerOff => member.kind == Kind::Idle,
            QmpStop => member.kind.obeys(),
            SigStop => member.kind.obeys() || member.kind == Kind::BootSector,
            DaemonStopped | DaemonKilled => false,
        }
    }

    /// Makes it; returns when that was.
    fn make(self, member: &Member) -> Result<(SystemTime, Option<Broadcast>)> {
        let guest = &member.guest;
        let mark = guest.mark();
        let after = |command: &str, words: &str| {
            guest.send(command)?;
            guest.wait_for_after(mark, words, SAYS_WITHIN)?;
            anyhow::Ok((SystemTime::now(), None))
        };
        let at = |command: &str| {
            let now = SystemTime::now();
            guest.send(command)?;
            anyhow::Ok((now, None))
        };
        match self {
            Panic | PvpanicPause => after("panic", "Kernel panic - not syncing"),
            InitKilled => after("init-killed", "Attempted to kill init"),
            HardLockup => after("lockup hard all", "lockup: "),
            Spinlock => after("lockup spinlock", "lockup: "),
            PanicReboots => after("panic-after 3", "Kernel panic - not syncing"),
            Halt => at("halt"),
            NetworkDown => at("net-down"),
            ForkBomb => at("fork-bomb"),
            Reboot => at("reboot"),
            PowerOff => at("poweroff"),
            Broadcasts => {
                let tap = member.config.tap.as_ref().context("it has a tap")?;
                Ok((SystemTime::now(), Some(Broadcast::start(tap, 100)?)))
            }
            QmpStop => {
                guest.qmp("stop", &Value::Null)?;
                Ok((SystemTime::now(), None))
            }
            SigStop => {
                guest.signal(Signal::STOP)?;
                Ok((SystemTime::now(), None))
            }
            DaemonStopped | DaemonKilled => anyhow::bail!("it comes to no guest"),
        }
    }
}

impl Schedule {
    pub(super) fn new(seed: u64, gap: Duration) -> Self {
        // The first comes soon, when all have been asked once.
        let due = Instant::now() + Duration::from_secs(25);
        Self { gaps: Random::new(seed ^ 0x5eed), gap, due, waits: None, ongoing: Vec::new() }
    }

    /// Whether any fault is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.ongoing.is_empty()
    }

    /// Whether no other guest is to compute.
    pub(super) fn wants_quiet(&self) -> bool {
        self.ongoing.iter().any(|ongoing| ongoing.fault.is_heavy())
    }

    /// Makes the next fault, if it is time and it fits beside the others.
    pub(super) fn begin(
        &mut self,
        daemon: &mut Daemon,
        fleet: &mut Fleet,
        judge: &mut Judge,
        random: &mut Random,
        say: impl Fn(&str),
    ) -> Result<()> {
        if Instant::now() < self.due {
            return Ok(());
        }
        let fault = match self.waits.take() {
            Some(fault) => fault,
            None => {
                let kinds: [&[Fault]; 2] = [&CRASHES, &DISTURBANCES];
                let kind = random.choice(&kinds).copied().unwrap_or_default();
                *random.choice(kind).context("there are faults")?
            }
        };
        let fits = if fault.is_of_daemon() {
            // No time of a verdict is to be measured meanwhile.
            self.ongoing.iter().all(|ongoing| !ongoing.fault.is_heavy())
        } else {
            !fault.is_heavy() || !self.wants_quiet()
        };
        if !fits {
            self.waits = Some(fault);
            return Ok(());
        }
        if fault.is_of_daemon() {
            self.due = Instant::now() + self.gaps.gap(self.gap);
            say(&format!("{} (load {:.1})", fault.name(), load()));
            judge.disturbed(fault.name());
            return disturb_daemon(fault, daemon, judge);
        }
        let members = fleet.members.iter().enumerate();
        let fitting: Vec<usize> =
            members.filter_map(|(at, member)| fault.befits(member).then_some(at)).collect();
        // All that it befits may have had their share: another fault is chosen next time.
        let Some(&at) = random.choice(&fitting) else { return Ok(()) };
        self.due = Instant::now() + self.gaps.gap(self.gap);
        let member = &mut fleet.members[at];
        say(&format!("{}: {} (load {:.1})", member.name(), fault.name(), load()));
        member.is_at_fault = true;
        let before = judge.incidents_of(member.name());
        if fault.is_crash() {
            judge.crashed(member.name());
            member.due_restarts += 1;
        } else {
            judge.disturbed(fault.name());
            member.own_reboots += u32::from(fault.resets());
        }
        let banners = member.guest.banner_count();
        let (made, broadcast) = fault.make(member)?;
        self.ongoing.push(Ongoing::new(at, fault, made, before, banners, broadcast));
        Ok(())
    }

    /// Looks after all faults that are under way.
    pub(super) fn advance(
        &mut self,
        fleet: &mut Fleet,
        judge: &mut Judge,
        say: impl Fn(&str),
    ) -> Result<()> {
        let mut left = Vec::new();
        for mut ongoing in self.ongoing.drain(..) {
            let member = &mut fleet.members[ongoing.at];
            match ongoing.advance(member, judge, &say)? {
                Step::GoesOn => left.push(ongoing),
                Step::Over => member.is_at_fault = false,
            }
        }
        self.ongoing = left;
        Ok(())
    }
}

fn disturb_daemon(fault: Fault, daemon: &mut Daemon, judge: &mut Judge) -> Result<()> {
    if fault == DaemonKilled {
        daemon.kill()?;
        daemon.start_again()?;
        judge.daemon_restarted();
        return Ok(());
    }
    let pid = daemon.pid().context("the daemon runs")?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process has this number")?;
    let stopped = Stopped::new(pid)?;
    // A caller that asked it meanwhile would wait, so nothing else is done.
    interrupt::sleep(DAEMON_STOPS_FOR)?;
    drop(stopped);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own_and_one_side() {
        let all: Vec<Fault> = CRASHES.iter().chain(&DISTURBANCES).copied().collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), all.len());
        assert!(DISTURBANCES.iter().all(|fault| !fault.is_crash()));
        assert!(CRASHES.iter().all(|fault| fault.is_heavy() && fault.resets()));
    }
}
