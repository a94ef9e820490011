//! The tap programs: one copy a network namespace, attached to both directions of each tap.
//!
//! `skb->ifindex` is unique only inside a namespace; so the namespace is a constant in the copy, which costs nothing per
//! packet. Ours stand first on a tap, and hand every packet on: a program before them may not (`bypass`).
//!
//! A tap counts for one VM, the first whose QEMU had it open, for as long as that has it: another one that opens a queue of
//! the same tap, or was handed a descriptor of it, is told so.

use std::{collections::HashMap as StdHashMap, fs::File, io};

use aya::Ebpf;
use tracing::debug;

use super::{
    ProbeError,
    attachments::{Attachment, Attachments, Key, key_of},
    host::Loader,
    links::Links,
    namespace::{namespace_left, namespace_of, near_namespace},
    netlink,
    sights::Sights,
    slots::Slots,
    strangers::Strangers,
    tap_hooks::{self, DIRECTIONS, Hook, classifier},
    tap_probe::{AttachError, TapProbe},
    tap_rows::TapRows,
};
use crate::config::TapHook;
use flatline_qemu::{
    discover::{Tap, TapKind, VmId, find_netns, in_netns, start_ticks},
    text::error_chain,
};

/// All taps that are attached.
pub(super) struct TapPrograms {
    hook: TapHook,
    /// Whether the programs that an earlier daemon left on taps are the same as ours.
    pub(super) same_programs: bool,
    /// The copies of the programs that were loaded so far.
    namespaces: StdHashMap<u32, Ebpf>,
    pub(super) attached: Attachments,
    /// Taps that were heard of and are no VM's so far.
    pub(super) strangers: Strangers,
    pub(super) links: Links,
    pub(super) rows: TapRows,
}

/// Outcome of looking after a tap.
pub(super) struct Attached {
    pub(super) probe: TapProbe,
    /// The programs had been detached meanwhile: what passed since is not known.
    pub(super) was_lost: bool,
    /// It has another name now.
    pub(super) is_renamed: bool,
    /// News of its interface is heard.
    pub(super) is_heard: bool,
}

impl Attached {
    /// Its packets are not counted.
    pub(super) fn not_on(tap: &Tap, error: &AttachError) -> Self {
        let probe = TapProbe::not_on(tap, error_chain(error));
        Self { probe, was_lost: false, is_renamed: false, is_heard: false }
    }
}

impl TapPrograms {
    /// Opens the map `taps`, which the host's programs pinned.
    pub(super) fn new(
        loader: &Loader,
        hook: TapHook,
        same_programs: bool,
    ) -> Result<Self, ProbeError> {
        let rows = TapRows::open(&loader.pins)?;
        let links = Links::new().map_err(ProbeError::News)?;
        Ok(Self {
            hook,
            same_programs,
            namespaces: StdHashMap::new(),
            attached: Attachments::default(),
            strangers: Strangers::default(),
            links,
            rows,
        })
    }

    /// Sees to it that a tap of a VM's QEMU counts for it, unless another VM was the first. One that was seen to be attached
    /// needs nothing more.
    pub(super) fn attach(
        &mut self,
        loader: &mut Loader,
        (slots, sights): (&Slots, &Sights),
        holder: Holder<'_>,
        tap: &Tap,
    ) -> Attached {
        let Holder { slot, vm, .. } = holder;
        self.strangers.forget(key_of(tap));
        if let Some(first) = self.first_on(slots, slot, key_of(tap)) {
            return Attached::not_on(tap, &AttachError::Shared { first });
        }
        if let Some(kept) = self.keep(sights, holder, tap) {
            return kept;
        }
        let near = near_namespace(vm.pid, tap).ok().flatten();
        let is_near = near.is_some();
        let netns = match near.map_or_else(|| namespace_of(vm.pid, tap), Ok) {
            Ok(netns) => netns,
            Err(error) => return Attached::not_on(tap, &AttachError::Namespace(error)),
        };
        // First: what changes from now on is heard, and all that was before is seen below.
        let is_heard = is_near && self.links.listen(tap.netns, &netns);
        let place = Place { holder, is_near, netns: &netns };
        let (hook, was_lost) = self.attach_in(loader, &place, tap);
        self.leave(tap.netns);
        let probe = match hook {
            Ok(hook) => TapProbe::on(tap, hook),
            Err(why) => TapProbe::not_on(tap, why),
        };
        let is_renamed = inside(&netns, || tap_hooks::is_renamed(tap)).unwrap_or(false);
        Attached { probe, was_lost, is_renamed, is_heard }
    }

    /// The other VM that a tap counts for, by its name, if it lives still.
    fn first_on(&self, slots: &Slots, slot: u32, key: Key) -> Option<String> {
        let (vm, name) = match self.attached.get(key) {
            Some(known) => (known.vm, Some(known.name.as_str())),
            // An earlier daemon's, which was not looked at yet: only its slot is noted.
            None => {
                let (_, row) = self.rows.of(key).ok().flatten()?;
                if row.slot == slot {
                    return None;
                }
                (slots.vm_in(row.slot)?, None)
            }
        };
        let is_other = slots.of(vm) != Some(slot);
        (is_other && start_ticks(vm.pid).ok() == Some(vm.start_ticks)).then(|| match name {
            Some(name) => format!("VM {name} (process {})", vm.pid),
            None => format!("the VM of process {}", vm.pid),
        })
    }

    fn attach_in(
        &mut self,
        loader: &mut Loader,
        place: &Place<'_>,
        tap: &Tap,
    ) -> (Result<Hook, String>, bool) {
        let key = key_of(tap);
        let mut was_lost = false;
        match self.attached.get_mut(key) {
            Some(known) if known.slot == place.holder.slot => {
                tap.clone_into(&mut known.tap);
                let hook = known.hook;
                match inside(place.netns, || tap_hooks::is_on(loader, tap, hook)) {
                    Ok(true) => return (Ok(hook), was_lost),
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
        let hook = self.try_attach(loader, place, tap);
        (hook.map_err(|error| error_chain(&error)), was_lost)
    }

    fn try_attach(
        &mut self,
        loader: &mut Loader,
        place: &Place<'_>,
        tap: &Tap,
    ) -> Result<Hook, AttachError> {
        let Place { holder: Holder { slot, vm, name, .. }, is_near, netns } = *place;
        let row = self.rows.take(slot, tap)?;
        // The row first: a packet that finds none isn't counted.
        match self.put_on(loader, tap, netns) {
            Ok(hook) => {
                let (name, tap, programs) = (name.to_owned(), tap.clone(), None);
                let attachment = Attachment { slot, vm, name, tap, row, hook, programs, is_near };
                self.attached.insert(attachment);
                Ok(hook)
            }
            Err(error) => {
                self.rows.empty(row);
                Err(error)
            }
        }
    }

    fn put_on(
        &mut self,
        loader: &mut Loader,
        tap: &Tap,
        netns: &File,
    ) -> Result<Hook, AttachError> {
        if self.same_programs {
            let found = inside(netns, || {
                if tap_hooks::is_on(loader, tap, Hook::Tcx)? {
                    return Ok(Some(Hook::Tcx));
                }
                let Some(older) = tap_hooks::older_hook(tap)? else { return Ok(None) };
                Ok(tap_hooks::is_on(loader, tap, older)?.then_some(older))
            })?;
            if let Some(hook) = found {
                debug!("{}: the programs of an earlier daemon go on", tap.name);
                return Ok(hook);
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
        self.attached
            .of(slot)
            .map(|known| {
                let netns = namespace_of(known.vm.pid, &known.tap)?;
                let (received, sent) =
                    in_netns(&netns, || netlink::packets(known.tap.ifindex)).flatten()?;
                Ok(if known.tap.kind == TapKind::Macvtap { sent } else { received })
            })
            .sum()
    }

    /// What stands before our programs on any of these taps.
    pub(super) fn before_ours(&self, loader: &Loader, slot: u32) -> Option<String> {
        self.attached.of(slot).find_map(|known| {
            let netns = namespace_of(known.vm.pid, &known.tap).ok()?;
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

    /// Detaches from the taps of the VM in `slot` that aren't among `kept`.
    pub(super) fn keep_only(&mut self, loader: &Loader, slot: u32, kept: &[Tap]) {
        for key in self.attached.keys_of(slot) {
            if !kept.iter().any(|tap| key_of(tap) == key) {
                self.detach(loader, key);
            }
        }
    }

    /// Detaches from every tap.
    pub(super) fn forget_all(&mut self, loader: &Loader) {
        for key in self.attached.all().map(|known| key_of(&known.tap)).collect::<Vec<_>>() {
            self.detach(loader, key);
        }
    }

    /// Empties the rows of taps that an earlier daemon attached and no VM has any more, and takes its
    /// programs off them.
    pub(super) fn forget_strangers(&mut self, loader: &Loader) {
        for (index, key) in self.rows.taken() {
            if self.attached.get(key).is_none() {
                self.forget_stranger(loader, index, key);
            }
        }
    }

    fn forget_stranger(&mut self, loader: &Loader, index: u32, key: Key) {
        let (netns, ifindex) = key;
        self.rows.empty(index);
        let _ = tap_hooks::remove_links(loader, key);
        if let Some(netns) = find_netns(netns)
            && let Err(error) = inside(&netns, || tap_hooks::remove_filters(ifindex))
        {
            debug!("nothing to take off interface {ifindex}: {}", error_chain(&error));
        }
    }

    /// Takes the tap's row from it for another user's. The VM that it was counted for, as far as it was found by now.
    pub(super) fn displace(&mut self, loader: &Loader, key: Key) -> Option<VmId> {
        let vm = self.attached.get(key).map(|known| known.vm);
        match self.rows.of(key) {
            _ if vm.is_some() => self.detach(loader, key),
            Ok(Some((index, _))) => self.forget_stranger(loader, index, key),
            _ => {}
        }
        vm
    }

    fn detach(&mut self, loader: &Loader, key: Key) {
        let Some(Attachment { vm, tap, row, hook, .. }) = self.attached.remove(key) else { return };
        self.rows.empty(row);
        let detached = match (hook, namespace_left(vm.pid, &tap)) {
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
        if !self.attached.is_any_in(key.0) {
            self.namespaces.remove(&key.0);
        }
        self.leave(key.0);
    }

    /// Ends listening in a namespace where nothing is attached any more that would live as long.
    pub(super) fn leave(&mut self, netns: u32) {
        if !self.attached.is_any_near(netns) {
            self.links.forget(netns);
        }
    }
}

/// A VM whose QEMU has a tap open.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) slot: u32,
    pub(super) vm: VmId,
    /// Its name, for people.
    pub(super) name: &'a str,
    /// The user of its QEMU.
    pub(super) uid: u32,
}

/// Where and for which VM a tap is to be attached.
struct Place<'a> {
    holder: Holder<'a>,
    is_near: bool,
    netns: &'a File,
}

pub(super) fn inside<T: Send>(
    netns: &File,
    f: impl FnOnce() -> Result<T, AttachError> + Send,
) -> Result<T, AttachError> {
    in_netns(netns, f).map_err(AttachError::Namespace).flatten()
}

fn load(loader: &mut Loader, netns: u32) -> Result<Ebpf, AttachError> {
    let mut ebpf = loader.load(netns, 0)?;
    for (program, _, _) in DIRECTIONS {
        let classifier = classifier(&mut ebpf, program)?;
        classifier.load().map_err(|source| ProbeError::program(program, source))?;
    }
    Ok(ebpf)
}
