//! Frames on network cards.

use core::ffi::CStr;

use linux_raw_sys::{
    general::{__NR_ioctl, __NR_sendto, __NR_socket, O_CLOEXEC, O_DIRECTORY, O_NONBLOCK},
    if_arp::{ARPHRD_ETHER, net_device_flags::IFF_UP, sockaddr_ll},
    ioctl::{SIOCGIFFLAGS, SIOCGIFHWADDR, SIOCGIFINDEX},
    net::{AF_PACKET, SOCK_RAW},
};
use monitor_ebpf::heartbeat::{HEARTBEAT_ETHERTYPE, HEARTBEAT_FRAME_BYTES, HEARTBEAT_MAC};

use super::{
    Descriptor,
    call::{address, call},
    exists, joined,
};

/// Where the kernel tells of its network interfaces.
const INTERFACES: &CStr = c"/sys/class/net";
/// `IFNAMSIZ`: the longest name with its final zero.
const NAME_BYTES: usize = 16;
/// The rest of `struct ifreq` of 64-bit kernels: as large as the largest of what it may be.
const ANSWER_BYTES: usize = 24;
/// A path with such a name in it.
const PATH_BYTES: usize = 64;
/// Entries of a directory that are read at once.
const ENTRIES_BYTES: usize = 2048;

/// A socket that sends frames, and hears none.
pub struct PacketSocket(Descriptor);

/// `struct ifreq`: a name, and what is asked of it.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    answer: [u8; ANSWER_BYTES],
}

impl PacketSocket {
    /// # Errors
    /// In words.
    pub fn open() -> Result<Self, &'static str> {
        // `SOCK_CLOEXEC` and `SOCK_NONBLOCK` are the same numbers. Protocol 0 hears nothing.
        let kind = SOCK_RAW | O_CLOEXEC | O_NONBLOCK;
        // SAFETY: it takes no pointer.
        let socket = unsafe { call(__NR_socket, [AF_PACKET as usize, kind as usize, 0]) };
        let socket =
            Descriptor::new(socket).ok_or("no packet socket can be had; it needs CAP_NET_RAW")?;
        if exists(INTERFACES) {
            Ok(Self(socket))
        } else {
            Err("there is no /sys/class/net, which tells of the network cards")
        }
    }

    /// Sends what `frame` makes for the address of a card on each card that is up, as there are now. One that has no
    /// room for it is left out. Returns how many took it.
    pub fn on_each_card(&self, frame: impl Fn([u8; 6]) -> [u8; HEARTBEAT_FRAME_BYTES]) -> usize {
        let Some(directory) = Descriptor::open(INTERFACES, O_DIRECTORY) else { return 0 };
        let mut cards = 0;
        let mut room = [0; ENTRIES_BYTES];
        while let Some(length @ 1..) = directory.read_entries(&mut room) {
            for name in Entries(room.get(..length).unwrap_or_default()) {
                if has_device(name)
                    && let Some((index, source)) = self.card(name)
                    && self.send(index, &frame(source))
                {
                    cards += 1;
                }
            }
        }
        cards
    }

    /// Number and address of an Ethernet interface that is up.
    fn card(&self, name: &[u8]) -> Option<(i32, [u8; 6])> {
        let [a, b, ..] = self.ask(name, SIOCGIFFLAGS)?;
        if u32::from(u16::from_ne_bytes([a, b])) & IFF_UP as u32 == 0 {
            return None;
        }
        let [a, b, c, d, ..] = self.ask(name, SIOCGIFINDEX)?;
        let index = i32::from_ne_bytes([a, b, c, d]);
        let [a, b, source @ ..] = self.ask(name, SIOCGIFHWADDR)?;
        let is_ethernet = u32::from(u16::from_ne_bytes([a, b])) == ARPHRD_ETHER;
        is_ethernet.then_some((index, source))
    }

    /// How the kernel's answer begins, if there is an interface of that name.
    fn ask(&self, name: &[u8], what: u32) -> Option<[u8; 8]> {
        let mut request = Request { name: [0; NAME_BYTES], answer: [0; ANSWER_BYTES] };
        // One byte less, so that a zero ends it.
        let room = request.name.get_mut(..NAME_BYTES - 1)?;
        room.get_mut(..name.len())?.copy_from_slice(name);
        let arguments = [self.0.raw(), what as usize, address(&raw mut request)];
        // SAFETY: each of these reads the name, and writes an answer for which there is room; any bytes are one.
        unsafe { call(__NR_ioctl, arguments) }.ok()?;
        request.answer.first_chunk().copied()
    }

    fn send(&self, index: i32, frame: &[u8]) -> bool {
        let mut address_bytes = [0; 8];
        for (to, from) in address_bytes.iter_mut().zip(HEARTBEAT_MAC) {
            *to = from;
        }
        let to = sockaddr_ll {
            sll_family: u16::try_from(AF_PACKET).unwrap_or_default(),
            sll_protocol: HEARTBEAT_ETHERTYPE.to_be(),
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: address_bytes,
        };
        let frame_at = address(frame.as_ptr());
        let arguments =
            [self.0.raw(), frame_at, frame.len(), 0, address(&raw const to), size_of_val(&to)];
        // SAFETY: frame and address are as long as said, and live as long as the call, which reads them.
        unsafe { call(__NR_sendto, arguments) }.is_ok()
    }
}

/// Whether it has a device behind it: not so a bridge, a VLAN or the end of a pair, which would send the same frame once
/// more.
fn has_device(name: &[u8]) -> bool {
    let mut room = [0; PATH_BYTES];
    joined(&[INTERFACES.to_bytes(), b"/", name, b"/device"], &mut room).is_some_and(exists)
}

/// Names of the entries that `getdents64(2)` wrote: each has eight bytes of inode, eight of place, two of its length, one of
/// its type, and its name.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let length = u16::from_ne_bytes(*self.0.get(16..)?.first_chunk()?);
            let (entry, rest) = self.0.split_at_checked(length.into())?;
            self.0 = rest;
            let name = CStr::from_bytes_until_nul(entry.get(19..)?).ok()?.to_bytes();
            if !name.starts_with(b".") {
                return Some(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::ToOwned as _, vec::Vec};

    use super::*;

    #[test]
    fn entries_of_a_directory_are_read_to_the_last_and_no_further() {
        let entry = |name: &[u8], length: u16| {
            let mut entry = [[7; 16].as_slice(), &length.to_ne_bytes(), &[4], name].concat();
            entry.resize(length.into(), 0);
            entry
        };
        let all = [entry(b".", 24), entry(b"..", 24), entry(b"eth0", 24), entry(b"wlan-12345", 32)];
        let all = all.concat();
        let names = |bytes: &'static [u8]| Entries(bytes).map(<[u8]>::to_owned).collect::<Vec<_>>();
        let all: &'static [u8] = all.leak();
        assert_eq!(names(all), [b"eth0".to_vec(), b"wlan-12345".to_vec()]);
        // Whatever is cut off is not read.
        for length in 0..all.len() {
            assert!(names(&all[..length]).len() < 2);
        }
        assert!(names(&[0; 64]).is_empty());
    }

    #[test]
    fn the_interfaces_of_this_machine_are_found() {
        let directory = Descriptor::open(INTERFACES, O_DIRECTORY).expect("it is there");
        let mut room = [0; ENTRIES_BYTES];
        let length = directory.read_entries(&mut room).expect("it can be read");
        assert!(Entries(&room[..length]).any(|name| name == b"lo"));
        assert!(!has_device(b"lo") && !has_device(b"no-such"));
    }
}
