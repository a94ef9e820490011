//! A VM's row: what is shown of it, by what it is sorted, and whether a filter lets it through.

use std::cmp::Ordering;
use std::time::Duration;

use crate::api::view::VmView;
use crate::history::{Rate, TickRates, Ticks};

use crate::cli::severity;

/// By what rows can be sorted, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::top) enum Column {
    /// Its name.
    Name,
    /// The most severe state first.
    State,
    /// vCPU time.
    Vcpu,
    /// Packets from and to the guest.
    Network,
    /// Requests that completed.
    Disk,
    /// Requests in flight.
    InFlight,
    /// How long ago the last sign of life was.
    Life,
    /// Restarts that count towards the limit.
    Restarts,
}

impl Column {
    /// All of them.
    pub(in crate::cli::top) const ALL: [Self; 8] = [
        Self::Name,
        Self::State,
        Self::Vcpu,
        Self::Network,
        Self::Disk,
        Self::InFlight,
        Self::Life,
        Self::Restarts,
    ];

    /// Its name in a sentence, and the key that sorts by it.
    pub(in crate::cli::top) fn describe(self) -> (&'static str, char) {
        match self {
            Self::Name => ("name", 'N'),
            Self::State => ("state", 'S'),
            Self::Vcpu => ("vCPU time", 'P'),
            Self::Network => ("network", 'T'),
            Self::Disk => ("disk", 'D'),
            Self::InFlight => ("in flight", 'F'),
            Self::Life => ("last sign of life", 'L'),
            Self::Restarts => ("restarts", 'C'),
        }
    }

    /// The column `steps` to the right of this one, around the end.
    pub(in crate::cli::top) fn beside(self, steps: isize) -> Self {
        let all = Self::ALL;
        let at = all.iter().position(|column| *column == self).unwrap_or(0);
        let to = at.cast_signed().wrapping_add(steps).rem_euclid(all.len().cast_signed());
        all.get(to.cast_unsigned()).copied().unwrap_or(self)
    }
}

/// Which VM: a pid comes round again, but hardly with the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::cli::top) struct Key {
    pub(in crate::cli::top) pid: u32,
    pub(in crate::cli::top) name: String,
}

impl Key {
    /// The key of `vm`.
    pub(in crate::cli::top) fn of(vm: &VmView) -> Self {
        Self { pid: vm.pid, name: vm.name.clone() }
    }
}

/// A VM, and its last ticks.
#[derive(Clone, Debug)]
pub(in crate::cli::top) struct Row {
    pub(in crate::cli::top) vm: VmView,
    pub(in crate::cli::top) ticks: Ticks,
}

impl Row {
    /// A VM that is seen first, of which the daemon remembers these ticks, the last of which is this one.
    pub(super) fn first(vm: VmView, mut ticks: Ticks) -> Self {
        if ticks.is_empty() {
            ticks.push(TickRates::between(None, &vm, None));
        }
        Self { vm, ticks }
    }

    /// The row once the daemon says `vm` of it, `elapsed` later; `None`: that isn't known.
    pub(super) fn next(self, vm: VmView, elapsed: Option<Duration>) -> Self {
        let mut ticks = self.ticks;
        ticks.push(TickRates::between(Some(&self.vm), &vm, elapsed));
        Self { vm, ticks }
    }

    /// A rate of the last tick.
    pub(in crate::cli::top) fn rate(&self, rate: Rate) -> Option<f64> {
        self.ticks.newest().get(rate).map(f64::from)
    }

    /// Whether this is the VM of that key.
    pub(in crate::cli::top) fn is(&self, key: &Key) -> bool {
        self.vm.pid == key.pid && self.vm.name == key.name
    }

    /// Whether its name, UUID, pid, state, cause, owner or hold has `needle` in it, which is in lower case.
    pub(in crate::cli::top) fn matches(&self, needle: &str) -> bool {
        let vm = &self.vm;
        let has = |text: &str| text.to_lowercase().contains(needle);
        needle.is_empty()
            || has(&vm.name)
            || has(&vm.state)
            || vm.uuid.as_deref().is_some_and(has)
            || vm.cause.as_deref().is_some_and(has)
            || vm.hold.is_some() && "on hold".contains(needle)
            || has(&vm.owner.kind)
            || vm.owner.name.as_deref().is_some_and(has)
            || vm.pid.to_string().contains(needle)
    }

    /// Packets from and to the guest together, a second.
    pub(in crate::cli::top) fn network(&self) -> Option<f64> {
        Some(self.rate(Rate::PacketsFromGuest)? + self.rate(Rate::PacketsToGuest)?)
    }

    /// What `column` sorts by, the highest first.
    fn figure(&self, column: Column) -> Option<f64> {
        match column {
            Column::Name | Column::State => None,
            Column::Vcpu => self.rate(Rate::Vcpu),
            Column::Network => self.network(),
            Column::Disk => self.rate(Rate::Completed),
            Column::InFlight => self.rate(Rate::InFlight),
            Column::Life => self.vm.flat_seconds,
            Column::Restarts => Some(f64::from(self.vm.restarts_in_window)),
        }
    }

    /// The order of two rows. What isn't known stands last, whichever way it goes; equals stand by their names.
    pub(in crate::cli::top) fn compare(
        &self,
        other: &Self,
        column: Column,
        reversed: bool,
    ) -> Ordering {
        let turn = |order: Ordering| if reversed { order.reverse() } else { order };
        let by_name = || self.vm.name.cmp(&other.vm.name).then(self.vm.pid.cmp(&other.vm.pid));
        match column {
            Column::Name => turn(by_name()),
            Column::State => {
                turn(severity::rank(&self.vm).cmp(&severity::rank(&other.vm))).then_with(by_name)
            }
            _ => match (self.figure(column), other.figure(column)) {
                (Some(one), Some(two)) => turn(two.total_cmp(&one)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => Ordering::Equal,
            }
            .then_with(by_name),
        }
    }
}
