//! The guests of a soak: some of each kind, started one after the other so that the host is not overwhelmed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::member::{Kind, Member};
use crate::boot_sector::BootSector;
use crate::guest::{Accelerator, GuestConfig};
use crate::interrupt;
use crate::scenario::Place;

/// How often a trickle goes on.
const TRICKLE_EVERY: Duration = Duration::from_secs(4);
/// How long a guest that computes does so, and then rests.
const COMPUTES_FOR: Duration = Duration::from_secs(60);
/// Those that every fleet has, beside the ones that idle.
const SPECIAL: usize = 13;
/// At least so many idle: faults come to them.
const LEAST_IDLE: usize = 7;
/// The smallest fleet that has some of each kind.
pub const LEAST_GUESTS: usize = SPECIAL + LEAST_IDLE;

/// All guests.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    trickled: Instant,
    turned: Instant,
    computing: bool,
}

impl Fleet {
    /// Starts `count` guests in `place`, some of them under KVM if that runs; `look` is told of each, and is to look after those that run.
    pub(super) fn start(
        place: &mut Place,
        count: usize,
        kvm: bool,
        mut look: impl FnMut(&mut Self, &str) -> Result<()>,
    ) -> Result<Self> {
        ensure!(
            count >= LEAST_GUESTS,
            "a soak takes {LEAST_GUESTS} guests at least: some of each kind"
        );
        let now = Instant::now();
        let mut fleet = Self { members: Vec::new(), trickled: now, turned: now, computing: false };
        for number in 0..count {
            interrupt::check()?;
            let (kind, config) = recipe(place, number, kvm)?;
            let member = Member::start(kind, config)?;
            let line = format!("{} of {count} runs: {}", number + 1, member.name());
            fleet.members.push(member);
            look(&mut fleet, &line)?;
        }
        Ok(fleet)
    }

    /// Keeps those moving that trickle, and turns the one on or off that computes. Where another needs the
    /// CPU, it rests.
    pub(super) fn stir(&mut self, quiet: bool) -> Result<()> {
        if self.trickled.elapsed() >= TRICKLE_EVERY {
            self.trickled = Instant::now();
            for member in &self.members {
                if let (Kind::Trickles(command), false) = (member.kind, member.is_at_fault) {
                    member.guest.send(command)?;
                }
            }
        }
        let wanted = if self.turned.elapsed() >= COMPUTES_FOR {
            self.turned = Instant::now();
            !self.computing
        } else {
            self.computing
        };
        let wanted = wanted && !quiet;
        if wanted != self.computing {
            self.computing = wanted;
            let command = if wanted { "compute 1" } else { "stop-load" };
            for member in self.members.iter().filter(|member| member.kind == Kind::Computes) {
                member.guest.send(command)?;
            }
        }
        Ok(())
    }
}

/// What the guest with this number is.
fn recipe(place: &mut Place, number: usize, kvm: bool) -> Result<(Kind, GuestConfig)> {
    let accelerator = if kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    let sector = |place: &Place, name: &str, code, accelerator| {
        let mut config = place.boot_sector(&format!("{name}-{number:02}"), code);
        config.accelerator = accelerator;
        Ok((Kind::BootSector, config))
    };
    let linux = |place: &mut Place, name: &str| place.linux(&format!("{name}-{number:02}"));
    Ok(match number {
        0 => (Kind::Paused, linux(place, "paused")?),
        1 => {
            let mut config = linux(place, "powered-off")?;
            config.no_shutdown = true;
            (Kind::PoweredOff, config)
        }
        2 => {
            let mut config = linux(place, "incoming")?;
            config.extra_args.extend(["-incoming".to_owned(), "defer".to_owned()]);
            (Kind::Incoming, config)
        }
        3 | 4 => return sector(place, "sti-hlt", BootSector::StiHlt, Accelerator::Tcg),
        5..=7 => return sector(place, "sti-hlt", BootSector::StiHlt, accelerator),
        8 => (Kind::Trickles("disk-write 2 4"), linux(place, "writes")?),
        9 => (Kind::Trickles("disk-read 2 4"), linux(place, "reads")?),
        10 => (Kind::Trickles("net 1"), linux(place, "sends")?),
        11 => (Kind::Computes, linux(place, "computes")?),
        12 => {
            let mut config = linux(place, "pvpanic")?;
            config.pvpanic = true;
            config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
            (Kind::Pvpanic, config)
        }
        _ => (Kind::Idle, idle(place, number)?),
    })
}

/// One of those that idle; each of seven differs.
fn idle(place: &mut Place, number: usize) -> Result<GuestConfig> {
    let mut linux = |name: &str| place.linux(&format!("{name}-{number:02}"));
    Ok(match number % 7 {
        0 => place.bare_linux(&format!("bare-{number:02}")),
        1 => linux("idle")?,
        2 => {
            let mut config = linux("ip6")?;
            config.ip = None;
            config.ip6 = Some(format!("fd00:7:{number:x}::2/64"));
            config
        }
        3 => {
            let mut config = linux("two-vcpus")?;
            config.vcpus = 2;
            config
        }
        4 => {
            let mut config = linux("balloon")?;
            config.balloon = true;
            config
        }
        5 => {
            let mut config = linux("agent")?;
            config.agent = true;
            config
        }
        _ => {
            let mut config = linux("console")?;
            config.console_log = true;
            config
        }
    })
}
