//! What the operator configured, checked in full before anything starts.
//!
//! The file is parsed once into a raw form that mirrors the TOML (`raw`), and converted once into
//! the values here (`resolve`). A mistake is an error with file, line and key, an unknown key as
//! well: a misspelt `flat_fro` that silently left the default in force would restart guests on
//! terms that nobody chose. Limits that a value must keep are checked for the host and for every
//! `[[vm]]` rule, since a rule may change only one of two values that depend on each other.

mod actuation;
mod evidence;
mod executables;
mod notify;
mod passwd;
mod raw;
mod reload;
mod resolve;
mod terms;
#[cfg(test)]
mod tests;
mod values;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use evidence::{EvidencePolicy, RetentionConfig};
use flatline_detector::policy::{Mode, Policy, Storm};
use glob::Pattern;
use serde::Deserialize;

pub use actuation::{Actuator, ActuatorConfig, CommandUser, QmpTransport};
pub use notify::{Destination, Target};
pub use reload::Source;

use flatline_qemu::discover::Scope;
use notify::Secrets;

/// The file that is read when none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/flatline/flatline.toml";

/// How the programs are attached to taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TapHook {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// tcx (Linux 6.6) or nothing.
    Tcx,
    /// A clsact queueing discipline with direct-action filters.
    Clsact,
}

/// Whether the memory of crashed guests is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MemoryDump {
    Off,
    On,
}

/// How much the eBPF programs log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeLog {
    /// Nothing; the programs are loaded without their log calls taking effect.
    Off,
    /// Errors only.
    Error,
    /// Warnings and errors.
    Warn,
    /// Single events of note.
    Info,
    /// Decisions of the programs.
    Debug,
    /// Every event.
    Trace,
}

/// Where flatline keeps its files; every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Incidents, evidence, recordings and restart budgets: outlives the daemon and the host's restart.
    pub state_dir: PathBuf,
    /// The control socket.
    pub runtime_dir: PathBuf,
    /// Pinned maps and links; lies on a bpf file system.
    pub bpffs_dir: PathBuf,
}

/// Which processes are taken for QEMUs that may be managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Patterns of absolute paths; `*` does not cross a `/`. Never empty.
    pub executables: Vec<Pattern>,
    /// User ids whose QEMUs may be managed; empty: any.
    pub users: Vec<u32>,
}

impl Discovery {
    /// The same as discovery takes it, which has the one rule for what is in scope.
    pub fn scope(&self) -> Scope {
        Scope { executables: self.executables.clone(), users: self.users.clone() }
    }
}

/// How the eBPF programs are attached and how much they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes {
    /// How taps are hooked.
    pub tap_hook: TapHook,
    /// The programs' log level.
    pub log: ProbeLog,
    /// Whether programs and maps stay when the daemon is told to end, so that the next one counts on.
    pub keep: bool,
    /// VMs that are counted at most.
    pub max_vms: u32,
    /// Taps that are counted at most: a power of two.
    pub max_taps: u32,
    /// Requests of all VMs that are followed at the same time, at most: a power of two.
    pub max_in_flight: u32,
}

/// Where figures are served to Prometheus, and the web page to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address and port; `None`: nothing is served.
    pub listen: Option<SocketAddr>,
    /// Whether the page is served there as well.
    pub page: bool,
    /// Names by which browsers may ask for the page, besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Which clients are served the evidence of incidents there.
    pub evidence: EvidenceReaders,
}

/// Which clients are served the evidence of incidents over HTTP: pictures of consoles, and what else was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvidenceReaders {
    /// Sessions on a loopback address.
    Root,
    /// All sessions.
    All,
    /// None.
    Off,
}

/// What is kept of what each VM showed, so that a decision can be looked at afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorder {
    /// How much of a VM's last time is kept in memory; zero: nothing.
    pub keep: Duration,
    /// Whether everything is written to `state_dir/recordings` as well.
    pub disk: bool,
    /// The most that all recordings there may take together.
    pub max_mib: u32,
}

/// A `[[vm]]` table: the VMs that it is for, and what it changes for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRule {
    /// Pattern of VM names.
    pub pattern: Pattern,
    /// The complete terms of these VMs: the host's, with the rule's keys put over them.
    pub policy: Policy,
    /// The same for what is gathered of them.
    pub evidence_policy: EvidencePolicy,
    /// The means for these VMs, put together in the same way.
    pub actuation: ActuatorConfig,
    /// Time between two readings of these VMs' memory; zero: none.
    pub memory_every: Duration,
}

/// A complete, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The host's mode; a rule may set another one for its VMs.
    pub mode: Mode,
    /// Where files are kept.
    pub paths: Paths,
    /// Which processes are managed.
    pub discovery: Discovery,
    /// The eBPF programs.
    pub probes: Probes,
    /// When silence is the host's.
    pub storm: Storm,
    /// Restarts of all VMs of the host within a minute, at most; further ones wait.
    pub max_restarts_per_minute: u32,
    /// Time between two samples, the same for all VMs of the host.
    pub sample_interval: Duration,
    /// Time between two readings of the memory of a VM that no rule names; zero: none.
    pub memory_every: Duration,
    /// What is recorded.
    pub recorder: Recorder,
    /// What is served over HTTP.
    pub metrics: Metrics,
    /// Who is told of what happens: `[[tell]]` tables in the file's order.
    pub notify: Vec<Target>,
    /// The terms of VMs that no rule names.
    pub policy: Policy,
    /// What is gathered of those.
    pub evidence_policy: EvidencePolicy,
    /// How long evidence is kept, and where memory dumps go.
    pub retention: RetentionConfig,
    /// The means for them.
    pub actuation: ActuatorConfig,
    /// `[[vm]]` tables in the file's order.
    pub vms: Vec<VmRule>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{file}:{line}: {}{message}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
    Invalid {
        /// The file's name as it was given.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The key with its tables, such as `detection.flat_for` or `vm[0].mode`; empty where no
        /// key was read before the tear.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Config {
    /// Reads the configuration from `path`, which must exist, or from [`DEFAULT_FILE`]: if that
    /// is missing, everything has its default.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(path, Secrets::Read)
    }

    /// The same for a client of the daemon, who may read the file, and has neither need nor right to read secrets.
    pub fn load_without_secrets(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(path, Secrets::Leave)
    }

    fn read(path: Option<&Path>, secrets: Secrets) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                String::new()
            }
            Err(source) => {
                return Err(ConfigError::Read { path: file.to_owned(), source });
            }
        };
        Self::parse_with(&text, &file.to_string_lossy(), secrets)
    }

    /// Parses `text`; `file_name` is only for messages.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        Self::parse_with(text, file_name, Secrets::Read)
    }

    fn parse_with(text: &str, file_name: &str, secrets: Secrets) -> Result<Self, ConfigError> {
        resolve::parse(text, secrets).map_err(|problem| ConfigError::Invalid {
            file: file_name.to_owned(),
            line: raw::line_of(text, problem.offset),
            key: raw::key_at(text, problem.offset),
            message: problem.message,
        })
    }

    /// The terms for the VM called `vm_name`: those of the first rule that matches, else the
    /// host's.
    pub fn policy_for(&self, vm_name: &str) -> Policy {
        self.rule_for(vm_name).map_or(&self.policy, |rule| &rule.policy).clone()
    }

    /// What is gathered of the VM called `vm_name` when it crashed, by the same rule.
    pub fn evidence_policy_for(&self, vm_name: &str) -> EvidencePolicy {
        self.rule_for(vm_name).map_or(self.evidence_policy, |rule| rule.evidence_policy)
    }

    /// The means for the VM called `vm_name`, in the same way.
    pub fn actuation_for(&self, vm_name: &str) -> ActuatorConfig {
        self.rule_for(vm_name).map_or(&self.actuation, |rule| &rule.actuation).clone()
    }

    /// How often the memory of the VM called `vm_name` is read, in the same way; zero: never.
    pub fn memory_every_for(&self, vm_name: &str) -> Duration {
        self.rule_for(vm_name).map_or(self.memory_every, |rule| rule.memory_every)
    }

    fn rule_for(&self, vm_name: &str) -> Option<&VmRule> {
        self.vms.iter().find(|rule| rule.pattern.matches(vm_name))
    }
}
