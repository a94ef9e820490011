//! Filters on the ingress hook of an interface and, where that is a clsact discipline, on its egress hook.
//!
//! One discipline at most stands there, `clsact` or `ingress`, and the first program that needed it has made it: ours is
//! added where there is none, and goes with our filters unless another program has put filters into it meanwhile. An
//! `ingress` one has no egress, and takes a filter for it as one for its ingress: so its kind is asked first.
//! That we made it is noted in the handles of our filters, which outlive the daemon as they do. aya adds filters, but
//! goes by names of interfaces, and neither looks at disciplines nor removes one. Everything here works in the network
//! namespace of the calling thread. Messages: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h of Linux 6.12.

use std::io;

use aya::programs::TcAttachType;

use super::netlink::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLMSG_DONE, NLMSG_ERROR, Socket,
    attribute, attributes, errno,
};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_CLSACT`, which `TC_H_INGRESS` is as well: the parent of either discipline.
const PARENT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
/// A `struct tcmsg`.
const BODY_BYTES: usize = 20;
/// The priority of our filters where there are no others: one that is added without a priority comes before them.
const PRIORITY: u16 = 0xf1a7;

/// The handles of our filters: in a discipline that we made, and in another program's.
pub(super) const IN_OURS: u16 = 1;
pub(super) const IN_ANOTHERS: u16 = 2;

/// What stands on the ingress hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discipline {
    /// It has both directions.
    Clsact,
    /// It has what the interface receives, and nothing else.
    Ingress,
}

/// The parent of the filters of one direction, as the host sees the interface.
fn parent(direction: TcAttachType) -> u32 {
    match direction {
        TcAttachType::Ingress => 0xffff_fff2,
        TcAttachType::Egress => 0xffff_fff3,
        TcAttachType::Custom(parent) => parent,
    }
}

impl Discipline {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Clsact => b"clsact\0",
            Self::Ingress => b"ingress\0",
        }
    }

    fn directions(self) -> &'static [TcAttachType] {
        match self {
            Self::Clsact => &[TcAttachType::Ingress, TcAttachType::Egress],
            Self::Ingress => &[TcAttachType::Ingress],
        }
    }
}

/// A filter, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    chain: u32,
    pub(super) priority: u16,
    /// 0 for what only says that there is a classifier of this priority.
    pub(super) handle: u32,
    /// That of a BPF filter.
    name: Option<Vec<u8>>,
}

/// What stands on the ingress hook of the interface `ifindex`.
///
/// # Errors
/// What the kernel said, also of a discipline that is neither of the two.
pub(super) fn discipline(ifindex: u32) -> io::Result<Option<Discipline>> {
    let mut socket = Socket::open()?;
    // Older kernels tell it all that listen to their news, and the socket that asked only with the first flag. Where one stood
    // once, there is no answer but what the second asks for, or `EINVAL` (`tc_get_qdisc` in net/sched/sch_api.c).
    socket.ask(RTM_GETQDISC, NLM_F_ECHO | NLM_F_ACK, &body(ifindex, 0, PARENT, 0))?;
    let mut found = None;
    loop {
        for (kind, answer) in socket.answers()? {
            match kind {
                RTM_NEWQDISC => found = Some(known(answer)?),
                NLMSG_ERROR => {
                    return match errno(answer) {
                        Some(error) if is_none(&error) => Ok(None),
                        Some(error) => Err(error),
                        None => Ok(found),
                    };
                }
                _ => {}
            }
        }
    }
}

fn known(answer: &[u8]) -> io::Result<Discipline> {
    match kind_in(answer) {
        Some(kind) if kind == Discipline::Clsact.name() => Ok(Discipline::Clsact),
        Some(kind) if kind == Discipline::Ingress.name() => Ok(Discipline::Ingress),
        _ => Err(io::Error::other("another kind of discipline stands on its ingress")),
    }
}

fn is_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

/// Adds a clsact discipline.
///
/// # Errors
/// What the kernel said: `EEXIST` where one stands already, or an ingress one.
pub(super) fn add(ifindex: u32) -> io::Result<()> {
    let kind = attribute(TCA_KIND, Discipline::Clsact.name());
    let body = [body(ifindex, HANDLE, PARENT, 0).as_slice(), &kind].concat();
    told(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Removes the filters called one of `names`, and the clsact discipline if it was ours, or `made` says so, and
/// nothing else is in it.
///
/// # Errors
/// What the kernel said.
pub(super) fn remove(ifindex: u32, names: &[&str], made: bool) -> io::Result<()> {
    let Some(discipline) = discipline(ifindex)? else { return Ok(()) };
    let mut made = made;
    let mut are_others = false;
    for direction in discipline.directions() {
        for filter in filters(ifindex, *direction)? {
            if !names.iter().any(|name| filter.is_called(name)) {
                // The classifier of ours that goes with its only filter is listed by itself.
                are_others |= filter.handle != 0;
                continue;
            }
            made |= filter.is_in_ours();
            remove_filter(ifindex, *direction, &filter)?;
        }
    }
    if made && discipline == Discipline::Clsact && !are_others {
        let kind = attribute(TCA_KIND, discipline.name());
        let body = [body(ifindex, HANDLE, PARENT, 0).as_slice(), &kind].concat();
        told(RTM_DELQDISC, NLM_F_ACK, &body)?;
    }
    Ok(())
}

/// Removes one filter of a direction.
///
/// # Errors
/// What the kernel said.
pub(super) fn remove_filter(
    ifindex: u32,
    direction: TcAttachType,
    filter: &Filter,
) -> io::Result<()> {
    let info = u32::from(filter.priority) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    told(RTM_DELTFILTER, NLM_F_ACK, &body(ifindex, filter.handle, parent(direction), info))
}

/// The filters of a direction; of an interface without a discipline, none.
///
/// # Errors
/// What the kernel said.
pub(super) fn filters(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut socket = Socket::open()?;
    socket.ask(RTM_GETTFILTER, NLM_F_DUMP, &body(ifindex, 0, parent(direction), 0))?;
    let mut filters = Vec::new();
    loop {
        for (kind, body) in socket.answers()? {
            match kind {
                RTM_NEWTFILTER => filters.extend(parse(body)),
                NLMSG_DONE => return Ok(filters),
                NLMSG_ERROR => return errno(body).map_or(Ok(filters), Err),
                _ => {}
            }
        }
    }
}

/// The priority by which a filter comes to stand before all of these: a classifier that takes a packet, be it to
/// mirror or to police it, ends the search. Behind them only where the first place is taken.
pub(super) fn priority_before(filters: &[Filter]) -> u16 {
    let first = filters.iter().filter(|filter| filter.chain == 0).map(|filter| filter.priority);
    // No filter has priority 0.
    match first.min() {
        Some(first) if first > 1 => PRIORITY.min(first - 1),
        _ => PRIORITY,
    }
}

/// The priority of a filter that stands before the one called `name`, if there is one.
pub(super) fn first_before(filters: &[Filter], name: &str) -> Option<u16> {
    let ours = filters.iter().find(|filter| filter.is_called(name))?.priority;
    let all = filters.iter().filter(|filter| filter.chain == 0 && filter.handle != 0);
    all.map(|filter| filter.priority).min().filter(|first| *first < ours)
}

impl Filter {
    /// Whether it is a BPF filter of this name.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name.as_ref().is_some_and(|own| own.strip_suffix(b"\0") == Some(name.as_bytes()))
    }

    /// Of one of ours: whether it says that its discipline is ours, too.
    pub(super) fn is_in_ours(&self) -> bool {
        self.handle == u32::from(IN_OURS)
    }
}

/// The filter called `name`, if its program can be exchanged for another: it is of chain 0, and no other stands before it.
pub(super) fn exchangeable<'a>(filters: &'a [Filter], name: &str) -> Option<&'a Filter> {
    let ours = filters.iter().find(|filter| filter.is_called(name))?;
    (ours.chain == 0 && first_before(filters, name).is_none()).then_some(ours)
}

/// From a `struct tcmsg` (its `tcm_handle`, and the upper half of its `tcm_info`) and the attributes behind it.
fn parse(message: &[u8]) -> Option<Filter> {
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let find = |wanted: u16| {
        attributes(message.get(BODY_BYTES..)?).find(|(kind, _)| *kind == wanted).map(|(_, it)| it)
    };
    let is_bpf = find(TCA_KIND) == Some(b"bpf\0");
    let name = find(TCA_OPTIONS).filter(|_| is_bpf).and_then(|options| {
        attributes(options).find(|(kind, _)| *kind == TCA_BPF_NAME).map(|(_, name)| name.to_vec())
    });
    Some(Filter {
        chain: find(TCA_CHAIN).and_then(|chain| word(chain, 0)).unwrap_or_default(),
        priority: u16::try_from(word(message, 16)? >> 16).ok()?,
        handle: word(message, 8)?,
        name,
    })
}

fn kind_in(message: &[u8]) -> Option<&[u8]> {
    attributes(message.get(BODY_BYTES..)?).find(|(kind, _)| *kind == TCA_KIND).map(|(_, kind)| kind)
}

/// Sends a request that is only acknowledged.
fn told(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut socket = Socket::open()?;
    socket.ask(kind, flags, body)?;
    match socket.answers()?.next() {
        Some((NLMSG_ERROR, code)) => errno(code).map_or(Ok(()), Err),
        _ => Err(io::Error::other("the kernel gave no answer of the kind that was asked for")),
    }
}

fn body(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; BODY_BYTES] {
    let mut body = [0; BODY_BYTES];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body[16..20].copy_from_slice(&info.to_ne_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(priority: u32, handle: u32, kind: &[u8], name: Option<&[u8]>) -> Vec<u8> {
        let options = name.map(|name| attribute(TCA_BPF_NAME, name)).unwrap_or_default();
        [
            body(7, handle, parent(TcAttachType::Ingress), priority << 16 | 0x0300).as_slice(),
            &attribute(TCA_KIND, kind),
            &attribute(TCA_OPTIONS | 0x8000, &options),
        ]
        .concat()
    }

    #[test]
    fn a_filter_is_known_by_its_name_and_kind() {
        let ours = message(0xf1a7, 1, b"bpf\0", Some(b"tap_from_guest\0"));
        let filter = parse(&ours).unwrap();
        assert_eq!((filter.priority, filter.handle, filter.chain), (0xf1a7, 1, 0));
        assert!(filter.is_called("tap_from_guest") && !filter.is_called("tap_from"));
        let other = parse(&message(1, 1, b"u32\0", Some(b"tap_from_guest\0"))).unwrap();
        assert_eq!(other.name, None);
        for length in 0..ours.len() {
            let cut = parse(&ours[..length]);
            assert!(cut.is_none_or(|cut| !cut.is_called("tap_from_guest")), "cut at {length}");
        }
    }

    #[test]
    fn ours_come_to_stand_before_the_others() {
        let at = |priority| Filter { priority, handle: 0x800, ..Filter::default() };
        let elsewhere = Filter { chain: 5, priority: 3, handle: 1, name: None };
        assert_eq!(priority_before(&[]), PRIORITY);
        assert_eq!(priority_before(&[at(0xc000), at(0xbfff), elsewhere.clone()]), 0xbffe);
        assert_eq!(priority_before(&[at(2)]), 1);
        assert_eq!(priority_before(&[at(1)]), PRIORITY, "there is no 0");
        assert_eq!(priority_before(&[at(0xffff)]), PRIORITY);

        let ours = Filter { name: Some(b"ours\0".to_vec()), ..at(9) };
        assert_eq!(first_before(&[at(10), ours.clone(), elsewhere], "ours"), None);
        assert_eq!(first_before(&[at(10), ours, at(8)], "ours"), Some(8));
        assert_eq!(first_before(&[at(8)], "ours"), None);
    }

    #[test]
    fn a_filter_is_exchanged_where_it_is_the_first() {
        let at = |priority| Filter { priority, handle: 1, ..Filter::default() };
        let ours = Filter { name: Some(b"ours\0".to_vec()), ..at(9) };
        let second = Filter { handle: 2, ..ours.clone() };
        assert_eq!(exchangeable(&[at(10), ours.clone(), second], "ours"), Some(&ours));
        assert_eq!(exchangeable(&[at(8), ours.clone()], "ours"), None);
        assert_eq!(exchangeable(&[at(8)], "ours"), None);
        assert_eq!(exchangeable(&[Filter { chain: 5, ..ours }], "ours"), None);
    }
}
