//! The row of a VM: what its guest did on its network and its storage, what is frequent in lanes, and the counters that these
//! add up to.

/// Lanes of a row of `vms`: a program adds to the one that its CPU's number falls on.
///
/// A host with no more CPUs has each lane to one CPU; on others, additions are atomic. More lanes would cost memory on every
/// host, and one VM's packets, or its requests, are rarely handled by many CPUs at the same moment.
pub const VM_LANES: usize = 2;

/// What one VM's guest did on its network and its storage: one row of `vms`, indexed by the VM's slot.
///
/// User space maps the memory of all rows, and reads it without a system call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmRow {
    /// To be added up; see [`VM_LANES`].
    pub lanes: [VmLane; VM_LANES],
    /// What is too rare to be worth lanes.
    pub shared: VmShared,
}

/// A part of a row of `vms`, whose counters only grow. Each block of eight fields is a line of the CPU's cache, with what
/// the same CPU writes at the same time: packets, and requests with their completions.
///
/// [`NetworkCounters`] and [`StorageCounters`] say what each counter means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has its doc in the counters that it is added up to")]
pub struct VmLane {
    pub guest_tx_packets: u64,
    pub guest_tx_bytes: u64,
    pub guest_tx_last_jiffies: u64,
    pub guest_rx_packets: u64,
    pub guest_rx_bytes: u64,
    /// Fills the line.
    pub spare: [u64; 3],

    pub read_ops: u64,
    pub read_bytes: u64,
    pub write_ops: u64,
    pub write_bytes: u64,
    pub flush_ops: u64,
    pub completed_ops: u64,
    pub completion_jiffies: u64,
    /// QEMU's pid, the same in each lane; 0: the row is unused. It stands beside what a completion counts, which is for the
    /// VM only if it still has the slot.
    pub pid: u32,
    /// Fills the line.
    pub reserved: u32,
}

/// The part of a row of `vms` that all CPUs add to, atomically: what comes once a second, or once in a while.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field has its doc in the counters that it goes into")]
pub struct VmShared {
    /// When QEMU's process started, in clock ticks after boot: pids come round again.
    pub start_ticks: u64,
    pub probe_answers: u64,
    pub probe_answer_bytes: u64,
    pub arp_answers: u64,
    pub ndp_answers: u64,
    pub heartbeats: u64,
    pub heartbeat_bytes: u64,
    pub failed_ops: u64,

    pub writeback_ops: u64,
    pub writeback_bytes: u64,
    pub discard_ops: u64,
    pub discard_bytes: u64,
    pub other_ops: u64,
    pub untracked_ops: u64,
    /// Fills the line.
    pub spare: [u64; 2],
}

impl VmRow {
    /// A row of a VM that did nothing so far.
    pub fn of(pid: u32, start_ticks: u64) -> Self {
        Self {
            lanes: [VmLane { pid, ..VmLane::default() }; VM_LANES],
            shared: VmShared { start_ticks, ..VmShared::default() },
        }
    }

    /// Whether it is the row of this process.
    pub fn is_of(&self, pid: u32, start_ticks: u64) -> bool {
        self.shared.start_ticks == start_ticks && self.lanes.iter().all(|lane| lane.pid == pid)
    }

    fn sum(&self, counter: impl Fn(&VmLane) -> u64) -> u64 {
        self.lanes.iter().map(counter).sum()
    }

    /// All that is counted of its packets.
    pub fn network(&self) -> NetworkCounters {
        let last = self.lanes.iter().map(|lane| lane.guest_tx_last_jiffies).max();
        NetworkCounters {
            guest_tx_packets: self.sum(|lane| lane.guest_tx_packets),
            guest_tx_bytes: self.sum(|lane| lane.guest_tx_bytes),
            guest_rx_packets: self.sum(|lane| lane.guest_rx_packets),
            guest_rx_bytes: self.sum(|lane| lane.guest_rx_bytes),
            probe_answers: self.shared.probe_answers,
            probe_answer_bytes: self.shared.probe_answer_bytes,
            arp_answers: self.shared.arp_answers,
            ndp_answers: self.shared.ndp_answers,
            heartbeats: self.shared.heartbeats,
            heartbeat_bytes: self.shared.heartbeat_bytes,
            guest_tx_last_jiffies: last.unwrap_or_default(),
        }
    }

    /// All that is counted of its requests.
    pub fn storage(&self) -> StorageCounters {
        let mut counters = StorageCounters {
            read_ops: self.sum(|lane| lane.read_ops),
            read_bytes: self.sum(|lane| lane.read_bytes),
            write_ops: self.sum(|lane| lane.write_ops),
            write_bytes: self.sum(|lane| lane.write_bytes),
            writeback_ops: self.shared.writeback_ops,
            writeback_bytes: self.shared.writeback_bytes,
            flush_ops: self.sum(|lane| lane.flush_ops),
            discard_ops: self.shared.discard_ops,
            discard_bytes: self.shared.discard_bytes,
            other_ops: self.shared.other_ops,
            tracked_ops: 0,
            completed_ops: self.sum(|lane| lane.completed_ops),
            failed_ops: self.shared.failed_ops,
            completion_jiffies: self.sum(|lane| lane.completion_jiffies),
            untracked_ops: self.shared.untracked_ops,
        };
        // Each that was submitted is one or the other: a counter less to add to.
        counters.tracked_ops = counters.submitted().saturating_sub(counters.untracked_ops);
        counters
    }
}

/// Packets that crossed a VM's taps. A GSO packet counts once, with all its bytes, as the kernel's own
/// tap counters have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Sent by the guest (the tap's *ingress* on the host), answers to probes included.
    pub guest_tx_packets: u64,
    /// Bytes of those, with their Ethernet headers, but without the VLAN tag that the kernel has taken off.
    pub guest_tx_bytes: u64,
    /// Sent to the guest (the tap's *egress* on the host), flatline's probes included.
    pub guest_rx_packets: u64,
    /// Bytes of those, with their Ethernet headers.
    pub guest_rx_bytes: u64,
    /// All that the guest sent because flatline had probed it, and that was therefore taken out of its
    /// traffic: life only in answer to a question. Answers to ARP and NDP probes, and the frames by which a
    /// guest finds out, for some seconds after an NDP probe, whether flatline is still there.
    pub probe_answers: u64,
    /// Bytes of those.
    pub probe_answer_bytes: u64,
    /// Of `probe_answers`, the answers to ARP probes.
    pub arp_answers: u64,
    /// Of `probe_answers`, the answers to NDP probes themselves.
    pub ndp_answers: u64,
    /// The guest's heartbeats, which were taken out of its traffic as well.
    pub heartbeats: u64,
    /// Bytes of those.
    pub heartbeat_bytes: u64,
    /// When the guest last sent anything but such answers and beats, in the kernel's ticks; 0: never.
    pub guest_tx_last_jiffies: u64,
}

/// Requests (bios) that were submitted to the block layer for a VM, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageCounters {
    /// Reads submitted.
    pub read_ops: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes submitted, written back pages included.
    pub write_ops: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Of the writes, those by which the host wrote back pages of the VM's images.
    pub writeback_ops: u64,
    /// Bytes of those.
    pub writeback_bytes: u64,
    /// Flushes that carry no data.
    pub flush_ops: u64,
    /// Discards.
    pub discard_ops: u64,
    /// Bytes of those.
    pub discard_bytes: u64,
    /// Write-zeroes and everything rarer.
    pub other_ops: u64,
    /// Submitted requests that are followed to their completion: all but `untracked_ops`.
    pub tracked_ops: u64,
    /// Followed requests that completed, also with an error; `tracked_ops - completed_ops` is in flight.
    pub completed_ops: u64,
    /// Of those, the ones that completed with an error.
    pub failed_ops: u64,
    /// Time that the completed ones took together, in the kernel's ticks.
    pub completion_jiffies: u64,
    /// Submitted requests that could not be followed because their set of `in_flight` was full.
    pub untracked_ops: u64,
}

impl StorageCounters {
    /// Requests of any kind that were submitted.
    pub const fn submitted(&self) -> u64 {
        self.read_ops + self.write_ops + self.flush_ops + self.discard_ops + self.other_ops
    }

    /// Requests that are followed and did not complete. Lanes are read one after the other: a completion may be seen before
    /// its submission.
    pub const fn in_flight(&self) -> u64 {
        self.tracked_ops.saturating_sub(self.completed_ops)
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<VmLane>() == 128);
    assert!(offset_of!(VmLane, read_ops) == 64);
    assert!(offset_of!(VmLane, pid) == 120);
    assert!(size_of::<VmShared>() == 128);
    assert!(offset_of!(VmShared, writeback_ops) == 64);
    assert!(offset_of!(VmRow, shared) == 256);
    assert!(size_of::<VmRow>() == 384);
};
