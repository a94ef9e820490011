//! Command lines and groups as the products write them, and what may pose as them.

use std::path::PathBuf;

use super::{LibvirtScope, Owner, Ownership, Told, Traces, classify};
use crate::discover::{command_line, options};

const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";

/// In the form of libvirt's tests/qemuxmlconfdata/*.args, with the monitor as a descriptor, as in the field.
const LIBVIRT: &str = "/usr/bin/qemu-system-x86_64 -name guest=web-1,debug-threads=on -S -object {\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":\"/var/lib/libvirt/qemu/domain-1-web-1/master-key.aes\"} -machine pc,usb=off -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809 -no-user-config -nodefaults -chardev socket,id=charmonitor,fd=30,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control -no-shutdown";
/// From qemu-server's src/test/cfg2cmd/simple1.conf.cmd.
const PROXMOX: &str = "/usr/bin/kvm -id 8006 -name simple -no-shutdown -chardev socket,id=qmp,path=/var/run/qemu-server/8006.qmp,server=on,wait=off -mon chardev=qmp,mode=control -chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect-ms=5000 -mon chardev=qmp-event,mode=control -pidfile /var/run/qemu-server/8006.pid -daemonize -smbios type=1,uuid=7b10d7af-b932-4c66-b2c3-3996152ec465";
/// As `_GenerateKVMRuntime` and `_ExecuteKVMRuntime` of Ganeti's lib/hypervisor/hv_kvm put it together.
const GANETI: &str = "/usr/bin/kvm -name web.example.org,debug-threads=on -m 1024 -smp 1 -pidfile /var/run/ganeti/kvm-hypervisor/pid/web.example.org -device virtio-balloon -daemonize -monitor unix:/var/run/ganeti/kvm-hypervisor/ctrl/web.example.org.monitor,server,nowait -qmp unix:/var/run/ganeti/kvm-hypervisor/ctrl/web.example.org.qmp,server,nowait";
/// As `Start` of Incus' internal/server/instance/drivers/driver_qemu.go puts it together.
const INCUS: &str = "/opt/incus/bin/qemu-system-x86_64 -S -name v1 -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809 -daemonize -cpu host -nographic -serial chardev:console -qmp chardev:monitor -nodefaults -no-user-config -readconfig /run/incus/my_shop_v1/qemu.conf -pidfile /run/incus/my_shop_v1/qemu.pid -D /var/log/incus/my_shop_v1/qemu.log";
/// From KubeVirt's pkg/virt-launcher/virtwrap/util/libvirt_helper_test.go.
const KUBEVIRT: &str = "/usr/libexec/qemu-kvm -name guest=default_vmi-alpine-efi,debug-threads=on -S -object secret,id=masterKey0,format=raw,file=/var/lib/libvirt/qemu/domain-1-default_vmi-alpine-e/master-key.aes -uuid 5c6fa8f7-c3f6-4b3f-b596-d16ea3912302 -smbios type=1,manufacturer=KubeVirt,product=None,uuid=5c6fa8f7-c3f6-4b3f-b596-d16ea3912302,family=KubeVirt -chardev socket,id=charmonitor,fd=20,server,nowait -mon chardev=charmonitor,id=monitor,mode=control";
const POD: &str = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod08ff2263_5cf1_49f7_b3e7_80b6e0840fd5.slice/crio-1a5b9a1eb29e.scope\n";
/// As `qemuConfig` of Kata's src/runtime/virtcontainers/qemu.go has it.
const KATA: &str = "/opt/kata/bin/qemu-system-x86_64 -name sandbox-4ab1b2 -uuid c7a5fdbd-edaf-9455-926a-d65c16db1809 -machine q35,accel=kvm -qmp unix:fd=3,server=on,wait=off -pidfile /run/vc/vm/4ab1b2/pid";

fn told(line: &str) -> Told {
    let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
    command_line::describe(&arguments).expect("a VM").traces
}

fn traces(line: &str, cgroups: &str, ancestors: &[(u32, &str)]) -> Traces {
    let ancestors = ancestors.iter().map(|(pid, path)| (*pid, PathBuf::from(path))).collect();
    Traces { cgroups: cgroups.to_owned(), told: told(line), ancestors }
}

fn owned(line: &str, cgroups: &str) -> Ownership {
    classify(&traces(line, cgroups, &[(1, "/usr/lib/systemd/systemd")]))
}

fn libvirt(scope: LibvirtScope) -> Owner {
    Owner::Libvirt { domain: "web-1".to_owned(), uuid: UUID.to_owned(), scope }
}

#[test]
fn a_libvirt_domain_is_told_by_its_machine_in_either_version_of_groups() {
    for cgroups in [
        "0::/machine.slice/machine-qemu\\x2d1\\x2dweb\\x2d1.scope/libvirt/emulator\n",
        "9:cpu,cpuacct:/machine.slice/machine-qemu\\x2d1\\x2dweb\\x2d1.scope/emulator\n1:name=systemd:/machine.slice/machine-qemu\\x2d1\\x2dweb\\x2d1.scope\n",
        "4:memory:/machine/qemu-1-web-1.libvirt-qemu\n",
        "0::/shop.slice/machine-qemu\\x2d1\\x2dweb\\x2d1.scope/libvirt/emulator\n",
    ] {
        let found = owned(LIBVIRT, cgroups);
        assert_eq!(found.owner, libvirt(LibvirtScope::System), "{cgroups}");
        assert!(found.is_certain, "{cgroups}");
        assert!(found.evidence[0].contains("qemu"), "{:?}", found.evidence);
    }
}

#[test]
fn a_libvirt_domain_without_a_group_is_only_claimed() {
    let found = owned(LIBVIRT, "0::/\n");
    assert_eq!(found.owner, libvirt(LibvirtScope::System));
    assert!(!found.is_certain);
    let users = LIBVIRT.replace("/var/lib/libvirt/", "/home/u/.config/libvirt/");
    let group = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/virtqemud.service\n";
    let found = owned(&users, group);
    assert_eq!(found.owner, libvirt(LibvirtScope::Session));
    assert!(!found.is_certain);
}

#[test]
fn a_qemu_that_says_that_it_is_another_domain_than_its_group_says_is_unclear() {
    let group = "0::/machine.slice/machine-qemu\\x2d1\\x2dweb\\x2d1.scope/libvirt/emulator\n";
    let found = owned(&LIBVIRT.replace("guest=web-1", "guest=db-1"), group);
    assert!(matches!(found.owner, Owner::Unclear { product: "libvirt", .. }), "{found:?}");
    for odd in ["guest=web-1/..", "guest=-c", "guest=web\u{202e}1"] {
        let found = owned(&LIBVIRT.replace("guest=web-1", odd), "0::/\n");
        assert!(matches!(found.owner, Owner::Unclear { .. }), "{odd}: {found:?}");
    }
}

#[test]
fn a_machine_keeps_of_a_domains_name_what_a_host_name_may_have() {
    for (domain, machine) in [("web 1_x", "web1x"), ("a..b", "a.b"), ("Größe", "Gre")] {
        assert!(super::claims::is_machine_of(machine, domain), "{domain}");
    }
    let long = "x".repeat(80);
    assert!(super::claims::is_machine_of(&long[..57], &long));
    assert!(!super::claims::is_machine_of("web", "web-2"));
    assert!(!super::claims::is_machine_of("", "web"));
}

#[test]
fn a_proxmox_vm_is_told_by_its_scope_and_never_by_its_command_line_alone() {
    let found = owned(PROXMOX, "0::/qemu.slice/8006.scope\n");
    assert_eq!(found.owner, Owner::Proxmox { vmid: 8006 });
    assert!(found.is_certain);
    let old = "5:devices:/qemu.slice\n1:name=systemd:/qemu.slice/8006.scope\n0::/\n";
    assert_eq!(owned(PROXMOX, old).owner, Owner::Proxmox { vmid: 8006 });
    for pose in [
        "0::/user.slice/user-1000.slice/user@1000.service/qemu.slice/8006.scope\n",
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/system.slice/docker-1.scope/qemu.slice/8006.scope\n",
        "0::/\n",
    ] {
        assert_eq!(owned(PROXMOX, pose).owner, Owner::Bare, "{pose}");
    }
}

#[test]
fn a_proxmox_scope_with_an_odd_number_or_that_of_another_vm_is_unclear() {
    for scope in ["8007", "08006", "99", "1000000000", "-1", "web"] {
        let found = owned(PROXMOX, &format!("0::/qemu.slice/{scope}.scope\n"));
        assert!(matches!(found.owner, Owner::Unclear { .. }), "{scope}: {found:?}");
    }
}

#[test]
fn a_ganeti_instance_is_told_by_its_pid_file_and_its_name_together() {
    let found = owned(GANETI, "0::/system.slice/ganeti-noded.service\n");
    assert_eq!(found.owner, Owner::Ganeti { instance: "web.example.org".to_owned() });
    let found = owned(&GANETI.replace("-name web", "-name db"), "0::/\n");
    assert_eq!(found.owner, Owner::Bare);
}

#[test]
fn an_incus_instance_is_told_by_its_folder_with_its_project() {
    let instance = |product, project: &str| Owner::Incus {
        product,
        project: project.to_owned(),
        instance: "v1".to_owned(),
    };
    assert_eq!(owned(INCUS, "0::/\n").owner, instance("incus", "my_shop"));
    let default = INCUS.replace("my_shop_v1", "v1");
    assert_eq!(owned(&default, "0::/\n").owner, instance("incus", "default"));
    let lxd = default.replace("/run/incus", "/var/snap/lxd/common/lxd/logs");
    assert_eq!(owned(&lxd, "0::/\n").owner, instance("lxd", "default"));
    let found = owned(&INCUS.replace("-name v1", "-name v2"), "0::/\n");
    assert!(matches!(found.owner, Owner::Unclear { product: "Incus", .. }), "{found:?}");
}

#[test]
fn libvirt_in_a_pod_is_kubevirt() {
    let found = owned(KUBEVIRT, POD);
    let expected =
        Owner::KubeVirt { namespace: "default".to_owned(), name: "vmi-alpine-efi".to_owned() };
    assert_eq!(found.owner, expected);
    assert!(found.is_certain);
    let found = owned(&KUBEVIRT.replace("default_vmi", "vmi"), POD);
    assert!(matches!(found.owner, Owner::Unclear { product: "KubeVirt", .. }), "{found:?}");
}

#[test]
fn a_kata_sandbox_needs_more_than_its_name() {
    let kata = Owner::Kata { sandbox: "4ab1b2".to_owned() };
    assert_eq!(owned(KATA, "0::/\n").owner, kata);
    let named = KATA.replace(" -pidfile /run/vc/vm/4ab1b2/pid", "");
    assert_eq!(owned(&named, "0::/\n").owner, Owner::Bare);
    let shim = [(77, "/opt/kata/bin/containerd-shim-kata-v2"), (1, "/sbin/init")];
    assert_eq!(classify(&traces(&named, POD, &shim)).owner, kata);
    let found = owned(&named, "0::/kata_overhead/4ab1b2\n");
    assert_eq!((found.owner, found.is_certain), (kata, true));
}

#[test]
fn a_service_is_told_where_systemd_is_the_parent_and_never_where_a_user_has_it() {
    let line = "/usr/bin/qemu-system-x86_64 -name web -qmp unix:/run/web.qmp,server=on";
    let unit = |name: &str| Owner::SystemdUnit { unit: name.to_owned() };
    let group = "0::/system.slice/system-qemu.slice/qemu@web\\x2d1.service\n";
    assert_eq!(owned(line, group).owner, unit("qemu@web\\x2d1.service"));
    let script = [(300, "/usr/bin/bash"), (1, "/usr/lib/systemd/systemd")];
    let found = classify(&traces(line, group, &script));
    assert_eq!(found.owner, Owner::Bare);
    assert_eq!(found.evidence.len(), 2, "{found:?}");
    for other in [
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n",
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/system.slice/docker-4f5e.scope\n",
        "0::/\n",
        "",
    ] {
        assert_eq!(owned(line, other).owner, Owner::Bare, "{other}");
    }
    for odd in ["0::/system.slice/a b.service\n", "0::/system.slice/-x.service\n"] {
        assert!(matches!(owned(line, odd).owner, Owner::Unclear { .. }), "{odd}");
    }
}

#[test]
fn a_name_reads_the_same_whatever_stands_beside_it() {
    let told = |value: &str| {
        let arguments = ["qemu", "-name", value].map(str::to_owned);
        command_line::describe(&arguments).expect("a VM").traces.name
    };
    assert_eq!(told("web,debug-threads=on").as_deref(), Some("web"));
    assert_eq!(told("process=q,guest=we,,b").as_deref(), Some("we,b"));
    assert_eq!(told("process=q"), None);
}

#[test]
fn no_name_that_is_kept_looks_like_an_option_or_has_what_a_shell_would_read() {
    use super::names;
    let hostile =
        ["-c", "--config", "a;b", "a b", "a\nb", "a/b", "$(x)", "a'b", "", "a\0b", "*", "é"];
    for text in hostile {
        assert!(names::unit(&format!("{text}.service")).is_err(), "{text}");
        assert!(names::vmid(text).is_err(), "{text}");
        for name in [
            names::ganeti_instance,
            names::incus_instance,
            names::incus_project,
            names::kubernetes,
            names::sandbox,
        ] {
            assert!(name(text).is_err(), "{text}");
        }
    }
    assert!(names::domain("-c").is_err() && names::domain("a/b").is_err());
    assert!(names::domain("a\nb").is_err() && names::domain("").is_err());
    assert_eq!(names::domain("Windows 10").as_deref(), Ok("Windows 10"));
    assert!(names::sandbox(&"x".repeat(256)).is_err());
}

#[test]
fn a_command_line_that_ends_early_has_no_traces() {
    let arguments = options::split_arguments(b"qemu\0-name");
    let found = command_line::describe(&arguments).expect("a VM");
    assert_eq!(found.traces, Told::default());
}
