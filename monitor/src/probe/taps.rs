//! The tap programs: one copy a network namespace, attached to both directions of each tap.

use std::{collections::HashMap as StdHashMap, fs::File, io};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use monitor_ebpf::{TAP_PROBES, TapRow, tap_home};
use thiserror::Error;
use tracing::debug;

use super::{ProbeError, clsact, host::Loader, netlink};
use crate::{
    config::TapHook,
    discover::{Tap, TapKind, in_netns},
    error_text::in_full,
};

/// The two programs, the last word of their links' names, and the direction on the host that each counts
/// on a tap. On a macvtap the host sees the guest from the other side.
const DIRECTIONS: [(&str, &str, TcAttachType); 2] = [
    ("tap_from_guest", "from", TcAttachType::Ingress),
    ("tap_to_guest", "to", TcAttachType::Egress),
];
/// Where our clsact filters stand: behind the low priorities that people give their own.
const CLSACT_PRIORITY: u16 = 0xf1a7;
const CLSACT_HANDLE: u16 = 1;

/// A tap, by its network namespace and its index there.
type Key = (u32, u32);

/// How a tap's packets are counted, or why they aren't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapProbe {
    /// The tap.
    pub tap: Tap,
    /// `tcx` or `clsact`, or what went wrong.
    pub hook: Result<&'static str, String>,
}

#[derive(Debug, Error)]
enum AttachError {
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
    #[error("cannot note the tap in the map `taps`")]
    Map(#[from] MapError),
}

/// What is on a tap.
struct Attachment {
    slot: u32,
    /// Its row in `taps`.
    row: u32,
    hook: &'static str,
    /// We made the tap's clsact discipline, which goes with our filters if no others are in it.
    made_clsact: bool,
    netns: File,
    name: String,
    kind: TapKind,
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

/// What came of looking after a tap.
pub(super) struct Attached {
    pub(super) probe: TapProbe,
    /// Somebody had detached the programs meanwhile: what passed since is not known.
    pub(super) was_lost: bool,
}

impl TapPrograms {
    /// Opens the map `taps`, which the host's programs pinned.
    pub(super) fn new(
        loader: &Loader,
        hook: TapHook,
        same_programs: bool,
    ) -> Result<Self, ProbeError> {
        let rows = MapData::from_pin(loader.pins.map("taps"))
            .and_then(|rows| Array::try_from(Map::Array(rows)))
            .map_err(|source| ProbeError::Map { map: "taps", source })?;
        Ok(Self {
            hook,
            same_programs,
            namespaces: StdHashMap::new(),
            attached: StdHashMap::new(),
            rows,
        })
    }

    /// Sees to it that a tap counts for the VM in `slot`; `netns` is the namespace that the tap lives in.
    pub(super) fn attach(
        &mut self,
        loader: &mut Loader,
        slot: u32,
        tap: &Tap,
        netns: File,
    ) -> Attached {
        let key = (tap.netns, tap.ifindex);
        let mut was_lost = false;
        match self.attached.get(&key) {
            Some(known) if known.slot == slot => {
                match inside(&known.netns, || is_on(loader, tap, known.hook)) {
                    Ok(true) => {
                        let probe = TapProbe { tap: tap.clone(), hook: Ok(known.hook) };
                        return Attached { probe, was_lost };
                    }
                    Ok(false) => {
                        was_lost = true;
                        self.detach(loader, key);
                    }
                    Err(error) => {
                        let probe = TapProbe { tap: tap.clone(), hook: Err(in_full(&error)) };
                        return Attached { probe, was_lost };
                    }
                }
            }
            Some(_) => self.detach(loader, key),
            None => {}
        }
        let hook = self.try_attach(loader, slot, tap, netns).map_err(|error| in_full(&error));
        Attached { probe: TapProbe { tap: tap.clone(), hook }, was_lost }
    }

    fn try_attach(
        &mut self,
        loader: &mut Loader,
        slot: u32,
        tap: &Tap,
        netns: File,
    ) -> Result<&'static str, AttachError> {
        let row = self.take_row(slot, tap)?;
        // The row first: a packet that finds none isn't counted.
        let attached = self.put_on(loader, tap, &netns);
        match attached {
            Ok((hook, made_clsact)) => {
                let name = tap.name.clone();
                let kind = tap.kind;
                let attachment = Attachment { slot, row, hook, made_clsact, netns, name, kind };
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
    ) -> Result<(&'static str, bool), AttachError> {
        for hook in ["tcx", "clsact"] {
            if self.same_programs && inside(netns, || is_on(loader, tap, hook))? {
                debug!("{}: the programs of an earlier daemon go on", tap.name);
                return Ok((hook, hook == "clsact"));
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
            TapHook::Tcx => attach_tcx(ebpf, loader, tap),
            TapHook::Clsact => attach_clsact(ebpf, tap),
            TapHook::Auto => attach_tcx(ebpf, loader, tap).or_else(|error| {
                debug!("{}: {}; trying clsact", tap.name, in_full(&error));
                attach_clsact(ebpf, tap)
            }),
        })
    }

    /// Packets that the guests behind all taps of the VM in `slot` sent, by the kernel's own account.
    pub(super) fn sent(&self, slot: u32) -> io::Result<u64> {
        let of_vm = self.attached.iter().filter(|(_, known)| known.slot == slot);
        of_vm
            .map(|((_, ifindex), known)| {
                let (received, sent) =
                    in_netns(&known.netns, || netlink::packets(*ifindex)).flatten()?;
                Ok(if known.kind == TapKind::Macvtap { sent } else { received })
            })
            .sum()
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

    /// Empties the rows of taps that an earlier daemon attached and nobody wants any more, and removes
    /// their links.
    pub(super) fn forget_strangers(&mut self, loader: &Loader) {
        for index in 0..self.rows.len() {
            let Ok(row) = self.rows.get(&index, 0) else { continue };
            let key = (row.netns, row.ifindex);
            if row.ifindex != 0 && !self.attached.contains_key(&key) {
                let _ = self.rows.set(index, TapRow::default(), 0);
                for (_, way, _) in DIRECTIONS {
                    let _ = loader.pins.remove_link(&link_name(key, way));
                }
            }
        }
    }

    fn detach(&mut self, loader: &Loader, key: Key) {
        let Some(attachment) = self.attached.remove(&key) else { return };
        let Attachment { row, hook, made_clsact, netns, name, slot: _, kind: _ } = attachment;
        let _ = self.rows.set(row, TapRow::default(), 0);
        let detached = if hook == "tcx" {
            let removed =
                DIRECTIONS.map(|(_, way, _)| loader.pins.remove_link(&link_name(key, way)));
            removed.into_iter().collect::<Result<(), _>>().map_err(AttachError::from)
        } else {
            inside(&netns, || {
                for (program, _, direction) in DIRECTIONS {
                    // It may have been removed with its tap, or by somebody else.
                    let _ = tc::qdisc_detach_program(&name, direction, program);
                }
                if made_clsact {
                    clsact::remove_if_unused(key.1).map_err(AttachError::Namespace)?;
                }
                Ok(())
            })
        };
        if let Err(error) = detached {
            debug!("{name} was not detached, it may be gone: {}", in_full(&error));
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

fn link_name((netns, ifindex): Key, way: &str) -> String {
    format!("tap-{netns}-{ifindex}-{way}")
}

fn direction_on(tap: &Tap, direction: TcAttachType) -> TcAttachType {
    match (tap.kind, direction) {
        (TapKind::Macvtap, TcAttachType::Ingress) => TcAttachType::Egress,
        (TapKind::Macvtap, TcAttachType::Egress) => TcAttachType::Ingress,
        (_, direction) => direction,
    }
}

fn load(loader: &mut Loader, netns: u32) -> Result<Ebpf, AttachError> {
    let mut ebpf = loader.load(netns, 0)?;
    for (program, _, _) in DIRECTIONS {
        let classifier = classifier(&mut ebpf, program)?;
        classifier.load().map_err(|source| ProbeError::program(program, source))?;
    }
    Ok(ebpf)
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut SchedClassifier, ProbeError> {
    let found = ebpf.program_mut(program).ok_or(ProbeError::Incomplete(program))?;
    found.try_into().map_err(|source| ProbeError::program(program, source))
}

/// Whether both programs are on the tap, and not only pinned. Runs inside the tap's namespace.
fn is_on(loader: &Loader, tap: &Tap, hook: &str) -> Result<bool, AttachError> {
    for (_, way, direction) in DIRECTIONS {
        let direction = direction_on(tap, direction);
        let is_on = if hook == "tcx" {
            let path = loader.pins.link(&link_name((tap.netns, tap.ifindex), way));
            let Ok(link) = PinnedLink::from_pin(path).map(FdLink::from) else { return Ok(false) };
            let program = link.info().map_err(|source| {
                AttachError::Probe(ProbeError::Link { link: way.to_owned(), source })
            })?;
            let (_, programs) =
                SchedClassifier::query_tcx(&tap.name, direction).map_err(AttachError::Query)?;
            programs.iter().any(|on_it| on_it.id() == program.program_id())
        } else {
            clsact::has_filter(
                tap.ifindex,
                direction == TcAttachType::Ingress,
                CLSACT_PRIORITY,
                CLSACT_HANDLE,
            )
            .map_err(AttachError::Namespace)?
        };
        if !is_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Attaches both programs through tcx and pins their links; where an earlier daemon's links are pinned,
/// its programs are exchanged for ours in place, so that no packet is missed.
fn attach_tcx(
    ebpf: &mut Ebpf,
    loader: &Loader,
    tap: &Tap,
) -> Result<(&'static str, bool), AttachError> {
    let on_it = is_on(loader, tap, "tcx")?;
    for (program, way, direction) in DIRECTIONS {
        let failed = |source| AttachError::Attach { program, hook: "tcx", source };
        let name = link_name((tap.netns, tap.ifindex), way);
        let path = loader.pins.link(&name);
        let classifier = classifier(ebpf, program)?;
        let earlier = PinnedLink::from_pin(&path).ok().filter(|_| on_it).map(FdLink::from);
        if let Some(link) = earlier.and_then(|link| SchedClassifierLink::try_from(link).ok()) {
            let id = classifier.attach_to_link(link).map_err(failed)?;
            // The pin keeps it.
            drop(classifier.take_link(id).map_err(failed)?);
            continue;
        }
        loader.pins.remove_link(&name)?;
        // Before the others, any of which may take a packet and not hand it on.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let direction = direction_on(tap, direction);
        let id = classifier.attach_with_options(&tap.name, direction, options).map_err(failed)?;
        let link: FdLink = classifier
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|source| ProbeError::Link { link: name, source })?;
        link.pin(&path).map_err(|source| ProbeError::Pin { path, source })?;
    }
    Ok(("tcx", false))
}

/// Attaches both programs as filters of a clsact discipline, which stay when we end.
fn attach_clsact(ebpf: &mut Ebpf, tap: &Tap) -> Result<(&'static str, bool), AttachError> {
    // It can't be added where others use it already, which is as good.
    let mut made_clsact = tc::qdisc_add_clsact(&tap.name).is_ok();
    for (program, _, direction) in DIRECTIONS {
        let failed = |source| AttachError::Attach { program, hook: "clsact", source };
        let direction = direction_on(tap, direction);
        // An earlier daemon's filters count into maps that are gone, or were made by other programs.
        made_clsact |= tc::qdisc_detach_program(&tap.name, direction, program).is_ok();
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: CLSACT_PRIORITY,
            handle: TcHandle::new(0, CLSACT_HANDLE),
            ..NlOptions::default()
        });
        let classifier = classifier(ebpf, program)?;
        let id = classifier.attach_with_options(&tap.name, direction, options).map_err(failed)?;
        // Dropping a link of this kind would detach it.
        std::mem::forget(classifier.take_link(id).map_err(failed)?);
    }
    Ok(("clsact", made_clsact))
}
