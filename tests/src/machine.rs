//! What a virtual machine is made of.

pub(crate) mod arguments;
pub(crate) mod executable;

use std::path::{Path, PathBuf};

use crate::boot_sector::BootSector;
use crate::image::Images;
use crate::netns::Tap;

/// What a machine boots.
#[derive(Clone, Debug)]
pub enum GuestKind {
    /// Linux with the init of this crate, which obeys [`Guest::send`](crate::guest::Guest::send).
    Linux(Images),
    /// A few bytes of machine code.
    BootSector(BootSector),
    /// A few instructions of another architecture, where the machine's first CPU begins: see [`Board`].
    Words(&'static [u32]),
    /// No disk, no kernel, no network to boot from: the firmware finds nothing, and stays.
    Nothing,
}

/// The machine that QEMU makes, which is of one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// An x86 PC.
    Pc,
    /// QEMU's own 64-bit Arm machine. Its CPU begins at EL1 with interrupts masked.
    ArmVirt,
    /// QEMU's own 64-bit RISC-V machine, without firmware.
    RiscvVirt,
}

impl Board {
    /// The one whose CPUs are this machine's own, which KVM can run.
    pub const OWN: Self = if cfg!(target_arch = "aarch64") { Self::ArmVirt } else { Self::Pc };

    /// Where [`GuestKind::Words`] are loaded and begun, if there is such a place.
    fn begins_at(self) -> Option<u32> {
        match self {
            Self::Pc => None,
            // Behind the device tree, which stands at the beginning of memory.
            Self::ArmVirt => Some(0x4040_0000),
            // Where its reset vector leads.
            Self::RiscvVirt => Some(0x8000_0000),
        }
    }

    fn options(self, runs_linux_on_kvm: bool) -> &'static [&'static str] {
        match self {
            // As hosts of VMs have it: without its timers a kernel measures those that there are, for long.
            Self::Pc if runs_linux_on_kvm => &["-machine", "pc", "-cpu", "host"],
            // Of the host's own CPU, a nested KVM may not take every feature.
            Self::Pc => &["-machine", "pc", "-cpu", "qemu64"],
            // A guest's interrupt controller is the kernel's, which is of the host's kind.
            Self::ArmVirt if runs_linux_on_kvm => {
                &["-machine", "virt,gic-version=host", "-cpu", "host"]
            }
            Self::ArmVirt => &["-machine", "virt", "-cpu", "cortex-a57"],
            Self::RiscvVirt => &["-machine", "virt", "-bios", "none"],
        }
    }

    fn console(self) -> &'static str {
        match self {
            Self::Pc | Self::RiscvVirt => "ttyS0",
            Self::ArmVirt => "ttyAMA0",
        }
    }
}

/// What QEMU does when the guest's watchdog fires: `-action watchdog=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogAction {
    /// The guest is paused, its run state `watchdog`.
    Pause,
    /// The guest is reset, by itself as QEMU says.
    Reset,
}

/// Names what executes the vCPUs of guests of which nothing else is said: `kvm`, or else emulation.
pub const ACCELERATOR_VARIABLE: &str = "FLATLINE_ACCELERATOR";

/// Names what guests under KVM are given as `-global`, for a KVM that is itself emulated.
pub const GLOBAL_VARIABLE: &str = "FLATLINE_GUEST_GLOBAL";

/// What executes the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Emulation, one thread a vCPU.
    Tcg,
    /// `/dev/kvm`.
    Kvm,
}

impl Accelerator {
    /// The one that the environment names.
    fn usual() -> Self {
        match std::env::var(ACCELERATOR_VARIABLE).as_deref() {
            Ok("kvm") => Self::Kvm,
            _ => Self::Tcg,
        }
    }
}

/// A virtio disk on a raw file, which is made if it is not there. Linux sees it as `/dev/vda`.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The image file.
    pub path: PathBuf,
    /// Its size in bytes; the guest's `disk` load wants 8 MiB.
    pub size: u64,
    /// QEMU's `aio=`: `threads`, `native` or `io_uring`. `native` wants `cache=none`.
    pub aio: String,
    /// QEMU's `cache=`, such as `none` or `writeback`.
    pub cache: String,
    /// Whether QEMU pauses the guest at any error of the disk, rather than report it (`werror=stop`).
    pub stops_at_errors: bool,
}

impl DiskConfig {
    /// A disk that is read and written past the page cache, by QEMU's worker threads.
    pub fn new(path: PathBuf, size: u64) -> Self {
        let (aio, cache) = ("threads".to_owned(), "none".to_owned());
        Self { path, size, aio, cache, stops_at_errors: false }
    }
}

/// A machine to be. Start from [`GuestConfig::new`] and set what differs.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// QEMU's `-name`.
    pub name: String,
    /// What it boots.
    pub kind: GuestKind,
    /// The machine, for which the QEMU has to be: this machine's own kind unless another is set.
    pub board: Board,
    /// The QEMU to run; see [`private_qemu`](crate::guest::private_qemu).
    pub executable: PathBuf,
    /// Where its sockets go: `NAME.qmp` for the daemon, `NAME.test.qmp` for the test. A socket's
    /// path has room for 107 bytes.
    pub dir: PathBuf,
    /// How many vCPUs the machine has.
    pub vcpus: u32,
    /// Whether Linux is told to start one CPU only (`maxcpus=1`).
    pub maxcpus: bool,
    /// What executes them.
    pub accelerator: Accelerator,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// A tap for its network card, if it has one.
    pub tap: Option<Tap>,
    /// The card's address; `None`: one that no other guest has.
    pub mac: Option<String>,
    /// Linux' address with its prefix, such as `10.7.0.2/24`; the gateway is the network's first.
    pub ip: Option<String>,
    /// Linux' IPv6 address with its prefix, such as `fd00:7::2/64`; the gateway is the network's first.
    /// Without one, Linux does without IPv6.
    pub ip6: Option<String>,
    /// The VLAN (802.1Q) that Linux is in with these addresses; `None`: its frames have no tag.
    pub vlan: Option<u16>,
    /// Its disk, if it has one.
    pub disk: Option<DiskConfig>,
    /// Whether it has a pvpanic device, through which a panic is reported.
    pub pvpanic: bool,
    /// Whether it has a display, which QEMU draws and no client sees; else it has none.
    pub vga: bool,
    /// Whether it has a balloon, `balloon0`, through which QEMU hears of its memory.
    pub balloon: bool,
    /// Whether it has the guest agent's channel, at `NAME.qga` beside the QMP sockets. What answers there is a
    /// stand-in in Linux' init, which knows `guest-ping` and `guest-sync`.
    pub agent: bool,
    /// Its i6300esb, if it has one, and what QEMU does when that fires. Linux' `watchdog-start` starts it.
    pub watchdog: Option<WatchdogAction>,
    /// Whether QEMU also writes what comes over the serial console to `NAME.console`.
    pub console_log: bool,
    /// Whether QEMU ends when the guest resets itself (`-no-reboot`).
    pub no_reboot: bool,
    /// Whether QEMU stays when the guest powers itself off (`-no-shutdown`).
    pub no_shutdown: bool,
    /// Whether it has no QMP at all: then neither the daemon nor the test can ask its QEMU anything.
    pub no_monitor: bool,
    /// Whether QEMU names its threads.
    pub debug_threads: bool,
    /// Whether QEMU writes down when it took which QMP command: [`Guest::took_command_at`](crate::guest::Guest::took_command_at).
    ///
    /// [`Guest::took_command_at`](crate::guest::Guest::took_command_at): crate::guest::Guest::took_command_at
    pub traces_commands: bool,
    /// More words for Linux' command line; they come last, and so win.
    pub kernel_args: Vec<String>,
    /// More arguments for QEMU; they come last.
    pub extra_args: Vec<String>,
    /// The user, and group, that QEMU runs as from its first instruction, and that owns `dir`. Without it,
    /// it runs as the tests do.
    pub user: Option<u32>,
}

impl GuestConfig {
    /// One vCPU, without network and disk; it is emulated unless [`ACCELERATOR_VARIABLE`] says otherwise.
    pub fn new(name: &str, kind: GuestKind, executable: &Path, dir: &Path) -> Self {
        let memory_mib = match kind {
            // The unpacked kernel alone takes 63 MiB.
            GuestKind::Linux(_) => 128,
            GuestKind::BootSector(_) | GuestKind::Words(_) | GuestKind::Nothing => 16,
        };
        Self {
            name: name.to_owned(),
            kind,
            board: Board::OWN,
            executable: executable.to_owned(),
            dir: dir.to_owned(),
            vcpus: 1,
            maxcpus: false,
            accelerator: Accelerator::usual(),
            memory_mib,
            tap: None,
            mac: None,
            ip: None,
            ip6: None,
            vlan: None,
            disk: None,
            pvpanic: false,
            vga: false,
            balloon: false,
            agent: false,
            watchdog: None,
            console_log: false,
            no_reboot: false,
            no_shutdown: false,
            no_monitor: false,
            debug_threads: true,
            traces_commands: false,
            kernel_args: Vec::new(),
            extra_args: Vec::new(),
            user: None,
        }
    }

    /// A Linux that is itself a host of VMs, by an emulated SVM: its command `hypervisor` starts a guest that spins.
    ///
    /// # Errors
    ///
    /// A sentence for people: its image could not be built.
    pub fn hypervisor(
        name: &str,
        images: &Images,
        executable: &Path,
        dir: &Path,
    ) -> Result<Self, String> {
        let kind = GuestKind::Linux(images.with_hypervisor()?);
        let mut config = Self::new(name, kind, executable, dir);
        // KVM's modules take their part.
        config.memory_mib = 192;
        // Five levels of page tables are more than the emulated SVM nests.
        config.extra_args = ["-cpu", "max,-la57"].map(str::to_owned).into();
        Ok(config)
    }

    /// The QMP socket for the daemon.
    pub(crate) fn daemon_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.qmp", self.name))
    }

    /// The guest agent's channel.
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.qga", self.name))
    }

    /// What QEMU writes of the serial console.
    pub fn console_path(&self) -> PathBuf {
        self.dir.join(format!("{}.console", self.name))
    }

    /// What QEMU writes of the QMP commands that it takes.
    pub(crate) fn trace_path(&self) -> PathBuf {
        self.dir.join(format!("{}.trace", self.name))
    }

    /// The QMP socket for the test's own steering.
    pub(crate) fn test_socket(&self) -> PathBuf {
        self.dir.join(format!("{}.test.qmp", self.name))
    }
}
