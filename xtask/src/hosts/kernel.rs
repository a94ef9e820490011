//! What a host boots: a kernel of Debian's, unpacked, and an archive of the modules that find its disk and run its guests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flatline_tests::cpio::Archive;
use flatline_tests::image::kernel::{unpack, unpack_image};
use object::{Object as _, ObjectSection as _};

use crate::packages::{Kernel, Packages};
use crate::process::heading;

/// Modules that the host loads before it has a root, with what they depend on; a kernel may have some built in.
const MODULES: [&str; 16] = [
    "virtio_pci",
    "virtio_blk",
    // What ext4 asks the kernel for by another name.
    "crc32c_generic",
    "ext4",
    "af_packet",
    "tun",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "act_gact",
    "loop",
    "kvm",
    "kvm_amd",
    "vhost_net",
    // The line for cells, where a machine has one serial line only.
    "virtio_console",
];
/// Another with each change of what is kept.
const EDITION: &str = "modules-1.cpio";

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub(super) struct Bootable {
    /// As `uname -r` prints it.
    pub(super) version: String,
    /// The ELF file, which QEMU enters without unpacking it under emulation; of Arm, the image, which is not packed.
    pub(super) vmlinux: PathBuf,
    /// The modules, numbered in the order in which they load.
    pub(super) modules: PathBuf,
}

/// A kernel's packages, unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// What boot loaders load.
    pub(super) image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// Unpacks them into a directory.
///
/// # Errors
///
/// If a package can't be had, or holds no kernel.
pub(super) fn unpacked(packages: &Packages, kernel: &Kernel, into: &Path) -> Result<Unpacked> {
    for package in &kernel.packages {
        packages.unpack(package, into)?;
    }
    let beside =
        ["lib/modules", "usr/lib/modules"].map(|place| into.join(place).join(&kernel.version));
    let modules = beside.iter().find(|path| path.join("kernel").is_dir()).cloned();
    let modules = modules.context("its packages hold no modules")?;
    let boot = into.join("boot").join(format!("vmlinuz-{}", kernel.version));
    let images = beside.iter().map(|path| path.join("vmlinuz")).chain([boot]);
    let image = images.into_iter().find(|path| path.exists());
    Ok(Unpacked { image: image.context("its packages hold no kernel")?, modules })
}

/// Makes it below `dir`, or finds it there.
///
/// # Errors
///
/// If a package can't be had, or holds no kernel.
pub(super) fn prepare(packages: &Packages, kernel: &Kernel, dir: &Path) -> Result<Bootable> {
    let dir = dir.join(&kernel.version);
    let (vmlinux, modules) = (dir.join("vmlinux"), dir.join(EDITION));
    let bootable = Bootable { version: kernel.version.clone(), vmlinux, modules };
    if bootable.vmlinux.exists() && bootable.modules.exists() {
        return Ok(bootable);
    }
    heading(&format!("Linux {}", kernel.version));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let place = tempfile::Builder::new().prefix(".unpacked-").tempdir_in(&dir)?;
    let unpacked = unpacked(packages, kernel, place.path())?;
    let image = std::fs::read(unpacked.image)?;
    std::fs::write(&bootable.modules, archive(&unpacked.modules)?.finish())?;
    // Last, as what says that all is there. What is of another architecture is an image of its own kind, perhaps packed whole.
    let entered = if image.get(0x202..0x206) == Some(b"HdrS") {
        unpack_image(&image)?
    } else {
        unpack(&image)?
    };
    std::fs::write(&bootable.vmlinux, entered)?;
    Ok(bootable)
}

/// The modules, each after what it depends on.
fn archive(directory: &Path) -> Result<Archive> {
    let mut files = BTreeMap::new();
    find_all(directory, &mut files)?;
    let mut loaded: Vec<(String, Vec<u8>)> = Vec::new();
    for name in MODULES {
        add(name, &files, &mut loaded)?;
    }
    let mut archive = Archive::default();
    archive.directory("modules");
    for (number, (name, content)) in loaded.iter().enumerate() {
        archive.file(&format!("modules/{number:03}-{name}.ko"), 0o644, content);
    }
    Ok(archive)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if loaded.iter().any(|(other, _)| other == name) {
        return Ok(());
    }
    let content = unpack(&std::fs::read(path)?)?;
    for needed in depends(&content).with_context(|| path.display().to_string())? {
        add(&needed, files, loaded)?;
    }
    loaded.push((name.to_owned(), content));
    Ok(())
}

/// What a module says that it depends on.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("a module without .modinfo")?;
    Ok(depends_in(section.data()?))
}

/// The same in that section: strings with zeroes behind them.
fn depends_in(modinfo: &[u8]) -> Vec<String> {
    let strings =
        modinfo.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let names =
        strings.filter_map(|text| text.strip_prefix("depends=")).flat_map(|names| names.split(','));
    names.filter(|name| !name.is_empty()).map(plain).collect()
}

/// Every `NAME.ko`, however packed, below a directory.
fn find_all(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_all(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(plain(name), entry.path());
        }
    }
    Ok(())
}

/// A module's name as modules call each other; its file may have hyphens.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        let modinfo = b"license=GPL\0depends=mbcache,jbd2,crc-ccitt\0intree=Y\0";
        assert_eq!(depends_in(modinfo), ["mbcache", "jbd2", "crc_ccitt"]);
        assert!(depends_in(b"depends=\0").is_empty());
    }
}
