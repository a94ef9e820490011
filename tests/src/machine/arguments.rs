//! The QEMU command line that a machine comes to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow};

use super::{
    Accelerator, Board, DiskConfig, GLOBAL_VARIABLE, GuestConfig, GuestKind, WatchdogAction,
    executable,
};

/// An address that makes no guest collide with another: the last bytes of its MAC.
static NEXT_MAC: AtomicU32 = AtomicU32::new(1);

impl GuestConfig {
    /// The command that becomes this machine's QEMU: what enters the namespace execs, so that
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
        words.extend(executable::enter_root());
        words.push(self.executable.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        executable::set_module_directory(&mut command);
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
        let mut arguments = Arguments::default();
        self.add_machine(&mut arguments);
        self.add_sockets(&mut arguments)?;
        self.add_what_boots(&mut arguments)?;
        self.add_card(&mut arguments);
        if let Some(disk) = &self.disk {
            add_disk(disk, &mut arguments)?;
        }
        self.add_devices(&mut arguments)?;
        self.add_ways(&mut arguments)?;
        arguments.0.extend(self.extra_args.iter().map(OsString::from));
        Ok(arguments.0)
    }

    fn add_machine(&self, arguments: &mut Arguments) {
        let debug_threads = if self.debug_threads { "on" } else { "off" };
        arguments.add(&["-name", &format!("{},debug-threads={debug_threads}", self.name)]);
        arguments.add(&["-no-user-config", "-nodefaults", "-display", "none"]);
        // What is of another architecture than the host is emulated anywhere.
        let on_kvm = self.accelerator == Accelerator::Kvm && self.board == Board::OWN;
        let is_linux = matches!(self.kind, GuestKind::Linux(_));
        arguments.add(self.board.options(on_kvm && is_linux));
        arguments.add(&["-accel", if on_kvm { "kvm" } else { "tcg,thread=multi" }]);
        if on_kvm && let Ok(global) = std::env::var(GLOBAL_VARIABLE) {
            arguments.add(&["-global", &global]);
        }
        arguments.add(&["-smp", &self.vcpus.to_string(), "-m", &self.memory_mib.to_string()]);
        for directory in executable::firmware_directories() {
            arguments.add(&["-L", directory]);
        }
    }

    fn add_sockets(&self, arguments: &mut Arguments) -> Result<()> {
        // The order matters: the daemon takes the first.
        let sockets = [self.daemon_socket(), self.test_socket()];
        for socket in sockets.iter().filter(|_| !self.no_monitor) {
            arguments.add(&["-qmp", &format!("unix:{},server=on,wait=off", utf8(socket)?)]);
        }
        let console = if self.console_log {
            format!("stdio,id=serial0,logfile={},logappend=on", utf8(&self.console_path())?)
        } else {
            "stdio,id=serial0".to_owned()
        };
        arguments.add(&["-chardev", &console, "-serial", "chardev:serial0"]);
        Ok(())
    }

    fn add_what_boots(&self, arguments: &mut Arguments) -> Result<()> {
        match &self.kind {
            GuestKind::Linux(images) => {
                let (kernel, initramfs) = (utf8(&images.kernel)?, utf8(&images.initramfs)?);
                arguments.add(&["-kernel", kernel, "-initrd", initramfs]);
                arguments.add(&["-append", &self.kernel_command_line()]);
            }
            GuestKind::BootSector(sector) => {
                let path = self.image_path();
                sector.write(&path)?;
                let path = utf8(&path)?;
                arguments
                    .add(&["-drive", &format!("file={path},format=raw,if=ide,file.locking=off")]);
            }
            GuestKind::Words(words) => {
                let at = self.board.begins_at().context("this machine runs no bare words")?;
                let path = self.dir.join(format!("{}.words", self.name));
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                std::fs::write(&path, bytes)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                let loader =
                    format!("loader,file={},addr={at:#x},cpu-num=0,force-raw=on", utf8(&path)?);
                arguments.add(&["-device", &loader]);
            }
            GuestKind::Nothing => {}
        }
        Ok(())
    }

    fn add_card(&self, arguments: &mut Arguments) {
        let Some(tap) = &self.tap else { return };
        let backend =
            format!("tap,id=net0,ifname={},script=no,downscript=no,vhost=off", tap.name());
        arguments.add(&["-netdev", &backend]);
        let mac = self.mac.clone().unwrap_or_else(next_mac);
        // Without a ROM: no guest boots from the network. One that goes on from a saved state has nothing to announce.
        let device = format!("virtio-net-pci,netdev=net0,mac={mac},romfile=,guest_announce=off");
        arguments.add(&["-device", &device]);
    }

    fn add_devices(&self, arguments: &mut Arguments) -> Result<()> {
        if self.pvpanic {
            arguments.add(&["-device", "pvpanic"]);
        }
        if self.vga {
            arguments.add(&["-device", "VGA"]);
        }
        if self.balloon {
            arguments.add(&["-device", "virtio-balloon-pci,id=balloon0"]);
        }
        if self.agent {
            let path = self.agent_socket();
            let backend = format!("socket,path={},server=on,wait=off,id=qga0", utf8(&path)?);
            arguments.add(&["-chardev", &backend, "-device", "virtio-serial-pci", "-device"]);
            arguments.add(&["virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"]);
        }
        if let Some(action) = self.watchdog {
            let action = match action {
                WatchdogAction::Pause => "pause",
                WatchdogAction::Reset => "reset",
            };
            arguments.add(&["-device", "i6300esb", "-action", &format!("watchdog={action}")]);
        }
        Ok(())
    }

    /// How QEMU itself behaves.
    fn add_ways(&self, arguments: &mut Arguments) -> Result<()> {
        if self.traces_commands {
            arguments.add(&["-trace", "enable=handle_qmp_command", "-msg", "timestamp=on"]);
            arguments.add(&["-D", utf8(&self.trace_path())?]);
        }
        if self.no_reboot {
            arguments.add(&["-no-reboot"]);
        }
        if self.no_shutdown {
            arguments.add(&["-no-shutdown"]);
        }
        Ok(())
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

/// Words of a command line.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }
}

/// Makes the disk's image, if it is not there.
fn add_disk(disk: &DiskConfig, arguments: &mut Arguments) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&disk.path)
        .with_context(|| format!("cannot make {}", disk.path.display()))?;
    file.set_len(disk.size)?;
    let (path, aio, cache) = (utf8(&disk.path)?, &disk.aio, &disk.cache);
    let drive = format!("file={path},format=raw,if=none,id=disk0,aio={aio},cache={cache}");
    let errors = if disk.stops_at_errors { ",werror=stop,rerror=stop" } else { "" };
    arguments.add(&["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=disk0{errors}")]);
    Ok(())
}

/// A card's address that no other guest of this process has.
pub(crate) fn next_mac() -> String {
    let [_, a, b, c] = NEXT_MAC.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is no UTF-8", path.display()))
}
