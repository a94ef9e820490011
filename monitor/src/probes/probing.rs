//! Probes by the addresses that a guest was seen to use, into its own taps.

use std::{net::IpAddr, sync::Arc, time::Duration};

use monitor_ebpf::NetworkCounters;
use tokio::time::sleep;

use super::{ProbeContext, ProbeSocket};
use crate::sampler::TapAddresses;
use flatline_detector::verdict::Answer;
use flatline_samples::{Missing, Reading};

/// Probes to an address in one round.
const PROBES_PER_ROUND: u32 = 2;
/// Time after each; an answer takes 1 ms where the host isn't overloaded.
const PROBE_EVERY: Duration = Duration::from_millis(300);

/// A tap to probe.
#[derive(Clone, Debug)]
pub(crate) struct TapTarget {
    /// A socket in the tap's network namespace.
    pub(crate) socket: Arc<ProbeSocket>,
    /// The tap's index there.
    pub(crate) ifindex: u32,
    /// The addresses to ask for.
    pub(crate) addresses: TapAddresses,
}

/// One address to ask for, and the frame that does.
pub(super) struct Probe {
    pub(super) ip: IpAddr,
    pub(super) frame: Vec<u8>,
}

/// Asks for the address of each tap that `probe` knows one of; `answers` is what the taps count of answers.
pub(super) async fn ask(
    context: &ProbeContext,
    probe: fn(&TapAddresses) -> Option<Probe>,
    answers: fn(&NetworkCounters) -> u64,
) -> Result<Answer, String> {
    let targets = context.targets.as_ref().map_err(Clone::clone)?;
    let probes: Vec<(&TapTarget, Probe)> =
        targets.iter().filter_map(|target| Some((target, probe(&target.addresses)?))).collect();
    if probes.is_empty() {
        return Err("it was not seen to use an address of this kind".to_owned());
    }
    let count = || counters(context).map(|counters| answers(&counters));
    let before = count().map_err(|missing| missing.to_string())?;
    for _ in 0..PROBES_PER_ROUND {
        let mut sent = Err("no probe".to_owned());
        for (target, probe) in &probes {
            // A tap that is down doesn't keep another from being asked.
            let this = target.socket.send(target.ifindex, &probe.frame);
            sent = sent.or(this.map_err(|error| format!("the probe could not be sent: {error}")));
        }
        sent?;
        sleep(PROBE_EVERY).await;
    }
    let addresses: Vec<String> = probes.iter().map(|(_, probe)| probe.ip.to_string()).collect();
    let addresses = addresses.join(", ");
    let now = count().map_err(|missing| missing.to_string())?;
    Ok(if now > before {
        Answer::ServesInterrupts(format!("{addresses} answers"))
    } else {
        Answer::Silent(format!("{addresses} left {PROBES_PER_ROUND} probes unanswered"))
    })
}

/// Answers are counted at the tap, which takes them out of the traffic.
fn counters(context: &ProbeContext) -> Reading<NetworkCounters> {
    let slot = context.slot.clone().map_err(|why| Missing::new("its row", why))?;
    Ok(context.counters.row(context.vm.id, slot)?.network())
}
