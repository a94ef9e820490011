//! The registers of all vCPUs: a witness that needs nothing inside the guest, and no calibration.
//!
//! A healthy idle guest waits in `hlt` with interrupts on, and a busy one is mostly in user mode. A
//! crashed one has stopped every vCPU with interrupts off, or runs on in kernel mode where no timer can
//! reach it: with interrupts off at one spot, or with its local APIC disabled, as Linux's panic leaves it.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Asked, Note, Scene, Witness, of_suspects};
use crate::{
    qmp::{Lapic, QmpError, QmpHandle, VcpuRegisters, parse_lapic, parse_registers},
    verdict::Answer,
};

/// The row in the table.
pub const WITNESS: Witness = Witness {
    name: "registers",
    looks_for: "interrupts on, or user code",
    asked_in: of_suspects,
    ask: |scene, note| -> Asked { Box::pin(ask(scene, note)) },
};

/// Time between two looks at the registers. Under TCG they are stale within a translation block, and a
/// spinning vCPU must be given the time to move on.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in one round.
const LOOKS_PER_ROUND: usize = 3;

/// A spin of a few instructions stays within so many bytes; a decompressor or a memory test does not.
///
/// It also leaves every register as it is. A boot loader that polls for a key may be seen at the same
/// port instruction again and again, but counts time in between.
const ONE_SPOT_BYTES: u64 = 64;
/// Local APICs looked at, at most, each time: one that is sound settles the matter.
const MOST_LAPICS: usize = 8;

/// What one look shows of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    registers: VcpuRegisters,
    /// Only asked of a vCPU that runs kernel code.
    lapic: Option<Lapic>,
}

/// What one look at a vCPU says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// In `hlt` with interrupts on: idle.
    Idle,
    /// Runs user code.
    User,
    /// In `hlt` with interrupts off: stopped for good, or never started.
    Stopped,
    /// Runs kernel code with a sound local APIC and interrupts on: may be healthy, may be not.
    Kernel,
    /// Runs kernel code with interrupts off, here, and with this in its registers.
    Masked { ip: u64, general_digest: u64 },
    /// Runs kernel code, and no interrupt can reach it.
    Deaf,
}

impl Look {
    fn standing(&self) -> Standing {
        let registers = &self.registers;
        let deaf = |lapic: Lapic| !lapic.software_enabled && !lapic.lint0_accepts_external;
        match (registers.halted, registers.interrupts_enabled) {
            (true, true) => Standing::Idle,
            (true, false) => Standing::Stopped,
            // Under KVM, a vCPU that waits for its start-up IPI doesn't count as halted.
            (false, false) if registers.is_at_reset_vector() => Standing::Stopped,
            (false, _) if registers.cpl == 3 => Standing::User,
            (false, _) if self.lapic.is_some_and(deaf) => Standing::Deaf,
            (false, false) => {
                Standing::Masked { ip: registers.ip, general_digest: registers.general_digest }
            }
            (false, true) => Standing::Kernel,
        }
    }
}

async fn ask(scene: Arc<Scene>, note: Note) -> (Answer, Note) {
    match &scene.qmp {
        Ok(qmp) => (look(qmp).await, note),
        Err(why) => (Answer::NotAsked(why.clone()), note),
    }
}

/// Looks at all vCPUs [`LOOKS_PER_ROUND`] times, [`LOOK_EVERY`] apart.
async fn look(qmp: &QmpHandle) -> Answer {
    let mut looks = Vec::with_capacity(LOOKS_PER_ROUND);
    for n in 0..LOOKS_PER_ROUND {
        if n > 0 {
            sleep(LOOK_EVERY).await;
        }
        match look_once(qmp).await {
            Ok(look) => looks.push(look),
            Err(finding) => return finding,
        }
    }
    classify(&looks)
}

async fn look_once(qmp: &QmpHandle) -> Result<Vec<Look>, Answer> {
    let text = qmp.human("info registers -a").await.map_err(unavailable)?;
    let unreadable = |error: &dyn std::error::Error| Answer::NotAsked(error.to_string());
    let mut looks: Vec<Look> = parse_registers(&text)
        .map_err(|error| unreadable(&error))?
        .into_iter()
        .map(|registers| Look { registers, lapic: None })
        .collect();
    let running_kernel =
        looks.iter_mut().filter(|look| !look.registers.halted && look.registers.cpl != 3);
    for look in running_kernel.take(MOST_LAPICS) {
        let command = format!("info lapic {}", look.registers.index);
        let text = qmp.human(&command).await.map_err(unavailable)?;
        // A machine without a local APIC has none to read; the registers alone must do.
        look.lapic = parse_lapic(&text).ok();
    }
    Ok(looks)
}

fn unavailable(error: QmpError) -> Answer {
    match error {
        QmpError::Timeout { .. } => Answer::Unresponsive(error.to_string()),
        _ => Answer::NotAsked(error.to_string()),
    }
}

/// What several looks say together.
fn classify(looks: &[Vec<Look>]) -> Answer {
    let Some(first) = looks.first().filter(|first| !first.is_empty()) else {
        return Answer::NotAsked("QEMU named no vCPU".to_owned());
    };
    if looks.iter().any(|look| look.len() != first.len()) {
        return Answer::Neither("the number of vCPUs changed".to_owned());
    }
    let mut healthy = None;
    let mut stuck = None;
    let mut neither = None;
    for n in 0..first.len() {
        let index = first[n].registers.index;
        let standings: Vec<Standing> = looks.iter().map(|look| look[n].standing()).collect();
        match course(&standings) {
            Course::Healthy(what) => {
                healthy.get_or_insert_with(|| format!("vCPU {index} {what}"));
            }
            Course::Stuck(what) => {
                stuck.get_or_insert_with(|| format!("vCPU {index} {what}"));
            }
            Course::Neither(what) => {
                neither.get_or_insert_with(|| format!("vCPU {index} {what}"));
            }
            Course::Stopped => {}
        }
    }
    match (healthy, stuck, neither) {
        (None, None, None) => Answer::Halted,
        (None, Some(stuck), None) => Answer::Stuck(stuck),
        (Some(healthy), None, _) => Answer::Lives(healthy),
        (Some(healthy), Some(stuck), _) => Answer::Neither(format!("{stuck}, but {healthy}")),
        (None, stuck, Some(neither)) => {
            let stuck = stuck.map(|stuck| format!("{stuck}, but ")).unwrap_or_default();
            Answer::Neither(format!("{stuck}{neither}"))
        }
    }
}

/// What one vCPU did over all looks.
enum Course {
    Healthy(&'static str),
    Stopped,
    Stuck(String),
    Neither(&'static str),
}

fn course(standings: &[Standing]) -> Course {
    if standings.contains(&Standing::Idle) {
        return Course::Healthy("waits with interrupts on");
    }
    if standings.contains(&Standing::User) {
        return Course::Healthy("runs user code");
    }
    if standings.iter().all(|standing| *standing == Standing::Stopped) {
        return Course::Stopped;
    }
    if standings.iter().all(|standing| *standing == Standing::Deaf) {
        return Course::Stuck("runs in kernel mode with its local APIC disabled".to_owned());
    }
    let spots: Option<Vec<(u64, u64)>> = standings
        .iter()
        .map(|standing| match standing {
            Standing::Masked { ip, general_digest } => Some((*ip, *general_digest)),
            Standing::Idle
            | Standing::User
            | Standing::Stopped
            | Standing::Kernel
            | Standing::Deaf => None,
        })
        .collect();
    match spots.as_deref() {
        Some(spots) if is_one_spot(spots) => {
            Course::Stuck(format!("runs with interrupts off at {:#x}", spots[0].0))
        }
        Some(_) => Course::Neither("runs with interrupts off, but moves on"),
        None => Course::Neither("runs kernel code"),
    }
}

fn is_one_spot(spots: &[(u64, u64)]) -> bool {
    let ips = || spots.iter().map(|(ip, _)| *ip);
    let span = ips().max().zip(ips().min()).map(|(high, low)| high - low);
    span.is_some_and(|span| span <= ONE_SPOT_BYTES)
        && spots.iter().all(|(_, general_digest)| *general_digest == spots[0].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qmp::TimerMode;

    fn vcpu(halted: bool, interrupts_enabled: bool, cpl: u8, ip: u64) -> Look {
        let registers = VcpuRegisters {
            index: 0,
            ip,
            cpl,
            halted,
            interrupts_enabled,
            paging: true,
            in_upper_half: true,
            general_digest: 7,
        };
        Look { registers, lapic: None }
    }

    fn with_lapic(mut look: Look, software_enabled: bool, lint0_accepts_external: bool) -> Look {
        look.lapic = Some(Lapic {
            software_enabled,
            timer_masked: true,
            timer_mode: TimerMode::OneShot,
            timer_initial_count: 0,
            timer_count: None,
            lint0_accepts_external,
        });
        look
    }

    fn always(look: Look) -> Vec<Vec<Look>> {
        vec![vec![look]; LOOKS_PER_ROUND]
    }

    #[test]
    fn a_guest_that_waits_with_interrupts_on_is_healthy() {
        let finding = classify(&always(vcpu(true, true, 0, 0x1000)));
        assert!(matches!(finding, Answer::Lives(_)), "{finding:?}");
    }

    #[test]
    fn a_guest_halted_with_interrupts_off_is_halted_and_one_look_at_user_code_is_enough_against_it()
    {
        let mut looks = always(vcpu(true, false, 0, 0x1000));
        assert_eq!(classify(&looks), Answer::Halted);
        looks[LOOKS_PER_ROUND - 1][0] = vcpu(false, true, 3, 0x4000);
        assert!(matches!(classify(&looks), Answer::Lives(_)));
    }

    #[test]
    fn a_panicked_linux_is_stuck_though_its_interrupts_are_on_and_it_moves() {
        let spin = |ip| with_lapic(vcpu(false, true, 0, ip), false, false);
        let parked = vcpu(true, false, 0, 0xfd09a);
        let looks: Vec<_> =
            [0x1000, 0x9000, 0x1004, 0x5000].map(|ip| vec![spin(ip), parked]).into();
        assert!(matches!(classify(&looks), Answer::Stuck(_)));
    }

    #[test]
    fn a_firmware_guest_on_the_legacy_timer_is_not_stuck_though_its_apic_timer_is_masked() {
        let sti_jmp = with_lapic(vcpu(false, true, 0, 0x7c01), true, true);
        assert!(matches!(classify(&always(sti_jmp)), Answer::Neither(_)));
        let disabled_but_wired = with_lapic(vcpu(false, true, 0, 0x7c01), false, true);
        assert!(matches!(classify(&always(disabled_but_wired)), Answer::Neither(_)));
    }

    #[test]
    fn interrupts_off_is_stuck_at_one_spot_and_not_when_it_moves_on() {
        let at = |ip| vec![with_lapic(vcpu(false, false, 0, ip), true, true)];
        let one_spot: Vec<_> = [0x7c01, 0x7c01, 0x7c03, 0x7c01].map(at).into();
        assert!(matches!(classify(&one_spot), Answer::Stuck(_)));
        let mut counts = one_spot;
        counts[2][0].registers.general_digest = 8;
        assert!(matches!(classify(&counts), Answer::Neither(_)));
        let moves: Vec<_> = [0x7c01, 0x8c01, 0x7c03, 0x7c01].map(at).into();
        assert!(matches!(classify(&moves), Answer::Neither(_)));
    }

    #[test]
    fn a_stuck_vcpu_beside_a_healthy_one_convicts_and_acquits_nobody() {
        let stuck = with_lapic(vcpu(false, false, 0, 0x1000), true, false);
        let idle = vcpu(true, true, 0, 0x2000);
        let looks = vec![vec![stuck, idle]; LOOKS_PER_ROUND];
        assert!(matches!(classify(&looks), Answer::Neither(_)));
    }

    #[test]
    fn a_vcpu_that_was_never_started_counts_for_nothing() {
        let waiting = vcpu(false, false, 0, 0xfff0);
        let idle = vcpu(true, true, 0, 0x2000);
        let looks = vec![vec![idle, waiting]; LOOKS_PER_ROUND];
        assert!(matches!(classify(&looks), Answer::Lives(_)));
    }

    #[test]
    fn no_vcpu_and_a_changing_number_of_them_are_no_evidence() {
        assert!(matches!(classify(&[]), Answer::NotAsked(_)));
        assert!(matches!(classify(&[vec![]]), Answer::NotAsked(_)));
        let stopped = vcpu(true, false, 0, 0);
        let looks = [vec![stopped], vec![stopped, stopped]];
        assert!(matches!(classify(&looks), Answer::Neither(_)));
    }
}
