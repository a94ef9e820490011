//! The daemon's own affairs: where its files are, how its programs are attached, what it records and serves.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use toml::{Spanned, de::DeValue};

use super::{
    keys::keys,
    values::{Count, Directory, HOUR, Optional, Problem, Rule, Within, any, typed},
};

keys! {
    /// Where flatline keeps its files; every path is absolute.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Paths {
        /// incidents, recordings, holds and restart budgets
        paths.state_dir: PathBuf = "/var/lib/flatline", Directory;
        /// the control socket
        paths.runtime_dir: PathBuf = "/run/flatline", Directory;
        /// pinned maps and links
        paths.bpffs_dir: PathBuf = "/sys/fs/bpf/flatline", Directory;
    }
}

/// How the programs are attached to taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TapHook {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// tcx (Linux 6.6) or nothing.
    Tcx,
    /// A clsact queueing discipline with direct-action filters.
    Clsact,
}

/// How much the eBPF programs log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeLog {
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

keys! {
    /// How the eBPF programs are attached and how much they say.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Probes {
        /// or "tcx", "clsact"
        probes.tap_hook: TapHook = "auto", any::<TapHook>();
        /// what the eBPF programs log: or "error", "warn", "info", "debug", "trace"
        probes.log: ProbeLog = "off", any::<ProbeLog>();
        /// look at suspects through KVM's tracepoints; without them, through `query-stats` of QEMU 7.1 and newer
        probes.kvm_tracepoints: bool = true, any::<bool>();
        /// on SIGTERM, leave programs and counters to the next daemon
        probes.keep: bool = false, any::<bool>();
        /// VMs counted at most; 1 KiB each, whatever the number of CPUs
        probes.max_vms: u32 = 1024, MAP_SIZE;
        /// taps counted at most; the next power of two; without it, two for each VM
        probes.max_taps: Option<u32> = none like 2048, Optional(PowerOfTwo);
        /// requests of all VMs followed at the same time, at most; the next power of two; without it, eight for each VM
        probes.max_in_flight: Option<u32> = none like 8192, Optional(PowerOfTwo);
    }
}

/// Taps for each VM that is counted, where the configuration doesn't say how many there may be.
const TAPS_OF_VM: u32 = 2;
/// Likewise requests in flight.
const REQUESTS_OF_VM: u32 = 8;
/// Few VMs have room for as many requests as a store takes at a time.
const LEAST_REQUESTS: u32 = 4096;

impl Probes {
    /// Taps for which there is room: a power of two.
    pub(crate) fn taps(&self) -> u32 {
        self.max_taps.unwrap_or_else(|| self.room(TAPS_OF_VM))
    }

    /// Requests for which there is room: a power of two.
    pub(crate) fn requests(&self) -> u32 {
        self.max_in_flight.unwrap_or_else(|| self.room(REQUESTS_OF_VM).max(LEAST_REQUESTS))
    }

    /// So many for each VM.
    fn room(&self, of_vm: u32) -> u32 {
        self.max_vms.saturating_mul(of_vm).min(*MAP_SIZE.0.end()).next_power_of_two()
    }
}

/// Sizes of maps. Below the least, nothing would be saved.
const MAP_SIZE: Count = Count(16..=1 << 20);

/// The size of a map in which rows are found by masking.
struct PowerOfTwo;

impl Rule for PowerOfTwo {
    type Value = u32;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<u32, Problem> {
        MAP_SIZE.read(value).map(u32::next_power_of_two)
    }

    fn allowed(&self) -> String {
        MAP_SIZE.allowed()
    }
}

keys! {
    /// What is kept of what each VM showed, so that a decision can be looked at afterwards.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Recorder {
        /// what is kept of each VM's last time, in memory (up to 128 KiB a VM); "0s": nothing
        recorder.keep: Duration = "5m", Within(Duration::ZERO..=HOUR);
        /// or true: everything, to state_dir/recordings
        recorder.disk: bool = false, any::<bool>();
        /// MiB of all recordings there together; the user that has most gives up its oldest
        recorder.max_mib: u32 = 256, Count(1..=1 << 20);
    }
}

/// Which clients are served the evidence of incidents over HTTP: pictures of consoles, and what else was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EvidenceReaders {
    /// Sessions on a loopback address.
    Root,
    /// All sessions.
    All,
    /// None.
    Off,
}

keys! {
    /// Where figures are served to Prometheus, and the web page to people.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Metrics {
        /// /metrics for Prometheus, to every client that reaches that address; "off": none
        metrics.listen: Option<SocketAddr> = "127.0.0.1:9477", Listen;
        /// the web page is served at / as well, for browsers with a link of `flatline web`
        metrics.page: bool = true, any::<bool>();
        /// names by which clients may ask for these, besides addresses, localhost and this host's own name
        metrics.hosts: Vec<String> = [], HostNames;
        /// on it, pictures and texts of incidents: to sessions on a loopback address; "all": to all sessions; "off": not at all
        metrics.evidence: EvidenceReaders = "root", any::<EvidenceReaders>();
    }
}

/// An address with a port, or none.
struct Listen;

impl Rule for Listen {
    type Value = Option<SocketAddr>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Self::Value, Problem> {
        let listen = typed::<String>(value)?;
        if matches!(listen.get_ref().as_str(), "" | "off") {
            return Ok(None);
        }
        // Port 0 is any that is free, which no client would find.
        let address = listen.get_ref().parse().ok();
        let address = address.filter(|address: &SocketAddr| address.port() != 0);
        address.map(Some).ok_or_else(|| {
            let message =
                "not an address with a port, such as 127.0.0.1:9477 or [::1]:9477, nor \"off\"";
            Problem::at(&listen, message)
        })
    }

    fn allowed(&self) -> String {
        "an address with a port, or \"off\"".to_owned()
    }
}

/// Hosts' names alone, as they stand in a browser's address bar before the port.
struct HostNames;

impl Rule for HostNames {
    type Value = Vec<String>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Vec<String>, Problem> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name = |name: Spanned<String>| {
            if name.get_ref().is_empty() || !name.get_ref().chars().all(plain) {
                let message =
                    "not a host's name, such as \"hypervisor-1.example.org\", without a port";
                return Err(Problem::at(&name, message));
            }
            Ok(name.into_inner())
        };
        typed::<Vec<Spanned<String>>>(value)?.into_inner().into_iter().map(name).collect()
    }

    fn allowed(&self) -> String {
        "hosts' names without a port".to_owned()
    }
}
