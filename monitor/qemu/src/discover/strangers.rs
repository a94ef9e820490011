//! Programs that are called like a QEMU, and lie where none is looked for: what the configuration may lack.
//!
//! Any user can have a program called so: it is shown on request, and counts as nothing.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Scope, display_text, origin, proc};

/// Where they lie, each once, fit for display, of users in `scope`. What can't be read is none.
pub fn strangers(scope: &Scope) -> BTreeSet<String> {
    let executable = |pid: &u32| {
        let path = proc::executable(*pid).ok()?;
        if scope.has_executable(&path) || !is_called_so(&path) {
            return None;
        }
        let user = origin::parse_ids(&proc::status(*pid).ok()?)?.uid;
        scope.has_user(user).then(|| display_text(&path.to_string_lossy()))
    };
    proc::pids().unwrap_or_default().iter().filter_map(executable).collect()
}

/// As distributions call it; NixOS puts a dot before it.
fn is_called_so(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix('.').unwrap_or(&name);
    name.starts_with("qemu-system-") || matches!(name, "qemu-kvm" | "kvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_is_told_by_its_name_wherever_it_lies() {
        for path in ["/x/qemu-system-arm", "/x/.qemu-system-x86_64-wrapped", "/x/qemu-kvm", "/kvm"]
        {
            assert!(is_called_so(Path::new(path)), "{path}");
        }
        for path in ["/qemu-system-x/sh", "/usr/bin/qemu-img", "/usr/bin/kvm-ok", "/", ""] {
            assert!(!is_called_so(Path::new(path)), "{path}");
        }
    }
}
