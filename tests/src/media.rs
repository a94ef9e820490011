//! What guests boot that is not ours: firmware, boot loaders and an installer.
//!
//! They come in Debian's packages, which are unpacked beside those of [`crate::tools`], not installed: single scenarios
//! need them, and say that they can't be played where there are none. All but the installer are 11 MB to download and
//! 38 MB unpacked; that is 133 MB and 141 MB.

use std::path::PathBuf;

use crate::tools;

/// Where the installer's files are in its package.
macro_rules! installer {
    () => {
        "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/"
    };
}

/// A file of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Debian's package.
    pub package: &'static str,
    /// Where it is in that.
    file: &'static str,
}

const fn of(package: &'static str, file: &'static str) -> Medium {
    Medium { package, file }
}

/// A memory test, for `-kernel`.
pub const MEMTEST: Medium = of("memtest86+", "boot/memtest86+x64.bin");
/// A GRUB on a floppy disk, with a menu of its own.
pub const GRUB: Medium = of("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img");
/// UEFI firmware, and the variables that it begins with.
pub const OVMF_CODE: Medium = of("ovmf", "usr/share/OVMF/OVMF_CODE.fd");
/// As [`OVMF_CODE`].
pub const OVMF_VARIABLES: Medium = of("ovmf", "usr/share/OVMF/OVMF_VARS.fd");
/// A network boot loader, for `-kernel`.
pub const IPXE: Medium = of("ipxe", "boot/ipxe.lkrn");
/// The kernel of Debian's installer, as it asks in text.
pub const INSTALLER_KERNEL: Medium = of(INSTALLER, concat!(installer!(), "linux"));
/// Its initramfs.
pub const INSTALLER_INITRAMFS: Medium = of(INSTALLER, concat!(installer!(), "initrd.gz"));

const INSTALLER: &str = "debian-installer-12-netboot-amd64";

/// All of them.
pub const ALL: [Medium; 7] =
    [MEMTEST, GRUB, OVMF_CODE, OVMF_VARIABLES, IPXE, INSTALLER_KERNEL, INSTALLER_INITRAMFS];

impl Medium {
    /// Where it was unpacked, or `None` if it was not.
    pub fn find(self) -> Option<PathBuf> {
        let path = tools::directory().join(self.package).join(self.file);
        path.is_file().then_some(path)
    }

    /// The same, or else why what needs it can't be played.
    ///
    /// # Errors
    ///
    /// A sentence for people: it is not there.
    pub fn needed(self) -> Result<PathBuf, String> {
        let Self { package, file } = self;
        self.find().ok_or_else(|| {
            format!("there is no {file} (`cargo xtask setup` fetches Debian's package {package})")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nowhere_is_named_with_its_package() {
        let why = of("no-such-package", "boot/none").needed().expect_err("it is nowhere");
        assert!(why.contains("boot/none") && why.contains("no-such-package"), "{why}");
    }
}
