//! `flatline show VM`: all that is known of one VM, and why its verdict is what it is.

mod memory;

use crate::api::Request;
use crate::api::view::{
    DumpView, NetworkView, OwnerView, PeerView, ShowView, StorageView, VcpuView,
};
use crate::config::Config;

use super::ask::ask;
use super::ecg::{self, Style};
use super::table::{duration, fields, or_dash, safe, seconds, table, time};
use super::{Answer, Failure, json, terminal};

pub(super) fn run(config: &Config, vm: String, as_json: bool) -> Result<Answer, Failure> {
    let view: ShowView = ask(config, &Request::Show { vm })?;
    Ok(Answer::good(if as_json { json(&view)? } else { text(&view, style()) }))
}

fn style() -> Style {
    Style { columns: terminal::columns().unwrap_or(80), unicode: terminal::unicode() }
}

fn text(view: &ShowView, style: Style) -> String {
    let mut out = fields(&facts(view));
    if !view.taps.is_empty() {
        let rows = view.taps.iter().map(|tap| {
            let hook = if tap.attached { tap.hook.clone() } else { "not attached".to_owned() };
            [tap.name.clone(), tap.netns.clone(), tap.ifindex.to_string(), hook, tap.detail.clone()]
        });
        let rows = rows.collect::<Vec<_>>();
        out = out + "\n" + &table(["TAP", "NETNS", "IFINDEX", "HOOK", "DETAIL"], &rows);
    }
    if !view.signals.is_empty() {
        let rows = view.signals.iter().map(|signal| {
            [
                signal.name.clone(),
                signal.value.clone(),
                signal.threshold.clone(),
                or_dash(signal.since.as_ref()),
                signal.verdict.clone(),
            ]
        });
        let rows = rows.collect::<Vec<_>>();
        out = out + "\n" + &table(["SIGNAL", "VALUE", "THRESHOLD", "SINCE", "VERDICT"], &rows);
    }
    if let Some(history) = &view.history {
        out = out + "\n" + &ecg::draw(history, view.policy.flat_for, style);
    }
    if let Some(dump) = &view.memory_dump {
        out = out + "\n" + &memory_dump(dump) + "\n";
    }
    for note in &view.notes {
        out = out + "\nnote: " + &safe(note) + "\n";
    }
    out
}

/// What is known of it besides its signals, by name.
pub(super) fn facts(view: &ShowView) -> Vec<(&'static str, String)> {
    let vm = &view.vm;
    let policy = &view.policy;
    let mut rows = vec![
        ("name", vm.name.clone()),
        ("uuid", or_dash(vm.uuid.as_ref())),
        ("state", vm.state.clone()),
        ("cause", or_dash(vm.cause.as_ref())),
        ("reason", vm.reason.clone()),
        ("since", time(Some(vm.since))),
        ("flat", seconds(vm.flat_seconds)),
        ("run state", or_dash(vm.run_state.as_ref())),
        ("QMP", view.qmp.clone()),
        ("process", process(view)),
        ("executable", view.executable.clone()),
        ("accelerator", vm.accelerator.clone()),
        ("owner", owner(&vm.owner)),
        ("told by", view.owner_evidence.join("; ")),
    ];
    rows.extend(view.also_restarted_by.iter().map(|peer| ("also acts", also_acts(peer))));
    rows.extend([
        ("vCPUs", vm.vcpus.iter().map(vcpu).collect::<Vec<_>>().join(", ")),
        ("network", vm.network.as_ref().map_or_else(unreadable, network)),
        ("unseen networks", or_dash(view.unseen_networks.as_ref())),
        ("unseen storage", or_dash(view.unseen_storage.as_ref())),
        ("storage", vm.storage.as_ref().map_or_else(unreadable, storage)),
        ("memory", memory::guest(&vm.memory)),
        ("QEMU memory", memory::qemu(&vm.memory)),
        ("disks", view.disks.join(", ")),
        (
            "restarts",
            format!(
                "{} of {} in {}, with pauses of {} and longer",
                vm.restarts_in_window,
                policy.max_restarts,
                duration(policy.window),
                duration(policy.pause)
            ),
        ),
        ("hold", or_dash(vm.hold.as_ref())),
        (
            "policy",
            format!(
                "{}, flat for {}, unconfirmed {}, boot grace {}",
                policy.mode.as_str(),
                duration(policy.flat_for),
                duration(policy.unconfirmed_flat_for),
                duration(policy.boot_grace)
            ),
        ),
    ]);
    rows
}

fn process(view: &ShowView) -> String {
    let user = or_dash(view.vm.uid.map(|uid| uid.to_string()));
    format!("{}, user {user}, started at tick {}", view.vm.pid, view.start_ticks)
}

fn unreadable() -> String {
    "unreadable".to_owned()
}

pub(super) fn memory_dump(dump: &DumpView) -> String {
    let DumpView { since, completed_bytes, total_bytes, written_bytes } = dump;
    let mib = |bytes: u64| bytes >> 20;
    let of = total_bytes.map_or_else(String::new, |total| format!(" of {}", mib(total)));
    format!(
        "memory dump: {}{of} MiB done, {} MiB written since {}",
        mib(*completed_bytes),
        mib(*written_bytes),
        time(Some(*since))
    )
}

fn owner(owner: &OwnerView) -> String {
    let OwnerView { kind, name, certain, actuator, refusal, command_refusal } = owner;
    let name = name.as_ref().map_or_else(String::new, |name| format!(" {name}"));
    let claimed = if *certain || kind == "bare" { "" } else { " (as it says itself)" };
    let by = match (actuator, refusal) {
        (Some(actuator), _) => format!("restarted by {actuator}"),
        (None, Some(refusal)) => format!("not restarted: {refusal}"),
        (None, None) => "not restarted".to_owned(),
    };
    let command = command_refusal.as_ref().map_or_else(String::new, |why| format!("; {why}"));
    format!("{kind}{name}{claimed}; {by}{command}")
}

fn also_acts(peer: &PeerView) -> String {
    let PeerView { peer, acts, flatline, known_by } = peer;
    format!("{peer}: {acts}. flatline {flatline} ({known_by})")
}

fn vcpu(vcpu: &VcpuView) -> String {
    let busy = or_dash(vcpu.busy_ratio.map(|ratio| format!("{:.1} %", ratio * 100.0)));
    format!("{} (thread {}): {busy}", vcpu.id, vcpu.tid)
}

fn network(network: &NetworkView) -> String {
    let NetworkView {
        guest_tx_packets,
        guest_tx_bytes,
        guest_rx_packets,
        guest_rx_bytes,
        guest_last_sent_seconds,
        probe_answers,
        arp_answers,
        ndp_answers,
    } = network;
    let last = guest_last_sent_seconds
        .map_or_else(|| "never of its own".to_owned(), |ago| format!("last {ago:.1} s ago"));
    let was_sent = match (guest_rx_packets, guest_rx_bytes) {
        (Some(packets), Some(bytes)) => format!("was sent {packets} packets, {bytes} bytes"),
        _ => "what it was sent is not counted".to_owned(),
    };
    format!(
        "guest sent {guest_tx_packets} packets, {guest_tx_bytes} bytes ({last}; {probe_answers} answers to \
         probes, {arp_answers} by ARP, {ndp_answers} by NDP); {was_sent}"
    )
}

fn storage(storage: &StorageView) -> String {
    let StorageView {
        read_ops,
        read_bytes,
        write_ops,
        write_bytes,
        writeback_ops: _,
        writeback_bytes,
        flush_ops,
        discard_ops,
        discard_bytes: _,
        completed_ops,
        failed_ops,
        completion_seconds,
        in_flight,
        oldest_in_flight_seconds,
        mean_in_flight_seconds: _,
    } = storage;
    let mut text = format!(
        "{read_ops} reads, {read_bytes} bytes; {write_ops} writes, {write_bytes} bytes, {writeback_bytes} of \
         them written back by the host; {flush_ops} flushes; {discard_ops} discards; {in_flight} in flight"
    );
    if let Some(oldest) = oldest_in_flight_seconds {
        text.push_str(&format!(", the oldest for {oldest:.1} s"));
    }
    if *completed_ops > 0 {
        #[expect(clippy::cast_precision_loss, reason = "a mean of 2^53 requests may be rounded")]
        let mean = completion_seconds / *completed_ops as f64;
        text.push_str(&format!("; {completed_ops} completed, in {:.1} ms each", mean * 1000.0));
    }
    if *failed_ops > 0 {
        text.push_str(&format!(", {failed_ops} of them failed"));
    }
    text
}
