//! Programs of others that single tests need, and that are not installed for them.
//!
//! Debian's packages of these start services when they are installed. `cargo xtask test` unpacks them
//! below `target/tools` instead, a directory a package; a test takes them from there, or from `PATH`,
//! and says *ignored* where they are in neither.

use std::env;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A program of a package that is unpacked, not installed.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its names: Debian's first, then what others call it.
    names: &'static [&'static str],
    /// Debian's package.
    pub package: &'static str,
}

/// The server that scrapes, and judges rules.
pub const PROMETHEUS: Tool = Tool { names: &["prometheus"], package: "prometheus" };
/// What checks figures and rules, and plays rules' tests.
pub const PROMTOOL: Tool = Tool { names: &["promtool"], package: "prometheus" };
/// What receives alerts.
pub const ALERTMANAGER: Tool = Tool {
    names: &["prometheus-alertmanager", "alertmanager"],
    package: "prometheus-alertmanager",
};

/// QEMU for 64-bit Arm guests.
pub const QEMU_AARCH64: Tool = Tool { names: &["qemu-system-aarch64"], package: "qemu-system-arm" };
/// QEMU for 64-bit RISC-V guests.
pub const QEMU_RISCV64: Tool =
    Tool { names: &["qemu-system-riscv64"], package: "qemu-system-misc" };

/// All of them.
pub const ALL: [Tool; 5] = [PROMETHEUS, PROMTOOL, ALERTMANAGER, QEMU_AARCH64, QEMU_RISCV64];

/// Where packages are unpacked: `target/tools` of this workspace.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools")
}

impl Tool {
    /// The program, unpacked or in `PATH`; `None` where there is none.
    pub fn find(self) -> Option<PathBuf> {
        let unpacked = directory().join(self.package).join("usr/bin");
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = [unpacked].into_iter().chain(env::split_paths(&path)).collect();
        let files =
            folders.iter().flat_map(|folder| self.names.iter().map(|name| folder.join(name)));
        files.into_iter().find(|path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
    }

    /// The same, or else why a test that needs it can't run.
    ///
    /// # Errors
    ///
    /// A sentence for people: there is none.
    pub fn needed(self) -> Result<PathBuf, String> {
        self.find().ok_or_else(|| {
            let Self { names, package } = self;
            format!(
                "there is no {} (`cargo xtask setup` fetches Debian's package {package})",
                names[0]
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_nowhere_is_named_with_its_package() {
        let none = Tool { names: &["no-such-program"], package: "no-such-package" };
        let why = none.needed().expect_err("it is nowhere");
        assert!(why.contains("no-such-program") && why.contains("no-such-package"), "{why}");
        let there = Tool { names: &["no-such-program", "sh"], package: "dash" };
        assert!(there.needed().is_ok());
    }
}
