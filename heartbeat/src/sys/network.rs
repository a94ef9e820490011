//! Frames on network cards.

use core::{
    ffi::{CStr, c_char},
    mem::{size_of, zeroed},
};

use monitor_ebpf::heartbeat::{HEARTBEAT_ETHERTYPE, HEARTBEAT_FRAME_BYTES, HEARTBEAT_MAC};

use super::Descriptor;

/// Ethernet, of include/uapi/linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
/// `/sys/class/net/NAME/device`, with room.
const PATH_BYTES: usize = 64;

/// A socket that sends frames, and hears none.
pub struct PacketSocket(Descriptor);

impl PacketSocket {
    /// Needs `CAP_NET_RAW`.
    pub fn open() -> Option<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: it has no conditions. Protocol 0 hears nothing.
        Descriptor::new(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map(Self)
    }

    /// Sends what `frame` makes for the address of a card on each card that is up, as there are now. One that has no
    /// room for it is left out.
    pub fn on_each_card(&self, frame: impl Fn([u8; 6]) -> [u8; HEARTBEAT_FRAME_BYTES]) {
        // SAFETY: it allocates a list that an entry with index 0 ends, which is freed below and not used after.
        let list = unsafe { libc::if_nameindex() };
        if list.is_null() {
            return;
        }
        let mut at = list;
        // SAFETY: up to that entry, the list has one after the other, with a C string each.
        while let (index @ 1.., name) = unsafe { ((*at).if_index, (*at).if_name) } {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(name) };
            if let Some(source) = self.address_of_card(name) {
                self.send(index, &frame(source));
            }
            // SAFETY: as above.
            at = unsafe { at.add(1) };
        }
        // SAFETY: it was allocated by `if_nameindex`.
        unsafe { libc::if_freenameindex(list) };
    }

    /// The Ethernet address of an interface that is up and has a device behind it: not of a bridge, a VLAN or the end
    /// of a pair, which would send the same frame once more.
    fn address_of_card(&self, name: &CStr) -> Option<[u8; 6]> {
        if !has_device(name) {
            return None;
        }
        // SAFETY: all of it may be zero.
        let mut request: libc::ifreq = unsafe { zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes_with_nul()) {
            *to = c_char::from_ne_bytes([*from]);
        }
        let descriptor = self.0.raw();
        // SAFETY: each of these reads the name, and fills the field in that is read after it.
        unsafe {
            if libc::ioctl(descriptor, libc::SIOCGIFFLAGS, &raw mut request) != 0 {
                return None;
            }
            if i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP == 0
                || libc::ioctl(descriptor, libc::SIOCGIFHWADDR, &raw mut request) != 0
            {
                return None;
            }
            let address = request.ifr_ifru.ifru_hwaddr;
            let mut mac = [0; 6];
            for (to, from) in mac.iter_mut().zip(address.sa_data) {
                [*to] = from.to_ne_bytes();
            }
            (address.sa_family == ARPHRD_ETHER).then_some(mac)
        }
    }

    fn send(&self, index: u32, frame: &[u8]) {
        let Ok(index) = i32::try_from(index) else { return };
        // SAFETY: all of it may be zero.
        let mut to: libc::sockaddr_ll = unsafe { zeroed() };
        to.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
        to.sll_protocol = HEARTBEAT_ETHERTYPE.to_be();
        to.sll_ifindex = index;
        to.sll_halen = 6;
        for (to, from) in to.sll_addr.iter_mut().zip(HEARTBEAT_MAC) {
            *to = from;
        }
        let bytes = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        // SAFETY: frame and address are as long as said, and live as long as the call.
        unsafe {
            libc::sendto(
                self.0.raw(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                bytes,
            )
        };
    }
}

/// Whether the kernel has a device for it, or doesn't tell of any.
fn has_device(name: &CStr) -> bool {
    let Ok(name) = name.to_str() else { return false };
    let mut room = [0; PATH_BYTES];
    let mut length = 0;
    for part in ["/sys/class/net/", name, "/device"] {
        let Some(to) = room.get_mut(length..length + part.len()) else { return false };
        to.copy_from_slice(part.as_bytes());
        length += part.len();
    }
    let Some(path) = room.get(..=length).and_then(|path| CStr::from_bytes_with_nul(path).ok())
    else {
        return false;
    };
    // SAFETY: both are C strings that live as long as the calls.
    unsafe {
        libc::access(path.as_ptr(), libc::F_OK) == 0
            || libc::access(c"/sys/class/net".as_ptr(), libc::F_OK) != 0
    }
}
