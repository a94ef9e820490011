// Elements and words: whatever comes from the daemon is put on the page as text, and never as markup.

/** An element with these attributes, and these children: elements, or texts. */
export function el(tag, has = {}, ...children) {
  return fill(document.createElement(tag), has, children);
}

/** The same of a drawing. */
export function svg(tag, has = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), has, children);
}

function fill(element, has, children) {
  for (const [name, value] of Object.entries(has)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Sets a text where it is another one: what stays as it is keeps its selection, and costs nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** The states, those first that need a look, each with a sign that needs no colour. */
export const STATES = {
  failed: { sign: "✖", needs: "bad" },
  crashed: { sign: "✖", needs: "bad" },
  recovering: { sign: "↻", needs: "act" },
  suspect: { sign: "▲", needs: "act" },
  unobservable: { sign: "?", needs: "act" },
  held: { sign: "‖", needs: "note" },
  starting: { sign: "◔", needs: "none" },
  alive: { sign: "●", needs: "none" },
};

const RANKS = new Map(Object.keys(STATES).map((state, rank) => [state, rank]));

/** States of a newer daemon stand among those that need a look. */
export function rank(state) {
  return RANKS.get(state) ?? 2;
}

export function sign(state) {
  return STATES[state]?.sign ?? "?";
}

export function needs(state) {
  return STATES[state]?.needs ?? "act";
}

const UNKNOWN = "?";

/** A figure in at most four characters and a unit; what is not known is a question mark. */
export function figure(value, unit = "") {
  if (value === null || value === undefined) return UNKNOWN;
  const steps = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [size, letter] of steps) {
    if (value >= size) return `${short(value / size)} ${letter}${unit}`;
  }
  return unit ? `${short(value)} ${unit}` : short(value);
}

function short(value) {
  if (value === 0) return "0";
  if (value < 0.1) return "<0.1";
  return value < 10 && !Number.isInteger(value) ? value.toFixed(1) : value.toFixed(0);
}

export function percent(ratio) {
  if (ratio === null || ratio === undefined) return UNKNOWN;
  return `${(ratio * 100).toFixed(ratio < 0.1 ? 1 : 0)} %`;
}

/** A span of time in its two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(seconds / unit));
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

/** A time of the daemon's, as this browser's user reads it. */
export function time(text) {
  const at = new Date(text ?? NaN);
  return Number.isNaN(at.getTime()) ? "–" : at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${value < 10 && unit ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

/** Seconds of a duration as the configuration writes it, such as `1m 30s`. */
export function seconds(text) {
  const units = { ms: 0.001, s: 1, m: 60, h: 3600, day: 86400, days: 86400, d: 86400 };
  let sum = 0;
  for (const [, number, unit] of String(text).matchAll(/(\d+)([a-z]+)/g)) sum += number * (units[unit] ?? 0);
  return sum;
}

/** A table that is filled anew each second: only what changed is written. */
export class Table {
  constructor(caption, heads) {
    this.body = el("tbody");
    const row = el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)));
    this.element = el("table", { class: "facts" }, el("caption", {}, caption), el("thead", {}, row), this.body);
    this.heads = heads;
  }

  /** Texts, or elements that are made only once a row, by a function. */
  fill(rows) {
    this.element.hidden = rows.length === 0;
    while (this.body.rows.length > rows.length) this.body.lastChild.remove();
    while (this.body.rows.length < rows.length) {
      this.body.append(el("tr", {}, ...this.heads.map((head) => el("td", { "data-head": head }))));
    }
    rows.forEach((row, index) => {
      row.forEach((text, column) => {
        const cell = this.body.rows[index].cells[column];
        if (typeof text === "string") say(cell, text);
        else if (cell.dataset.key !== text.key) {
          cell.replaceChildren(text.make());
          cell.dataset.key = text.key;
        }
      });
    });
  }
}

/** Names and what they are, filled in the same way. */
export class Facts {
  constructor() {
    this.element = el("dl");
  }

  fill(facts) {
    const all = this.element.children;
    const wanted = facts.filter(([, text]) => text !== null && text !== undefined && text !== "");
    while (all.length > 2 * wanted.length) this.element.lastChild.remove();
    while (all.length < 2 * wanted.length) this.element.append(el("dt"), el("dd"));
    wanted.forEach(([name, text], index) => {
      say(all[2 * index], name);
      say(all[2 * index + 1], text);
    });
  }
}

/** Whatever the daemon answers within its own time. */
export async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(9500), cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `${answer.status}`);
  return answer;
}
