//! The configuration as it stands in the file: every key optional, every value with its place.
//!
//! Values keep their span, so that a value which is well-formed TOML but wrong gets the same kind
//! of message as one that is not. The key of a place is looked up in the parsed document rather
//! than carried beside each value: this also names the key for errors that serde finds.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::notify::Table;
use super::{
    Actuator, CommandUser, EvidenceReaders, MemoryDump, Mode, ProbeLog, QmpTransport, TapHook,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) mode: Option<Mode>,
    #[serde(default)]
    pub(super) paths: Paths,
    #[serde(default)]
    pub(super) discovery: Discovery,
    #[serde(default)]
    pub(super) probes: Probes,
    #[serde(default)]
    pub(super) detection: Detection,
    #[serde(default)]
    pub(super) recovery: Recovery,
    #[serde(default)]
    pub(super) recorder: Recorder,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) tell: Vec<Spanned<Table>>,
    #[serde(default)]
    pub(super) vm: Vec<Spanned<Vm>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paths {
    pub(super) state_dir: Option<Spanned<PathBuf>>,
    pub(super) runtime_dir: Option<Spanned<PathBuf>>,
    pub(super) bpffs_dir: Option<Spanned<PathBuf>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discovery {
    pub(super) executables: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) users: Option<Vec<Spanned<User>>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a user's name or number")]
pub(super) enum User {
    Id(i64),
    Name(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probes {
    pub(super) tap_hook: Option<TapHook>,
    pub(super) log: Option<ProbeLog>,
    pub(super) keep: Option<bool>,
    pub(super) max_vms: Option<Spanned<i64>>,
    pub(super) max_taps: Option<Spanned<i64>>,
    pub(super) max_in_flight: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Detection {
    pub(super) sample_interval: Option<Spanned<String>>,
    pub(super) flat_for: Option<Spanned<String>>,
    pub(super) unconfirmed_flat_for: Option<Spanned<String>>,
    pub(super) unresponsive_for: Option<Spanned<String>>,
    pub(super) heartbeat_lost_after: Option<Spanned<String>>,
    pub(super) boot_grace: Option<Spanned<String>>,
    pub(super) boot_loop_resets: Option<Spanned<i64>>,
    pub(super) boot_loop_window: Option<Spanned<String>>,
    pub(super) storm_vms: Option<Spanned<i64>>,
    pub(super) storm_share: Option<Spanned<f64>>,
    pub(super) memory_every: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recovery {
    pub(super) actuator: Option<Spanned<Actuator>>,
    pub(super) command: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) command_user: Option<CommandUser>,
    pub(super) command_limit: Option<Spanned<String>>,
    pub(super) power_cycle_after: Option<Spanned<i64>>,
    pub(super) start_exited: Option<bool>,
    pub(super) qmp: Option<QmpTransport>,
    pub(super) libvirt_uri: Option<Spanned<String>>,
    pub(super) max_restarts: Option<Spanned<i64>>,
    pub(super) window: Option<Spanned<String>>,
    pub(super) evidence_limit: Option<Spanned<String>>,
    pub(super) evidence_keep: Option<Spanned<String>>,
    pub(super) evidence_max_mib: Option<Spanned<i64>>,
    pub(super) memory_dump: Option<MemoryDump>,
    pub(super) memory_dump_limit: Option<Spanned<String>>,
    pub(super) inject_nmi: Option<Spanned<String>>,
    pub(super) memory_dump_dir: Option<Spanned<PathBuf>>,
    pub(super) memory_dump_quota_mib: Option<Spanned<i64>>,
    pub(super) pause: Option<Spanned<String>>,
    pub(super) restart_without_heartbeat: Option<bool>,
    pub(super) max_restarts_per_minute: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recorder {
    pub(super) keep: Option<Spanned<String>>,
    pub(super) disk: Option<bool>,
    pub(super) max_mib: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<Spanned<String>>,
    pub(super) page: Option<bool>,
    pub(super) hosts: Option<Vec<Spanned<String>>>,
    pub(super) evidence: Option<EvidenceReaders>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vm {
    pub(super) r#match: Option<Spanned<String>>,
    pub(super) mode: Option<Mode>,
    pub(super) actuator: Option<Spanned<Actuator>>,
    pub(super) command: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) command_user: Option<CommandUser>,
    pub(super) command_limit: Option<Spanned<String>>,
    pub(super) power_cycle_after: Option<Spanned<i64>>,
    pub(super) start_exited: Option<bool>,
    pub(super) qmp: Option<QmpTransport>,
    pub(super) libvirt_uri: Option<Spanned<String>>,
    // Known, so that it can be refused with its reason instead of as an unknown key.
    pub(super) sample_interval: Option<Spanned<toml::Value>>,
    pub(super) storm_vms: Option<Spanned<toml::Value>>,
    pub(super) storm_share: Option<Spanned<toml::Value>>,
    pub(super) flat_for: Option<Spanned<String>>,
    pub(super) unconfirmed_flat_for: Option<Spanned<String>>,
    pub(super) unresponsive_for: Option<Spanned<String>>,
    pub(super) heartbeat_lost_after: Option<Spanned<String>>,
    pub(super) boot_grace: Option<Spanned<String>>,
    pub(super) boot_loop_resets: Option<Spanned<i64>>,
    pub(super) boot_loop_window: Option<Spanned<String>>,
    pub(super) memory_every: Option<Spanned<String>>,
    pub(super) max_restarts: Option<Spanned<i64>>,
    pub(super) window: Option<Spanned<String>>,
    pub(super) evidence_limit: Option<Spanned<String>>,
    pub(super) memory_dump: Option<MemoryDump>,
    pub(super) memory_dump_limit: Option<Spanned<String>>,
    pub(super) inject_nmi: Option<Spanned<String>>,
    // As with `sample_interval`.
    pub(super) evidence_keep: Option<Spanned<toml::Value>>,
    pub(super) evidence_max_mib: Option<Spanned<toml::Value>>,
    pub(super) memory_dump_dir: Option<Spanned<toml::Value>>,
    pub(super) memory_dump_quota_mib: Option<Spanned<toml::Value>>,
    pub(super) pause: Option<Spanned<String>>,
    pub(super) restart_without_heartbeat: Option<bool>,
    // Known, so that it can be refused with its reason.
    pub(super) max_restarts_per_minute: Option<Spanned<toml::Value>>,
}

/// The line of the byte `offset`, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The key, with the tables around it, whose name or value covers the byte `offset`; empty if
/// there is none.
pub(super) fn key_at(text: &str, offset: usize) -> String {
    // Of a torn file, what could be read names the key before the tear, on the same line.
    let (table, _) = DeTable::parse_recoverable(text);
    let line = text.get(..offset).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    (line..=offset).rev().find_map(|at| in_table(table.get_ref(), at)).unwrap_or_default()
}

fn in_table(table: &DeTable<'_>, offset: usize) -> Option<String> {
    // A deeper key first: the span of a table covers its header only, or all of its values.
    let deeper = table.iter().find_map(|(key, value)| {
        let below = match value.get_ref() {
            DeValue::Table(table) => format!(".{}", in_table(table, offset)?),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let inner = match item.get_ref() {
                    DeValue::Table(table) => in_table(table, offset).map(|key| format!(".{key}")),
                    _ => None,
                };
                let here = item.span().contains(&offset).then(String::new);
                inner.or(here).map(|rest| format!("[{index}]{rest}"))
            })?,
            _ => return None,
        };
        Some(format!("{}{below}", key.get_ref()))
    });
    deeper.or_else(|| {
        table.iter().find_map(|(key, value)| {
            let covers = key.span().contains(&offset) || value.span().contains(&offset);
            covers.then(|| key.get_ref().to_string())
        })
    })
}
