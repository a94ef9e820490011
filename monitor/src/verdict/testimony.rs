//! What the witnesses said when a suspect was asked, and how often they said it.

use std::net::Ipv4Addr;

/// Which witnesses to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Questions {
    /// Send ARP probes to the addresses that the guest was seen to use.
    pub arp: bool,
    /// Look at the vCPUs' registers, and at what QEMU knows of the guest's requests.
    pub registers: bool,
}

/// One round of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Testimony {
    /// What came of the ARP probes.
    pub arp: ArpAnswer,
    /// What the registers show.
    pub registers: RegistersFinding,
    /// What QEMU says of requests that the host can't see.
    pub requests: RequestsAnswer,
}

/// What QEMU's own block layer says, where the host's sees nothing of a VM's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestsAnswer {
    /// Not asked, or nothing to compare with yet, and why.
    NotAsked(String),
    /// No request completed since the last round.
    Unmoved,
    /// So many completed since then.
    Completed(u64),
}

/// What came of one round's ARP probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArpAnswer {
    /// Not asked, and why: no tap, no address known, within the boot grace, the probe couldn't be sent.
    NotAsked(String),
    /// The guest answered.
    Answered(Ipv4Addr),
    /// It was probed `probes` times, and did not.
    Silent {
        /// The address that was probed.
        address: Ipv4Addr,
        /// Probes sent.
        probes: u32,
    },
}

/// What several samples of all vCPUs' registers, 250 ms apart, show together.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistersFinding {
    /// Not asked, or QEMU told nothing, and why.
    Unavailable(String),
    /// QEMU's monitor did not answer in time, though it had before.
    Unresponsive(String),
    /// The guest does what healthy guests do; which vCPU, and what.
    Healthy(String),
    /// Every vCPU was halted with interrupts off in every sample.
    AllHalted,
    /// At least one vCPU runs on in kernel mode where no timer can reach it, and none is healthy.
    Stuck(String),
    /// Neither: what was seen.
    Inconclusive(String),
}

/// Answers of the same kind, given one round after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds asked since the suspicion began.
    pub rounds: u32,
    /// Rounds in a row in which every vCPU was halted with interrupts off.
    pub halted: u32,
    /// Rounds in a row in which a vCPU was stuck.
    pub stuck: u32,
    /// Rounds in a row in which the registers could not be seen.
    pub unseen: u32,
    /// Rounds in a row in which a guest that had answered ARP in this boot did not.
    pub arp_silent: u32,
}

impl Tally {
    /// Counts one more round; an answer of another kind starts a row anew.
    pub fn count(self, testimony: &Testimony, arp_calibrated: bool) -> Self {
        let row = |length: u32, goes_on: bool| if goes_on { length.saturating_add(1) } else { 0 };
        let arp_silent = matches!(testimony.arp, ArpAnswer::Silent { .. }) && arp_calibrated;
        Self {
            rounds: self.rounds.saturating_add(1),
            halted: row(self.halted, testimony.registers == RegistersFinding::AllHalted),
            stuck: row(self.stuck, matches!(testimony.registers, RegistersFinding::Stuck(_))),
            unseen: row(
                self.unseen,
                matches!(testimony.registers, RegistersFinding::Unavailable(_)),
            ),
            arp_silent: row(self.arp_silent, arp_silent),
        }
    }
}
