// All VMs, a row each: those that need a look first. Only rows that are seen are written and drawn, so that a thousand
// cost no more than those that fit on a screen.

import { Spark } from "./lines.js";
import { Vms } from "./vms.js";
import { attribute, el, figure, needs, percent, rank, say, sign, span } from "./words.js";

const COLUMNS = [
  { key: "state", head: "State" },
  { key: "name", head: "VM" },
  { key: "line", head: "Life, vCPUs" },
  { key: "vcpu", head: "vCPU" },
  { key: "network", head: "Network" },
  { key: "disk", head: "Disk" },
  { key: "flight", head: "In flight" },
  { key: "silence", head: "Last sign" },
  { key: "restarts", head: "Restarts" },
];
/** What the columns are ordered by, the largest first; the others by name. */
const ORDERS = {
  vcpu: (row) => row.figures.vcpu,
  network: (row) => row.figures.sent,
  disk: (row) => row.figures.done,
  flight: (row) => row.figures.flight,
  silence: (row) => row.figures.silence,
  restarts: (row) => row.vm.restarts_in_window,
};
/** More would not fit into what the daemon takes of a question. A screen has a tenth. */
const MOST_IN_SIGHT = 300;
/** Columns whose figures are only told of VMs in sight, unless the list is ordered by them. */
const BY_FIGURES = new Set(["vcpu", "network", "disk", "flight", "silence"]);
const UNKNOWN = { vcpu: null, flight: null, silence: null, sent: null, received: null, done: null };
/** States in which a flat line is why; an idle guest's is flat, too. */
const FLAT_IS_ILL = new Set(["failed", "crashed", "recovering", "suspect"]);

export class List {
  /** `soon` has it asked again before its time. */
  constructor(soon) {
    this.name = "list";
    this.every = 1000;
    this.soon = soon;
    this.vms = new Vms();
    this.rows = new Map();
    this.order = "state";
    this.isReversed = false;
    this.states = new Set();
    this.seen = new IntersectionObserver((entries) => this.scrolled(entries), { rootMargin: "300px" });
    this.filter = el("input", { type: "search", placeholder: "name, UUID, state, reason (press /)", "aria-label": "Filter", spellcheck: "false" });
    this.filter.addEventListener("input", () => this.arrange());
    this.counts = el("div", { class: "counts", role: "group", "aria-label": "Only these states" });
    this.shown = el("span", { role: "status" });
    this.body = el("tbody");
    this.body.addEventListener("keydown", (event) => this.walk(event));
    this.body.addEventListener("focusin", (event) => { this.at = event.target; });
    this.heads = COLUMNS.map((column) => this.head(column));
    const table = el(
      "table",
      { class: "vms" },
      el("caption", {}, "VMs, the most severe states first"),
      el("thead", {}, el("tr", {}, ...this.heads)),
      this.body,
    );
    this.degraded = el("p", { class: "degraded", hidden: "" });
    this.element = el("section", {}, this.degraded, el("div", { class: "tools" }, this.counts, this.filter, this.shown), table);
  }

  /** A head by which the list is sorted. */
  head({ key, head }) {
    const th = el("th", { scope: "col", class: key });
    if (key === "line") {
      th.append(head);
      return th;
    }
    const button = el("button", { type: "button" }, head);
    button.addEventListener("click", () => {
      this.isReversed = this.order === key && !this.isReversed;
      this.order = key;
      this.arrange();
      this.soon();
    });
    th.append(button);
    return th;
  }

  async refresh() {
    const inSight = [...this.rows.values()].filter((row) => row.isSeen && row.element.isConnected);
    const page = await this.vms.ask(inSight.slice(0, MOST_IN_SIGHT).map((row) => row.vm), BY_FIGURES.has(this.order));
    this.take(page);
    return { ...page, vms: [...this.vms.all.values()] };
  }

  /** Where the keyboard was, if that is there still. */
  place() {
    return this.at?.isConnected ? this.at : null;
  }

  take(page) {
    const before = this.rows;
    this.rows = new Map();
    for (const [pid, vm] of this.vms.all) {
      const row = before.get(pid) ?? new Row();
      before.delete(pid);
      row.take(vm);
      this.rows.set(pid, row);
    }
    for (const row of before.values()) {
      this.seen.unobserve(row.element);
      row.element.remove();
    }
    const degraded = page.host.degraded;
    this.degraded.hidden = degraded === null;
    say(this.degraded, degraded === null ? "" : `Degraded: ${degraded}`);
    this.arrange();
  }

  /** Puts the rows in order, and those away that are not looked for. */
  arrange() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...this.rows.values()];
    const wanted = all.filter((row) => (this.states.size === 0 || this.states.has(row.vm.state)) && row.has(words));
    const order = ORDERS[this.order];
    const byName = (one, other) => one.vm.name.localeCompare(other.vm.name, undefined, { numeric: true }) || one.vm.pid - other.vm.pid;
    const byOrder = {
      name: byName,
      state: (one, other) => rank(one.vm.state) - rank(other.vm.state) || byName(one, other),
    }[this.order] ?? ((one, other) => (order(other) ?? -1) - (order(one) ?? -1) || byName(one, other));
    wanted.sort(this.isReversed ? (one, other) => byOrder(other, one) : byOrder);
    this.put(wanted);
    this.count(all);
    say(this.shown, all.length === 0 ? "no VMs are watched" : `${wanted.length} of ${all.length} VMs`);
    COLUMNS.forEach(({ key }, index) => {
      const isDescending = Object.hasOwn(ORDERS, key) !== this.isReversed;
      attribute(this.heads[index], "aria-sort", key !== this.order ? "none" : isDescending ? "descending" : "ascending");
    });
  }

  put(wanted) {
    const focused = document.activeElement;
    let next = this.body.firstChild;
    for (const row of wanted) {
      if (row.element === next) next = next.nextSibling;
      else {
        if (!row.element.isConnected) this.seen.observe(row.element);
        this.body.insertBefore(row.element, next);
      }
      // One that was never seen is written once, so that a quick scroll meets no empty rows.
      if (row.isSeen || !row.isWritten) row.write();
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      this.seen.unobserve(gone);
      gone.remove();
    }
    // An element that is moved loses the focus.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  }

  /** How many there are in each state; a press shows only these. */
  count(all) {
    const numbers = new Map();
    for (const { vm } of all) numbers.set(vm.state, (numbers.get(vm.state) ?? 0) + 1);
    for (const state of this.states) if (!numbers.has(state)) numbers.set(state, 0);
    const states = [...numbers.keys()].sort((one, other) => rank(one) - rank(other));
    const known = new Map([...this.counts.children].map((button) => [button.dataset.state, button]));
    states.forEach((state, index) => {
      const button = known.get(state) ?? this.chip(state);
      known.delete(state);
      if (this.counts.children[index] !== button) this.counts.insertBefore(button, this.counts.children[index] ?? null);
      say(button, `${sign(state)} ${numbers.get(state)} ${state}`);
      attribute(button, "aria-pressed", String(this.states.has(state)));
    });
    for (const button of known.values()) button.remove();
  }

  chip(state) {
    const button = el("button", { type: "button", class: `chip ${needs(state)}`, "data-state": state });
    button.addEventListener("click", () => {
      if (!this.states.delete(state)) this.states.add(state);
      this.arrange();
    });
    return button;
  }

  scrolled(entries) {
    const rows = new Map([...this.rows.values()].map((row) => [row.element, row]));
    for (const { target, isIntersecting } of entries) {
      const row = rows.get(target);
      if (row === undefined) continue;
      row.isSeen = isIntersecting;
      if (isIntersecting) row.write();
    }
    // Of those that came in sight, nothing new was told so far.
    if (entries.some(({ isIntersecting }) => isIntersecting)) this.soon();
  }

  /** Arrows go from row to row. */
  walk(event) {
    const row = event.target.closest("tr");
    const to = {
      ArrowDown: row?.nextElementSibling,
      ArrowUp: row?.previousElementSibling,
      Home: this.body.firstElementChild,
      End: this.body.lastElementChild,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to.querySelector("a").focus();
  }

  key(event) {
    if (event.key === "/" && event.target !== this.filter) {
      event.preventDefault();
      this.filter.focus();
    } else if (event.key === "Escape" && event.target === this.filter) {
      this.filter.value = "";
      this.arrange();
    } else if (event.key === "ArrowDown" && (event.target === this.filter || !event.target.closest("a, button, input"))) {
      event.preventDefault();
      this.body.querySelector("a")?.focus();
    }
  }
}

class Row {
  constructor() {
    this.isSeen = false;
    this.isWritten = false;
    this.spark = new Spark();
    this.link = el("a");
    this.reason = el("small");
    this.cells = Object.fromEntries(COLUMNS.map(({ key, head }) => [key, el("td", { class: key, "data-head": head })]));
    this.cells.name.append(this.link, this.reason);
    this.cells.line.append(this.spark.element);
    this.element = el("tr", {}, ...Object.values(this.cells));
  }

  take(vm) {
    if (this.vm !== vm) {
      this.vm = vm;
      this.text = [vm.name, vm.uuid ?? "", vm.pid, vm.state, vm.cause ?? "", vm.reason, vm.hold ? "hold" : ""].join(" ").toLowerCase();
    }
    this.figures = vm.figures ?? UNKNOWN;
  }

  has(words) {
    return words.every((word) => this.text.includes(word));
  }

  write() {
    const { vm, figures, cells } = this;
    this.isWritten = true;
    attribute(this.element, "class", `${needs(vm.state)}${FLAT_IS_ILL.has(vm.state) ? " ill" : ""}`);
    say(cells.state, `${sign(vm.state)} ${vm.state}`);
    say(this.link, vm.name);
    attribute(this.link, "href", address(vm));
    const cause = vm.cause === null ? "" : `${vm.cause}: `;
    say(this.reason, `${cause}${vm.reason}${vm.hold === null ? "" : `; on hold: ${vm.hold}`}`);
    this.spark.draw(vm.line, vm.vcpus);
    say(cells.vcpu, percent(figures.vcpu));
    say(cells.network, `${figure(figures.sent)} ↑ ${figure(figures.received)} ↓ /s`);
    say(cells.disk, figure(figures.done, "/s"));
    say(cells.flight, figure(figures.flight));
    say(cells.silence, span(figures.silence));
    say(cells.restarts, String(vm.restarts_in_window));
  }
}

/** Where a VM's own page is. Its name stands there for the time when its QEMU is another process. */
export function address({ pid, name }) {
  return `#/vm/${pid}/${encodeURIComponent(name)}`;
}

export function problems(vms) {
  return vms.filter((vm) => ["bad", "act"].includes(needs(vm.state))).length;
}
