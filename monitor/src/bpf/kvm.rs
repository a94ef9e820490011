//! KVM's tracepoints: attached while some VM is suspected, and no longer.
//!
//! Their links are not pinned: what is attached for the time of a suspicion must not outlive the daemon that
//! suspects. The programs are loaded at the first suspicion, since most daemons never have one, and then
//! stay loaded.
//!
//! Measured on Linux 6.18 with six guests competing for two cores: attaching all nine takes 2.2 ms, and so
//! does detaching them; loading, the first time, 0.2 s more. A tracepoint that a kernel doesn't have (other
//! processors have fewer) is no error: what it would have shown is not known then.

use std::time::Instant;

use aya::{
    Ebpf,
    programs::{RawTracePoint, raw_trace_point::RawTracePointLink},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{ProbeError, ProgramHealth, host::Loader};
use flatline_qemu::text::error_chain;

/// The programs, and the tracepoints that they hook into.
const PROGRAMS: [(&str, &str); 9] = [
    ("kvm_woken", "kvm_vcpu_wakeup"),
    ("kvm_entered", "kvm_entry"),
    ("kvm_injected", "kvm_inj_virq"),
    ("kvm_eoi", "kvm_eoi"),
    ("kvm_port", "kvm_pio"),
    ("kvm_memory", "kvm_mmio"),
    ("kvm_register", "kvm_msr"),
    ("kvm_left", "kvm_userspace_exit"),
    ("kvm_line", "kvm_set_irq"),
];

/// Which of KVM's tracepoints are hooked into, as of the last time that it was wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmHooks {
    /// Whether they are attached now.
    pub attached: bool,
    /// How often they were attached so far: what was counted before and after a gap can't be compared.
    pub times: u64,
    /// A row a program, with why it could not be attached; empty before the first time.
    pub health: Vec<ProgramHealth>,
}

impl KvmHooks {
    /// Whether this tracepoint is counted now.
    pub(crate) fn sees(&self, tracepoint: &str) -> bool {
        let is_on = |row: &ProgramHealth| row.hook == tracepoint && row.failure.is_none();
        self.attached && self.health.iter().any(is_on)
    }

    /// Whether any tracepoint is counted now.
    pub fn sees_any(&self) -> bool {
        self.attached && self.health.iter().any(|row| row.failure.is_none())
    }
}

/// The programs on KVM's tracepoints.
pub(super) struct KvmPrograms {
    /// Loaded at the first use; of a program that failed to load, attaching fails as well.
    loaded: Option<Ebpf>,
    /// Dropped, a link detaches.
    links: Vec<RawTracePointLink>,
    hooks: watch::Sender<KvmHooks>,
}

impl KvmPrograms {
    /// Nothing is loaded so far. What becomes attached, the receiver tells.
    pub(super) fn new() -> (Self, watch::Receiver<KvmHooks>) {
        let (hooks, receiver) = watch::channel(KvmHooks::default());
        (Self { loaded: None, links: Vec::new(), hooks }, receiver)
    }

    /// Attaches them, or detaches them, unless that is how they are.
    pub(super) fn set(&mut self, loader: &mut Loader, wanted: bool) {
        if self.hooks.borrow().attached == wanted {
            return;
        }
        let start = Instant::now();
        if wanted {
            let health = self.attach_all(loader);
            for row in health.iter().filter(|row| row.failure.is_some()) {
                debug!("{}: {:?}", row.hook, row.failure);
            }
            self.hooks.send_modify(|hooks| {
                *hooks = KvmHooks { attached: true, times: hooks.times + 1, health };
            });
        } else {
            self.links.clear();
            self.hooks.send_modify(|hooks| hooks.attached = false);
        }
        let done = if wanted { "attached to" } else { "detached from" };
        debug!("{done} KVM's tracepoints in {:?}", start.elapsed());
    }

    fn attach_all(&mut self, loader: &mut Loader) -> Vec<ProgramHealth> {
        let row =
            |(program, hook), failure| ProgramHealth { program, hook, required: false, failure };
        let ebpf = match self.loaded.take().map_or_else(|| load(loader), Ok) {
            Ok(ebpf) => self.loaded.insert(ebpf),
            Err(error) => {
                let why = error_chain(&error);
                warn!("KVM cannot be asked about suspects: {why}");
                return PROGRAMS.map(|program| row(program, Some(why.clone()))).into();
            }
        };
        let links = &mut self.links;
        PROGRAMS
            .map(|(program, tracepoint)| {
                let attached = attach(ebpf, program, tracepoint).map(|link| links.push(link));
                row((program, tracepoint), attached.err().map(|error| error_chain(&error)))
            })
            .into()
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
    fn a_tracepoint_is_seen_only_while_attached_and_only_where_that_worked() {
        let row = |hook, failure: Option<&str>| ProgramHealth {
            program: "kvm_x",
            hook,
            required: false,
            failure: failure.map(str::to_owned),
        };
        let health = vec![row("kvm_pio", None), row("kvm_msr", Some("no such tracepoint"))];
        let mut hooks = KvmHooks { attached: true, times: 1, health };
        assert!(hooks.sees("kvm_pio") && hooks.sees_any());
        assert!(!hooks.sees("kvm_msr") && !hooks.sees("kvm_entry"));
        hooks.attached = false;
        assert!(!hooks.sees("kvm_pio") && !hooks.sees_any());
    }
}
