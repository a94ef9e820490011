//! The same requests as the daemon, QEMU and the kernel count them.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, guest::Guest, interrupt};
use serde_json::Value;

use super::machine::DISK;
use crate::{
    counts::{SAMPLE_AGE, SETTLE_LIMIT},
    rig::{vm, wait_for_vm},
};

/// What the daemon shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) read_ops: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_ops: u64,
    pub(crate) write_bytes: u64,
    pub(crate) writeback_ops: u64,
    pub(crate) writeback_bytes: u64,
    pub(crate) flush_ops: u64,
    pub(crate) discard_ops: u64,
    pub(crate) discard_bytes: u64,
    pub(crate) completed_ops: u64,
    pub(crate) failed_ops: u64,
    pub(crate) in_flight: u64,
}

/// What `query-blockstats` says of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfQemu {
    /// Without those that were merged with others: they went down as one.
    pub(crate) read_ops: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_ops: u64,
    pub(crate) write_bytes: u64,
    pub(crate) failed_ops: u64,
}

/// What the kernel charges the process with: what it read from devices, and what it wrote or dirtied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charged {
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
}

impl Shown {
    fn parse(storage: &Value) -> Result<Self> {
        let figure = |name: &str| figure(storage, name);
        Ok(Self {
            read_ops: figure("read_ops")?,
            read_bytes: figure("read_bytes")?,
            write_ops: figure("write_ops")?,
            write_bytes: figure("write_bytes")?,
            writeback_ops: figure("writeback_ops")?,
            writeback_bytes: figure("writeback_bytes")?,
            flush_ops: figure("flush_ops")?,
            discard_ops: figure("discard_ops")?,
            discard_bytes: figure("discard_bytes")?,
            completed_ops: figure("completed_ops")?,
            failed_ops: figure("failed_ops")?,
            in_flight: figure("in_flight")?,
        })
    }

    /// As it is shown now, which may be a second old.
    pub(crate) fn now(daemon: &Daemon, guest: &Guest) -> Result<Self> {
        Self::parse(&vm(daemon, guest.name())?["storage"])
    }

    /// Of each guest, once all are found and counted.
    pub(crate) fn first(daemon: &Daemon, guests: &[Guest]) -> Result<Vec<Self>> {
        let counted = |row: &Value| row["storage"].is_object();
        let first = |guest: &Guest| {
            let row = wait_for_vm(daemon, guest.name(), "its row is read", SETTLE_LIMIT, counted)?;
            Self::parse(&row["storage"])
        };
        guests.iter().map(first).collect()
    }

    /// Of each guest, once nothing moves for longer than a sample's age and nothing is in flight.
    pub(crate) fn quiet(daemon: &Daemon, guests: &[Guest]) -> Result<Vec<Self>> {
        let mut before = Vec::new();
        interrupt::wait_until("quiet storage", SETTLE_LIMIT, || {
            if !before.is_empty() {
                interrupt::sleep(SAMPLE_AGE)?;
            }
            let now = guests.iter().map(|guest| Self::now(daemon, guest));
            let now = now.collect::<Result<Vec<_>>>()?;
            let quiet = now == before && now.iter().all(|shown| shown.in_flight == 0);
            before.clone_from(&now);
            Ok(quiet.then_some(now))
        })
    }

    /// What came since `before`. A counter that went back shows as a figure that nothing equals.
    pub(crate) fn since(self, before: Self) -> Self {
        let grown = u64::wrapping_sub;
        Self {
            read_ops: grown(self.read_ops, before.read_ops),
            read_bytes: grown(self.read_bytes, before.read_bytes),
            write_ops: grown(self.write_ops, before.write_ops),
            write_bytes: grown(self.write_bytes, before.write_bytes),
            writeback_ops: grown(self.writeback_ops, before.writeback_ops),
            writeback_bytes: grown(self.writeback_bytes, before.writeback_bytes),
            flush_ops: grown(self.flush_ops, before.flush_ops),
            discard_ops: grown(self.discard_ops, before.discard_ops),
            discard_bytes: grown(self.discard_bytes, before.discard_bytes),
            completed_ops: grown(self.completed_ops, before.completed_ops),
            failed_ops: grown(self.failed_ops, before.failed_ops),
            in_flight: self.in_flight,
        }
    }

    /// Fails unless nearly all requests were seen to complete: the kernel may skip a program, see the
    /// daemon's `lost_completions`.
    pub(crate) fn ensure_completed(self) -> Result<()> {
        let submitted = self.read_ops + self.write_ops + self.flush_ops + self.discard_ops;
        let nearly_all = submitted - submitted.div_ceil(100)..=submitted;
        ensure!(nearly_all.contains(&self.completed_ops), "{} of {submitted}", self.completed_ops);
        ensure!(self.in_flight == 0, "{} in flight", self.in_flight);
        Ok(())
    }
}

impl OfQemu {
    pub(crate) fn read(guest: &Guest) -> Result<Self> {
        let devices = guest.qmp("query-blockstats", &Value::Null)?;
        let devices = devices.as_array().context("query-blockstats lists nothing")?;
        let disk = devices.iter().find(|device| device["device"] == DISK);
        let stats = &disk.with_context(|| format!("no {DISK} in {devices:?}"))?["stats"];
        let figure = |name: &str| figure(stats, name);
        Ok(Self {
            read_ops: figure("rd_operations")? - figure("rd_merged")?,
            read_bytes: figure("rd_bytes")?,
            write_ops: figure("wr_operations")? - figure("wr_merged")?,
            write_bytes: figure("wr_bytes")?,
            failed_ops: figure("failed_rd_operations")? + figure("failed_wr_operations")?,
        })
    }
}

impl Charged {
    pub(crate) fn to(guest: &Guest) -> Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{}/io", guest.pid()))?)
    }

    /// To one thread of QEMU alone.
    pub(crate) fn to_thread(guest: &Guest, tid: u64) -> Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{}/task/{tid}/io", guest.pid()))?)
    }

    fn parse(text: &str) -> Result<Self> {
        let figure = |name: &str| -> Result<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            Ok(value.with_context(|| format!("no {name} in {text}"))?.trim().parse()?)
        };
        Ok(Self { read_bytes: figure("read_bytes:")?, write_bytes: figure("write_bytes:")? })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            read_bytes: self.read_bytes - before.read_bytes,
            write_bytes: self.write_bytes - before.write_bytes,
        }
    }
}

fn figure(object: &Value, name: &str) -> Result<u64> {
    object[name].as_u64().with_context(|| format!("no figure {name}: {object}"))
}

/// Fails if two figures differ by more than 2 % of the second.
pub(crate) fn ensure_close(what: &str, ours: u64, theirs: u64) -> Result<()> {
    ensure!(ours.abs_diff(theirs) * 50 <= theirs, "{what}: {ours}, and not {theirs}");
    Ok(())
}
