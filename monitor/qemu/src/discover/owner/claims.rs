//! What each product leaves on the QEMUs that it starts. A function a product; each says where that stands in the
//! product's own source.

use std::path::Path;

use super::{LibvirtScope, Owner, Ownership, Traces, cgroup, cgroup::Groups, names};
use crate::discover::display_text;

/// An owner by `name`, or unclear, where that can't be used.
fn named(
    product: &'static str,
    owner: Result<Owner, String>,
    is_certain: bool,
    evidence: Vec<String>,
) -> Option<Ownership> {
    let owner = owner.unwrap_or_else(|why| Owner::Unclear { product, why });
    Some(Ownership { owner, is_certain, evidence, openstack: None })
}

fn in_group(path: &str) -> String {
    format!("it is in the control group {}", display_text(path))
}

fn told(option: &str, value: &str) -> String {
    format!("its command line says {option} {}", display_text(value))
}

/// The folder and the name of a file.
fn folder_of<'a>(path: &'a str, file: &str) -> Option<&'a str> {
    path.strip_suffix(file)?.strip_suffix('/')
}

/// Kata Containers names a QEMU `sandbox-ID`, with its pid file in `/run/vc/vm/ID` (`qemuConfig` in
/// src/runtime/virtcontainers/qemu.go; the same in src/runtime-rs/crates/hypervisor/src/qemu/cmdline_generator.rs),
/// as a child of `containerd-shim-kata-v2`, and puts it into `/kata_overhead/..` or `kata-overhead.slice`
/// (`resCtrlKataOverheadID` in sandbox.go; src/runtime-rs/crates/resource/src/cgroups/utils.rs). The name alone is
/// any user's to choose.
pub(super) fn kata(traces: &Traces, groups: &Groups<'_>) -> Option<Ownership> {
    let name = traces.told.name.as_deref()?;
    let sandbox = name.strip_prefix("sandbox-")?;
    let mut evidence = vec![told("-name", name)];
    let group = groups.find(|part| {
        (part == "kata_overhead" || part.starts_with("kata-overhead.slice")).then_some(())
    });
    let is_certain = group.is_some();
    evidence.extend(group.map(|((), path)| in_group(path)));
    let shim = traces.ancestors.iter().find(|(_, executable)| {
        executable.file_name().is_some_and(|name| name == "containerd-shim-kata-v2")
    });
    evidence.extend(shim.map(|(pid, executable)| {
        format!(
            "process {pid}, from which it comes, is {}",
            display_text(&executable.to_string_lossy())
        )
    }));
    let pidfile = traces.told.pidfile.as_deref();
    let pidfile = pidfile.filter(|path| {
        folder_of(path, "pid")
            .and_then(|folder| folder.strip_suffix(sandbox))
            .is_some_and(|vms| vms.ends_with("/vc/vm/"))
    });
    evidence.extend(pidfile.map(|path| told("-pidfile", path)));
    if evidence.len() < 2 {
        return None;
    }
    named(
        "Kata Containers",
        names::sandbox(sandbox).map(|sandbox| Owner::Kata { sandbox }),
        is_certain,
        evidence,
    )
}

/// KubeVirt runs libvirt in a pod: a control group below `kubepods` (pkg/virt-handler/cgroup/cgroup_test.go), a
/// command line as libvirt writes it, and a domain called `NAMESPACE_NAME` (`DomainFromNamespaceName` in
/// pkg/virt-launcher/virtwrap/util/libvirt_helper.go).
pub(super) fn kubevirt(traces: &Traces, groups: &Groups<'_>) -> Option<Ownership> {
    let ((), pod) = groups.find(|part| {
        (part == "kubepods" || part.starts_with("kubepods.slice") || part.starts_with("kubepods-"))
            .then_some(())
    })?;
    let name = traces.told.name.as_deref()?;
    if !traces.told.has_charmonitor {
        return None;
    }
    let mut evidence = vec![in_group(pod), told("-name", name)];
    let maker = traces.told.manufacturer.as_deref();
    evidence.extend(maker.map(|maker| told("-smbios manufacturer", maker)));
    let owner = name.split_once('_').ok_or_else(|| "its name has no namespace".to_owned());
    let owner = owner.and_then(|(namespace, name)| {
        Ok(Owner::KubeVirt {
            namespace: names::kubernetes(namespace)?,
            name: names::kubernetes(name)?,
        })
    });
    named("KubeVirt", owner, true, evidence)
}

/// libvirt calls its monitor `charmonitor` and hands its socket over as a descriptor (`qemuBuildMonitorCommandLine`
/// in src/qemu/qemu_command.c: `-chardev socket,id=charmonitor,fd=22,server=on,wait=off`), has a key in a folder of
/// the domain's (`-object secret,id=masterKey0,..,file=/var/lib/libvirt/qemu/domain-1-web/master-key.aes`), and puts
/// the QEMU into `/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator` (`virSystemdMakeScopeName` in
/// src/util/virsystemd.c), or, without systemd, into `/machine/qemu-1-web.libvirt-qemu`
/// (`virCgroupV1ValidateMachineGroup` in src/util/vircgroupv1.c). A user's libvirt (`qemu:///session`) has its
/// folders in the user's home, and no groups.
pub(super) fn libvirt(traces: &Traces, groups: &Groups<'_>) -> Option<Ownership> {
    let name = traces.told.name.as_deref();
    let machine = groups.find(machine_of);
    if !traces.told.has_charmonitor && machine.is_none() {
        return None;
    }
    let mut evidence: Vec<String> =
        machine.as_ref().map(|(_, path)| in_group(path)).into_iter().collect();
    if traces.told.has_charmonitor {
        evidence.push(told("-chardev", "socket,id=charmonitor"));
    }
    let key = traces.told.master_key.as_deref();
    evidence.extend(key.map(|key| told("-object secret,file=", key)));
    let scope = if machine.is_some() || key.is_some_and(|key| key.starts_with("/var/lib/libvirt/"))
    {
        LibvirtScope::System
    } else {
        LibvirtScope::Session
    };
    let owner = (|| {
        let domain = names::domain(name.ok_or("it has no name")?)?;
        if let Some((machine, _)) = &machine
            && !is_machine_of(machine, &domain)
        {
            return Err(format!("its group is that of {machine}, and not of {domain}"));
        }
        let uuid = traces.told.uuid.clone().ok_or("it has no UUID")?;
        Ok(Owner::Libvirt { domain, uuid, scope })
    })();
    named("libvirt", owner, machine.is_some(), evidence)
}

/// The machine's name in a part of a path, without the driver and the domain's id.
fn machine_of(part: &str) -> Option<String> {
    let machine = match part.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope")) {
        Some(escaped) => cgroup::unescape(escaped),
        None => part.trim_start_matches('_').strip_suffix(".libvirt-qemu")?.to_owned(),
    };
    let machine = machine.strip_prefix("qemu-")?;
    // Until 1.3 there was no id.
    let (id, name) = machine.split_once('-').unwrap_or(("", machine));
    let has_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    Some(if has_id { name } else { machine }.to_owned())
}

/// Whether libvirt calls the machine of `domain` so: only what a host name has is left of it, and no two dots
/// together, up to 64 bytes with what stands before (`virSystemdAppendValidMachineName`).
pub(super) fn is_machine_of(machine: &str, domain: &str) -> bool {
    let left = |text: &str| -> String {
        text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
    };
    let (machine, domain) = (left(machine), left(domain));
    // 64 bytes less `qemu-`, an id of at most ten digits, and its dash.
    machine == domain || machine.len() >= 64 - 16 && domain.starts_with(&machine)
}

/// Proxmox VE gives each VM a scope `VMID.scope` in `qemu.slice` (`enter_systemd_scope` in PVE/QemuServer.pm), and
/// its QEMU `-id VMID`, `-pidfile /var/run/qemu-server/VMID.pid` and a QMP socket beside that
/// (test/cfg2cmd/simple1.conf.cmd). Without the scope, any user can make up all that.
pub(super) fn proxmox(traces: &Traces, groups: &Groups<'_>) -> Option<Ownership> {
    let (number, path) = groups.of_host().find_map(|path| {
        let number =
            path.strip_prefix("/qemu.slice/")?.split('/').next()?.strip_suffix(".scope")?;
        Some((number, path))
    })?;
    let id = traces.told.id.as_deref();
    let mut evidence = vec![in_group(path)];
    evidence.extend(id.map(|id| told("-id", id)));
    let owner = names::vmid(number).and_then(|vmid| match id {
        Some(id) if id != number => {
            Err("its group and its command line name different VMs".to_owned())
        }
        _ => Ok(Owner::Proxmox { vmid }),
    });
    named("Proxmox VE", owner, true, evidence)
}

/// Ganeti keeps all in `/var/run/ganeti/kvm-hypervisor`: pid files `pid/NAME`, and monitors in `ctrl`
/// (`_InstancePidFile` and `_InstanceQmpMonitor` in lib/hypervisor/hv_kvm/__init__.py), with `-name NAME`.
pub(super) fn ganeti(traces: &Traces, _: &Groups<'_>) -> Option<Ownership> {
    let path = traces.told.pidfile.as_deref()?;
    let (folder, instance) = path.rsplit_once('/')?;
    if !folder.ends_with("/run/ganeti/kvm-hypervisor/pid")
        || traces.told.name.as_deref() != Some(instance)
    {
        return None;
    }
    let evidence = vec![told("-pidfile", path), told("-name", instance)];
    let owner = names::ganeti_instance(instance).map(|instance| Owner::Ganeti { instance });
    named("Ganeti", owner, false, evidence)
}

/// Incus has `-readconfig` and `-pidfile` in `/run/incus/PROJECT_NAME`, without the project where that is `default`
/// (`RunPath` in internal/server/instance/drivers/driver_common.go, `Instance` in internal/server/project/project.go),
/// with `-name NAME`; the monitor is in that file. LXD has the same in its log folder.
pub(super) fn incus(traces: &Traces, _: &Groups<'_>) -> Option<Ownership> {
    let (config, pidfile) = (traces.told.readconfig.as_deref()?, traces.told.pidfile.as_deref()?);
    let folder = folder_of(config, "qemu.conf")?;
    if folder_of(pidfile, "qemu.pid") != Some(folder) {
        return None;
    }
    let path = Path::new(folder);
    let within = |name: &str| path.iter().any(|part| part == name);
    let product = match (within("incus"), within("lxd")) {
        (true, _) => "incus",
        (false, true) => "lxd",
        (false, false) => return None,
    };
    let evidence = vec![told("-readconfig", config), told("-pidfile", pidfile)];
    let last = path.file_name()?.to_str()?;
    // An instance's name has no underscore, a project's may.
    let (project, instance) = last.rsplit_once('_').unwrap_or(("default", last));
    let owner = (|| {
        if traces.told.name.as_deref() != Some(instance) {
            return Err("its folder and its name differ".to_owned());
        }
        Ok(Owner::Incus {
            product,
            project: names::incus_project(project)?,
            instance: names::incus_instance(instance)?,
        })
    })();
    named("Incus", owner, false, evidence)
}

/// A service of which systemd itself started the process: it is in the service's group, and its parent is systemd, or was
/// until it went into the background. Whether it is the one that the service is about (`MainPID`) is asked before
/// anything is done to it.
pub(super) fn systemd(traces: &Traces, groups: &Groups<'_>) -> Option<Ownership> {
    let unit = groups.unit()?;
    let is_of_host = groups.of_host().any(|path| path.split('/').any(|part| part == unit));
    let (parent, _) = traces.ancestors.first()?;
    if *parent != 1 || !unit.ends_with(".service") || !is_of_host {
        return None;
    }
    let evidence = vec![in_group(unit), "its parent is process 1".to_owned()];
    named("systemd", names::unit(unit).map(|unit| Owner::SystemdUnit { unit }), true, evidence)
}

/// What else is known of one that no product claims.
pub(super) fn circumstances(traces: &Traces, groups: &Groups<'_>) -> Vec<String> {
    let parent = traces.ancestors.first().map(|(pid, executable)| {
        format!("its parent is process {pid}, {}", display_text(&executable.to_string_lossy()))
    });
    groups.unit().map(in_group).into_iter().chain(parent).collect()
}
