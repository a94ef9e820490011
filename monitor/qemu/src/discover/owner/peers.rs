//! Peers: what else restarts, starts or stops a VM by itself, told from what is known of it already. Pure, and nothing is asked.
//!
//! A VM tells by what it is run, and not how that is configured: whether it is a resource of a cluster's, or `boot.autorestart` is
//! set. So a peer is named where it may act, and when it does. None is acted on by this: that a guest was reset, or its QEMU
//! replaced, is seen when it happens.

use super::{Owner, Ownership, Product, Told};
use crate::discover::{Vm, display_text};

/// Another program that acts on a VM after its guest crashed, or its QEMU ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// One word for it, as it stands in JSON.
    pub name: Product,
    /// What it does, and when, for people to read.
    pub acts: &'static str,
    /// What flatline does about that.
    pub flatline: &'static str,
    /// What it is told by, fit for display.
    pub known_by: String,
}

const LEFT_ALONE: &str =
    "touches nothing without recovery.command; what becomes of its QEMU is seen";
const STARTS_NONE: &str =
    "starts none unless recovery.start_exited is set, and none where another QEMU of its name runs";

/// By what a command line tells that OpenStack's nova made it: the system's product, which is `OpenStack Nova`, or another
/// `OpenStack ..` where a distribution says so in `/etc/nova/release` (nova/version.py), or the domain's name by the default of
/// `instance_name_template`, `instance-%08x` (nova/conf/compute.py).
pub(super) fn openstack(told: &Told) -> Option<String> {
    if let Some(product) = told.product.as_deref().filter(|text| text.starts_with("OpenStack ")) {
        return Some(format!("its command line says -smbios product={}", display_text(product)));
    }
    let name = told.name.as_deref()?;
    let number = name.strip_prefix("instance-")?;
    let is_default =
        number.len() == 8 && number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_default.then(|| format!("its domain is called {name}, as nova's are"))
}

/// What else acts on this VM.
pub fn peers(vm: &Vm) -> Vec<Peer> {
    let Ownership { owner, openstack, .. } = &vm.ownership;
    let told_by = || vm.ownership.evidence.join("; ");
    let one = |name, acts, flatline| vec![Peer { name, acts, flatline, known_by: told_by() }];
    match owner {
        Owner::Libvirt { .. } => {
            let mut found = one("libvirt", ON_CRASH.0, ON_CRASH.1);
            if let Some(known_by) = openstack {
                found.extend([NOVA, MASAKARI].map(|(name, acts, flatline)| Peer {
                    name,
                    acts,
                    flatline,
                    known_by: known_by.clone(),
                }));
            }
            found
        }
        // pkg/virt-handler/vm.go (`calculateVmPhaseForStatusReason`), and docs of `runStrategy`.
        Owner::KubeVirt { .. } => one(
            "kubevirt",
            "once its QEMU ended, or libvirt in its pod says that it crashed, its instance has failed: with runStrategy Always or \
             RerunOnFailure another pod is made for it",
            LEFT_ALONE,
        ),
        Owner::Kata { .. } => one(
            "kubelet",
            "once its QEMU ended, the pod's sandbox is made anew, by its restartPolicy",
            LEFT_ALONE,
        ),
        // internal/server/instance/drivers/driver_qemu.go (`onStop`) and driver_common.go (`shouldAutoRestart`).
        Owner::Incus { product: "incus", .. } => one(
            "incus",
            "a QEMU that ended without having been stopped is started again where boot.autorestart is set, ten times a minute at \
             most; and a guest's reset may have its QEMU started anew",
            LEFT_ALONE,
        ),
        Owner::Incus { .. } => one(
            "lxd",
            "a guest that resets itself has its QEMU started anew; one that ended otherwise stays down",
            LEFT_ALONE,
        ),
        Owner::Proxmox { .. } => one(
            "pve-ha-lrm",
            "where the VM is a resource of the cluster's HA, a QEMU that ended is started again, here or elsewhere",
            STARTS_NONE,
        ),
        // lib/watcher/__init__.py; `MAXTRIES` and `RETRY_EXPIRATION` in lib/watcher/state.py.
        Owner::Ganeti { .. } => one(
            "ganeti-watcher",
            "every 5 minutes, an instance that should run and doesn't is started, 5 times in 8 hours at most",
            STARTS_NONE,
        ),
        Owner::SystemdUnit { .. } => one(
            "systemd",
            "with Restart= in its unit, a QEMU that ended is started again",
            "leaves a unit that systemd is starting to it",
        ),
        Owner::Bare | Owner::Unclear { .. } => Vec::new(),
    }
}

/// libvirt itself (`processGuestPanicEvent` in src/qemu/qemu_driver.c).
const ON_CRASH: (&str, &str) = (
    "a panic that the guest announces: by <on_crash> it is reset, its QEMU ended (the default), or it is left as it is; a silent \
     crash it doesn't see",
    "waits for that first, and resets what was left as it is",
);

/// nova's compute service (nova/virt/libvirt/host.py, `_lifecycle_delay`; nova/compute/manager.py, `_sync_instance_power_state`).
const NOVA: (Product, &str, &str) = (
    "nova",
    "restarts no guest: an instance whose QEMU has been gone for 15 s is stopped in its records, and what is started after that \
     without it is stopped again, at the latest after 10 minutes",
    "resets, of which nova takes no notice; with recovery.start_exited, starts at once",
);

/// masakari's instance monitor and engine (masakari/engine/instance_events.py; `StopInstanceTask` in
/// masakari/engine/drivers/taskflow/instance_failure.py).
const MASAKARI: (Product, &str, &str) = (
    "masakari",
    "where it is installed, and the instance has HA_Enabled or all are processed: one whose QEMU failed, or reported an I/O error, \
     is stopped and started through nova; a guest's panic or reset is nothing to it",
    "resets; leave a QEMU that ended to it, without recovery.start_exited",
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{LibvirtScope, command_line};

    /// From a report of a hang to qemu-devel, and a devstack of 2021, cut after what is read.
    const ON_NOVA: [&str; 2] = [
        "/usr/bin/qemu-system-x86_64 -name guest=instance-0034d494,debug-threads=on -S -object secret,id=masterKey0,format=raw,file=/var/lib/libvirt/qemu/domain-9-instance-0034d494/master-key.aes -uuid b959a460-84b0-4280-b851-96755027622b -smbios type=1,manufacturer=OpenStack\u{a0}Foundation,product=OpenStack\u{a0}Nova,version=14.1.1,serial=5b429103-2856-154f-1caf-5ffb5694cdc3,uuid=b959a460-84b0-4280-b851-96755027622b,family=Virtual\u{a0}Machine -chardev socket,id=charmonitor,fd=28,server,nowait -mon chardev=charmonitor,id=monitor,mode=control",
        "/usr/bin/qemu-system-x86_64 -name guest=instance-00000002,debug-threads=on -S -uuid 09461f0b-297b-4ef5-9053-dd369c86b96b -smbios type=1,manufacturer=OpenStack\u{a0}Foundation,product=OpenStack\u{a0}Nova,version=21.1.0,serial=09461f0b-297b-4ef5-9053-dd369c86b96b -chardev socket,id=charmonitor,fd=31,server,nowait",
    ];

    /// The traces of a command line, in which a space within an argument is written as one that doesn't break.
    fn told(line: &str) -> Told {
        let arguments: Vec<String> =
            line.split(' ').map(|argument| argument.replace('\u{a0}', " ")).collect();
        command_line::describe(&arguments).expect("a VM").traces
    }

    fn names(owner: Owner, openstack: Option<String>) -> Vec<Product> {
        let vm = Vm::stand_in(Ownership { owner, openstack, ..Ownership::bare() }, &[]);
        peers(&vm).iter().map(|peer| peer.name).collect()
    }

    fn domain() -> Owner {
        let text = |text: &str| text.to_owned();
        Owner::Libvirt { domain: text("web"), uuid: text("x"), scope: LibvirtScope::System }
    }

    #[test]
    fn an_instance_of_openstacks_is_told_by_its_product_and_by_its_name() {
        for line in ON_NOVA {
            let found = openstack(&told(line)).expect("nova's");
            assert!(found.contains("product=OpenStack Nova"), "{found}");
            let unnamed = line.replace("product=OpenStack\u{a0}Nova", "product=x");
            let found = openstack(&told(&unnamed)).expect("by its name");
            assert!(found.contains("instance-00"), "{found}");
            for other in ["guest=instance-0034d49", "guest=instance-0034D494", "guest=web"] {
                let (before, after) = unnamed.split_once("guest=").expect("a name");
                let rest = after.split_once(',').expect("more").1;
                let named = format!("{before}{other},{rest}");
                assert_eq!(openstack(&told(&named)), None, "{named}");
            }
        }
    }

    #[test]
    fn a_domain_of_novas_has_nova_and_perhaps_masakari_beside_libvirt() {
        assert_eq!(names(domain(), None), ["libvirt"]);
        assert_eq!(names(domain(), Some("so".to_owned())), ["libvirt", "nova", "masakari"]);
        // What only calls itself so is none.
        assert!(names(Owner::Bare, Some("so".to_owned())).is_empty());
    }

    #[test]
    fn each_owner_that_starts_vms_by_itself_is_a_peer_of_its_own() {
        let text = |text: &str| text.to_owned();
        let incus = |product| Owner::Incus { product, project: text("p"), instance: text("i") };
        for (owner, name) in [
            (Owner::KubeVirt { namespace: text("n"), name: text("v") }, "kubevirt"),
            (Owner::Kata { sandbox: text("s") }, "kubelet"),
            (incus("incus"), "incus"),
            (incus("lxd"), "lxd"),
            (Owner::Proxmox { vmid: 100 }, "pve-ha-lrm"),
            (Owner::Ganeti { instance: text("g") }, "ganeti-watcher"),
            (Owner::SystemdUnit { unit: text("u.service") }, "systemd"),
        ] {
            assert_eq!(names(owner, None), [name]);
        }
        assert!(names(Owner::Unclear { product: "x", why: text("y") }, None).is_empty());
    }
}
