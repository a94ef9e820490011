//! Network namespaces with taps in them: the host's own network is never touched.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::command;

/// Tells namespaces of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace; dropping it deletes it with all its taps.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// A tap in a namespace. It lasts as long as the namespace.
#[derive(Clone, Debug)]
pub struct Tap {
    netns: String,
    name: String,
}

/// The kernel's own counters of a tap, as the host sees it: `rx` is what the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapCounters {
    /// Packets from the guest.
    pub rx_packets: u64,
    /// Bytes from the guest.
    pub rx_bytes: u64,
    /// Packets from the guest that the host dropped.
    pub rx_dropped: u64,
    /// Packets queued for the guest.
    pub tx_packets: u64,
    /// Bytes queued for the guest.
    pub tx_bytes: u64,
    /// Packets for the guest that found its queue full.
    pub tx_dropped: u64,
}

impl Netns {
    /// Makes a namespace `fl-PID-N`. Needs root.
    ///
    /// # Errors
    ///
    /// If `ip netns add` fails.
    pub fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fl-{}-{number}", std::process::id());
        command::run("ip", ["netns", "add", &name])?;
        let netns = Self { name };
        // The host's own router solicitations would reach the guests as traffic of no test's making.
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        Ok(netns)
    }

    /// The name, as `ip -n NAME` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the namespace can be opened.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Makes a tap and sets it up; `address` (such as `10.7.0.1/24`) makes the host answer there.
    ///
    /// # Errors
    ///
    /// If a call of `ip` fails.
    pub fn tap(&self, name: &str, address: Option<&str>) -> Result<Tap> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        if let Some(address) = address {
            self.ip(&["address", "add", address, "dev", name])?;
        }
        self.ip(&["link", "set", name, "up"])?;
        Ok(self.interface(name))
    }

    /// Makes a tap with several queues, which only a QEMU that asks for as many can use, and sets it up.
    ///
    /// # Errors
    ///
    /// If a call of `ip` fails.
    pub fn multi_queue_tap(&self, name: &str, address: &str) -> Result<Tap> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap", "multi_queue"])?;
        self.ip(&["address", "add", address, "dev", name])?;
        self.ip(&["link", "set", name, "up"])?;
        Ok(self.interface(name))
    }

    /// An interface of this namespace, whatever its kind.
    pub fn interface(&self, name: &str) -> Tap {
        Tap { netns: self.name.clone(), name: name.to_owned() }
    }

    /// Runs `ip` with these arguments in the namespace.
    ///
    /// # Errors
    ///
    /// If it fails, with its words.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        command::run("ip", ["-n", &self.name].into_iter().chain(arguments.iter().copied()))?;
        Ok(())
    }

    /// Writes one of the namespace's sysctls: `key` is its path below `/proc/sys`.
    ///
    /// # Errors
    ///
    /// If there is no such key, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        let value = value.to_owned();
        inside(&self.name, move || {
            std::fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
        })?
    }

    /// What to put before a command to run it inside. Not `ip netns exec`: that mounts a fresh /sys,
    /// which hides bpffs and tracefs.
    pub fn enter_prefix(&self) -> [OsString; 2] {
        enter_prefix(&self.path())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Persistent taps go with the namespace; a QEMU still inside keeps both until it ends.
        if let Err(error) = command::run("ip", ["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

impl Tap {
    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes something of the interface, as `ip link set dev NAME ...` takes it.
    ///
    /// # Errors
    ///
    /// If it fails, with its words.
    pub fn set(&self, arguments: &[&str]) -> Result<()> {
        let set = ["-n", &self.netns, "link", "set", "dev", &self.name];
        command::run("ip", set.into_iter().chain(arguments.iter().copied()))?;
        Ok(())
    }

    /// Where the tap's namespace can be opened.
    pub fn netns_path(&self) -> PathBuf {
        path_of(&self.netns)
    }

    /// What to put before a command to run it in the tap's namespace.
    pub fn enter_prefix(&self) -> [OsString; 2] {
        enter_prefix(&self.netns_path())
    }

    /// Runs `work` on a thread of its own inside the tap's namespace, and returns its answer.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered, or `work` panics.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        inside(&self.netns, work)
    }

    /// Reads the kernel's counters.
    ///
    /// # Errors
    ///
    /// If the tap is gone, or `ip` prints something else than expected.
    pub fn counters(&self) -> Result<TapCounters> {
        let arguments = ["-n", &self.netns, "-s", "-j", "link", "show", "dev", &self.name];
        let output = command::run("ip", arguments)?;
        let links: Value = serde_json::from_slice(&output).context("ip printed no JSON")?;
        let counter = |direction: &str, name: &str| {
            links
                .pointer(&format!("/0/stats64/{direction}/{name}"))
                .and_then(Value::as_u64)
                .ok_or_else(|| anyhow!("ip printed no {direction} {name}: {links}"))
        };
        Ok(TapCounters {
            rx_packets: counter("rx", "packets")?,
            rx_bytes: counter("rx", "bytes")?,
            rx_dropped: counter("rx", "dropped")?,
            tx_packets: counter("tx", "packets")?,
            tx_bytes: counter("tx", "bytes")?,
            tx_dropped: counter("tx", "dropped")?,
        })
    }
}

/// Opens a tap in the calling thread's namespace, making it where there is none. It may be opened several
/// times, each time as one more queue; what was made so goes with the last of them.
///
/// # Errors
///
/// What the kernel said.
pub fn open_tap(name: &str) -> Result<std::fs::File> {
    open_tap_as(name, libc::IFF_MULTI_QUEUE)
}

/// Makes a tap in the calling thread's namespace, which goes with its descriptor. It has one queue: room for more takes 6.7 MiB
/// of the kernel's memory (Linux 6.18).
///
/// # Errors
///
/// What the kernel said.
pub fn make_tap(name: &str) -> Result<std::fs::File> {
    open_tap_as(name, 0)
}

fn open_tap_as(name: &str, flags: libc::c_int) -> Result<std::fs::File> {
    use std::os::fd::AsRawFd as _;
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    let tun = tun.context("cannot open /dev/net/tun")?;
    let mut request = request_of(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | flags;
    request.ifr_ifru.ifru_flags = i16::try_from(flags)?;
    // SAFETY: the descriptor is open, and the request is a whole ifreq that outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot open {name}"));
    }
    Ok(tun)
}

/// Sets an interface of the calling thread's namespace up.
///
/// # Errors
///
/// What the kernel said.
pub fn set_up(name: &str) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
    let mut request = request_of(name)?;
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_MULTICAST)?;
    // SAFETY: the descriptor is open, and the request is a whole ifreq that outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot set {name} up"));
    }
    Ok(())
}

/// A request about an interface, with no flags.
fn request_of(name: &str) -> Result<libc::ifreq> {
    // SAFETY: zeroes are a valid ifreq: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(name.len() < request.ifr_name.len(), "{name} is too long for an interface");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn enter_prefix(path: &Path) -> [OsString; 2] {
    let mut option = OsString::from("--net=");
    option.push(path);
    ["nsenter".into(), option]
}

/// A namespace belongs to a thread: one that ends right after leaves nothing to put back.
fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let path = path_of(name);
    let namespace =
        std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the network namespace")?;
        Ok(work())
    })
    .join()
    .map_err(|_| anyhow!("the thread inside {} panicked", path.display()))?
}
