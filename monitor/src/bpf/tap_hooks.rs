//! Attaching the two programs to a tap: both through tcx, both into a clsact discipline, or one of them into an ingress
//! discipline that another program has there.
//!
//! What is half done is taken back. Everything here works in the network namespace of the calling thread, and goes
//! by the interface's index: its name may be another's by now.

use std::io;

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramInfo, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use tracing::debug;

use super::{
    ProbeError,
    clsact::{self, Discipline, Filter},
    host::Loader,
    netlink,
    tap_probe::AttachError,
    tcx,
};
use flatline_qemu::{
    discover::{Tap, TapKind},
    text::error_chain,
};

/// The two programs, the last word of their links' names, and the direction on the host that each counts
/// on a tap. On a macvtap the host sees the guest from the other side.
pub(super) const DIRECTIONS: [(&str, &str, TcAttachType); 2] =
    [(FROM_GUEST, "from", TcAttachType::Ingress), ("tap_to_guest", "to", TcAttachType::Egress)];
const FROM_GUEST: &str = "tap_from_guest";
const PROGRAMS: [&str; 2] = [DIRECTIONS[0].0, DIRECTIONS[1].0];

/// How programs stand on a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// Both through tcx.
    Tcx,
    /// Both as filters of a clsact discipline.
    Clsact,
    /// The one that counts what the guest sends, as a filter of another program's ingress discipline.
    Ingress,
}

impl Hook {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Ingress => "ingress",
        }
    }

    /// What is not counted so, and why.
    pub(super) fn unseen(self) -> Option<&'static str> {
        match self {
            Self::Tcx | Self::Clsact => None,
            Self::Ingress => Some(
                "what is sent to its guest is not counted: an ingress discipline stands where clsact would, and has no \
                 other direction",
            ),
        }
    }
}

/// The name of a tap's pinned link.
pub(super) fn link_name((netns, ifindex): (u32, u32), way: &str) -> String {
    format!("tap-{netns}-{ifindex}-{way}")
}

/// The names of both of a tap's pinned links.
pub(super) fn links_of(key: (u32, u32)) -> [String; 2] {
    DIRECTIONS.map(|(_, way, _)| link_name(key, way))
}

/// The program called `program` among those that were loaded.
pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut SchedClassifier, ProbeError> {
    let found = ebpf.program_mut(program).ok_or(ProbeError::Incomplete(program))?;
    found.try_into().map_err(|source| ProbeError::program(program, source))
}

/// Whether the programs are on the tap, and not only pinned.
pub(super) fn is_on(loader: &Loader, tap: &Tap, hook: Hook) -> Result<bool, AttachError> {
    for (program, way, direction) in DIRECTIONS {
        let direction = direction_on(tap, direction);
        let is_on = if hook == Hook::Tcx {
            let Some(ours) = program_on(loader, tap, way)? else { return Ok(false) };
            on_tcx(tap, direction)?.contains(&ours)
        } else if hook == Hook::Ingress && direction == TcAttachType::Egress {
            true
        } else {
            let filters = clsact::filters(tap.ifindex, direction);
            let filters = filters.map_err(AttachError::Discipline)?;
            filters.iter().any(|filter| filter.is_called(program))
        };
        if !is_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same, asked in one call for each program, where the ids of those in tcx are known.
pub(super) fn still_on(tap: &Tap, hook: Hook, programs: Option<[u32; 2]>) -> io::Result<bool> {
    for (at, (program, _, direction)) in DIRECTIONS.into_iter().enumerate() {
        let direction = direction_on(tap, direction);
        let is_on = match (hook, programs) {
            (Hook::Tcx, Some(programs)) => tcx::has(tap.ifindex, direction, programs[at])?,
            (Hook::Tcx, None) => false,
            (Hook::Ingress, _) if direction == TcAttachType::Egress => true,
            (Hook::Ingress | Hook::Clsact, _) => clsact::filters(tap.ifindex, direction)?
                .iter()
                .any(|filter| filter.is_called(program)),
        };
        if !is_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The ids of both programs behind a tap's pinned links; `None` if one is not pinned.
pub(super) fn programs_on(loader: &Loader, tap: &Tap) -> Option<[u32; 2]> {
    let [from, to] = DIRECTIONS.map(|(_, way, _)| program_on(loader, tap, way).ok().flatten());
    Some([from?, to?])
}

/// By which hook of the older kind the programs of an earlier daemon may be on the tap.
pub(super) fn older_hook(tap: &Tap) -> Result<Option<Hook>, AttachError> {
    let discipline = clsact::discipline(tap.ifindex).map_err(AttachError::Discipline)?;
    Ok(discipline.map(|discipline| match discipline {
        Discipline::Clsact => Hook::Clsact,
        Discipline::Ingress => Hook::Ingress,
    }))
}

/// Attaches both programs through tcx and pins their links; where an earlier daemon's links are pinned,
/// its programs are exchanged for ours in place, so that no packet is missed.
pub(super) fn attach_tcx(ebpf: &mut Ebpf, loader: &Loader, tap: &Tap) -> Result<Hook, AttachError> {
    let attached = try_tcx(ebpf, loader, tap);
    if attached.is_err() {
        let _ = remove_links(loader, (tap.netns, tap.ifindex));
    } else if let Err(error) = remove_filters(tap.ifindex) {
        // Those of an earlier daemon that went by the other way would count a second time.
        debug!(
            "{}: filters of an earlier daemon can't be looked for: {}",
            tap.name,
            error_chain(&error)
        );
    }
    attached
}

fn try_tcx(ebpf: &mut Ebpf, loader: &Loader, tap: &Tap) -> Result<Hook, AttachError> {
    let on_it = is_on(loader, tap, Hook::Tcx)?;
    for (program, way, direction) in DIRECTIONS {
        let failed = |source| AttachError::Attach { program, hook: Hook::Tcx.as_str(), source };
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
        let interface = interface(tap)?;
        let id = classifier.attach_with_options(&interface, direction, options).map_err(failed)?;
        let link: FdLink = classifier
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|source| ProbeError::Link { link: name, source })?;
        link.pin(&path).map_err(|source| ProbeError::Pin { path, source })?;
    }
    Ok(Hook::Tcx)
}

/// Attaches the programs as filters of the discipline that stands there, or of a clsact one of ours. They stay
/// when we end. Where an earlier daemon's are, their programs are exchanged for ours in place, so that no packet is missed.
pub(super) fn attach_filters(
    ebpf: &mut Ebpf,
    loader: &Loader,
    tap: &Tap,
) -> Result<Hook, AttachError> {
    // An earlier daemon's count into maps that are gone, or were made from other programs.
    remove_links(loader, (tap.netns, tap.ifindex))?;
    let mut made = false;
    let attached = try_filters(ebpf, tap, &mut made);
    if attached.is_err() {
        let _ = clsact::remove(tap.ifindex, &PROGRAMS, made);
    }
    attached
}

fn try_filters(ebpf: &mut Ebpf, tap: &Tap, made: &mut bool) -> Result<Hook, AttachError> {
    let mut hook = older_hook(tap)?;
    if hook.is_none() {
        match clsact::add(tap.ifindex) {
            Ok(()) => *made = true,
            // Another program did just now.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(AttachError::Discipline(error)),
        }
        hook = older_hook(tap)?;
    }
    let hook = hook.ok_or_else(|| AttachError::Discipline(io::ErrorKind::NotFound.into()))?;
    if hook == Hook::Ingress && tap.kind == TapKind::Macvtap {
        return Err(AttachError::OneDirection);
    }
    for (program, _, direction) in DIRECTIONS {
        let direction = direction_on(tap, direction);
        if hook == Hook::Ingress && direction == TcAttachType::Egress {
            continue;
        }
        put_filter(ebpf, tap, hook, program, direction, made)?;
    }
    Ok(hook)
}

/// Puts one program into the place of an earlier daemon's, or before all other filters. `made` says whether the discipline is
/// ours, which the earlier one's may say, too.
fn put_filter(
    ebpf: &mut Ebpf,
    tap: &Tap,
    hook: Hook,
    program: &'static str,
    direction: TcAttachType,
    made: &mut bool,
) -> Result<(), AttachError> {
    let standing = clsact::filters(tap.ifindex, direction).map_err(AttachError::Discipline)?;
    *made |= standing.iter().any(|filter| filter.is_called(program) && filter.is_in_ours());
    let earlier = clsact::exchangeable(&standing, program);
    for filter in standing.iter().filter(|each| each.is_called(program)) {
        if Some(filter) != earlier {
            let removed = clsact::remove_filter(tap.ifindex, direction, filter);
            removed.map_err(AttachError::Discipline)?;
        }
    }
    let failed = |source| AttachError::Attach { program, hook: hook.as_str(), source };
    let interface = interface(tap)?;
    let classifier = classifier(ebpf, program)?;
    let attached = if let Some(Filter { priority, handle, .. }) = earlier {
        let handle = TcHandle::from(*handle);
        let link = SchedClassifierLink::attached(&interface, direction, *priority, handle, None);
        classifier.attach_to_link(link.map_err(AttachError::Interface)?)
    } else {
        let handle = if *made { clsact::IN_OURS } else { clsact::IN_ANOTHERS };
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: clsact::priority_before(&standing),
            handle: TcHandle::new(0, handle),
            ..NlOptions::default()
        });
        classifier.attach_with_options(&interface, direction, options)
    };
    // Dropping a link of this kind would detach it.
    std::mem::forget(classifier.take_link(attached.map_err(failed)?).map_err(failed)?);
    Ok(())
}

/// Removes our filters, and the discipline if it was ours and is used by no other program.
pub(super) fn remove_filters(ifindex: u32) -> Result<(), AttachError> {
    clsact::remove(ifindex, &PROGRAMS, false).map_err(AttachError::Discipline)
}

/// Removes a tap's links, in whichever namespace it is.
pub(super) fn remove_links(loader: &Loader, key: (u32, u32)) -> Result<(), ProbeError> {
    // Both, though the first could not be.
    let removed = DIRECTIONS.map(|(_, way, _)| loader.pins.remove_link(&link_name(key, way)));
    removed.into_iter().collect()
}

/// What else gets hold of the guest's packets before our program does, where there is such a thing: it may take them.
pub(super) fn before_ours(
    loader: &Loader,
    tap: &Tap,
    hook: Hook,
) -> Result<Option<String>, AttachError> {
    let direction = direction_on(tap, TcAttachType::Ingress);
    if direction == TcAttachType::Ingress {
        let xdp = netlink::xdp_program(tap.ifindex).map_err(AttachError::Discipline)?;
        if let Some(id) = xdp {
            return Ok(Some(format!("XDP program {id}")));
        }
    }
    // Where the kernel has no tcx, there is nothing in it.
    let tcx = match on_tcx(tap, direction) {
        Err(_) if hook != Hook::Tcx => Vec::new(),
        programs => programs?,
    };
    let ours = if hook == Hook::Tcx { program_on(loader, tap, DIRECTIONS[0].1)? } else { None };
    if let Some(first) = tcx.first().filter(|first| Some(**first) != ours) {
        return Ok(Some(format!("tcx program {first}")));
    }
    if hook == Hook::Tcx {
        return Ok(None);
    }
    let filters = clsact::filters(tap.ifindex, direction).map_err(AttachError::Discipline)?;
    let before = clsact::first_before(&filters, FROM_GUEST);
    Ok(before.map(|priority| format!("a filter of priority {priority}")))
}

/// The program behind one of our pinned links; `None` if it is not pinned.
fn program_on(loader: &Loader, tap: &Tap, way: &str) -> Result<Option<u32>, AttachError> {
    let path = loader.pins.link(&link_name((tap.netns, tap.ifindex), way));
    let Ok(link) = PinnedLink::from_pin(path).map(FdLink::from) else { return Ok(None) };
    let info = link
        .info()
        .map_err(|source| AttachError::Probe(ProbeError::Link { link: way.to_owned(), source }))?;
    Ok(Some(info.program_id()))
}

/// The ids of the programs in a tap's tcx, in their order.
fn on_tcx(tap: &Tap, direction: TcAttachType) -> Result<Vec<u32>, AttachError> {
    let (_, programs) =
        SchedClassifier::query_tcx(&interface(tap)?, direction).map_err(AttachError::Query)?;
    Ok(programs.iter().map(ProgramInfo::id).collect())
}

/// Whether the tap has another name now.
pub(super) fn is_renamed(tap: &Tap) -> Result<bool, AttachError> {
    Ok(interface(tap)? != tap.name)
}

/// The name that the tap has now.
fn interface(tap: &Tap) -> Result<String, AttachError> {
    let flags = SocketFlags::CLOEXEC;
    let name = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .and_then(|socket| netdevice::index_to_name(&socket, tap.ifindex));
    name.map_err(|error| AttachError::Interface(error.into()))
}

fn direction_on(tap: &Tap, direction: TcAttachType) -> TcAttachType {
    match (tap.kind, direction) {
        (TapKind::Macvtap, TcAttachType::Ingress) => TcAttachType::Egress,
        (TapKind::Macvtap, TcAttachType::Egress) => TcAttachType::Ingress,
        (_, direction) => direction,
    }
}
