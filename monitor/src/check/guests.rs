//! What guests have that are there now: KVM, and a QMP socket.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::path::Path;

use super::{Item, Verdict, item};
use crate::config::Config;
use flatline_qemu::discover::{self, Owner, Passed};

/// The module's directory, also where it is built in.
pub(super) const KVM: &str = "/sys/module/kvm";

/// Names that are listed at most.
const NAMED: usize = 5;

/// The tracepoints of a suspect's vCPUs come with it.
pub(super) fn kvm() -> Item {
    let (verdict, detail) = if Path::new(KVM).is_dir() {
        (Verdict::Ok, "loaded")
    } else {
        (Verdict::Gap, "not loaded; load kvm_intel or kvm_amd")
    };
    item("KVM", false, verdict, detail, "seeing which interrupts a suspect's vCPUs take").or_else(
        "guests run under TCG, and are judged without what their vCPUs take",
        "load kvm_intel or kvm_amd; in a VM, have its host allow nested virtualization",
    )
}

/// Whether QEMUs run that no pattern of the configuration is about.
pub(super) fn elsewhere(config: &Config) -> Item {
    let found = Vec::from_iter(discover::strangers(&config.discovery.scope()));
    let verdict = if found.is_empty() { Verdict::Ok } else { Verdict::Gap };
    let names = named(&found);
    let detail = match found.len() {
        0 => "none runs".to_owned(),
        1 => format!("{names} runs, and is not looked at"),
        _ => format!("{names} run, and are not looked at"),
    };
    item("QEMU elsewhere", false, verdict, detail, "missing no VM").or_else(
        "its guests are not seen at all",
        "if it is one of yours, add it to the list: discovery.executables",
    )
}

/// Whether the QEMUs that run have a QMP socket.
pub(super) fn qmp(config: &Config) -> Item {
    let mut vms = Vec::new();
    let (scope, passed) = (config.discovery.scope(), &mut Passed::default());
    discover::sweep(&scope, &HashSet::new(), passed, &mut |found| vms.extend(found));
    // libvirt's are reached through virsh.
    let reached = |vm: &&discover::Vm| {
        !vm.qmp_sockets.is_empty() || matches!(vm.ownership.owner, Owner::Libvirt { .. })
    };
    let lacking: Vec<_> = vms.iter().filter(|vm| !reached(vm)).map(|vm| vm.name.as_str()).collect();
    let (verdict, detail) = judge_qmp(vms.len(), &lacking);
    item("QMP", false, verdict, detail, "restarting guests, and asking for their registers")
        .or_else(
            "such a guest is watched, and restarted by its owner's means alone",
            "start it with -qmp unix:/run/vm/NAME.flatline.qmp,server=on,wait=off",
        )
}

/// The verdict, from how many VMs there are and the names of those that have none.
pub(super) fn judge_qmp(vms: usize, lacking: &[&str]) -> (Verdict, String) {
    match (vms, lacking.len()) {
        (0, _) => (Verdict::Unknown, "no QEMU runs now that could be looked at".to_owned()),
        (vms, 0) => (Verdict::Ok, format!("{vms} of {vms} QEMUs have a socket")),
        (vms, count) => {
            let names = named(lacking);
            (Verdict::Gap, format!("{count} of {vms} QEMUs have no socket: {names}"))
        }
    }
}

/// The first names of a list, and whether there are more.
fn named<T: Borrow<str>>(names: &[T]) -> String {
    let first = names.get(..NAMED).unwrap_or(names).join(", ");
    if names.len() > NAMED { first + " and more" } else { first }
}
