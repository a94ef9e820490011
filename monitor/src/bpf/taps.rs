//! The tap programs: one copy a network namespace, attached to both directions of each tap.
//!
//! `skb->ifindex` is unique only inside a namespace; so the namespace is a constant in the copy, which costs nothing per
//! packet. Ours stand first on a tap, and hand every packet on: a program before them may not (`bypass`).

use std::{collections::HashMap as StdHashMap, fs::File, io};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError},
    programs::ProgramError,
};
use monitor_ebpf::{TAP_PROBES, TapRow, tap_home};
use thiserror::Error;
use tracing::debug;

use super::{
    ProbeError,
    host::Loader,
    namespace::{namespace_left, namespace_of},
    netlink, slots,
    tap_hooks::{self, DIRECTIONS, Hook, classifier},
};
use crate::config::TapHook;
use flatline_qemu::{
    discover::{Tap, TapKind, find_netns, in_netns},
    text::error_chain,
};

/// A tap, by its network namespace and its index there.
type Key = (u32, u32);

/// How a tap's packets are counted, or why they aren't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapProbe {
    /// The tap.
    pub tap: Tap,
    /// `tcx`, `clsact` or `ingress`, or what went wrong.
    pub hook: Result<&'static str, String>,
    /// What is not counted on it all the same, and why: packets to the guest, never those that it sends.
    pub unseen: Option<&'static str>,
}

impl TapProbe {
    /// A tap whose packets are not counted.
    pub fn not_on(tap: &Tap, why: impl Into<String>) -> Self {
        Self { tap: tap.clone(), hook: Err(why.into()), unseen: None }
    }

    fn on(tap: &Tap, hook: Hook) -> Self {
        Self { tap: tap.clone(), hook: Ok(hook.as_str()), unseen: hook.unseen() }
    }
}

/// Why programs can't be brought onto a tap, or be looked for on it.
#[derive(Debug, Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cannot attach {program} through {hook}")]
    Attach {
        program: &'static str,
        hook: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("cannot enter its network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot see which programs are on it")]
    Query(#[source] ProgramError),
    #[error("cannot see or change the disciplines and filters on it")]
    Discipline(#[source] io::Error),
    #[error("it is not there any more")]
    Interface(#[source] io::Error),
    #[error(
        "what its guest sends cannot be counted: an ingress discipline stands where clsact would, and has no other direction"
    )]
    OneDirection,
    #[error("cannot note the tap in the map `taps`")]
    Map(#[from] MapError),
}

/// What is on a tap.
struct Attachment {
    slot: u32,
    /// The QEMU that has it open.
    pid: u32,
    tap: Tap,
    /// Its row in `taps`.
    row: u32,
    hook: Hook,
}

/// All taps that are attached.
pub(super) struct TapPrograms {
    hook: TapHook,
    /// Whether the programs that an earlier daemon left on taps are the same as ours.
    same_programs: bool,
    /// The copies of the programs that were loaded so far.
    namespaces: StdHashMap<u32, Ebpf>,
    attached: StdHashMap<Key, Attachment>,
    rows: Array<MapData, TapRow>,
}

/// Outcome of looking after a tap.
pub(super) struct Attached {
    pub(super) probe: TapProbe,
    /// The programs had been detached meanwhile: what passed since is not known.
    pub(super) was_lost: bool,
    /// It has another name now.
    pub(super) is_renamed: bool,
}

impl TapPrograms {
    /// Opens the map `taps`, which the host's programs pinned.
    pub(super) fn new(
        loader: &Loader,
        hook: TapHook,
        same_programs: bool,
    ) -> Result<Self, ProbeError> {
        let rows = slots::open(&loader.pins, "taps", Map::Array)?;
        Ok(Self {
            hook,
            same_programs,
            namespaces: StdHashMap::new(),
            attached: StdHashMap::new(),
            rows,
        })
    }

    /// Sees to it that a tap of the QEMU `pid` counts for the VM in `slot`.
    pub(super) fn attach(
        &mut self,
        loader: &mut Loader,
        slot: u32,
        pid: u32,
        tap: &Tap,
    ) -> Attached {
        let netns = match namespace_of(pid, tap) {
            Ok(netns) => netns,
            Err(error) => {
                let probe = TapProbe::not_on(tap, error_chain(&AttachError::Namespace(error)));
                return Attached { probe, was_lost: false, is_renamed: false };
            }
        };
        let (hook, was_lost) = self.attach_in(&netns, loader, slot, pid, tap);
        let probe = match hook {
            Ok(hook) => TapProbe::on(tap, hook),
            Err(why) => TapProbe::not_on(tap, why),
        };
        let is_renamed = inside(&netns, || tap_hooks::is_renamed(tap)).unwrap_or(false);
        Attached { probe, was_lost, is_renamed }
    }

    fn attach_in(
        &mut self,
        netns: &File,
        loader: &mut Loader,
        slot: u32,
        pid: u32,
        tap: &Tap,
    ) -> (Result<Hook, String>, bool) {
        let key = (tap.netns, tap.ifindex);
        let mut was_lost = false;
        match self.attached.get(&key) {
            Some(known) if known.slot == slot => {
                match inside(netns, || tap_hooks::is_on(loader, tap, known.hook)) {
                    Ok(true) => return (Ok(known.hook), was_lost),
                    Ok(false) => {
                        was_lost = true;
                        self.detach(loader, key);
                    }
                    Err(error) => return (Err(error_chain(&error)), was_lost),
                }
            }
            Some(_) => self.detach(loader, key),
            None => {}
        }
        let hook = self.try_attach(netns, loader, slot, pid, tap);
        (hook.map_err(|error| error_chain(&error)), was_lost)
    }

    fn try_attach(
        &mut self,
        netns: &File,
        loader: &mut Loader,
        slot: u32,
        pid: u32,
        tap: &Tap,
    ) -> Result<Hook, AttachError> {
        let row = self.take_row(slot, tap)?;
        // The row first: a packet that finds none isn't counted.
        match self.put_on(loader, tap, netns) {
            Ok(hook) => {
                let attachment = Attachment { slot, pid, tap: tap.clone(), row, hook };
                self.attached.insert((tap.netns, tap.ifindex), attachment);
                Ok(hook)
            }
            Err(error) => {
                // Without its programs the tap has no figures: nothing may look like a zero.
                let _ = self.rows.set(row, TapRow::default(), 0);
                Err(error)
            }
        }
    }

    /// The row of a tap, which keeps its address if it was the same VM's before.
    fn take_row(&mut self, slot: u32, tap: &Tap) -> Result<u32, AttachError> {
        let mask = self.rows.len() - 1;
        let home = tap_home(tap.netns, tap.ifindex, mask);
        let mut free = None;
        for step in 0..TAP_PROBES {
            let index = home.wrapping_add(step) & mask;
            let row = self.rows.get(&index, 0)?;
            if (row.netns, row.ifindex) == (tap.netns, tap.ifindex) {
                if row.slot != slot {
                    self.rows.set(index, fresh_row(slot, tap), 0)?;
                }
                return Ok(index);
            }
            if row.ifindex == 0 {
                free.get_or_insert(index);
            }
        }
        let index = free.ok_or(ProbeError::Full { key: "probes.max_taps" })?;
        self.rows.set(index, fresh_row(slot, tap), 0)?;
        Ok(index)
    }

    fn put_on(
        &mut self,
        loader: &mut Loader,
        tap: &Tap,
        netns: &File,
    ) -> Result<Hook, AttachError> {
        if self.same_programs {
            let older = inside(netns, || tap_hooks::older_hook(tap))?;
            for hook in [Some(Hook::Tcx), older].into_iter().flatten() {
                if inside(netns, || tap_hooks::is_on(loader, tap, hook))? {
                    debug!("{}: the programs of an earlier daemon go on", tap.name);
                    return Ok(hook);
                }
            }
        }
        let ebpf = match self.namespaces.entry(tap.netns) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(load(loader, tap.netns)?)
            }
        };
        let hook = self.hook;
        inside(netns, || match hook {
            TapHook::Tcx => tap_hooks::attach_tcx(ebpf, loader, tap),
            TapHook::Clsact => tap_hooks::attach_filters(ebpf, loader, tap),
            TapHook::Auto => tap_hooks::attach_tcx(ebpf, loader, tap).or_else(|error| {
                debug!("{}: {}; trying clsact", tap.name, error_chain(&error));
                tap_hooks::attach_filters(ebpf, loader, tap)
            }),
        })
    }

    /// Packets that the guests behind all taps of the VM in `slot` sent, by the kernel's own account.
    pub(super) fn sent(&self, slot: u32) -> io::Result<u64> {
        self.of(slot)
            .map(|known| {
                let netns = namespace_of(known.pid, &known.tap)?;
                let (received, sent) =
                    in_netns(&netns, || netlink::packets(known.tap.ifindex)).flatten()?;
                Ok(if known.tap.kind == TapKind::Macvtap { sent } else { received })
            })
            .sum()
    }

    /// What stands before our programs on any of these taps.
    pub(super) fn before_ours(&self, loader: &Loader, slot: u32) -> Option<String> {
        self.of(slot).find_map(|known| {
            let netns = namespace_of(known.pid, &known.tap).ok()?;
            let found = inside(&netns, || tap_hooks::before_ours(loader, &known.tap, known.hook));
            found.unwrap_or_else(|error| {
                debug!(
                    "{}: what is before ours can't be told: {}",
                    known.tap.name,
                    error_chain(&error)
                );
                None
            })
        })
    }

    fn of(&self, slot: u32) -> impl Iterator<Item = &Attachment> {
        self.attached.values().filter(move |known| known.slot == slot)
    }

    /// Detaches from the taps of the VM in `slot` that aren't among `kept`.
    pub(super) fn keep_only(&mut self, loader: &Loader, slot: u32, kept: &[Tap]) {
        let is_kept = |key: &Key| kept.iter().any(|tap| (tap.netns, tap.ifindex) == *key);
        let attached = self.attached.iter();
        let gone: Vec<Key> = attached
            .filter_map(|(key, known)| (known.slot == slot && !is_kept(key)).then_some(*key))
            .collect();
        for key in gone {
            self.detach(loader, key);
        }
    }

    /// Detaches from every tap.
    pub(super) fn forget_all(&mut self, loader: &Loader) {
        for key in self.attached.keys().copied().collect::<Vec<_>>() {
            self.detach(loader, key);
        }
    }

    /// Empties the rows of taps that an earlier daemon attached and no VM has any more, and takes its
    /// programs off them.
    pub(super) fn forget_strangers(&mut self, loader: &Loader) {
        for index in 0..self.rows.len() {
            let Ok(row) = self.rows.get(&index, 0) else { continue };
            let key = (row.netns, row.ifindex);
            if row.ifindex != 0 && !self.attached.contains_key(&key) {
                let _ = self.rows.set(index, TapRow::default(), 0);
                let _ = tap_hooks::remove_links(loader, key);
                if let Some(netns) = find_netns(row.netns)
                    && let Err(error) = inside(&netns, || tap_hooks::remove_filters(row.ifindex))
                {
                    debug!(
                        "nothing to take off interface {}: {}",
                        row.ifindex,
                        error_chain(&error)
                    );
                }
            }
        }
    }

    fn detach(&mut self, loader: &Loader, key: Key) {
        let Some(attachment) = self.attached.remove(&key) else { return };
        let Attachment { slot: _, pid, tap, row, hook } = attachment;
        let _ = self.rows.set(row, TapRow::default(), 0);
        let detached = match (hook, namespace_left(pid, &tap)) {
            (Hook::Tcx, _) => tap_hooks::remove_links(loader, key).map_err(AttachError::from),
            (Hook::Clsact | Hook::Ingress, Some(netns)) => {
                inside(&netns, || tap_hooks::remove_filters(tap.ifindex))
            }
            // They went with it.
            (Hook::Clsact | Hook::Ingress, None) => Ok(()),
        };
        if let Err(error) = detached {
            debug!("{} was not detached, it may be gone: {}", tap.name, error_chain(&error));
        }
        if self.attached.keys().all(|(netns, _)| *netns != key.0) {
            self.namespaces.remove(&key.0);
        }
    }
}

fn inside<T: Send>(
    netns: &File,
    f: impl FnOnce() -> Result<T, AttachError> + Send,
) -> Result<T, AttachError> {
    in_netns(netns, f).map_err(AttachError::Namespace).flatten()
}

fn fresh_row(slot: u32, tap: &Tap) -> TapRow {
    TapRow { netns: tap.netns, ifindex: tap.ifindex, slot, ..TapRow::default() }
}

fn load(loader: &mut Loader, netns: u32) -> Result<Ebpf, AttachError> {
    let mut ebpf = loader.load(netns, 0)?;
    for (program, _, _) in DIRECTIONS {
        let classifier = classifier(&mut ebpf, program)?;
        classifier.load().map_err(|source| ProbeError::program(program, source))?;
    }
    Ok(ebpf)
}
