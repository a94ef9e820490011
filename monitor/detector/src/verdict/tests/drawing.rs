//! The arrows of the drawing in the module's documentation, one by one.

use std::collections::BTreeSet;

/// Every state, by its name.
pub(super) const STATES: [&str; 8] =
    ["starting", "alive", "suspect", "crashed", "recovering", "held", "failed", "unobservable"];

type Arrow = (&'static str, &'static str);

/// From which state one may come into which other. No test may see another transition, and each of these is
/// seen by one.
pub(super) fn arrows() -> BTreeSet<Arrow> {
    let mut arrows = BTreeSet::from([
        ("starting", "alive"),
        // The grace is over, and it has been silent for so long already.
        ("starting", "suspect"),
        ("alive", "suspect"),
        ("suspect", "alive"),
        ("crashed", "recovering"),
        ("recovering", "alive"),
        // It lives after all.
        ("crashed", "alive"),
        ("failed", "alive"),
        // Its restart is refused, or it writes its dump.
        ("crashed", "held"),
        // Its monitor answers again, and its registers can be asked.
        ("crashed", "suspect"),
        // It may be restarted now, and nothing was seen to undo what it was convicted of.
        ("failed", "suspect"),
        // When that ends.
        ("held", "alive"),
        // It was suspected before, or has been silent for so long.
        ("held", "suspect"),
        ("held", "starting"),
        ("held", "unobservable"),
        ("unobservable", "alive"),
        ("unobservable", "suspect"),
        ("unobservable", "starting"),
        ("unobservable", "held"),
    ]);
    for from in STATES {
        if !matches!(from, "crashed" | "failed") {
            arrows.insert((from, "crashed"));
        }
        if !matches!(from, "starting" | "recovering") {
            arrows.insert((from, "starting"));
        }
        if from != "failed" {
            arrows.insert((from, "failed"));
        }
    }
    for judged in ["starting", "alive", "suspect"] {
        arrows.extend([(judged, "held"), (judged, "unobservable")]);
    }
    arrows
}
