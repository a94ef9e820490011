//! What a virtual machine is made of, and the QEMU command line that it comes to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow};

use crate::boot_sector::BootSector;
use crate::image::Images;
use crate::netns::Tap;

/// Where distributions keep QEMU's firmware. A QEMU that runs from elsewhere does not find it by
/// itself.
const FIRMWARE_DIRECTORIES: [&str; 3] =
    ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];

/// Where they keep its loadable modules (Debian's TCG is one); the same holds for them.
const MODULE_DIRECTORIES: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu"];

/// An address that makes no guest collide with another: the last bytes of its MAC.
static NEXT_MAC: AtomicU32 = AtomicU32::new(1);

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

    fn options(self) -> &'static [&'static str] {
        match self {
            // Of the host's own CPU, a nested KVM may not take every feature.
            Self::Pc => &["-machine", "pc", "-cpu", "qemu64"],
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

/// What executes the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Emulation, one thread a vCPU.
    Tcg,
    /// `/dev/kvm`.
    Kvm,
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
    /// The machine, for which the QEMU has to be.
    pub board: Board,
    /// The QEMU to run; see [`private_qemu`].
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
    /// Whether it has a display, which QEMU draws for nobody; else it has none.
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
    /// The user, and group, that QEMU runs as from its first instruction, who becomes the owner of `dir`. Without it,
    /// it runs as the tests do.
    pub user: Option<u32>,
}

impl GuestConfig {
    /// One vCPU under TCG, without network and disk.
    pub fn new(name: &str, kind: GuestKind, executable: &Path, dir: &Path) -> Self {
        let memory_mib = match kind {
            // The unpacked kernel alone takes 63 MiB.
            GuestKind::Linux(_) => 128,
            GuestKind::BootSector(_) | GuestKind::Words(_) | GuestKind::Nothing => 16,
        };
        Self {
            name: name.to_owned(),
            kind,
            board: Board::Pc,
            executable: executable.to_owned(),
            dir: dir.to_owned(),
            vcpus: 1,
            maxcpus: false,
            accelerator: Accelerator::Tcg,
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

    /// The command that becomes this machine's QEMU: whatever enters the namespace execs, so that
    /// the child's pid is QEMU's. Makes the disk and the boot sector's image.
    ///
    /// # Errors
    ///
    /// If an image cannot be made, or a path is no UTF-8.
    pub(crate) fn command(&self) -> Result<Command> {
        let arguments = self.arguments()?;
        let mut words: Vec<OsString> = Vec::new();
        if let Some(tap) = &self.tap {
            words.extend(tap.enter_prefix().map(OsString::from));
            words.push("--".into());
        }
        if let Some(user) = self.user {
            self.hand_over(user)?;
            let id = user.to_string();
            words.extend(["setpriv", "--reuid", &id, "--regid", &id].map(OsString::from));
            words.push("--clear-groups".into());
        }
        words.push(self.executable.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        if let Some(directory) =
            MODULE_DIRECTORIES.into_iter().find(|path| Path::new(path).is_dir())
        {
            command.env("QEMU_MODULE_DIR", directory);
        }
        Ok(command)
    }

    /// Makes the directory, and what was made in it for this machine, the user's.
    fn hand_over(&self, user: u32) -> Result<()> {
        for path in [self.dir.clone(), self.image_path()] {
            match std::os::unix::fs::chown(&path, Some(user), Some(user)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The image of a machine that boots a sector.
    fn image_path(&self) -> PathBuf {
        self.dir.join(format!("{}.img", self.name))
    }

    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut arguments = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        let debug_threads = if self.debug_threads { "on" } else { "off" };
        add(&["-name", &format!("{},debug-threads={debug_threads}", self.name)]);
        add(&["-no-user-config", "-nodefaults", "-display", "none"]);
        add(self.board.options());
        match self.accelerator {
            Accelerator::Tcg => add(&["-accel", "tcg,thread=multi"]),
            Accelerator::Kvm => add(&["-accel", "kvm"]),
        }
        add(&["-smp", &self.vcpus.to_string(), "-m", &self.memory_mib.to_string()]);
        for directory in FIRMWARE_DIRECTORIES {
            if Path::new(directory).is_dir() {
                add(&["-L", directory]);
            }
        }
        // The order matters: the daemon takes the first.
        let sockets = [self.daemon_socket(), self.test_socket()];
        for socket in sockets.iter().filter(|_| !self.no_monitor) {
            add(&["-qmp", &format!("unix:{},server=on,wait=off", utf8(socket)?)]);
        }
        let console = if self.console_log {
            format!("stdio,id=serial0,logfile={},logappend=on", utf8(&self.console_path())?)
        } else {
            "stdio,id=serial0".to_owned()
        };
        add(&["-chardev", &console, "-serial", "chardev:serial0"]);
        match &self.kind {
            GuestKind::Linux(images) => {
                add(&["-kernel", utf8(&images.kernel)?, "-initrd", utf8(&images.initramfs)?]);
                add(&["-append", &self.kernel_command_line()]);
            }
            GuestKind::BootSector(sector) => {
                let path = self.image_path();
                sector.write(&path)?;
                let path = utf8(&path)?;
                add(&["-drive", &format!("file={path},format=raw,if=ide,file.locking=off")]);
            }
            GuestKind::Words(words) => {
                let at = self.board.begins_at().context("this machine runs no bare words")?;
                let path = self.dir.join(format!("{}.words", self.name));
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                std::fs::write(&path, bytes)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                let loader =
                    format!("loader,file={},addr={at:#x},cpu-num=0,force-raw=on", utf8(&path)?);
                add(&["-device", &loader]);
            }
            GuestKind::Nothing => {}
        }
        if let Some(tap) = &self.tap {
            add(&["-netdev"]);
            add(&[&format!("tap,id=net0,ifname={},script=no,downscript=no,vhost=off", tap.name())]);
            let mac = self.mac.clone().unwrap_or_else(next_mac);
            // Without a ROM: nobody boots from the network.
            add(&["-device", &format!("virtio-net-pci,netdev=net0,mac={mac},romfile=")]);
        }
        if let Some(disk) = &self.disk {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&disk.path)
                .with_context(|| format!("cannot make {}", disk.path.display()))?;
            file.set_len(disk.size)?;
            let (path, aio, cache) = (utf8(&disk.path)?, &disk.aio, &disk.cache);
            add(&["-drive"]);
            add(&[&format!("file={path},format=raw,if=none,id=disk0,aio={aio},cache={cache}")]);
            let errors = if disk.stops_at_errors { ",werror=stop,rerror=stop" } else { "" };
            add(&["-device", &format!("virtio-blk-pci,drive=disk0{errors}")]);
        }
        if self.pvpanic {
            add(&["-device", "pvpanic"]);
        }
        if self.vga {
            add(&["-device", "VGA"]);
        }
        if self.balloon {
            add(&["-device", "virtio-balloon-pci,id=balloon0"]);
        }
        if self.agent {
            let path = self.agent_socket();
            add(&["-chardev", &format!("socket,path={},server=on,wait=off,id=qga0", utf8(&path)?)]);
            add(&["-device", "virtio-serial-pci", "-device"]);
            add(&["virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"]);
        }
        if let Some(action) = self.watchdog {
            let action = match action {
                WatchdogAction::Pause => "pause",
                WatchdogAction::Reset => "reset",
            };
            add(&["-device", "i6300esb", "-action", &format!("watchdog={action}")]);
        }
        if self.traces_commands {
            add(&["-trace", "enable=handle_qmp_command", "-msg", "timestamp=on"]);
            add(&["-D", utf8(&self.trace_path())?]);
        }
        if self.no_reboot {
            add(&["-no-reboot"]);
        }
        if self.no_shutdown {
            add(&["-no-shutdown"]);
        }
        arguments.extend(self.extra_args.iter().map(OsString::from));
        Ok(arguments)
    }

    /// Linux' addresses, as words for its init.
    pub(crate) fn address_words(&self) -> String {
        let mut words = String::new();
        if let Some(ip) = &self.ip {
            words.push_str(&format!(" flatline.ip={ip}"));
        }
        if let Some(ip6) = &self.ip6 {
            words.push_str(&format!(" flatline.ip6={ip6}"));
        }
        if let Some(vlan) = self.vlan {
            words.push_str(&format!(" flatline.vlan={vlan}"));
        }
        words
    }

    fn kernel_command_line(&self) -> String {
        // All but the first three save boot time: no calibration against timers that the emulation
        // makes late, no self-tests, no certificates of modules to be verified, no list of probes.
        let mut line = format!("console={} ", self.board.console());
        line.push_str(
            "panic=0 quiet tsc=reliable no_timer_check mitigations=off \
             cryptomgr.notests init_on_alloc=0 \
             initcall_blacklist=load_system_certificate_list,init_kprobe_trace,init_ima",
        );
        if self.maxcpus {
            line.push_str(" maxcpus=1");
        }
        line.push_str(&self.address_words());
        for word in &self.kernel_args {
            line.push_str(&format!(" {word}"));
        }
        line
    }
}

/// A card's address that no other guest of this process has.
pub(crate) fn next_mac() -> String {
    let [_, a, b, c] = NEXT_MAC.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// The command of a QEMU in `directory`, which finds its firmware and modules there; the rest is the caller's to say.
pub fn qemu_command(executable: &Path, directory: &Path) -> Command {
    let mut command = Command::new(executable);
    command.current_dir(directory);
    for firmware in FIRMWARE_DIRECTORIES.into_iter().filter(|path| Path::new(path).is_dir()) {
        command.args(["-L", firmware]);
    }
    if let Some(modules) = MODULE_DIRECTORIES.into_iter().find(|path| Path::new(path).is_dir()) {
        command.env("QEMU_MODULE_DIR", modules);
    }
    command
}

/// Puts a QEMU of one's own into `dir`, and returns its path: a daemon that allows only this
/// executable sees no other test's guests. `FLATLINE_QEMU` names another than Debian's.
///
/// # Errors
///
/// If there is no QEMU, or `dir` cannot be written.
pub fn private_qemu(dir: &Path) -> Result<PathBuf> {
    let source = std::env::var_os("FLATLINE_QEMU")
        .map_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"), PathBuf::from);
    let target = private_copy(&source, "qemu-system-x86_64", dir);
    target.with_context(|| format!("no {}: install qemu-system-x86", source.display()))
}

/// The same of any QEMU, under the name `name`.
///
/// # Errors
///
/// If there is no such program, or `dir` cannot be written.
pub fn private_copy(source: &Path, name: &str, dir: &Path) -> Result<PathBuf> {
    // A link to a symbolic link would run under the name that this points to.
    let source = std::fs::canonicalize(source)?;
    let target = std::path::absolute(dir)?.join(name);
    if target.exists() {
        return Ok(target);
    }
    // A hard link does not work across file systems.
    std::fs::hard_link(&source, &target)
        .or_else(|_| std::fs::copy(&source, &target).map(|_| ()))
        .with_context(|| format!("cannot make {}", target.display()))?;
    Ok(target)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is no UTF-8", path.display()))
}
