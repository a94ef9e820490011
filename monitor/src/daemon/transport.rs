//! By which way each QEMU is talked to.

use super::engine::Engine;
use crate::{
    config::{Means, QmpTransport},
    discover::{Owner, Vm},
    program::{self, virsh::Virsh},
    qmp::{LibvirtTarget, QmpTarget, Transport},
    recover::actuator::libvirt_uri,
};

/// By which way a QEMU is talked to; `None` if by none.
fn transport(vm: &Vm, means: &Means, has_virsh: bool) -> Option<Transport> {
    let socket = vm.qmp_sockets.first();
    let target = socket.map(|socket| QmpTarget { vm: vm.id, socket: socket.clone() });
    match (means.qmp, &vm.ownership.owner) {
        (QmpTransport::Keep, _) => target.map(Transport::Keep),
        (QmpTransport::Brief, _) => target.map(Transport::Brief),
        (QmpTransport::Auto, Owner::Libvirt { uuid, domain, scope }) if has_virsh => {
            match libvirt_uri(*scope, means) {
                Ok(uri) => Some(Transport::Libvirt(LibvirtTarget {
                    vm: vm.id,
                    virsh: Virsh::new(&uri, uuid),
                    domain: domain.clone(),
                })),
                Err(_) => target.map(Transport::Keep),
            }
        }
        (QmpTransport::Auto, Owner::Proxmox { .. } | Owner::Ganeti { .. }) => {
            target.map(Transport::Brief)
        }
        (QmpTransport::Auto, _) => target.map(Transport::Keep),
    }
}

impl Engine {
    /// By which way it is talked to; `None` if by none.
    pub(super) fn transport_to(&mut self, vm: &Vm) -> Option<Transport> {
        let means = self.config.means_for(&vm.name);
        let way = transport(vm, &means, program::find("virsh").is_some());
        if matches!(way, Some(Transport::Brief(_) | Transport::Libvirt(_))) {
            self.owners.hears_late_of(vm.id);
        }
        way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        discover::{LibvirtScope, Ownership},
    };

    fn libvirt(scope: LibvirtScope) -> Owner {
        let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned();
        Owner::Libvirt { domain: "web-1".to_owned(), uuid, scope }
    }

    fn way(owner: Owner, sockets: &[&str], toml: &str) -> Option<&'static str> {
        let means = Config::parse(toml, "").unwrap().means;
        let ownership = Ownership { owner, ..Ownership::bare() };
        transport(&Vm::stand_in(ownership, sockets), &means, true).map(|way| match way {
            Transport::Keep(_) => "keep",
            Transport::Brief(_) => "brief",
            Transport::Libvirt(_) => "virsh",
        })
    }

    #[test]
    fn a_socket_that_its_owner_needs_as_well_is_not_kept() {
        let sockets = &["/run/q.qmp"][..];
        assert_eq!(way(Owner::Bare, sockets, ""), Some("keep"));
        assert_eq!(
            way(Owner::SystemdUnit { unit: "q.service".to_owned() }, sockets, ""),
            Some("keep")
        );
        assert_eq!(way(Owner::Proxmox { vmid: 100 }, sockets, ""), Some("brief"));
        assert_eq!(way(Owner::Ganeti { instance: "a".to_owned() }, sockets, ""), Some("brief"));
        assert_eq!(way(libvirt(LibvirtScope::System), &[], ""), Some("virsh"));
        assert_eq!(way(Owner::Bare, &[], ""), None);
    }

    #[test]
    fn what_is_configured_counts_for_every_owner_that_has_a_socket() {
        for (key, expected) in [("keep", "keep"), ("brief", "brief")] {
            let toml = format!("[recovery]\nqmp = \"{key}\"\n");
            for owner in [Owner::Bare, Owner::Proxmox { vmid: 100 }, libvirt(LibvirtScope::System)]
            {
                assert_eq!(way(owner, &["/run/q.qmp"], &toml), Some(expected));
            }
            assert_eq!(way(libvirt(LibvirtScope::System), &[], &toml), None);
        }
    }

    #[test]
    fn a_user_s_libvirt_is_not_spoken_to_unless_it_is_named() {
        let session = || libvirt(LibvirtScope::Session);
        assert_eq!(way(session(), &[], ""), None);
        assert_eq!(way(session(), &["/run/own.qmp"], ""), Some("keep"));
        let named = "[recovery]\nlibvirt_uri = \"qemu+unix:///session?socket=/run/s\"\n";
        assert_eq!(way(session(), &[], named), Some("virsh"));
    }
}
