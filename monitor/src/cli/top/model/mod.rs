//! What is shown, and what came of the keys: no terminal, no socket, no clock.
//!
//! The VM under the cursor is kept by what it is, not by where it stands, so that it stays under the cursor when the
//! rows change places. A cursor that was not moved stays at the top.

mod feed;
mod keys;
mod layout;
mod life;
mod page;
mod row;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use crate::api::view::{HostView, LinesView, StatusView, VmView};
use crate::history::{TickRates, Ticks};

use crate::cli::severity::Tone;

pub(super) use feed::{Feed, Stale};
pub(super) use keys::Effect;
pub(super) use layout::{Regions, page_regions};
pub(super) use life::life;
pub(super) use page::{Page, PageAnswer};
pub(super) use row::{Column, Key, Row};

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) unicode: bool,
    pub(super) colours: bool,
}

/// What stands in front of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Overlay {
    #[default]
    None,
    /// The keys, from this line on.
    Help(usize),
    /// The columns to sort by, and which one is chosen.
    Sorting(Column),
    /// A filter is being typed; this is what it was before.
    Filtering(String),
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) look: Look,
    /// The terminal's columns and lines.
    pub(super) size: (u16, u16),
    pub(super) host: Option<HostView>,
    /// All VMs, sorted.
    pub(super) rows: Vec<Row>,
    /// Which of them the filter lets through, in their order.
    pub(super) shown: Vec<usize>,
    pub(super) column: Column,
    pub(super) reversed: bool,
    pub(super) filter: String,
    pub(super) overlay: Overlay,
    /// The VM under the cursor, once it was moved.
    selected: Option<Key>,
    /// Where in `shown` that is.
    pub(super) cursor: usize,
    /// Which of `shown` is the first one on the screen.
    pub(super) offset: usize,
    /// The page of a VM, while it is open.
    pub(super) page: Option<Page>,
    pub(super) feed: Feed,
    /// What time it is.
    pub(super) wall: SystemTime,
}

impl Model {
    /// One that knows nothing yet.
    pub(super) fn new(look: Look, size: (u16, u16), now: Instant, wall: SystemTime) -> Self {
        Self {
            look,
            size,
            host: None,
            rows: Vec::new(),
            shown: Vec::new(),
            column: Column::State,
            reversed: false,
            filter: String::new(),
            overlay: Overlay::None,
            selected: None,
            cursor: 0,
            offset: 0,
            page: None,
            feed: Feed::new(now),
            wall,
        }
    }

    /// A tick went by.
    pub(super) fn tick(&mut self, now: Instant, wall: SystemTime) {
        self.wall = wall;
        self.feed.tick(now);
    }

    /// The daemon gave no answer, and this is why.
    pub(super) fn on_silence(&mut self, why: String, now: Instant) {
        self.feed.failed(why, now);
        self.rows.iter_mut().for_each(|row| row.ticks.push(TickRates::UNKNOWN));
    }

    /// The daemon's answer; `lines` come with the first one.
    pub(super) fn on_status(&mut self, status: StatusView, lines: Option<LinesView>, now: Instant) {
        let StatusView { host, vms } = status;
        self.host = Some(host);
        let same_sample = self.is_same_sample(&vms);
        let elapsed = self.feed.answered(now, !same_sample);
        let remembered = lines.into_iter().flat_map(|lines| lines.vms);
        let mut remembered: HashMap<Key, Ticks> = remembered
            .map(|line| (Key { pid: line.pid, name: line.name.clone() }, Ticks::from(&line)))
            .collect();
        let before = std::mem::take(&mut self.rows);
        let mut before: HashMap<Key, Row> =
            before.into_iter().map(|row| (Key::of(&row.vm), row)).collect();
        let row = |vm: VmView| {
            let key = Key::of(&vm);
            match before.remove(&key) {
                Some(row) if same_sample => Row { vm, ..row },
                Some(row) => row.next(vm, elapsed),
                None => Row::first(vm, remembered.remove(&key).unwrap_or_default()),
            }
        };
        self.rows = vms.into_iter().map(row).collect();
        if let Some(page) = &mut self.page {
            page.on_rows(&self.rows);
        }
        self.sort();
    }

    /// Whether the daemon has read no figures since it was last asked. Its ticks and these may fall together, and what
    /// is shown twice would look like a guest that did nothing in between.
    fn is_same_sample(&self, vms: &[VmView]) -> bool {
        let known: HashMap<(u32, &str), &VmView> =
            self.rows.iter().map(|row| ((row.vm.pid, &*row.vm.name), &row.vm)).collect();
        let is_same = |vm: &VmView| {
            known.get(&(vm.pid, &*vm.name)).is_some_and(|before| {
                let figures = |vm: &VmView| {
                    let network =
                        vm.network.map(|net| (net.guest_tx_packets, net.guest_rx_packets));
                    (network, vm.storage.map(|storage| storage.completed_ops))
                };
                before.vcpus == vm.vcpus && figures(before) == figures(vm)
            })
        };
        // A vCPU's time is never the same twice, unless it is none.
        let runs = |vm: &VmView| vm.vcpus.iter().any(|vcpu| vcpu.busy_ratio > Some(0.0));
        vms.iter().any(runs) && vms.iter().all(is_same)
    }

    /// Sorts anew, and finds the cursor's VM again.
    pub(super) fn sort(&mut self) {
        let (column, reversed) = (self.column, self.reversed);
        self.rows.sort_by(|one, other| one.compare(other, column, reversed));
        let needle = self.filter.to_lowercase();
        let shown = self.rows.iter().enumerate().filter(|(_, row)| row.matches(&needle));
        self.shown = shown.map(|(index, _)| index).collect();
        match &self.selected {
            None => self.cursor = 0,
            Some(key) => {
                let at = self
                    .shown
                    .iter()
                    .position(|index| self.rows.get(*index).is_some_and(|row| row.is(key)));
                // One that is gone leaves the cursor where it stood.
                match at {
                    Some(at) => self.cursor = at,
                    None => self.move_to(self.cursor),
                }
            }
        }
        self.arrange();
    }

    /// The row of `shown` at `index`.
    pub(super) fn row(&self, index: usize) -> Option<&Row> {
        self.rows.get(*self.shown.get(index)?)
    }

    /// The row under the cursor.
    pub(super) fn selected(&self) -> Option<&Row> {
        self.row(self.cursor)
    }

    /// Puts the cursor on the row at `index`, or the last one.
    fn move_to(&mut self, index: usize) {
        self.cursor = index.min(self.shown.len().saturating_sub(1));
        self.selected = self.selected().map(|row| Key::of(&row.vm));
    }

    /// The terminal has so many columns and lines now.
    pub(super) fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
        self.arrange();
    }

    /// What is wrong with the picture, or with the host.
    pub(super) fn banners(&self) -> Vec<(String, Tone)> {
        let stale = self.feed.stale().map(|stale| (stale.to_string(), Tone::Bad));
        let degraded = self.host.as_ref().and_then(|host| host.degraded.as_ref());
        let degraded = degraded.map(|why| (format!("degraded: {why}"), Tone::Notable));
        stale.into_iter().chain(degraded).collect()
    }

    /// Where the parts of the list are.
    pub(super) fn regions(&self) -> Regions {
        let is_filtering = matches!(self.overlay, Overlay::Filtering(_));
        Regions::of(self.size, self.banners().len(), is_filtering)
    }

    /// Brings what is scrolled into its bounds.
    pub(super) fn arrange(&mut self) {
        let lines = usize::from(self.regions().rows.height);
        let last = self.shown.len().saturating_sub(lines);
        // The cursor is on the screen, and no line stays empty that a row could have.
        let offset = self.offset.min(self.cursor).min(last);
        self.offset = offset.max((self.cursor + 1).saturating_sub(lines.max(1)));
        let (columns, wall, unicode) = (self.size.0, self.wall, self.look.unicode);
        if let Some(page) = &mut self.page {
            page.compose(columns.into(), unicode, wall);
            page.scroll_to(page.scroll, layout::page_lines(self.size));
        }
    }
}
