//! The architecture of the instructions that a guest executes, which decides how its registers are to be read. Pure.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use super::display_text;

/// What every QEMU of one architecture is called, before the architecture's name.
const PREFIX: &str = "qemu-system-";

/// An architecture, by how QEMU prints its registers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// `x86_64` and `i386`.
    X86,
    /// `aarch64` and `arm`: a 64-bit guest's user code may be of 32 bits.
    Arm,
    /// Another one, by QEMU's name for it.
    Other(String),
}

impl Architecture {
    /// By QEMU's own name for it, as in `query-target` and in the names of its executables.
    pub fn of_target(name: &str) -> Self {
        match name {
            "x86_64" | "i386" => Self::X86,
            "aarch64" | "arm" => Self::Arm,
            other => Self::Other(display_text(other)),
        }
    }

    /// By the name of the executable. One that doesn't tell (`kvm`, `qemu-kvm`) is of the host's.
    pub(crate) fn of_executable(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = name.split_once(PREFIX).map(|(_, rest)| {
            // What a distribution or a wrapper appends (`-headless`, `.real`) is none of it.
            let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            &rest[..rest.find(is_end).unwrap_or(rest.len())]
        });
        match target {
            Some(target) if !target.is_empty() => Self::of_target(target),
            _ => Self::of_target(std::env::consts::ARCH),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86 => "x86",
            Self::Arm => "arm",
            Self::Other(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Architecture;

    #[test]
    fn an_executable_is_known_by_its_name_whatever_is_appended() {
        for (name, expected) in [
            ("qemu-system-x86_64", Architecture::X86),
            ("qemu-system-i386", Architecture::X86),
            ("qemu-system-x86_64-snp-experimental", Architecture::X86),
            (".qemu-system-aarch64-wrapped", Architecture::Arm),
            ("qemu-system-arm.real", Architecture::Arm),
            ("qemu-system-riscv64", Architecture::Other("riscv64".to_owned())),
            ("qemu-system-ppc64-spice", Architecture::Other("ppc64".to_owned())),
        ] {
            assert_eq!(Architecture::of_executable(&Path::new("/usr/bin").join(name)), expected);
        }
    }

    #[test]
    fn one_that_does_not_tell_is_of_the_host() {
        let host = Architecture::of_target(std::env::consts::ARCH);
        for name in ["/usr/bin/kvm", "/usr/libexec/qemu-kvm", "/", "qemu-system-"] {
            assert_eq!(Architecture::of_executable(Path::new(name)), host);
        }
    }
}
