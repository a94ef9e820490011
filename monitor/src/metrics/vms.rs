//! The families of single VMs.
//!
//! Each series has the labels `vm`, `uuid` and `pid`: names need not be unique, and a QEMU that takes another's place
//! counts from zero. *Receive* and *transmit* are the guest's.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::{
    families::{Family, Value, label_text},
    series::{SeriesText, push_label},
    snapshot::{Snapshot, VmFigures},
};
use flatline_detector::verdict::State;
use flatline_samples::RunState;

/// vCPUs of one VM that have series of their own.
const MOST_VCPUS: usize = 256;

/// A VM with its labels as text.
struct Named<'a> {
    figures: &'a VmFigures,
    labels: String,
}

/// Those that have series of their own, the counted ones first, and each pid once: of two, the older one has ended.
fn named(snapshot: &Snapshot) -> Vec<Named<'_>> {
    let mut figures: Vec<&VmFigures> = snapshot.vms.iter().collect();
    figures.sort_by_key(|figures| (figures.vm.id.pid, Reverse(figures.vm.id.start_ticks)));
    figures.dedup_by_key(|figures| figures.vm.id.pid);
    figures.sort_by_key(|figures| !figures.is_counted);
    figures.truncate(snapshot.most_vms);
    figures.into_iter().map(|figures| Named { figures, labels: labels(figures) }).collect()
}

/// The labels that each series of a VM has.
fn labels(VmFigures { vm, .. }: &VmFigures) -> String {
    let mut labels = String::new();
    push_label(&mut labels, "vm", &label_text(&vm.name));
    if let Some(uuid) = &vm.uuid {
        push_label(&mut labels, "uuid", &label_text(uuid));
    }
    push_label(&mut labels, "pid", &vm.id.pid.to_string());
    labels
}

/// Writes families of VMs.
struct Writer<'a> {
    vms: &'a [Named<'a>],
    text: SeriesText,
}

impl Writer<'_> {
    /// One series for each VM that has the figure.
    fn each<V: Into<Value>>(&mut self, family: Family, value: impl Fn(&VmFigures) -> Option<V>) {
        let mut family = self.text.family(family);
        for Named { figures, labels } in self.vms {
            if let Some(value) = value(figures) {
                family.add(labels, None, value.into());
            }
        }
    }

    /// Any number of series for each VM, which differ by `label`.
    fn by<V: Into<Value>, T: AsRef<str>, I: IntoIterator<Item = (T, V)>>(
        &mut self,
        family: Family,
        label: &'static str,
        values: impl Fn(&VmFigures) -> I,
    ) {
        let mut family = self.text.family(family);
        for Named { figures, labels } in self.vms {
            for (name, value) in values(figures) {
                family.add(labels, Some((label, name.as_ref())), value.into());
            }
        }
    }
}

/// Goes on with `text` by the families of all VMs in `snapshot`.
pub(super) fn written(snapshot: &Snapshot, text: SeriesText) -> String {
    let vms = named(snapshot);
    let mut writer = Writer { vms: &vms, text };
    identity(&mut writer);
    standing(&mut writer);
    network(&mut writer);
    heartbeats(&mut writer);
    memory(&mut writer);
    storage(&mut writer);
    vcpus(&mut writer);
    writer.text.text
}

fn identity(writer: &mut Writer<'_>) {
    let help = "A VM: what runs its guest's code, what started it, and its mode.";
    let mut family = writer.text.family(Family::info("vm", help));
    for Named { figures: VmFigures { vm, mode, .. }, labels } in writer.vms {
        let mut labels = labels.clone();
        push_label(&mut labels, "accelerator", &label_text(&vm.accelerator.to_string()));
        push_label(&mut labels, "owner", vm.ownership.owner.kind());
        push_label(&mut labels, "mode", mode.as_str());
        family.add(&labels, None, 1_usize.into());
    }
}

fn standing(writer: &mut Writer<'_>) {
    let family = Family::gauge("vm_state", "1 for the VM's state, 0 for all others.");
    writer.by(family, "state", |vm| State::NAMES.map(|name| (name, vm.state == name)));
    let family = Family::gauge(
        "vm_cause",
        "1 with what the VM is convicted of, or what was told of it; no series without.",
    );
    writer.by(family, "cause", |vm| vm.cause.map(|cause| (cause.as_str(), true)));
    let family =
        Family::gauge("vm_run_state", "1 with QEMU's run state; no series while it isn't known.");
    writer.by(family, "run_state", |vm| {
        vm.run_state.as_ref().map(|run_state| match run_state {
            // A QEMU that isn't what it should be could make up new ones for ever.
            RunState::Other(_) => ("other".to_owned(), true),
            known => (known.to_string(), true),
        })
    });
    let family = Family::gauge("vm_flat", "Time since the last sign of life.").seconds();
    writer.each(family, |vm| vm.flat.map(|flat| flat.as_secs_f64()));
    let family = Family::gauge("vm_held", "1 while the VM is to be left alone (`flatline hold`).");
    writer.each(family, |vm| Some(vm.is_held));
    let family =
        Family::counter("vm_restarts", "Restarts that were begun since its QEMU was found.");
    writer.each(family, |vm| Some(vm.restarts));
    let family = Family::gauge(
        "vm_guest_resets_in_window",
        "Resets of the guest's own within detection.boot_loop_window.",
    );
    writer.each(family, |vm| Some(vm.guest_resets_in_window));
}

fn network(writer: &mut Writer<'_>) {
    let to_guest = |vm: &VmFigures| vm.network.filter(|_| vm.sees_to_guest);
    let family = Family::counter("vm_network_receive_packets", "Packets sent to the guest.");
    writer.each(family, |vm| Some(to_guest(vm)?.guest_rx_packets));
    let family = Family::counter("vm_network_receive", "Bytes sent to the guest.").bytes();
    writer.each(family, |vm| Some(to_guest(vm)?.guest_rx_bytes));
    let family = Family::counter(
        "vm_network_transmit_packets",
        "Packets that the guest sent, answers to probes included.",
    );
    writer.each(family, |vm| Some(vm.network?.guest_tx_packets));
    let family = Family::counter("vm_network_transmit", "Bytes that the guest sent.").bytes();
    writer.each(family, |vm| Some(vm.network?.guest_tx_bytes));
    let family =
        Family::counter("vm_probe_answers", "What the guest sent because flatline had probed it.");
    writer.each(family, |vm| Some(vm.network?.probe_answers));
}

fn heartbeats(writer: &mut Writer<'_>) {
    let family = Family::counter(
        "vm_heartbeats",
        "Beats of the guest's agent, each as often as the guest has network cards.",
    );
    writer.each(family, |vm| Some(vm.heartbeats?.beats));
    let family = Family::counter(
        "vm_heartbeat_check_failures",
        "Times that the guest's agent said that its check failed.",
    );
    writer.each(family, |vm| Some(vm.heartbeats?.failures));
    let family = Family::counter(
        "vm_heartbeats_malformed",
        "Frames of the guest that begin like a beat and are none.",
    );
    writer.each(family, |vm| Some(vm.heartbeats?.malformed));
    let family =
        Family::gauge("vm_heartbeat_age", "Time since the guest's agent last said anything.")
            .seconds();
    writer.each(family, |vm| vm.heartbeats?.last_seconds);
}

fn memory(writer: &mut Writer<'_>) {
    let guest = |vm: &VmFigures| vm.memory.as_ref()?.guest.as_ref().ok().copied();
    let qemu = |vm: &VmFigures| vm.memory.as_ref()?.qemu.as_ref().ok().copied();
    let family =
        Family::gauge("vm_memory_total", "Memory that the guest has, by its own account.").bytes();
    writer.each(family, |vm| guest(vm)?.total);
    let family = Family::gauge(
        "vm_memory_available",
        "What of it the guest could give to a program without swapping.",
    )
    .bytes();
    writer.each(family, |vm| guest(vm)?.available);
    let family =
        Family::counter("vm_memory_swap_in", "Read back by the guest from its swap.").bytes();
    writer.each(family, |vm| guest(vm)?.swap_in);
    let family = Family::counter("vm_memory_swap_out", "Written by the guest to its swap.").bytes();
    writer.each(family, |vm| guest(vm)?.swap_out);
    let family = Family::counter(
        "vm_memory_major_faults",
        "Times that a task of the guest waited for a page from its disk.",
    );
    writer.each(family, |vm| guest(vm)?.major_faults);
    let family = Family::gauge(
        "vm_memory_told_timestamp",
        "When the guest gave this account of its memory, since 1970.",
    );
    writer.each(family.seconds(), |vm| Some(guest(vm)?.told_at));
    let family = Family::gauge(
        "vm_memory_thrashing",
        "1 while the guest does little but wait for pages; no series for one that gives no account.",
    );
    writer.each(family, |vm| Some(vm.memory.as_ref()?.strain.as_ref()?.is_thrashing()));
    let family =
        Family::gauge("vm_qemu_memory_resident", "What QEMU has of the host's memory.").bytes();
    writer.each(family, |vm| Some(qemu(vm)?.rss));
    let family =
        Family::gauge("vm_qemu_memory_swapped", "What of QEMU's memory the host has swapped out.")
            .bytes();
    writer.each(family, |vm| qemu(vm)?.swap);
}

fn storage(writer: &mut Writer<'_>) {
    let family = Family::counter(
        "vm_storage_operations",
        "Requests that were submitted for the VM's disks; writes include pages that the host wrote back.",
    );
    writer.by(family, "operation", |vm| {
        let each = vm.storage.map(|storage| {
            [
                ("read", storage.read_ops),
                ("write", storage.write_ops),
                ("flush", storage.flush_ops),
                ("discard", storage.discard_ops),
            ]
        });
        each.into_iter().flatten()
    });
    let family = Family::counter("vm_storage", "Bytes of those.").bytes();
    writer.by(family, "operation", |vm| {
        let each = vm.storage.map(|storage| {
            [
                ("read", storage.read_bytes),
                ("write", storage.write_bytes),
                ("discard", storage.discard_bytes),
            ]
        });
        each.into_iter().flatten()
    });
    let family = Family::counter(
        "vm_storage_writeback_operations",
        "Of the writes, those by which the host wrote back pages of the VM's images.",
    );
    writer.each(family, |vm| Some(vm.storage?.writeback_ops));
    let family = Family::counter("vm_storage_writeback", "Bytes of those.").bytes();
    writer.each(family, |vm| Some(vm.storage?.writeback_bytes));
    let family = Family::counter(
        "vm_storage_completed_operations",
        "Requests of any kind that completed, also with an error.",
    );
    writer.each(family, |vm| Some(vm.storage?.completed_ops));
    let family =
        Family::counter("vm_storage_failed_operations", "Of those, the ones with an error.");
    writer.each(family, |vm| Some(vm.storage?.failed_ops));
    let family =
        Family::counter("vm_storage_completion", "Time that the completed ones took together.")
            .seconds();
    writer.each(family, |vm| {
        Some(crate::sampler::ticks(vm.storage?.completion_jiffies).as_secs_f64())
    });
    let family = Family::counter(
        "vm_storage_untracked_operations",
        "Requests that could not be followed to their completion, for want of room (probes.max_in_flight).",
    );
    writer.each(family, |vm| Some(vm.storage?.untracked_ops));
    let family =
        Family::gauge("vm_storage_in_flight", "Requests that are submitted and not completed.");
    writer.each(family, |vm| vm.in_flight());
    let family = Family::gauge(
        "vm_storage_oldest_in_flight",
        "Age of the oldest request in flight; no series while requests complete.",
    )
    .seconds();
    writer.each(family, |vm| vm.oldest_in_flight.map(|age| age.as_secs_f64()));
}

fn vcpus(writer: &mut Writer<'_>) {
    let times = |vm: &VmFigures, of: fn(&flatline_samples::VcpuTime) -> u64| {
        // A QEMU that isn't what it should be could give two of them one number.
        let all: BTreeMap<u32, u64> =
            vm.vcpus.iter().flatten().map(|vcpu| (vcpu.index, of(vcpu))).collect();
        let seconds = |ns| Duration::from_nanos(ns).as_secs_f64();
        let each = all.into_iter().take(MOST_VCPUS);
        each.map(move |(index, ns)| (index.to_string(), seconds(ns)))
    };
    let family = Family::counter(
        "vm_vcpu",
        "CPU time of the vCPU's thread; its rate is the share of the time in which it ran.",
    )
    .seconds();
    writer.by(family, "vcpu", |vm| times(vm, |vcpu| vcpu.run_ns));
    let family = Family::counter(
        "vm_vcpu_wait",
        "Time in which the vCPU's thread could have run, and waited for a CPU of the host.",
    )
    .seconds();
    writer.by(family, "vcpu", |vm| times(vm, |vcpu| vcpu.wait_ns));
}
