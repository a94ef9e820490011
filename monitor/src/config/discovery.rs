//! Which processes are taken for QEMUs that may be managed.
//!
//! A pattern is compared with `/proc/PID/exe`, which is the file itself and no link to it, by its path in the mount
//! namespace that QEMU was started in: a snap's or a container's own. That tells programs apart that happen to be
//! called alike, and nothing more: a user that may run a QEMU may have it do anything, and mount anything over its path in a
//! namespace of its own. So only directories are here that are root's, where nothing else comes to be called so by
//! accident, and no verdict and no right rests on a path.
//!
//! Not here: Xen's device models (`/usr/lib/xen*/bin/qemu-system-i386`): the vCPUs of their guests are none of QEMU's; QEMUs
//! in a user's home (Homebrew, Flatpak's `/app`).

use glob::Pattern;
use serde::Deserialize;
use toml::{Spanned, de::DeValue};

use super::{
    keys::keys,
    passwd,
    values::{Problem, Rule, pattern, typed},
};
use flatline_qemu::discover::Scope;

keys! {
    /// Which processes are taken for QEMUs that may be managed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Discovery {
        /// what a QEMU may be, by its path in its own mount namespace
        discovery.executables: Vec<Pattern> = [
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
        ], Executables;
        /// only QEMUs of these users may be managed; empty: any
        discovery.users: Vec<u32> = [], Users;
    }
}

impl Discovery {
    /// The same as discovery takes it, which has the one rule for what is in scope.
    pub(crate) fn scope(&self) -> Scope {
        Scope { executables: self.executables.clone(), users: self.users.clone() }
    }
}

/// Patterns of absolute paths, at least one; `*` does not cross a `/`.
struct Executables;

impl Rule for Executables {
    type Value = Vec<Pattern>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<Pattern>, Problem> {
        let list = typed::<Vec<Spanned<String>>>(value)?;
        if list.get_ref().is_empty() {
            return Err(Problem::at(&list, "is empty: no VM would ever be found"));
        }
        let executable = |text: &Spanned<String>| {
            if !text.get_ref().starts_with('/') {
                return Err(Problem::at(text, "must be an absolute path or a pattern of such"));
            }
            pattern(text)
        };
        list.get_ref().iter().map(executable).collect()
    }

    fn allowed(&self) -> String {
        "absolute paths or patterns of such; `*` does not cross a `/`".to_owned()
    }
}

/// Users by name or number, as their numbers.
struct Users;

/// One user or several, likewise; none where it isn't written.
pub(super) struct UsersOfRule;

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a user's name or number")]
enum User {
    Id(i64),
    Name(String),
}

impl Rule for Users {
    type Value = Vec<u32>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<u32>, Problem> {
        typed::<Vec<Spanned<User>>>(value)?.get_ref().iter().map(user_id).collect()
    }

    fn allowed(&self) -> String {
        format!("names of {}, or numbers", passwd::PASSWD)
    }
}

impl Rule for UsersOfRule {
    type Value = Vec<u32>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<u32>, Problem> {
        let Some(list) = value.get_ref().as_array() else {
            return Ok(vec![user_id(&typed(value)?)?]);
        };
        if list.is_empty() {
            return Err(Problem::at(&value, "is empty: no VM is no user's"));
        }
        Users.read(value)
    }

    fn unset(&self) -> Option<Vec<u32>> {
        Some(Vec::new())
    }

    fn allowed(&self) -> String {
        format!("a name of {} or a number, or a list of such", passwd::PASSWD)
    }
}

fn user_id(user: &Spanned<User>) -> Result<u32, Problem> {
    match user.get_ref() {
        User::Id(id) => {
            u32::try_from(*id).map_err(|_| Problem::at(user, format!("{id} is no user id")))
        }
        User::Name(name) => {
            let text = std::fs::read_to_string(passwd::PASSWD).map_err(|error| {
                let message = format!("can't look up `{name}` in {}: {error}", passwd::PASSWD);
                Problem::at(user, message)
            })?;
            passwd::uid_of(&text, name).ok_or_else(|| {
                let message = format!(
                    "no user `{name}` in {}; give the number of a user that is known elsewhere",
                    passwd::PASSWD
                );
                Problem::at(user, message)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    #[test]
    fn qemus_of_the_field_are_taken_and_their_neighbours_are_not() {
        let scope = Config::parse("", "").expect("defaults").discovery.scope();
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
