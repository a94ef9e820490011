//! The architectures that there are programs, packages and hosts for.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// This machine's.
    pub(crate) const OWN: Self =
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// As Rust and the kernel call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Rust's target with glibc, which is the one of Debian's programs.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    /// What stands in an ELF file's `e_machine` (elf(5)): `EM_X86_64`, `EM_AARCH64`.
    pub(crate) fn elf_machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }

    /// The one of such a target.
    ///
    /// # Errors
    ///
    /// A sentence for people: programs are built for no such target.
    pub(crate) fn of_target(target: &str) -> Result<Self, String> {
        let all = [Self::X86_64, Self::Aarch64];
        all.into_iter().find(|each| each.target() == target).ok_or_else(|| {
            let known = all.map(Self::target).join(" and ");
            format!("packages are made for {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_known_by_its_target() {
        assert_eq!(Architecture::of_target("aarch64-unknown-linux-gnu"), Ok(Architecture::Aarch64));
        let why = Architecture::of_target("riscv64gc-unknown-linux-gnu").unwrap_err();
        assert!(why.contains("x86_64-unknown-linux-gnu"), "{why}");
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(this[18..20], Architecture::OWN.elf_machine().to_le_bytes());
    }
}
