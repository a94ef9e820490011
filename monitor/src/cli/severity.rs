//! Severity of VM states: which to list first, how many there are of each, and in which tone they are shown.

use std::collections::BTreeMap;

use crate::api::view::VmView;

/// The states, the worst first. One that isn't among them is a newer daemon's.
const STATES: [&str; 8] =
    ["failed", "crashed", "recovering", "suspect", "unobservable", "held", "starting", "alive"];

/// How something is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// Something is going on.
    Notable,
    /// A person may be needed.
    Bad,
    /// As any text.
    Plain,
}

impl Tone {
    /// The tone of a state.
    pub(super) fn of(state: &str) -> Self {
        match state {
            "alive" => Self::Good,
            "failed" | "crashed" => Self::Bad,
            "starting" => Self::Plain,
            _ => Self::Notable,
        }
    }
}

/// The lower, the sooner a person should look at it. A VM on hold stands with those that are held, unless it is worse.
pub(super) fn rank(vm: &VmView) -> usize {
    let rank = rank_of(&vm.state);
    if vm.hold.is_some() { rank.min(rank_of("held")) } else { rank }
}

/// Words of a newer daemon's stand before what is harmless.
fn rank_of(state: &str) -> usize {
    let known = STATES.iter().position(|known| *known == state);
    known.or_else(|| STATES.iter().position(|known| *known == "held")).unwrap_or(STATES.len())
}

/// `37 VMs: 35 alive, 1 recovering, 1 failed`: the most frequent first, then the worst.
pub(super) fn summary<'a>(vms: impl IntoIterator<Item = &'a VmView>) -> String {
    let mut total = 0_usize;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut on_hold = 0_usize;
    for vm in vms {
        total += 1;
        *counts.entry(&vm.state).or_default() += 1;
        on_hold += usize::from(vm.hold.is_some());
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(state, count)| (std::cmp::Reverse(*count), rank_of(state)));
    let mut parts: Vec<String> =
        counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if on_hold > 0 {
        parts.push(format!("{on_hold} on hold"));
    }
    match total {
        0 => "no VMs".to_owned(),
        1 => format!("1 VM: {}", parts.join(", ")),
        _ => format!("{total} VMs: {}", parts.join(", ")),
    }
}

/// Its state, with the cause of a verdict.
pub(super) fn state(vm: &VmView) -> String {
    match &vm.cause {
        Some(cause) => format!("{} ({cause})", vm.state),
        None => vm.state.clone(),
    }
}

/// Why it stands so, and that it is on hold.
pub(super) fn reason(vm: &VmView) -> String {
    match vm.hold {
        Some(_) => format!("(on hold) {}", vm.reason),
        None => vm.reason.clone(),
    }
}
