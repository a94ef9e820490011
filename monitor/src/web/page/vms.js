// What is known of all VMs, and of the host: the daemon tells what changed since it was last asked.

import { goOn } from "./lines.js";
import { get } from "./words.js";

/** What is asked for; the daemon's benchmark asks by this line, too. */
const QUESTION = "/api/list?since={since}&lines={lines}&figures={figures}";

/** All VMs by pid, each with what `status` says of it that seldom changes, and with `line` and `figures` once it was in sight. */
export class Vms {
  constructor() {
    this.since = "";
    this.all = new Map();
  }

  /** Asks for what changed, and for the lines and figures of the VMs `inSight`; with `allFigures`, those of all. */
  async ask(inSight = [], allFigures = false) {
    const lines = inSight.map(({ pid, line }) => (line ? `${pid}.${line.tick}` : pid)).join(",");
    const asked = { since: this.since, lines, figures: allFigures ? "all" : "" };
    const path = QUESTION.replace(/{(\w+)}/g, (_, name) => asked[name]);
    const page = await (await get(path)).json();
    this.take(page);
    return page;
  }

  take(page) {
    const before = this.all;
    if (page.is_whole) this.all = new Map();
    for (const pid of page.gone) this.all.delete(pid);
    for (const vm of page.vms) {
      // Another daemon counts ticks anew: what it says goes on from nothing.
      const { line, figures } = (page.is_whole ? null : before.get(vm.pid)) ?? { line: null, figures: null };
      this.all.set(vm.pid, { ...vm, line, figures });
    }
    for (const next of page.lines) {
      const vm = this.all.get(next.pid);
      if (vm) vm.line = goOn(vm.line, next);
    }
    for (const [pid, vcpu, flight, silence, sent, received, done] of page.figures) {
      const vm = this.all.get(pid);
      if (vm) vm.figures = { vcpu, flight, silence, sent, received, done };
    }
    this.since = page.since;
  }
}
