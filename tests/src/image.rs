//! The Linux guest: Debian's own kernel, unpacked but not installed, and an initramfs around busybox.
//!
//! The kernel is unpacked from its bzImage too: QEMU enters a bare vmlinux through PVH, and the
//! emulated CPU is spared decompressing it, which is half of the boot.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::command;
use crate::cpio::Archive;

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

/// A kernel to boot instead of Debian's; its modules are looked for in `/lib/modules`.
const KERNEL_VARIABLE: &str = "FLATLINE_GUEST_KERNEL";

/// Where the package is unpacked, below the cache directory.
const UNPACKED: &str = "unpacked";

/// What `-kernel` and `-initrd` take.
#[derive(Clone, Debug)]
pub struct Images {
    /// A vmlinux, or a bzImage where none could be unpacked.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive: inflating would cost the guest more than reading does.
    pub initramfs: PathBuf,
}

/// A kernel on this machine, not yet prepared.
struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

/// Builds the images in `cache_dir`, or finds them there. Others who build at the same time wait.
/// `progress` is told of each step that takes time.
///
/// # Errors
///
/// If there is no kernel (neither `FLATLINE_GUEST_KERNEL`, nor a package that `apt-get` can
/// download, nor an installed one), no busybox, or `cache_dir` cannot be written.
pub fn build(cache_dir: &Path, mut progress: impl FnMut(&str)) -> Result<Images> {
    std::fs::create_dir_all(cache_dir)
        .with_context(|| format!("cannot make {}", cache_dir.display()))?;
    let cache_dir = std::path::absolute(cache_dir)?;
    let lock = File::create(cache_dir.join("lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot lock the image cache")?;

    let images =
        Images { kernel: cache_dir.join("kernel"), initramfs: cache_dir.join("initramfs") };
    let stamp_path = cache_dir.join("stamp");
    let busybox = find_busybox()?;
    let recipe = recipe(&busybox)?;
    let stamp = std::fs::read_to_string(&stamp_path).unwrap_or_default();
    if stamp.lines().next() == Some(recipe.as_str())
        && images.kernel.exists()
        && images.initramfs.exists()
    {
        return Ok(images);
    }

    let kernel = find_kernel(&cache_dir, &mut progress)?;
    progress(&format!("building the guest around Linux {}", kernel.version));
    let image = std::fs::read(&kernel.image)
        .with_context(|| format!("cannot read {}", kernel.image.display()))?;
    let vmlinux = match unpack_kernel(&image) {
        Ok(vmlinux) => vmlinux,
        Err(error) => {
            progress(&format!("booting the packed kernel, which is slower: {error:#}"));
            image
        }
    };
    std::fs::write(&images.kernel, vmlinux).context("cannot write the kernel")?;
    let initramfs = initramfs(&busybox, &kernel.modules)?;
    std::fs::write(&images.initramfs, initramfs).context("cannot write the initramfs")?;
    // Last, so that an interrupted build is taken up again.
    std::fs::write(&stamp_path, format!("{recipe}\n{}\n", kernel.version))
        .context("cannot write the stamp")?;
    // A whole package is 400 MB.
    match std::fs::remove_dir_all(cache_dir.join(UNPACKED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            progress(&format!("cannot remove the unpacked package: {error}"));
        }
        _ => {}
    }
    Ok(images)
}

/// Names everything that decides what is built, but for the version of the kernel: asking apt for
/// that takes longer than the rest together.
fn recipe(busybox: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    INIT.hash(&mut hasher);
    MODULES.hash(&mut hasher);
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

fn find_kernel(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    if let Some(path) = std::env::var_os(KERNEL_VARIABLE) {
        return installed_kernel(Path::new(&path));
    }
    match download_kernel(cache_dir, progress) {
        Ok(kernel) => Ok(kernel),
        Err(error) => {
            let newest = std::fs::read_dir("/boot")
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter_map(|path| installed_kernel(&path).ok())
                .max_by_key(|kernel| numbers(&kernel.version));
            newest.ok_or(error)
        }
    }
}

/// A kernel image called `vmlinuz-VERSION`, with its modules where they are installed.
fn installed_kernel(image: &Path) -> Result<Kernel> {
    let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let version = name
        .strip_prefix("vmlinuz-")
        .ok_or_else(|| anyhow!("{} is not called vmlinuz-VERSION", image.display()))?;
    let modules = Path::new("/lib/modules").join(version);
    if !modules.is_dir() {
        bail!("no {}", modules.display());
    }
    Ok(Kernel { version: version.to_owned(), image: image.to_owned(), modules })
}

fn download_kernel(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    try_to_download_kernel(cache_dir, progress).or_else(|_| {
        // A fresh machine's lists are empty, and an old one's name packages that are gone.
        progress("renewing apt's lists");
        command::run("apt-get", ["update"])?;
        try_to_download_kernel(cache_dir, progress)
    })
}

fn try_to_download_kernel(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    let names = command::run(
        "apt-cache",
        ["search", "--names-only", r"^linux-image-6\.1\.0-[0-9]+-amd64$"],
    )?;
    let package = String::from_utf8_lossy(&names)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
        .context("apt knows no linux-image-6.1.0-*-amd64")?;
    let version = package.trim_start_matches("linux-image-").to_owned();
    let unpacked = cache_dir.join(UNPACKED);
    progress(&format!("downloading {package}"));
    let download = cache_dir.join("download");
    std::fs::create_dir_all(&download)?;
    command::run_command(
        Command::new("apt-get").args(["download", "--quiet", &package]).current_dir(&download),
    )?;
    let archive = std::fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_"))
        })
        .ok_or_else(|| anyhow!("apt-get downloaded no {package}"))?;
    progress(&format!("unpacking {package}"));
    command::run("dpkg", ["-x".as_ref(), archive.as_os_str(), unpacked.as_os_str()])?;
    std::fs::remove_dir_all(&download)?;
    Ok(Kernel {
        image: unpacked.join("boot").join(format!("vmlinuz-{version}")),
        modules: unpacked.join("lib/modules").join(&version),
        version,
    })
}

/// The numbers in a name, so that 6.1.0-10 comes after 6.1.0-9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The ELF file inside a bzImage, by its boot protocol header (Documentation/arch/x86/boot.rst).
fn unpack_kernel(image: &[u8]) -> Result<Vec<u8>> {
    let field = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let header = || {
        let sectors = usize::from(*image.get(0x1f1)?);
        let start = (sectors + 1) * 512 + field(0x248)?;
        // The payload's last four bytes are its unpacked size, which is none of the packer's.
        image.get(start..start + field(0x24c)?.checked_sub(4)?)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let payload = header().ok_or_else(|| anyhow!("the bzImage is cut short"))?;
    let vmlinux = unpack(payload)?;
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("the bzImage holds no ELF file");
    }
    Ok(vmlinux)
}

/// Unpacks what a known packer packed; anything else is returned as it is.
fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let program = match packed {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(packed.to_owned()),
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("the pipe was asked for")?;
    let output = std::thread::scope(|scope| {
        // It ends with an error if the packer does first; the packer's status then tells why.
        scope.spawn(move || stdin.write_all(packed));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(output.stdout)
}

fn initramfs(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    let busybox = std::fs::read(busybox).context("cannot read busybox")?;
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    for (place, name) in MODULES.iter().enumerate() {
        if let Some(path) = find_module(&modules.join("kernel"), name)? {
            // The guest loads them in the order of their names.
            let content = unpack(&std::fs::read(path)?)?;
            archive.file(&format!("modules/{place:02}-{name}.ko"), 0o644, &content);
        }
    }
    Ok(archive.finish())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_kernel_is_newer_than_the_ninth() {
        assert!(numbers("linux-image-6.1.0-10-amd64") > numbers("linux-image-6.1.0-9-amd64"));
    }

    #[test]
    fn what_no_packer_packed_stays_as_it_is() {
        assert_eq!(unpack(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn a_bzimage_that_is_cut_short_is_refused() {
        let mut image = vec![0; 0x250];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 200;
        assert!(unpack_kernel(&image).is_err());
    }
}
