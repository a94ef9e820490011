// Shows the view that the address names, and asks the daemon for it anew: once a second at most, one question at a
// time, and seldom while the page is in the background.

import { Incidents, IncidentPage } from "./incidents.js";
import { List, problems } from "./list.js";
import { VmPage } from "./vm.js";
import { say, span, time } from "./words.js";

/** While it is hidden, only the title is of use. */
const HIDDEN_EVERY_MS = 15000;
/** What came in sight is asked for when no more comes for so long. */
const SOON_MS = 200;
/** Without an answer for so long, what is shown is old. */
const OLD_AFTER_MS = 4000;

const content = document.getElementById("content");
const pulse = document.getElementById("pulse");
const trouble = document.getElementById("trouble");
const list = new List(soon);
let view = null;
let timer = null;
let isAsking = false;
let isSoon = false;
let answered = null;
let why = "";

function viewOf(hash) {
  const [, kind, ...rest] = hash.split("/").map(decoded);
  if (kind === "vm" && /^\d+$/.test(rest[0] ?? "")) return new VmPage(Number(rest[0]), rest[1] ?? rest[0]);
  if (kind === "incidents") return new Incidents();
  if (kind === "incident" && rest[0]) return new IncidentPage(rest[0]);
  return list;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function go() {
  // The link that skips to the content is no view.
  if (location.hash === "#content") return;
  const before = view;
  if (before !== null) before.scroll = scrollY;
  view = viewOf(location.hash);
  answered = null;
  content.replaceChildren(view.element);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, view.scroll ?? 0);
  // By keyboard, one goes on where the link leads, and from where one was on the way back.
  if (before !== null) (view.place?.() ?? content).focus({ preventScroll: true });
  ask();
}

/** Asks before it is time. */
function soon() {
  if (isSoon || view !== list || document.hidden) return;
  isSoon = true;
  clearTimeout(timer);
  timer = setTimeout(ask, SOON_MS);
}

async function ask() {
  clearTimeout(timer);
  isSoon = false;
  const asked = view;
  if (!isAsking) {
    isAsking = true;
    try {
      const page = await asked.refresh();
      if (asked === view) heard(page);
    } catch (error) {
      why = error.message;
    }
    isAsking = false;
    // Another view was opened meanwhile.
    if (asked !== view) return void ask();
  }
  timer = setTimeout(ask, document.hidden ? HIDDEN_EVERY_MS : view.every);
}

function heard(page) {
  answered = Date.now();
  if (page.host) {
    const needing = problems(page.vms);
    document.title = `${needing > 0 ? `(${needing}) ` : ""}${page.host.hostname ?? "flatline"} – flatline`;
    say(document.getElementById("host"), page.host.hostname ?? "flatline");
    say(pulse, `${needing === 0 ? "no VM needs a look" : `${needing} of ${page.vms.length} need a look`}${page.host.mode === "observe" ? "; observing only" : ""}`);
  } else {
    document.title = `${view.title?.textContent ?? "Incidents"} – flatline`;
    say(pulse, "");
  }
  age();
  pulse.title = page.as_of ? `as of ${time(page.as_of)}` : "";
}

/** Says how old it is, where it is old: nothing that stopped is to look alive. */
function age() {
  const isOld = answered === null ? why !== "" : Date.now() - answered > OLD_AFTER_MS + view.every;
  document.body.classList.toggle("old", isOld);
  trouble.hidden = !isOld;
  const since = answered === null ? "No answer" : `No answer for ${span((Date.now() - answered) / 1000)}: what is shown is old`;
  say(trouble, isOld ? `${since}${why ? ` (${why})` : ""}` : "");
  if (!isOld) why = "";
}

addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});
document.addEventListener("keydown", (event) => {
  if (!event.altKey && !event.ctrlKey && !event.metaKey) view.key(event);
});
setInterval(age, 1000);
go();
