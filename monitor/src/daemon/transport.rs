//! Transport to each QEMU's monitor: a connection that is kept, one for each command, or libvirt.

use crate::{
    config::{ActuatorConfig, Config, QmpTransport},
    recovery::actuator::libvirt_uri,
};
use flatline_qemu::{
    discover::{ListeningSocket, Owner, SocketAt, Vm},
    libvirt::{Domain, Links},
    program::{self, virsh::Virsh},
    qmp::{LibvirtTarget, QmpTarget, Transport},
};

/// How a QEMU's monitor is reached as `config` has it; `None` where it can't be used.
pub(super) fn transport_to(vm: &Vm, config: &Config, links: &Links) -> Option<Transport> {
    let has_virsh = program::find("virsh").is_some();
    transport(vm, &config.actuation_for(&vm.name, vm.origin.uid), links, has_virsh)
}

fn transport(
    vm: &Vm,
    actuation: &ActuatorConfig,
    links: &Links,
    has_virsh: bool,
) -> Option<Transport> {
    let is_libvirts = matches!(vm.ownership.owner, Owner::Libvirt { .. });
    // The sockets that libvirt hands over are its own, which it comes back to after it was restarted.
    let may_be_used =
        |socket: &&ListeningSocket| !(is_libvirts && matches!(socket.at, SocketAt::Descriptor(_)));
    let sockets: Vec<_> = vm.qmp_sockets.iter().filter(may_be_used).cloned().collect();
    let target = (!sockets.is_empty()).then_some(QmpTarget {
        vm: vm.id,
        sockets,
        threads: vm.threads,
        uid: vm.origin.uid,
    });
    match (actuation.qmp, &vm.ownership.owner) {
        (QmpTransport::Keep, _) => target.map(Transport::Keep),
        (QmpTransport::Brief, _) => target.map(Transport::Brief),
        (QmpTransport::Auto, Owner::Libvirt { uuid, domain, scope }) => {
            let Ok(uri) = libvirt_uri(*scope, actuation) else {
                return target.map(Transport::Keep);
            };
            let named = Domain::new(domain, uuid);
            let link = named.and_then(|domain| links.to(&uri).map(|link| (link, domain)));
            if !has_virsh && link.is_none() {
                return target.map(Transport::Keep);
            }
            Some(Transport::Libvirt(LibvirtTarget {
                vm: vm.id,
                virsh: Virsh::new(&uri, uuid),
                domain: domain.clone(),
                link,
                uid: vm.origin.uid,
            }))
        }
        (QmpTransport::Auto, Owner::Proxmox { .. } | Owner::Ganeti { .. }) => {
            target.map(Transport::Brief)
        }
        (QmpTransport::Auto, _) => target.map(Transport::Keep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatline_qemu::discover::{LibvirtScope, Ownership};

    fn libvirt(scope: LibvirtScope) -> Owner {
        let uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned();
        Owner::Libvirt { domain: "web-1".to_owned(), uuid, scope }
    }

    fn way(owner: Owner, sockets: &[&str], toml: &str) -> Option<&'static str> {
        let actuation = Config::parse(toml, "").unwrap().actuation;
        let ownership = Ownership { owner, ..Ownership::bare() };
        transport(&Vm::stand_in(ownership, sockets), &actuation, &Links::default(), true).map(
            |way| match way {
                Transport::Keep(_) => "keep",
                Transport::Brief(_) => "brief",
                Transport::Libvirt(LibvirtTarget { link: Some(_), .. }) => "socket",
                Transport::Libvirt(_) => "virsh",
            },
        )
    }

    #[tokio::test]
    async fn a_socket_that_its_owner_needs_as_well_is_not_kept() {
        let sockets = &["/run/q.qmp"][..];
        assert_eq!(way(Owner::Bare, sockets, ""), Some("keep"));
        assert_eq!(
            way(Owner::SystemdUnit { unit: "q.service".to_owned() }, sockets, ""),
            Some("keep")
        );
        assert_eq!(way(Owner::Proxmox { vmid: 100 }, sockets, ""), Some("brief"));
        assert_eq!(way(Owner::Ganeti { instance: "a".to_owned() }, sockets, ""), Some("brief"));
        assert_eq!(way(libvirt(LibvirtScope::System), &[], ""), Some("socket"));
        let escaped = "[recovery]\nlibvirt_uri = \"qemu+unix:///system?socket=/run/a%20b\"\n";
        assert_eq!(way(libvirt(LibvirtScope::System), &[], escaped), Some("virsh"));
        assert_eq!(way(Owner::Bare, &[], ""), None);
    }

    #[tokio::test]
    async fn a_monitor_that_libvirt_handed_over_is_libvirts_own() {
        let way = |owner| {
            let mut vm = Vm::stand_in(Ownership { owner, ..Ownership::bare() }, &[]);
            let at = SocketAt::Descriptor(21);
            vm.qmp_sockets = vec![ListeningSocket { at, waits: false }];
            transport(&vm, &Config::parse("", "").unwrap().actuation, &Links::default(), false)
        };
        assert!(matches!(way(libvirt(LibvirtScope::System)), Some(Transport::Libvirt(_))));
        assert!(matches!(way(Owner::Bare), Some(Transport::Keep(_))));
    }

    #[tokio::test]
    async fn what_is_configured_counts_for_every_owner_that_has_a_socket() {
        for (key, expected) in [("keep", "keep"), ("brief", "brief")] {
            let toml = format!("[recovery]\nqmp = \"{key}\"\n");
            for owner in [Owner::Bare, Owner::Proxmox { vmid: 100 }, libvirt(LibvirtScope::System)]
            {
                assert_eq!(way(owner, &["/run/q.qmp"], &toml), Some(expected));
            }
            assert_eq!(way(libvirt(LibvirtScope::System), &[], &toml), None);
        }
    }

    #[tokio::test]
    async fn a_user_s_libvirt_is_not_spoken_to_unless_it_is_named() {
        let session = || libvirt(LibvirtScope::Session);
        assert_eq!(way(session(), &[], ""), None);
        assert_eq!(way(session(), &["/run/own.qmp"], ""), Some("keep"));
        let named = "[recovery]\nlibvirt_uri = \"qemu+unix:///session?socket=/run/s\"\n";
        assert_eq!(way(session(), &[], named), Some("socket"));
    }
}
