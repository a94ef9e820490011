//! What the operator configured, checked in full before anything starts.
//!
//! Each key is declared once (`keys`), in the module of what it is about, and what it may be is a `Rule` (`values`). A
//! mistake is an error with file, line and key, an unknown key as well: a misspelt `flat_fro` that silently left the
//! default in force would restart guests on terms that weren't chosen. Limits that a value must keep are checked for the
//! host and for every `[[vm]]` rule, since a rule may change only one of two values that depend on each other.

mod keys;
mod values;

mod actuation;
mod detection;
mod discovery;
mod evidence;
mod notify;
pub(crate) mod passwd;
mod secret;
mod service;

mod manual;
mod parse;
mod place;
mod reload;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flatline_detector::policy::{Mode, Policy, Storm};
use glob::Pattern;

pub(crate) use actuation::{Actuator, ActuatorConfig, CommandUser, QmpTransport};
pub(crate) use discovery::Discovery;
pub(crate) use evidence::{EvidencePolicy, MemoryDump, RetentionConfig};
pub(crate) use manual::manual_page;
pub(crate) use notify::{Destination, Target};
pub(crate) use reload::Source;
pub(crate) use service::{EvidenceReaders, Metrics, Paths, ProbeLog, Probes, Recorder, TapHook};

use secret::Secrets;

/// The file that is read when none is named; it need not exist.
pub(crate) const DEFAULT_FILE: &str = "/etc/flatline/flatline.toml";

/// A `[[vm]]` table: the VMs that it is for, and what it changes for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmRule {
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

impl VmRule {
    /// Whether it is for the VM called `vm_name` of the user `uid`, where that is known.
    fn is_for(&self, vm_name: &str, uid: Option<u32>) -> bool {
        let users = &self.actuation.user;
        self.pattern.matches(vm_name)
            && (users.is_empty() || uid.is_none_or(|uid| users.contains(&uid)))
    }
}

/// A complete, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The host's mode; a rule may set another one for its VMs.
    pub(crate) mode: Mode,
    /// Where files are kept.
    pub(crate) paths: Paths,
    /// Which processes are managed.
    pub(crate) discovery: Discovery,
    /// The eBPF programs.
    pub(crate) probes: Probes,
    /// When silence is the host's.
    pub(crate) storm: Storm,
    /// Restarts of all VMs of the host within a minute, at most; further ones wait.
    pub(crate) max_restarts_per_minute: u32,
    /// Time between two samples, the same for all VMs of the host.
    pub(crate) sample_interval: Duration,
    /// Time between two readings of the memory of a VM that no rule names; zero: none.
    pub(crate) memory_every: Duration,
    /// What is recorded.
    pub(crate) recorder: Recorder,
    /// What is served over HTTP.
    pub(crate) metrics: Metrics,
    /// The receivers of notifications: `[[notify]]` tables in the file's order.
    pub(crate) notify: Vec<Target>,
    /// The terms of VMs that no rule names.
    pub(crate) policy: Policy,
    /// What is gathered of those.
    pub(crate) evidence_policy: EvidencePolicy,
    /// How long evidence is kept, and where memory dumps go.
    pub(crate) retention: RetentionConfig,
    /// The means for them.
    pub(crate) actuation: ActuatorConfig,
    /// `[[vm]]` tables in the file's order.
    pub(crate) vms: Vec<VmRule>,
    /// What in the file is taken, but should be written otherwise: a sentence each, with file and line.
    pub(crate) warnings: Vec<String>,
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
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(path, Secrets::Read)
    }

    /// The same for a client of the daemon, which may read the file, and has neither need nor right to read secrets.
    pub(crate) fn load_without_secrets(path: Option<&Path>) -> Result<Self, ConfigError> {
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
        parse::parse(text, file_name, secrets).map_err(|problem| ConfigError::Invalid {
            file: file_name.to_owned(),
            line: place::line_of(text, problem.offset),
            key: place::key_at(text, problem.offset),
            message: problem.message,
        })
    }

    /// The terms for the VM called `vm_name` of the user `uid`: those of the first rule that matches, else the host's.
    /// Where the user isn't known, as in a recording, a rule is taken whatever users it names.
    pub(crate) fn policy_for(&self, vm_name: &str, uid: impl Into<Option<u32>>) -> Policy {
        self.rule_for(vm_name, uid.into()).map_or(&self.policy, |rule| &rule.policy).clone()
    }

    /// What is gathered of the VM called `vm_name` of the user `uid` when it crashed, by the same rule.
    pub(crate) fn evidence_policy_for(&self, vm_name: &str, uid: u32) -> EvidencePolicy {
        self.rule_for(vm_name, Some(uid)).map_or(self.evidence_policy, |rule| rule.evidence_policy)
    }

    /// The means for the VM called `vm_name` of the user `uid`, in the same way.
    pub(crate) fn actuation_for(&self, vm_name: &str, uid: u32) -> ActuatorConfig {
        self.rule_for(vm_name, Some(uid)).map_or(&self.actuation, |rule| &rule.actuation).clone()
    }

    /// How often the memory of the VM called `vm_name` of the user `uid` is read, in the same way; zero: never.
    pub(crate) fn memory_every_for(&self, vm_name: &str, uid: u32) -> Duration {
        self.rule_for(vm_name, Some(uid)).map_or(self.memory_every, |rule| rule.memory_every)
    }

    fn rule_for(&self, vm_name: &str, uid: Option<u32>) -> Option<&VmRule> {
        self.vms.iter().find(|rule| rule.is_for(vm_name, uid))
    }
}
