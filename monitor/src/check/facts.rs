//! What texts and bytes of the kernel say; pure.

use super::Verdict;
use crate::config::TapHook;

/// A capability, and what it is for.
#[derive(Debug)]
pub(super) struct Capability {
    /// Its number (`include/uapi/linux/capability.h`).
    bit: u32,
    pub(super) name: &'static str,
    /// Whether the daemon cannot do without it.
    pub(super) required: bool,
    pub(super) purpose: &'static str,
    /// What is lost, by measurement.
    pub(super) without: &'static str,
}

const AS_THE_USER: &str =
    "command_user = \"vm\", and reading other users' console logs with no more than their rights";
const NOT_AS_THE_USER: &str =
    "no command is run as the VM's user, and no console log of another user's VM is read";

/// Those that the daemon uses. Its unit bounds it to them, but for those that another one [stands in for](stands_in_for).
pub(super) const CAPABILITIES: [Capability; 11] = [
    required(
        39,
        "CAP_BPF",
        "loading programs",
        "nothing, as long as CAP_SYS_ADMIN is held, which the kernel takes for it",
    ),
    required(
        38,
        "CAP_PERFMON",
        "programs on tracepoints",
        "nothing, as long as CAP_SYS_ADMIN is held, which the kernel takes for it",
    ),
    required(
        12,
        "CAP_NET_ADMIN",
        "programs on taps",
        "with clsact (before Linux 6.6), no tap is counted; with tcx, CAP_SYS_ADMIN is taken for it",
    ),
    required(
        13,
        "CAP_NET_RAW",
        "ARP and NDP probes",
        "no guest is asked by ARP or NDP, its best witnesses",
    ),
    required(
        19,
        "CAP_SYS_PTRACE",
        "files, namespaces and threads of other users' QEMUs",
        "VMs of other users are not found",
    ),
    required(
        21,
        "CAP_SYS_ADMIN",
        "entering network namespaces",
        "VMs with a tap in another network namespace are not found",
    ),
    required(
        2,
        "CAP_DAC_READ_SEARCH",
        "files in other users' directories",
        "nothing, as long as CAP_DAC_OVERRIDE is held, which is more",
    ),
    optional(
        1,
        "CAP_DAC_OVERRIDE",
        "QMP sockets of other users",
        "VMs of other users are not restarted, and without QMP hardly judged",
    ),
    optional(
        5,
        "CAP_KILL",
        "ending a command that runs as the VM's user, or a QEMU that hangs",
        "a command of command_user = \"vm\" that hangs goes on after its time",
    ),
    optional(6, "CAP_SETGID", AS_THE_USER, NOT_AS_THE_USER),
    optional(7, "CAP_SETUID", AS_THE_USER, NOT_AS_THE_USER),
];

const fn required(
    bit: u32,
    name: &'static str,
    purpose: &'static str,
    without: &'static str,
) -> Capability {
    Capability { bit, name, required: true, purpose, without }
}

const fn optional(
    bit: u32,
    name: &'static str,
    purpose: &'static str,
    without: &'static str,
) -> Capability {
    Capability { bit, name, required: false, purpose, without }
}

/// Major and minor number of a kernel's release such as `6.1.0-13-amd64`; `None` if it has none.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A set of capabilities in `/proc/PID/status`, by the begin of its line.
pub(super) fn capability_set(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The number of one that the kernel takes for `capability` as well: CAP_SYS_ADMIN for CAP_BPF and CAP_PERFMON (`bpf_capable` and
/// `perfmon_capable` in `capability.h`), CAP_DAC_OVERRIDE for CAP_DAC_READ_SEARCH (`generic_permission` in fs/namei.c).
pub(super) fn stands_in_for(capability: &Capability) -> Option<u32> {
    match capability.bit {
        38 | 39 => Some(21),
        2 => Some(1),
        _ => None,
    }
}

/// Whether `effective` has it, or one that stands in for it.
pub(super) fn is_granted(capability: &Capability, effective: u64) -> bool {
    let has = |bit: u32| effective >> bit & 1 == 1;
    has(capability.bit) || stands_in_for(capability).is_some_and(has)
}

/// Names of those that the daemon cannot do without, and that `effective` lacks.
pub(super) fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let missing =
        CAPABILITIES.iter().filter(|wanted| wanted.required && !is_granted(wanted, effective));
    missing.map(|capability| capability.name).collect()
}

/// Whether `/proc/self/uid_map` is that of the initial user namespace, which maps all ids.
pub(super) fn is_initial_uid_map(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether bytes begin as BTF does: `BTF_MAGIC`, in the byte order of this machine.
pub(super) fn has_btf_magic(btf: &[u8]) -> bool {
    btf.starts_with(&0xeb9f_u16.to_ne_bytes())
}

/// Whether the string section of `btf` holds `name`. Cheaper by far than parsing all types, and
/// as good for names that nothing but the type in question bears.
pub(super) fn has_btf_name(btf: &[u8], name: &str) -> bool {
    // The header (`include/uapi/linux/btf.h`): hdr_len at 4, str_off at 16, str_len at 20.
    let field = |at: usize| {
        let bytes = btf.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(bytes)).ok()
    };
    let strings = || {
        let start = field(4)?.checked_add(field(16)?)?;
        btf.get(start..start.checked_add(field(20)?)?)
    };
    let name = name.as_bytes();
    strings().is_some_and(|strings| strings.split(|byte| *byte == 0).any(|found| found == name))
}

/// Whether `/proc/PID/schedstat` holds the three figures, and a time that runs.
pub(super) fn has_run_time(schedstat: &str) -> bool {
    let figures =
        schedstat.split_whitespace().map(str::parse::<u64>).collect::<Result<Vec<_>, _>>();
    figures.is_ok_and(|figures| figures.len() == 3 && figures.first() != Some(&0))
}

/// Whether the kernel has clsact and its filters, from its lists of built-in and loadable modules, which a host may lack that loads
/// them from elsewhere, and of the loaded ones (`/proc/modules`); `None` if a list that could tell can't be read.
pub(super) fn has_clsact(
    builtin: Option<&str>,
    loadable: Option<&str>,
    loaded: &str,
) -> Option<bool> {
    let listed = |list: Option<&str>, module: &str| {
        let file = format!("/{module}.ko");
        list.is_some_and(|list| list.contains(&file))
    };
    let is_loaded =
        |module: &str| loaded.lines().any(|line| line.split(' ').next() == Some(module));
    let has = |module| is_loaded(module) || listed(builtin, module) || listed(loadable, module);
    match has("sch_ingress") && has("cls_bpf") {
        true => Some(true),
        false if builtin.is_some() && loadable.is_some() => Some(false),
        false => None,
    }
}

/// The verdict on the tap hook, from whether the kernel has tcx, and clsact where that matters.
pub(super) fn judge_tap_hook(
    wanted: TapHook,
    tcx: Option<bool>,
    clsact: impl FnOnce() -> Option<bool>,
) -> (Verdict, String) {
    let before = match (wanted, tcx) {
        (TapHook::Auto | TapHook::Tcx, Some(true)) => return (Verdict::Ok, "tcx".to_owned()),
        (TapHook::Tcx, Some(false)) => {
            let detail =
                "no tcx in this kernel; set probes.tap_hook to \"auto\" or use Linux 6.6 or newer";
            return (Verdict::Gap, detail.to_owned());
        }
        (TapHook::Tcx, None) => {
            return (Verdict::Unknown, "can't tell whether the kernel has tcx".to_owned());
        }
        (TapHook::Auto, Some(false)) => "no tcx; ",
        (TapHook::Auto, None) => "can't tell whether the kernel has tcx; ",
        (TapHook::Clsact, _) => "",
    };
    let remedy = "use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF";
    match clsact() {
        Some(true) => (Verdict::Ok, format!("{before}clsact")),
        Some(false) => (Verdict::Gap, format!("{before}no clsact; {remedy}")),
        None => (Verdict::Unknown, format!("{before}can't tell whether the kernel has clsact")),
    }
}
