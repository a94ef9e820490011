//! Where QEMU lies on hosts of the field: what is looked for where nothing is said.
//!
//! A pattern is compared with `/proc/PID/exe`, which is the file itself and no link to it, by its path in the mount
//! namespace that QEMU was started in: a snap's or a container's own. That tells programs apart that happen to be
//! called alike, and nothing more: who may run a QEMU may have it do anything, and mount anything over its path in a
//! namespace of its own. So only directories are here that are root's, where nothing else comes to be called so by
//! accident, and no verdict and no right rests on a path.
//!
//! Not here: Xen's device models (`/usr/lib/xen*/bin/qemu-system-i386`), whose guests' vCPUs are none of QEMU's; QEMUs
//! in a user's home (Homebrew, Flatpak's `/app`).

use glob::Pattern;

/// The patterns.
const DEFAULT: [&str; 10] = [
    // Debian, Ubuntu, Fedora, Arch, SUSE, Alpine. So does Proxmox VE, whose `/usr/bin/kvm` is a link to this
    // (debian/pve-qemu-kvm.links in pve-qemu), as Debian's is.
    "/usr/bin/qemu-system-*",
    // Before it was a link.
    "/usr/bin/kvm",
    // RHEL and its kin (`%{_libexecdir}/qemu-kvm` in qemu-kvm.spec), and KubeVirt's virt-launcher, which is built from
    // these packages.
    "/usr/libexec/qemu-kvm",
    // QEMU's own `make install` (`--prefix` of its configure).
    "/usr/local/bin/qemu-system-*",
    // Kata Containers' release (`path` of `[hypervisor.qemu]` in its configuration-qemu*.toml, such as
    // /opt/kata/bin/qemu-system-x86_64-snp-experimental).
    "/opt/kata/bin/qemu-system-*",
    // Incus, as its authors package it (`PATH` in bin/incusd of zabbly/incus). Distributions' own takes theirs.
    "/opt/incus/bin/qemu-system-*",
    // LXD's snap, by its revision: /snap/lxd/24918/bin/qemu-system-x86_64.
    "/snap/lxd/*/bin/qemu-system-*",
    // NixOS, where a script starts the program (`wrapProgram`):
    // /nix/store/391s..-qemu-10.2.2/bin/.qemu-system-x86_64-wrapped.
    "/nix/store/*-qemu-*/bin/.qemu-system-*-wrapped",
    // The same without a desktop's libraries, which needs no such script.
    "/nix/store/*-qemu-*/bin/qemu-system-*",
    // Guix ("The Store" in its manual).
    "/gnu/store/*-qemu-*/bin/qemu-system-*",
];

/// The patterns that hold where the configuration has none.
pub(super) fn default() -> Vec<Pattern> {
    DEFAULT.iter().filter_map(|text| Pattern::new(text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use flatline_qemu::discover::Scope;

    #[test]
    fn qemus_of_the_field_are_taken_and_their_neighbours_are_not() {
        let scope = Scope { executables: super::default(), users: Vec::new() };
        for path in [
            "/usr/bin/qemu-system-x86_64",
            "/usr/bin/qemu-system-x86_64-microvm",
            "/usr/bin/kvm",
            "/usr/libexec/qemu-kvm",
            "/usr/local/bin/qemu-system-aarch64",
            "/opt/kata/bin/qemu-system-x86_64",
            "/opt/kata/bin/qemu-system-x86_64-snp-experimental",
            "/opt/incus/bin/qemu-system-x86_64",
            "/snap/lxd/24918/bin/qemu-system-x86_64",
            "/nix/store/391smsk8nghkg17g5dd5dn2cdb6lkhlm-qemu-10.2.2/bin/.qemu-system-x86_64-wrapped",
            "/nix/store/53pb1l8qlby0jzb7n8c1qiwq5nw89krx-qemu-host-cpu-only-11.1.1/bin/qemu-system-x86_64",
            "/gnu/store/53pb1l8qlby0jzb7n8c1qiwq5nw89krx-qemu-9.2.4/bin/qemu-system-x86_64",
        ] {
            assert!(scope.has_executable(Path::new(path)), "{path}");
        }
        for path in [
            "/home/alice/bin/qemu-system-x86_64",
            "/tmp/opt/kata/bin/qemu-system-x86_64",
            "/opt/kata/bin/cloud-hypervisor",
            "/opt/kata/qemu-system-x86_64",
            "/snap/lxd/24918/bin/lxd",
            "/snap/lxd/24918/x/bin/qemu-system-x86_64",
            "/nix/store/391s-bash-5.2/bin/bash",
            "/usr/bin/qemu-img",
        ] {
            assert!(!scope.has_executable(Path::new(path)), "{path}");
        }
    }
}
