//! What one tick says of a VM, in rates: the only place in which they are computed.

use std::time::Duration;

use crate::api::view::VmView;
use flatline_detector::activity::{Activity, VcpuActivity};

/// A rate, or a level, of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// Packets a second that the guest sent of its own accord, answers to flatline's probes left out.
    PacketsFromGuest,
    /// Packets a second that were sent to it.
    PacketsToGuest,
    /// Requests a second that completed.
    Completed,
    /// CPUs that the vCPUs used together.
    Vcpu,
    /// Share of the time in which the vCPU that wanted to most ran, or waited for a CPU of the host.
    VcpuWanted,
    /// Requests in flight at the tick's end.
    InFlight,
    /// Answers a second to flatline's own probes.
    ProbeAnswers,
}

/// How many [`Rate`]s there are.
pub(crate) const RATES: usize = 7;

/// What the vCPU that wanted to run most wanted: a share of the time.
fn most_wanted(vcpus: &[VcpuActivity]) -> f64 {
    vcpus.iter().map(|vcpu| vcpu.busy + vcpu.waiting).fold(0.0, f64::max)
}

/// The rates of one tick, each of which may be unknown: it could not be read, or the VM has nothing to read it of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickRates([f32; RATES]);

// A thousand VMs keep 120 ticks each.
const _: () = assert!(size_of::<TickRates>() == 28);

impl TickRates {
    /// A tick of which nothing is known.
    pub(crate) const UNKNOWN: Self = Self([f32::NAN; RATES]);

    /// What an activity says; nothing where no time went by.
    pub(crate) fn of(activity: &Activity) -> Self {
        let rate = |number: u64| Self::per_second(number, activity.elapsed);
        let network = activity.network.as_ref().ok().copied().flatten();
        let storage = activity.storage.as_ref().ok();
        Self::UNKNOWN
            .with_level_of(activity)
            .with(Rate::PacketsFromGuest, network.and_then(|network| rate(network.guest_packets)))
            .with(Rate::PacketsToGuest, network.and_then(|network| rate(network.packets_to_guest?)))
            .with(Rate::Completed, storage.and_then(|storage| rate(storage.completed)))
            .with(Rate::InFlight, storage.map(|storage| Self::exact(storage.in_flight)))
            .with(Rate::ProbeAnswers, network.and_then(|network| rate(network.probe_answers)))
    }

    /// What two answers to `status` say, `elapsed` apart. Without the earlier one, or the time, it is only what the
    /// later one says by itself. A daemon that was started meanwhile counts from zero, and its rates are unknown.
    pub(crate) fn between(
        before: Option<&VmView>,
        now: &VmView,
        elapsed: Option<Duration>,
    ) -> Self {
        let rate = |counter: fn(&VmView) -> Option<u64>| {
            let number = counter(now)?.checked_sub(counter(before?)?)?;
            Self::per_second(number, elapsed?)
        };
        let sent = |vm: &VmView| {
            let network = vm.network?;
            Some(network.guest_tx_packets.saturating_sub(network.probe_answers))
        };
        let busy: Option<f64> = now.vcpus.iter().map(|vcpu| vcpu.busy_ratio).sum();
        let in_flight = now.storage.as_ref().map(|storage| Self::exact(storage.in_flight));
        Self::UNKNOWN
            .with(Rate::PacketsFromGuest, rate(sent))
            .with(Rate::PacketsToGuest, rate(|vm| vm.network?.guest_rx_packets))
            .with(Rate::Completed, rate(|vm| Some(vm.storage.as_ref()?.completed_ops)))
            .with(Rate::Vcpu, busy.filter(|_| !now.vcpus.is_empty()))
            .with(Rate::InFlight, in_flight)
    }

    /// The same but for `rate`.
    #[must_use]
    pub(crate) fn with(mut self, rate: Rate, value: Option<f64>) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough for people")]
        let value = value.map_or(f32::NAN, |value| value as f32);
        self.0[rate as usize] = value;
        self
    }

    /// `rate`, or `None` where it is unknown.
    pub(crate) fn get(&self, rate: Rate) -> Option<f32> {
        Some(self.0[rate as usize]).filter(|value| !value.is_nan())
    }

    /// All, in the order of [`Rate`].
    pub(crate) fn all(&self) -> [Option<f64>; RATES] {
        self.0.map(|value| Some(f64::from(value)).filter(|value| !value.is_nan()))
    }

    /// The vCPUs' level that an activity says, beside these rates.
    #[must_use]
    pub(crate) fn with_level_of(self, activity: &Activity) -> Self {
        let vcpus = activity.vcpus.as_deref().ok();
        let busy = vcpus.map(|vcpus| vcpus.iter().map(|vcpu| vcpu.busy).sum());
        self.with(Rate::Vcpu, busy).with(Rate::VcpuWanted, vcpus.map(most_wanted))
    }

    /// `None` where no time went by.
    pub(crate) fn per_second(number: u64, elapsed: Duration) -> Option<f64> {
        (!elapsed.is_zero()).then(|| Self::exact(number) / elapsed.as_secs_f64())
    }

    #[expect(clippy::cast_precision_loss, reason = "no VM does 2^53 of anything in a tick")]
    pub(crate) fn exact(number: u64) -> f64 {
        number as f64
    }
}
