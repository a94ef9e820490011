//! The tap programs: one copy a network namespace, attached to both directions of each tap.

use std::{collections::HashMap as StdHashMap, fs::File, io, path::Path, sync::Arc};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, tc,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
    },
};
use monitor_ebpf::{TapKey, TapRow};
use thiserror::Error;
use tracing::debug;

use super::{ProbeError, clsact, host::Loader};
use crate::{
    config::TapHook,
    discover::{Tap, in_netns},
    error_text::in_full,
};

/// The two programs and the direction that each counts, as the host has it.
const DIRECTIONS: [(&str, TcAttachType); 2] =
    [("tap_from_guest", TcAttachType::Ingress), ("tap_to_guest", TcAttachType::Egress)];
/// Priority of our clsact filters: behind the low numbers that people give their own.
const CLSACT_PRIORITY: u16 = 0xf1a7;

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
        source: aya::programs::ProgramError,
    },
    #[error("cannot enter its network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot note the tap in the map `taps`")]
    Map(#[from] aya::maps::MapError),
}

/// The copy of the programs for one network namespace.
struct Namespace {
    ebpf: Ebpf,
    file: Arc<File>,
    taps: usize,
}

/// What holds the programs on a tap.
struct Attachment {
    hook: &'static str,
    links: Vec<SchedClassifierLink>,
    /// We made the tap's clsact discipline, which goes with our filters if no others are in it.
    made_clsact: bool,
}

/// All taps that are attached.
pub(super) struct TapPrograms {
    hook: TapHook,
    namespaces: StdHashMap<u32, Namespace>,
    /// By tap: the VM it belongs to, and what holds the programs there.
    attached: StdHashMap<TapKey, (u32, Attachment)>,
    rows: HashMap<MapData, TapKey, TapRow>,
}

impl TapPrograms {
    /// Opens the map `taps`, which the host's programs pinned below `bpffs_dir`.
    pub(super) fn new(bpffs_dir: &Path, hook: TapHook) -> Result<Self, ProbeError> {
        let rows = MapData::from_pin(bpffs_dir.join("taps"))
            .and_then(|rows| HashMap::try_from(Map::HashMap(rows)))
            .map_err(|source| ProbeError::Map { map: "taps", source })?;
        Ok(Self { hook, namespaces: StdHashMap::new(), attached: StdHashMap::new(), rows })
    }

    /// Attaches to a tap of the VM `pid`; `netns` is the namespace that the tap lives in.
    pub(super) fn attach(&mut self, loader: &Loader, pid: u32, tap: &Tap, netns: File) -> TapProbe {
        let hook = self.try_attach(loader, pid, tap, netns).map_err(|error| in_full(&error));
        TapProbe { tap: tap.clone(), hook }
    }

    fn try_attach(
        &mut self,
        loader: &Loader,
        pid: u32,
        tap: &Tap,
        netns: File,
    ) -> Result<&'static str, AttachError> {
        let key = TapKey { netns: tap.netns, ifindex: tap.ifindex };
        match self.attached.get(&key) {
            // Attaching once more would lose what passes meanwhile.
            Some((vm, attachment)) if *vm == pid => return Ok(attachment.hook),
            _ => self.detach(key),
        }
        // The row first: a packet that finds none isn't counted, one that finds no VM isn't either.
        self.rows.insert(key, TapRow { vm: pid, ..TapRow::default() }, 0)?;
        let namespace = match self.namespaces.entry(tap.netns) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let ebpf = load(loader, tap.netns)?;
                entry.insert(Namespace { ebpf, file: Arc::new(netns), taps: 0 })
            }
        };
        let (ebpf, hook) = (&mut namespace.ebpf, self.hook);
        let attached = in_netns(&namespace.file, || attach_both(ebpf, &tap.name, hook))
            .map_err(AttachError::Namespace)
            .flatten();
        match attached {
            Ok(attachment) => {
                let hook = attachment.hook;
                namespace.taps += 1;
                self.attached.insert(key, (pid, attachment));
                Ok(hook)
            }
            Err(error) => {
                // Without its programs the tap has no figures: nothing may look like a zero.
                let _ = self.rows.remove(&key);
                if namespace.taps == 0 {
                    self.namespaces.remove(&tap.netns);
                }
                Err(error)
            }
        }
    }

    /// Detaches from the taps of the VM `pid` that aren't among `kept`.
    pub(super) fn keep_only(&mut self, pid: u32, kept: &[Tap]) {
        let is_kept = |key: &TapKey| {
            kept.iter().any(|tap| (tap.netns, tap.ifindex) == (key.netns, key.ifindex))
        };
        let gone: Vec<TapKey> = self
            .attached
            .iter()
            .filter_map(|(key, (vm, _))| (*vm == pid && !is_kept(key)).then_some(*key))
            .collect();
        for key in gone {
            self.detach(key);
        }
    }

    /// Detaches from every tap.
    pub(super) fn forget_all(&mut self) {
        for key in self.attached.keys().copied().collect::<Vec<_>>() {
            self.detach(key);
        }
    }

    fn detach(&mut self, key: TapKey) {
        let Some((vm, attachment)) = self.attached.remove(&key) else { return };
        let Attachment { links, made_clsact, .. } = attachment;
        let _ = self.rows.remove(&key);
        let Some(namespace) = self.namespaces.get_mut(&key.netns) else { return };
        // A clsact link is detached by interface index, which means another tap in another namespace.
        let detach = move || {
            drop(links);
            if made_clsact { clsact::remove_if_unused(key.ifindex) } else { Ok(false) }
        };
        if let Err(error) = in_netns(&namespace.file, detach).flatten() {
            debug!("a tap of VM {vm} was not detached, it may be gone: {error}");
        }
        namespace.taps -= 1;
        if namespace.taps == 0 {
            self.namespaces.remove(&key.netns);
        }
    }
}

fn load(loader: &Loader, netns: u32) -> Result<Ebpf, AttachError> {
    let mut ebpf = loader.load(netns)?;
    for (program, _) in DIRECTIONS {
        let classifier = classifier(&mut ebpf, program)?;
        classifier.load().map_err(|source| ProbeError::Program { program, source })?;
    }
    Ok(ebpf)
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut SchedClassifier, ProbeError> {
    let found = ebpf.program_mut(program).ok_or(ProbeError::Incomplete(program))?;
    found.try_into().map_err(|source| ProbeError::Program { program, source })
}

/// Attaches both programs, or neither. Runs inside the tap's namespace.
fn attach_both(ebpf: &mut Ebpf, interface: &str, hook: TapHook) -> Result<Attachment, AttachError> {
    match hook {
        TapHook::Tcx => attach_through(ebpf, interface, "tcx"),
        TapHook::Clsact => attach_through(ebpf, interface, "clsact"),
        TapHook::Auto => attach_through(ebpf, interface, "tcx").or_else(|error| {
            debug!("{interface}: {}; trying clsact", in_full(&error));
            attach_through(ebpf, interface, "clsact")
        }),
    }
}

fn attach_through(
    ebpf: &mut Ebpf,
    interface: &str,
    hook: &'static str,
) -> Result<Attachment, AttachError> {
    // It can't be added where others use it already, which is as good.
    let mut made_clsact = hook == "clsact" && tc::qdisc_add_clsact(interface).is_ok();
    let mut links = Vec::with_capacity(DIRECTIONS.len());
    for (program, direction) in DIRECTIONS {
        let options = if hook == "tcx" {
            TcAttachOptions::TcxOrder(LinkOrder::default())
        } else {
            // A daemon that was killed leaves its filters behind; they count into maps that are gone.
            made_clsact |= tc::qdisc_detach_program(interface, direction, program).is_ok();
            TcAttachOptions::Netlink(NlOptions {
                priority: CLSACT_PRIORITY,
                ..NlOptions::default()
            })
        };
        let failed = |source| AttachError::Attach { program, hook, source };
        let classifier = classifier(ebpf, program)?;
        let id = classifier.attach_with_options(interface, direction, options).map_err(failed)?;
        links.push(classifier.take_link(id).map_err(failed)?);
    }
    Ok(Attachment { hook, links, made_clsact })
}
