//! What of the programs this kernel has no place for: what each reads of the kernel's structures, and KVM's tracepoints.

use std::fs;
use std::io;
use std::path::Path;

use super::{Item, Verdict, facts::has_btf_name, item};
use crate::bpf::{KernelTypesError, Offsets, expected_of_kvm};

/// The module's own types, where it is not built in.
const KVM_BTF: &str = "/sys/kernel/btf/kvm";

/// A part of the programs that the daemon does without where the kernel's structures are other ones.
struct Part {
    name: &'static str,
    needed_for: &'static str,
    without: &'static str,
}

const WRITEBACK: Part = Part {
    name: "pages written back",
    needed_for: "counting what guests write through the host's page cache (cache=writeback)",
    without: "such writes are not counted, and a stall of theirs is not seen; direct I/O is",
};
const THREADS: Part = Part {
    name: "threads' times",
    needed_for: "reading all vCPUs' time at once",
    without: "a file for each vCPU is read instead, which takes some 3 times as long",
};
const EXECUTABLE: Part = Part {
    name: "executables' inodes",
    needed_for: "passing over what is executed and is no QEMU",
    without: "the daemon looks at every program that is executed on this host",
};

/// One answer for all that nothing works without, and one for each part.
pub(super) fn structures() -> Vec<Item> {
    let offsets = Offsets::of_running_kernel();
    let of = |part: fn(&Offsets) -> &Result<(), KernelTypesError>| match &offsets {
        Ok(offsets) => part(offsets).as_ref().err(),
        Err(error) => Some(error),
    };
    let failure = offsets.as_ref().err();
    let mut items = vec![
        judge("kernel structures", true, "finding a request's owner, and its size", failure)
            .or_none("report this kernel's version to flatline's authors"),
    ];
    for (part, failure) in [
        (WRITEBACK, of(|offsets| &offsets.writeback)),
        (THREADS, of(|offsets| &offsets.threads)),
        (EXECUTABLE, of(|offsets| &offsets.executable)),
    ] {
        let remedy = "use a kernel that this version of flatline was tested on";
        let item = judge(part.name, false, part.needed_for, failure);
        items.push(item.or_else(part.without, remedy));
    }
    items
}

fn judge(name: &str, required: bool, needed_for: &str, failure: Option<&KernelTypesError>) -> Item {
    let (verdict, detail) = match failure {
        None => (Verdict::Ok, "in the kernel's BTF".to_owned()),
        Some(error) => (Verdict::Gap, error.to_string()),
    };
    item(name, required, verdict, detail, needed_for)
}

/// KVM's tracepoints, as far as the kernel or the module has them.
pub(super) fn kvm_tracepoints(kernel: Option<&[u8]>) -> Item {
    let (verdict, detail) =
        judge_kvm(kernel, fs::read(KVM_BTF), Path::new(super::guests::KVM).is_dir());
    item(
        "KVM tracepoints",
        false,
        verdict,
        detail,
        "seeing which interrupts a suspect's vCPUs take",
    )
    .or_else(
        "what such a tracepoint shows is not known; without any, KVM is no witness",
        "nothing, if another architecture's KVM has others, or no guest runs under KVM",
    )
}

/// The same, from the kernel's types, the module's, and whether KVM is there at all.
pub(super) fn judge_kvm(
    kernel: Option<&[u8]>,
    module: io::Result<Vec<u8>>,
    is_loaded: bool,
) -> (Verdict, String) {
    if !is_loaded {
        return (Verdict::Unknown, "KVM is not loaded".to_owned());
    }
    let module = match module {
        Ok(types) => types,
        // It is built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return (Verdict::Unknown, format!("can't read {KVM_BTF}: {error}")),
    };
    let lacks = |tracepoint: &&str| {
        let name = format!("btf_trace_{tracepoint}");
        !has_btf_name(&module, &name) && !kernel.is_some_and(|types| has_btf_name(types, &name))
    };
    let expected = expected_of_kvm(std::env::consts::ARCH);
    let all = expected.len();
    let missing = Vec::from_iter(expected.into_iter().filter(lacks));
    match missing.len() {
        0 => (Verdict::Ok, format!("all {all}")),
        count if count == all => (Verdict::Gap, format!("none of {all}")),
        count => {
            let names = missing.join(", ");
            (Verdict::Gap, format!("{} of {all}; this kernel has no {names}", all - count))
        }
    }
}
