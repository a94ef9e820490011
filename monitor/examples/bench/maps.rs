//! How much of the kernel's memory a daemon's maps take: those that it has open, and those that it has pinned.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use clap::Args;

use crate::print;

#[derive(Args)]
pub(crate) struct Options {
    /// The daemon
    #[arg(long)]
    pid: u32,
}

pub(crate) fn measure(bpffs: &Path, options: &Options) -> Result<()> {
    let mut maps = BTreeMap::new();
    let own = std::process::id();
    for entry in fs::read_dir(bpffs).context("the daemon has no pins")? {
        let path = entry?.path();
        let Ok(map) = MapData::from_pin(&path) else { continue };
        // The kernel describes a link as readily.
        let Some((id, bytes)) = memory(own, map.fd().as_fd().as_raw_fd())? else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        print(&format!("maps/{name}"), &[as_f64(bytes)]);
        maps.insert(id, bytes);
    }
    ensure!(!maps.is_empty(), "the daemon has pinned no map");
    for entry in fs::read_dir(format!("/proc/{}/fd", options.pid))? {
        let descriptor = entry?.file_name().to_string_lossy().parse()?;
        maps.extend(memory(options.pid, descriptor)?);
    }
    print("maps/total", &[as_f64(maps.values().sum())]);
    Ok(())
}

/// The id of the map behind a process' descriptor, and the bytes that the kernel accounts for it; `None` if it is no map.
fn memory(pid: u32, descriptor: i32) -> Result<Option<(u64, u64)>> {
    // A descriptor that was closed meanwhile is none, too.
    let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")) else {
        return Ok(None);
    };
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    let Some(id) = field("map_id:") else { return Ok(None) };
    let bytes = field("memlock:").context("the kernel does not account for a map")?;
    Ok(Some((id.trim().parse()?, bytes.trim().parse()?)))
}

#[expect(clippy::cast_precision_loss, reason = "some megabytes")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}
