// Incidents: what was detected, what was done, what came of it, and what the console showed.

import { el, Facts, get, say, span, Table, time } from "./words.js";

/** Files that are served as text, and what is in them. */
const FILES = {
  "evidence.txt": "what was kept, what is missing, and why",
  "console.txt": "the last lines of the serial console",
  "registers.txt": "the vCPUs' registers",
  "run-state.txt": "QEMU's run state",
  "figures.json": "what flatline knew of it",
  "vcpus.json": "QEMU's account of the vCPUs",
  "block.json": "QEMU's account of the disks",
  "blockstats.json": "what QEMU counted of the disks",
  "network.json": "QEMU's account of the networks",
  "panic.json": "what the guest said of its panic",
  "actuator.txt": "what the programs that restarted it printed",
};
const PICTURE = "screen.png";

const address = (incident) => `#/incident/${encodeURIComponent(incident.id)}`;
const file = (incident, name) => `/api/evidence/${encodeURIComponent(incident.id)}/${encodeURIComponent(name)}`;

function outcome(incident) {
  return incident.outcome ?? "under way";
}

export class IncidentTable {
  constructor(caption) {
    this.table = new Table(caption, ["Detected", "VM", "Cause", "Outcome", "Found after", "Back after", "Reason"]);
    this.element = this.table.element;
  }

  fill(incidents) {
    const after = (seconds) => (seconds === null ? "–" : span(seconds));
    this.table.fill(incidents.map((incident) => [
      { key: incident.id, make: () => el("a", { href: address(incident) }, time(incident.detected_at)) },
      incident.vm,
      incident.cause,
      outcome(incident),
      after(incident.detect_seconds),
      after(incident.recover_seconds),
      incident.reason,
    ]));
  }
}

export class Incidents {
  constructor() {
    this.name = "incidents";
    this.every = 5000;
    this.table = new IncidentTable("Incidents, the newest first");
    this.rest = el("p", { class: "note" });
    this.element = el("section", {}, el("h1", {}, "Incidents"), this.table.element, this.rest);
  }

  async refresh() {
    const page = await (await get("/api/incidents")).json();
    this.table.fill(page.incidents);
    const none = page.incidents.length === 0 ? ["There are none."] : [];
    const older = page.older > 0 ? [`${page.older} older ones: flatline incidents.`] : [];
    say(this.rest, [...none, ...older, ...page.complaints].join(" "));
    return page;
  }

  key() {}
}

export class IncidentPage {
  constructor(id) {
    this.name = "incidents";
    this.every = 5000;
    this.id = id;
    this.title = el("h1", {}, id);
    this.reason = el("p", { class: "lead" });
    this.facts = new Facts();
    this.attempts = new Table("Restarts", ["Begun", "Run state", "Steps", "Limit"]);
    this.picture = el("div");
    this.files = el("ul");
    this.known = el(
      "div",
      { hidden: "" },
      this.facts.element,
      this.attempts.element,
      el("h2", {}, "What its console showed"),
      this.picture,
      el("h2", {}, "What else was kept"),
      this.files,
    );
    this.element = el(
      "section",
      {},
      el("p", {}, el("a", { href: "#/incidents" }, "← all incidents")),
      this.title,
      this.reason,
      this.known,
    );
  }

  async refresh() {
    const answer = await get("/api/incidents");
    const withheld = answer.headers.get("flatline-no-evidence");
    const page = await answer.json();
    const incident = page.incidents.find(({ id }) => id === this.id);
    if (incident === undefined) say(this.reason, "It isn't among the newest ones: flatline incidents show has it, if there is one.");
    else this.take(incident, withheld);
    return page;
  }

  take(incident, withheld) {
    this.known.hidden = false;
    say(this.title, `${incident.vm}: ${incident.cause}, ${outcome(incident)}`);
    say(this.reason, incident.reason);
    const at = (text) => (text === null ? null : time(text));
    this.facts.fill([
      ["Last sign of life", at(incident.last_sign_of_life)],
      ["Detected", `${time(incident.detected_at)}${incident.detect_seconds === null ? "" : `, after ${span(incident.detect_seconds)}`}`],
      ["Action", incident.action === null ? "none" : `${incident.action}, ${time(incident.action_at)}`],
      ["Lives again", incident.recovered_at === null ? null : `${time(incident.recovered_at)}, after ${span(incident.recover_seconds)}`],
      ["Outcome", outcome(incident)],
      ["UUID", incident.uuid],
      ["QEMU's process", String(incident.pid)],
      ["Incident", incident.id],
    ]);
    this.attempts.fill(incident.attempts.map((attempt) => [time(attempt.begun_at), attempt.run_state, attempt.steps.join(", "), attempt.limit]));
    this.show(incident, withheld);
  }

  /** The evidence, once for each list of it. */
  show(incident, withheld) {
    const key = JSON.stringify([incident.evidence, withheld]);
    if (this.shown === key) return;
    this.shown = key;
    const without = (why) => el("p", { class: "note" }, why);
    if (!incident.evidence.includes(PICTURE)) this.picture.replaceChildren(without("There is no picture; the list of the evidence says why."));
    else if (withheld) this.picture.replaceChildren(without(withheld));
    else {
      const picture = el("img", { class: "screen", alt: "The guest's console, right before the restart", src: file(incident, PICTURE) });
      picture.addEventListener("error", () => this.picture.replaceChildren(without("It is no longer kept.")));
      this.picture.replaceChildren(picture);
    }
    const item = (name) => {
      const isText = Object.hasOwn(FILES, name) && !withheld;
      const link = isText ? el("a", { href: file(incident, name), target: "_blank", rel: "noopener" }, name) : el("b", {}, name);
      return el("li", {}, link, Object.hasOwn(FILES, name) ? `: ${FILES[name]}` : "");
    };
    this.files.replaceChildren(...incident.evidence.filter((name) => name !== PICTURE).map(item));
  }

  key(event) {
    if (event.key === "Escape") location.hash = "#/incidents";
  }
}
