//! The witnesses that a suspect is asked, each in a module of its own and bounded in time and size.
//!
//! One round asks all that were named, at the same time.

pub mod arp;
pub mod kvm;
pub mod registers;

use std::{sync::Arc, time::Duration};

use arp::ArpSocket;
use tokio::time::sleep;

use crate::{
    qmp::QmpHandle,
    sample::TapAddress,
    verdict::{Questions, RegistersFinding},
};

/// Time between two looks at the registers. Under TCG they are stale within a translation block, and a
/// spinning vCPU must be given the time to move on.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in one round.
pub const LOOKS_PER_ROUND: usize = 4;
/// ARP probes to each address in one round.
pub const PROBES_PER_ROUND: u32 = 2;
/// Time between them; an answer takes 1 ms where the host isn't overloaded.
const PROBE_EVERY: Duration = Duration::from_millis(400);

/// A tap to probe.
#[derive(Clone, Debug)]
pub struct ArpTarget {
    /// A socket in the tap's network namespace.
    pub socket: Arc<ArpSocket>,
    /// The tap's index there.
    pub ifindex: u32,
    /// The address to ask for.
    pub guest: TapAddress,
}

/// What one round brought. Answers to the probes are counted at the tap, by whoever reads its counters.
#[derive(Clone, Debug)]
pub struct Round {
    /// Whether the probes were sent, or why not.
    pub probed: Result<(), String>,
    /// What the registers show.
    pub registers: RegistersFinding,
    /// Requests that QEMU completed since its start, or why that isn't known.
    pub requests: Result<u64, String>,
}

/// Asks one round of questions; takes about 0.8 s where QEMU answers at once. QEMU is asked for the guest's
/// requests only where the host can't see them (`unseen_storage`).
pub async fn ask(
    questions: Questions,
    targets: Vec<ArpTarget>,
    qmp: Option<QmpHandle>,
    unseen_storage: bool,
) -> Round {
    let count = count_requests(questions.registers && unseen_storage, qmp.clone());
    let look = look_at_registers(questions.registers, qmp);
    let (probed, registers, requests) = tokio::join!(send_probes(targets), look, count);
    Round { probed, registers, requests }
}

async fn count_requests(asked: bool, qmp: Option<QmpHandle>) -> Result<u64, String> {
    match qmp {
        Some(qmp) if asked => qmp.query_requests().await.map_err(|error| error.to_string()),
        Some(_) => Err("the host sees its requests".to_owned()),
        None => Err("no QMP socket is known".to_owned()),
    }
}

async fn send_probes(targets: Vec<ArpTarget>) -> Result<(), String> {
    for _ in 0..PROBES_PER_ROUND {
        for target in &targets {
            target
                .socket
                .probe(target.ifindex, target.guest)
                .map_err(|error| format!("the probe could not be sent: {error}"))?;
        }
        if !targets.is_empty() {
            sleep(PROBE_EVERY).await;
        }
    }
    Ok(())
}

async fn look_at_registers(asked: bool, qmp: Option<QmpHandle>) -> RegistersFinding {
    match (asked, qmp) {
        (false, _) => RegistersFinding::Unavailable("not asked".to_owned()),
        (true, None) => RegistersFinding::Unavailable("no QMP socket is known".to_owned()),
        (true, Some(qmp)) => registers::look(&qmp).await,
    }
}
