// One VM: its lines, its signals against their thresholds, and all else that `flatline show` says of it.

import { Chart, silence } from "./lines.js";
import { IncidentTable } from "./incidents.js";
import { address } from "./list.js";
import { Vms } from "./vms.js";
import { attribute, bytes, el, Facts, figure, get, needs, percent, say, seconds, sign, span, Table, time } from "./words.js";

/** Incidents change seldom. */
const INCIDENTS_EVERY_MS = 5000;

export class VmPage {
  constructor(pid, name) {
    this.name = "vm";
    this.every = 1000;
    this.pid = pid;
    this.called = name;
    this.asked = 0;
    this.vms = new Vms();
    this.title = el("h1", {}, name);
    this.state = el("p", { class: "state" });
    this.reason = el("p", { class: "lead" });
    this.charts = {
      silence: new Chart("Silence", (value) => span(value)),
      packets_from_guest: new Chart("Packets from the guest", (value) => figure(value, "/s")),
      packets_to_guest: new Chart("Packets to it", (value) => figure(value, "/s")),
      completed: new Chart("Completed requests", (value) => figure(value, "/s")),
      vcpu: new Chart("vCPUs together", (value) => percent(value)),
      in_flight: new Chart("In flight", (value) => figure(value)),
    };
    this.signals = new Table("Signals, against their thresholds", ["Signal", "Value", "Threshold", "Since", "Says"]);
    this.incidents = new IncidentTable("Incidents of this VM");
    this.facts = new Facts();
    this.taps = new Table("Taps", ["Tap", "Namespace", "Index", "Hook", "Detail"]);
    this.notes = el("p", { class: "note" });
    this.content = el(
      "div",
      {},
      this.state,
      this.reason,
      el("div", { class: "charts" }, ...Object.values(this.charts).map((chart) => chart.element)),
      this.signals.element,
      this.incidents.element,
      el("h2", {}, "All else"),
      this.facts.element,
      this.taps.element,
      this.notes,
    );
    this.gone = el("p", { class: "note", hidden: "" });
    this.element = el("section", {}, el("p", {}, el("a", { href: "#/" }, "← all VMs")), this.title, this.gone, this.content);
  }

  async refresh() {
    const page = await (await get(`/api/show?pid=${this.pid}`)).json();
    if (page.vm === null) await this.findAgain();
    else this.take(page);
    if (Date.now() - this.asked > INCIDENTS_EVERY_MS) {
      this.asked = Date.now();
      const { incidents } = await (await get("/api/incidents")).json();
      const isCalled = (incident) => (this.uuid ? incident.uuid === this.uuid : incident.vm === this.called);
      const isIts = (incident) => isCalled(incident) && [undefined, this.uid].includes(incident.uid);
      this.incidents.fill(incidents.filter(isIts));
    }
    return page;
  }

  /** A QEMU that was started again is another process; its page is that of the one VM of the same name. */
  async findAgain() {
    await this.vms.ask();
    const same = [...this.vms.all.values()].filter((vm) => vm.name === this.called && [undefined, vm.uid].includes(this.uid));
    if (same.length === 1) location.replace(address(same[0]));
    this.gone.hidden = false;
    say(this.gone, "This QEMU has ended; what is below is what was last known of it.");
  }

  take({ vm, line, interval_seconds: interval }) {
    this.gone.hidden = true;
    this.uuid = vm.uuid;
    this.uid = vm.uid;
    this.called = vm.name;
    say(this.title, vm.name);
    attribute(this.state, "class", `state ${needs(vm.state)}`);
    say(this.state, `${sign(vm.state)} ${vm.state}${vm.cause === null ? "" : `: ${vm.cause}`}, since ${time(vm.since)}`);
    say(this.reason, vm.reason);
    if (line !== null) {
      this.charts.silence.draw(silence(line, interval), seconds(vm.policy.flat_for));
      for (const row of ["packets_from_guest", "packets_to_guest", "completed", "vcpu", "in_flight"]) this.charts[row].draw(line[row]);
    }
    const since = (text) => (text === null ? "–" : /^\d{4}-.*Z$/.test(text) ? time(text) : text);
    this.signals.fill(vm.signals.map((signal) => [signal.name, signal.value, signal.threshold, since(signal.since), signal.verdict]));
    this.facts.fill(facts(vm));
    this.taps.fill(vm.taps.map((tap) => [tap.name, tap.netns, String(tap.ifindex), tap.attached ? tap.hook : "not attached", tap.detail]));
    say(this.notes, vm.notes.join("\n"));
  }

  key(event) {
    if (event.key === "Escape") location.hash = "#/";
  }
}

function facts(vm) {
  const { policy, memory, network, storage, owner, heartbeat } = vm;
  const by = owner.actuator ? `restarted by ${owner.actuator}` : `not restarted${owner.refusal ? `: ${owner.refusal}` : ""}`;
  return [
    ["UUID", vm.uuid],
    ["Run state", vm.run_state ?? "not known"],
    ["QMP", vm.qmp],
    ["Last sign of life", vm.flat_seconds === null ? "not known" : `${span(vm.flat_seconds)} ago`],
    ["Restarts", `${vm.restarts_in_window} of ${policy.max_restarts} in ${policy.window}`],
    ["Hold", vm.hold],
    ["Policy", `${policy.mode}, flat for ${policy.flat_for}, unconfirmed ${policy.unconfirmed_flat_for}, boot grace ${policy.boot_grace}`],
    ["Process", `${vm.pid}, user ${vm.uid}, ${vm.accelerator}`],
    ["Executable", vm.executable],
    ["Owner", `${owner.kind}${owner.name ? ` ${owner.name}` : ""}${owner.certain || owner.kind === "bare" ? "" : " (as it says itself)"}; ${by}`],
    ["Told by", vm.owner_evidence.join("; ")],
    ["Also acts", vm.also_restarted_by.map((peer) => peer.peer).join(", ")],
    ["vCPUs", vm.vcpus.map((vcpu) => `${vcpu.id}: ${percent(vcpu.busy_ratio)}`).join(", ")],
    ["Network", network && `guest sent ${figure(network.guest_tx_packets)} packets, ${bytes(network.guest_tx_bytes)}; ${network.guest_rx_packets === null ? "what it was sent is not counted" : `was sent ${figure(network.guest_rx_packets)}, ${bytes(network.guest_rx_bytes)}`}`],
    ["Unseen networks", vm.unseen_networks],
    ["Storage", storage && `${figure(storage.read_ops)} reads, ${bytes(storage.read_bytes)}; ${figure(storage.write_ops)} writes, ${bytes(storage.write_bytes)}; ${storage.failed_ops} failed`],
    ["Unseen storage", vm.unseen_storage],
    ["Disks", vm.disks.join(", ")],
    ["Heartbeats", heartbeat && `${figure(heartbeat.beats)}, the last ${span(heartbeat.last_seconds)} ago`],
    ["Guest's memory", memory.total_bytes === null ? memory.guest_missing : `${bytes(memory.available_bytes)} of ${bytes(memory.total_bytes)} available${memory.thrashing ? "; thrashing" : ""}`],
    ["QEMU's memory", memory.qemu_rss_bytes === null ? "not known" : `${bytes(memory.qemu_rss_bytes)} resident`],
    ["Memory dump", vm.memory_dump && `${bytes(vm.memory_dump.completed_bytes)} of ${bytes(vm.memory_dump.total_bytes)}`],
  ];
}
