//! KVM's tracepoints: attached while some suspect is counted, and no longer.
//!
//! Which suspects are counted is said by the rows of the map `kvm`: one is put in for a suspect, and taken out again. The
//! links are not pinned: what is attached for the time of a suspicion must not outlive the daemon that
//! suspects. The programs are loaded at the first suspicion, so that they are at hand when its second round begins, and then
//! stay loaded; most daemons never have one.
//!
//! Measured on Linux 6.18 with six guests competing for two cores: attaching nine takes 2.2 ms, and so
//! does detaching them; loading, the first time, 0.2 s more. A tracepoint that a kernel doesn't have (other
//! processors have fewer) is no error: what it would have shown is not known then.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError},
    programs::{RawTracePoint, raw_trace_point::RawTracePointLink},
};
use monitor_ebpf::KvmRow;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{ProbeError, ProgramHealth, host::Loader, pins::Pins, slots::open};
use flatline_qemu::{discover::VmId, text::error_chain};

/// The programs, and the tracepoints that they hook into.
pub(crate) const PROGRAMS: [(&str, &str); 10] = [
    ("kvm_woken", "kvm_vcpu_wakeup"),
    ("kvm_entered", "kvm_entry"),
    ("kvm_injected", "kvm_inj_virq"),
    ("kvm_eoi", "kvm_eoi"),
    ("kvm_port", "kvm_pio"),
    ("kvm_memory", "kvm_mmio"),
    ("kvm_register", "kvm_msr"),
    ("kvm_left", "kvm_userspace_exit"),
    ("kvm_line", "kvm_set_irq"),
    ("kvm_waits", "kvm_wfx_arm64"),
];

/// Those among the tracepoints that every x86 KVM has, and no other (Linux 5.11 to 6.18).
pub(crate) const ONLY_X86: [&str; 4] = ["kvm_inj_virq", "kvm_eoi", "kvm_pio", "kvm_msr"];
/// The one that every arm64 KVM has, and no other (Linux 6.1 to 6.18).
pub(crate) const ONLY_ARM64: [&str; 1] = ["kvm_wfx_arm64"];

/// The tracepoints that a KVM of this architecture, by Rust's name for it, is expected to have.
pub(crate) fn expected(architecture: &str) -> Vec<&'static str> {
    let is_expected = |tracepoint: &&str| {
        (architecture == "x86_64" || !ONLY_X86.contains(tracepoint))
            && (architecture == "aarch64" || !ONLY_ARM64.contains(tracepoint))
    };
    PROGRAMS.into_iter().map(|(_, tracepoint)| tracepoint).filter(is_expected).collect()
}

/// Which of KVM's tracepoints are hooked into, and for which VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmHooks {
    /// Whether the programs are loaded.
    pub(crate) loaded: bool,
    /// Whether they are attached now.
    pub attached: bool,
    /// A row a program, with why it could not be attached; empty before the first time.
    pub health: Vec<ProgramHealth>,
    /// The VMs that are counted, each with a number that is another one whenever its counters began anew.
    pub counted: HashMap<VmId, u64>,
}

impl KvmHooks {
    /// Whether this tracepoint is counted now.
    pub(crate) fn sees(&self, tracepoint: &str) -> bool {
        let is_on = |row: &ProgramHealth| row.hook == tracepoint && row.failure.is_none();
        self.attached && self.health.iter().any(is_on)
    }

    /// Whether this is an arm64 KVM, as far as its tracepoints say.
    pub(crate) fn is_arm64(&self) -> bool {
        ONLY_ARM64.into_iter().all(|tracepoint| self.sees(tracepoint))
    }

    /// Whether any tracepoint is counted now.
    pub fn sees_any(&self) -> bool {
        self.attached && self.health.iter().any(|row| row.failure.is_none())
    }
}

/// The programs on KVM's tracepoints, and the rows that they count in.
pub(super) struct KvmPrograms {
    /// Loaded at the first use; of a program that failed to load, attaching fails as well.
    loaded: Option<Ebpf>,
    /// Dropped, a link detaches.
    links: Vec<RawTracePointLink>,
    rows: BpfHashMap<MapData, u32, KvmRow>,
    /// How often a VM began to be counted.
    begun: u64,
    hooks: watch::Sender<KvmHooks>,
}

impl KvmPrograms {
    /// Opens the pinned map, and empties it of what an earlier daemon left. Nothing is loaded so far. What becomes attached,
    /// the receiver tells.
    pub(super) fn open(pins: &Pins) -> Result<(Self, watch::Receiver<KvmHooks>), ProbeError> {
        let mut rows: BpfHashMap<MapData, u32, KvmRow> = open(pins, "kvm", Map::HashMap)?;
        let failed = |source| ProbeError::Map { map: "kvm", source };
        for pid in rows.keys().collect::<Result<Vec<_>, _>>().map_err(failed)? {
            rows.remove(&pid).map_err(failed)?;
        }
        let (hooks, receiver) = watch::channel(KvmHooks::default());
        Ok((Self { loaded: None, links: Vec::new(), rows, begun: 0, hooks }, receiver))
    }

    /// Loads the programs, unless that was done: it takes longer than all the rest.
    pub(super) fn load(&mut self, loader: &mut Loader) {
        if self.loaded.is_none() {
            // Why that failed is told where they are to be attached.
            self.loaded = loader.wants_kvm().then(|| load(loader).ok()).flatten();
            self.hooks.send_modify(|hooks| hooks.loaded = true);
        }
    }

    /// Has `wanted` counted, and no other VMs; of those that are counted already, the counters go on.
    pub(super) fn count(&mut self, loader: &mut Loader, wanted: &HashSet<VmId>) {
        let KvmHooks { attached, mut counted, .. } = self.hooks.borrow().clone();
        counted.retain(|vm, _| wanted.contains(vm) || self.take_out(*vm).is_err());
        for vm in wanted {
            if !counted.contains_key(vm) {
                match self.put_in(*vm) {
                    Ok(number) => drop(counted.insert(*vm, number)),
                    Err(error) => warn!("KVM cannot be asked about VM {vm}: {error}"),
                }
            }
        }
        let start = Instant::now();
        let wants_them = !counted.is_empty();
        let health = (wants_them && !attached).then(|| self.attach_all(loader));
        if attached && !wants_them {
            self.links.clear();
        }
        if attached != wants_them {
            let done = if wants_them { "attached to" } else { "detached from" };
            debug!("{done} KVM's tracepoints in {:?}", start.elapsed());
        }
        self.hooks.send_modify(|hooks| {
            hooks.attached = wants_them;
            hooks.counted = counted;
            if let Some(health) = health {
                hooks.health = health;
            }
        });
    }

    /// Begins to count a VM at zero; returns a number that no other has.
    fn put_in(&mut self, VmId { pid, start_ticks }: VmId) -> Result<u64, MapError> {
        self.rows.insert(pid, KvmRow { start_ticks, ..KvmRow::default() }, 0)?;
        self.begun += 1;
        Ok(self.begun)
    }

    fn take_out(&mut self, vm: VmId) -> Result<(), MapError> {
        self.rows.remove(&vm.pid).inspect_err(|error| debug!("VM {vm} is counted on: {error}"))
    }

    fn attach_all(&mut self, loader: &mut Loader) -> Vec<ProgramHealth> {
        let row =
            |(program, hook), failure| ProgramHealth { program, hook, required: false, failure };
        if !loader.wants_kvm() {
            let why = "not wanted (`probes.kvm_tracepoints`)";
            return PROGRAMS.map(|program| row(program, Some(why.to_owned()))).into();
        }
        let ebpf = match self.loaded.take().map_or_else(|| load(loader), Ok) {
            Ok(ebpf) => self.loaded.insert(ebpf),
            Err(error) => {
                let why = error_chain(&error);
                warn!("KVM cannot be asked about suspects: {why}");
                return PROGRAMS.map(|program| row(program, Some(why.clone()))).into();
            }
        };
        let links = &mut self.links;
        let health: Vec<_> = PROGRAMS
            .map(|(program, tracepoint)| {
                let attached = attach(ebpf, program, tracepoint).map(|link| links.push(link));
                row((program, tracepoint), attached.err().map(|error| error_chain(&error)))
            })
            .into();
        for row in health.iter().filter(|row| row.failure.is_some()) {
            debug!("{}: {:?}", row.hook, row.failure);
        }
        health
    }
}

/// Loads a copy of the object of which nothing but these programs is used; its maps are the pinned ones.
fn load(loader: &mut Loader) -> Result<Ebpf, ProbeError> {
    let mut ebpf = loader.load(0, 0)?;
    for (name, _) in PROGRAMS {
        if let Err(error) = program(&mut ebpf, name)?.load() {
            warn!("{}", error_chain(&ProbeError::program(name, error)));
        }
    }
    Ok(ebpf)
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<RawTracePointLink, ProbeError> {
    let failed = |source| ProbeError::Tracepoint { program: name, tracepoint, source };
    let program = program(ebpf, name)?;
    let id = program.attach(tracepoint).map_err(failed)?;
    program.take_link(id).map_err(failed)
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, ProbeError> {
    let program = ebpf.program_mut(name).ok_or(ProbeError::Incomplete(name))?;
    program.try_into().map_err(|source| ProbeError::program(name, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_has_tracepoints_of_its_own() {
        let (x86, arm64, other) = (expected("x86_64"), expected("aarch64"), expected("s390x"));
        assert_eq!((x86.len(), arm64.len(), other.len()), (9, 6, 5));
        assert!(x86.contains(&"kvm_eoi") && !arm64.contains(&"kvm_eoi"));
        assert!(arm64.contains(&"kvm_wfx_arm64") && !x86.contains(&"kvm_wfx_arm64"));
        assert!(other.contains(&"kvm_vcpu_wakeup"));
    }

    #[test]
    fn a_tracepoint_is_seen_only_while_attached_and_only_where_that_worked() {
        let row = |hook, failure: Option<&str>| ProgramHealth {
            program: "kvm_x",
            hook,
            required: false,
            failure: failure.map(str::to_owned),
        };
        let health = vec![row("kvm_pio", None), row("kvm_msr", Some("no such tracepoint"))];
        let mut hooks = KvmHooks { loaded: true, attached: true, health, counted: HashMap::new() };
        assert!(hooks.sees("kvm_pio") && hooks.sees_any());
        assert!(!hooks.sees("kvm_msr") && !hooks.sees("kvm_entry"));
        hooks.attached = false;
        assert!(!hooks.sees("kvm_pio") && !hooks.sees_any());
    }
}
