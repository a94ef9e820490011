//! The Linux guest: Debian's own kernel, unpacked but not installed, and an initramfs around busybox.
//!
//! The kernel is unpacked from its bzImage too: QEMU enters a bare vmlinux through PVH, and the
//! emulated CPU is spared decompressing it, which is half of the boot.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use crate::cpio::Archive;
use kernel::{KERNEL_VARIABLE, UNPACKED};

pub mod arm64;
mod hypervisor;
pub mod kdump;
pub mod kernel;
mod lockup;

/// The name of flatline's agent in the directory of the images; without it, guests have none.
pub const AGENT: &str = "flatline-heartbeat";

/// What the guest runs as its first process.
const INIT: &str = include_str!("guest-init.sh");

/// The guest's modules, in the order in which they load; a kernel may lack some, or have them built
/// in.
const MODULES: [&str; 22] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "qemu_fw_cfg",
    "pvpanic",
    "pvpanic-mmio",
    "pvpanic-pci",
    "watchdog",
    "i6300esb",
    // All but the last are what it stands on.
    "llc",
    "stp",
    "garp",
    "mrp",
    "8021q",
];

/// What `-kernel` and `-initrd` take.
#[derive(Clone, Debug)]
pub struct Images {
    /// A vmlinux, or a bzImage where none could be unpacked.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive: inflating would cost the guest more than reading does.
    pub initramfs: PathBuf,
    /// The same with a hypervisor, which few guests have a use for; `None` where none could be built.
    hypervisor: Option<PathBuf>,
}

impl Images {
    /// Those that were built in a directory, on this machine or another.
    ///
    /// # Errors
    ///
    /// If they are not there.
    pub fn built_in(directory: &Path) -> Result<Self> {
        let [kernel, initramfs] = ["kernel", "initramfs"].map(|name| directory.join(name));
        for path in [&kernel, &initramfs] {
            anyhow::ensure!(path.exists(), "no {}", path.display());
        }
        Ok(Self { kernel, initramfs, hypervisor: None })
    }

    /// What a guest boots that is to have a guest of its own: the command `hypervisor` starts that.
    ///
    /// # Errors
    ///
    /// A sentence for people: none could be built.
    pub fn with_hypervisor(&self) -> Result<Self, String> {
        let initramfs = self.hypervisor.clone().ok_or_else(|| {
            "the guest has no hypervisor: its kernel has no kvm-amd, or gcc could not build it"
                .to_owned()
        })?;
        Ok(Self { initramfs, ..self.clone() })
    }
}

/// Builds the images in `cache_dir`, or finds them there. Other builds of the same time wait.
/// `progress` is told of each step that takes time.
///
/// # Errors
///
/// If there is no kernel (neither `FLATLINE_GUEST_KERNEL`, nor a package that `apt-get` can
/// download, nor an installed one), no busybox, or `cache_dir` cannot be written.
pub fn build(cache_dir: &Path, mut progress: impl FnMut(&str)) -> Result<Images> {
    let (cache_dir, _lock) = locked(cache_dir)?;

    let with_hypervisor = cache_dir.join("initramfs-hypervisor");
    let mut images = Images {
        kernel: cache_dir.join("kernel"),
        initramfs: cache_dir.join("initramfs"),
        hypervisor: with_hypervisor.exists().then(|| with_hypervisor.clone()),
    };
    let stamp_path = cache_dir.join("stamp");
    let busybox = find_busybox()?;
    let agent = std::fs::read(cache_dir.join(AGENT)).ok();
    let recipe = recipe(&busybox, agent.as_deref())?;
    let stamp = std::fs::read_to_string(&stamp_path).unwrap_or_default();
    if stamp.lines().next() == Some(recipe.as_str())
        && images.kernel.exists()
        && images.initramfs.exists()
    {
        return Ok(images);
    }

    let kernel = kernel::find(&cache_dir, &mut progress)?;
    progress(&format!("building the guest around Linux {}", kernel.version));
    write_kernel(&kernel.image, &images.kernel, &mut progress)?;
    let lockup = match lockup::build(&kernel, &cache_dir.join("lockup")) {
        Ok(module) => Some(module),
        // Such a guest answers a request for a lock-up with that it has none.
        Err(error) => {
            progress(&format!("no lockup.ko in the guest: {error:#}"));
            None
        }
    };
    let archive = |extra: &[&str]| {
        let modules: Vec<&str> = MODULES.iter().chain(extra).copied().collect();
        let mut archive = initramfs(INIT, &busybox, &kernel.modules, &modules, lockup.as_deref())?;
        if let Some(agent) = &agent {
            archive.file(&format!("bin/{AGENT}"), 0o755, agent);
        }
        anyhow::Ok(archive)
    };
    std::fs::write(&images.initramfs, archive(&[])?.finish())
        .context("cannot write the initramfs")?;
    images.hypervisor = match hypervisor(&kernel.modules, &cache_dir.join("hypervisor")) {
        Ok(program) => {
            let mut archive = archive(&hypervisor::MODULES)?;
            archive.file(hypervisor::PLACE, 0o755, &program);
            std::fs::write(&with_hypervisor, archive.finish())
                .context("cannot write the initramfs")?;
            Some(with_hypervisor)
        }
        Err(error) => {
            progress(&format!("no hypervisor in the guest: {error:#}"));
            // Of another kernel.
            if with_hypervisor.exists() {
                std::fs::remove_file(&with_hypervisor)?;
            }
            None
        }
    };
    // Last, so that an interrupted build is taken up again.
    std::fs::write(&stamp_path, format!("{recipe}\n{}\n", kernel.version))
        .context("cannot write the stamp")?;
    // The packages are 400 MB.
    match std::fs::remove_dir_all(cache_dir.join(UNPACKED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            progress(&format!("cannot remove the unpacked package: {error}"));
        }
        _ => {}
    }
    Ok(images)
}

/// Makes a directory of images, if it isn't there, and waits for other builds in it. Its absolute path, and what keeps the
/// others out until it is dropped.
fn locked(cache_dir: &Path) -> Result<(PathBuf, File)> {
    std::fs::create_dir_all(cache_dir)
        .with_context(|| format!("cannot make {}", cache_dir.display()))?;
    let cache_dir = std::path::absolute(cache_dir)?;
    let lock = File::create(cache_dir.join("lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot lock the image cache")?;
    Ok((cache_dir, lock))
}

/// Writes the kernel to `to`, unpacked where that can be done.
fn write_kernel(image: &Path, to: &Path, progress: &mut impl FnMut(&str)) -> Result<()> {
    let packed =
        std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let vmlinux = match kernel::unpack_image(&packed) {
        Ok(vmlinux) => vmlinux,
        Err(error) => {
            progress(&format!("booting the packed kernel, which is slower: {error:#}"));
            packed
        }
    };
    std::fs::write(to, vmlinux).context("cannot write the kernel")
}

/// Names everything that decides what is built, but for the version of the kernel: asking apt for
/// that takes longer than the rest together.
fn recipe(busybox: &Path, agent: Option<&[u8]>) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    INIT.hash(&mut hasher);
    lockup::SOURCES.hash(&mut hasher);
    (hypervisor::SOURCE, hypervisor::MODULES).hash(&mut hasher);
    MODULES.hash(&mut hasher);
    agent.hash(&mut hasher);
    std::env::var_os(KERNEL_VARIABLE).hash(&mut hasher);
    let metadata = std::fs::metadata(busybox)?;
    (metadata.len(), metadata.modified()?).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn find_busybox() -> Result<PathBuf> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(|| anyhow!("no busybox: install busybox-static"))
}

/// The guest's hypervisor, where its kernel has what that needs.
fn hypervisor(modules: &Path, dir: &Path) -> Result<Vec<u8>> {
    find_module(&modules.join("kernel"), "kvm-amd")?.context("the kernel has no kvm-amd")?;
    hypervisor::build(dir)
}

/// `directory` is where the kernel's modules are.
fn initramfs(
    init: &str,
    busybox: &Path,
    directory: &Path,
    modules: &[&str],
    lockup: Option<&[u8]>,
) -> Result<Archive> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys", "modules"] {
        archive.directory(name);
    }
    let busybox = std::fs::read(busybox).context("cannot read busybox")?;
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, init.as_bytes());
    for (place, name) in modules.iter().enumerate() {
        if let Some(path) = find_module(&directory.join("kernel"), name)? {
            // The guest loads them in the order of their names.
            let content = kernel::unpack(&std::fs::read(path)?)?;
            archive.file(&format!("modules/{place:02}-{name}.ko"), 0o644, &content);
        }
    }
    // Not among those: it is loaded on command.
    if let Some(module) = lockup {
        archive.file("lockup.ko", 0o644, module);
    }
    Ok(archive)
}

/// Finds `NAME.ko` or `NAME.ko.xz` (or the like) anywhere below `directory`.
fn find_module(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().split(".ko").next() == Some(name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
