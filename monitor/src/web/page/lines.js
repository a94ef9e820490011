// The VMs' lines: the last ticks of each, and how they are drawn. What is not known is a gap with dots, and never a
// line at zero; what stands still is a straight line.

import { attribute, el, svg } from "./words.js";

/** Ticks that are kept of each VM. */
export const TICKS = 120;
const ROWS = ["packets_from_guest", "packets_to_guest", "completed", "vcpu", "in_flight"];

/** Goes on with a line that ends with a later tick, or begins anew where too many were missed, or it is another VM's. */
export function goOn(known, next) {
  const missed = known ? next.tick - known.tick : null;
  if (missed === null || known.start_ticks !== next.start_ticks || missed < 0 || missed > next.vcpu.length) return next;
  for (const row of ROWS) {
    if (missed > 0) known[row].push(...next[row].slice(-missed));
    if (known[row].length > TICKS) known[row].splice(0, known[row].length - TICKS);
  }
  known.tick = next.tick;
  return known;
}

function last(values) {
  return values?.at(-1) ?? null;
}

/** What the verdict takes for life: packets of the guest's, and completed requests. Of what nothing is ever known (a VM
    without a tap) says nothing about it. */
export function life(line) {
  const rows = [line.packets_from_guest, line.completed].filter((row) => row.some((value) => value !== null));
  return line.vcpu.map((_, tick) => {
    const values = rows.map((row) => row[tick]);
    const known = values.reduce((all, value) => all + (value ?? 0), 0);
    if (known > 0) return known;
    return values.length === 0 || values.includes(null) ? null : 0;
  });
}

/** How long nothing was seen, at each tick. */
export function silence(line, interval) {
  let length = null;
  return life(line).map((value) => {
    if (value === null) length = null;
    else if (value > 0) length = 0;
    else if (length !== null) length += interval;
    // What was before the first tick is not known: it may have been silent for longer.
    else length = interval;
    return length;
  });
}

/** A small picture of two lines: life, and the vCPUs' time below it. */
export class Spark {
  constructor() {
    this.paths = Object.fromEntries(["flat", "unknown", "line", "vcpu"].map((name) => [name, svg("path", { class: name })]));
    this.element = svg(
      "svg",
      { class: "spark", viewBox: `0 0 ${TICKS} 34`, preserveAspectRatio: "none", role: "img" },
      ...Object.values(this.paths),
    );
  }

  draw(line, vcpus) {
    const beats = line ? life(line) : [];
    const peak = Math.log1p(Math.max(1000, ...beats.map((value) => value ?? 0)));
    // One packet is seen, and a thousand are not forty times as high.
    const height = (value) => (value > 0 ? 4 + (17 * Math.log1p(value)) / peak : 0);
    const lane = { base: 22, height, values: beats };
    const busy = { base: 33, height: (value) => Math.min(1, value / Math.max(1, vcpus)) * 8, values: line ? line.vcpu : [] };
    attribute(this.paths.line, "d", moving(lane));
    attribute(this.paths.flat, "d", standing(lane));
    attribute(this.paths.unknown, "d", missing(lane, 12) + missing(busy, 30));
    attribute(this.paths.vcpu, "d", whole(busy));
    attribute(this.element, "aria-label", describe(beats));
  }
}

function describe(beats) {
  const now = last(beats);
  if (now === null) return "not known";
  if (now > 0) return "lives";
  let flat = 0;
  while (flat < beats.length && beats.at(-1 - flat) === 0) flat += 1;
  return `flat for ${flat} ticks`;
}

/** Where the newest tick stands: at the right. */
function place(values, tick) {
  return TICKS - values.length + tick + 0.5;
}

/** Stretches of ticks for which `is` holds, as [first, one after the last]. */
function stretches(values, is) {
  const found = [];
  let begin = null;
  for (let tick = 0; tick <= values.length; tick += 1) {
    const inside = tick < values.length && is(values[tick], tick);
    if (inside && begin === null) begin = tick;
    if (!inside && begin !== null) {
      found.push([begin, tick]);
      begin = null;
    }
  }
  return found;
}

function polyline({ base, height, values }, [from, to]) {
  let path = "";
  for (let tick = from; tick < to; tick += 1) {
    const at = `${place(values, tick)} ${(base - height(values[tick])).toFixed(1)}`;
    path += path ? `L${at}` : `M${at}`;
  }
  // A single tick would be a line without length.
  return to - from === 1 ? `${path}h.5` : path;
}

const KNOWN = (value) => value !== null;
const isFlat = (values) => (value, tick) =>
  value === 0 && (values[tick - 1] ?? 0) === 0 && (values[tick + 1] ?? 0) === 0;

function whole(lane) {
  return stretches(lane.values, KNOWN).map((stretch) => polyline(lane, stretch)).join("");
}

function moving(lane) {
  const flat = isFlat(lane.values);
  return stretches(lane.values, (value, tick) => KNOWN(value) && !flat(value, tick))
    .map((stretch) => polyline(lane, stretch)).join("");
}

function standing(lane) {
  const at = (tick) => place(lane.values, tick);
  return stretches(lane.values, isFlat(lane.values))
    .map(([from, to]) => `M${at(from) - 1} ${lane.base}H${at(to - 1) + 1}`).join("");
}

function missing({ values }, height) {
  const gaps = stretches(values, (value) => value === null).map(([from, to]) => [place(values, from) - 0.5, place(values, to) - 0.5]);
  // Before it was found, nothing is known of it either.
  if (values.length < TICKS) gaps.unshift([0, TICKS - values.length]);
  return gaps.map(([from, to]) => `M${from} ${height}H${to}`).join("");
}

/** One figure's line by itself, with its peak and what it is held against. */
export class Chart {
  constructor(title, word) {
    this.word = word;
    this.now = el("span", { class: "now" });
    this.peak = el("span", { class: "peak" });
    this.paths = Object.fromEntries(["area", "line", "unknown", "level"].map((name) => [name, svg("path", { class: name })]));
    this.picture = svg(
      "svg",
      { class: "chart", viewBox: `0 0 ${TICKS} 50`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      ...Object.values(this.paths),
    );
    this.element = el("figure", {}, el("figcaption", {}, el("b", {}, title), " ", this.now, " ", this.peak), this.picture);
  }

  /** `level` is a threshold, or none. */
  draw(values, level = null) {
    const peak = Math.max(0, ...values.map((value) => value ?? 0));
    const top = Math.max(peak, (level ?? 0) * 1.25) || 1;
    const height = (value) => (value > 0 ? Math.max(1.5, (46 * value) / top) : 0);
    const lane = { base: 49, height, values };
    attribute(this.paths.line, "d", whole(lane));
    const area = (stretch) => `${polyline(lane, stretch)}V49H${place(values, stretch[0])}Z`;
    attribute(this.paths.area, "d", stretches(values, KNOWN).map(area).join(""));
    attribute(this.paths.unknown, "d", missing(lane, 25));
    attribute(this.paths.level, "d", level === null ? "" : `M0 ${(49 - height(level)).toFixed(1)}H${TICKS}`);
    this.now.textContent = `now ${this.word(last(values))}`;
    const isKnown = values.some(KNOWN);
    const against = level === null ? "" : `; line at ${this.word(level)}`;
    this.peak.textContent = isKnown ? `at most ${this.word(peak)}${against}` : `not known${against}`;
  }
}
