//! Which tracepoints a daemon is hooked to, by the kernel's own account: of every link that it has pinned,
//! and of every one that it holds open.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use aya::programs::links::PinnedLink;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub(crate) struct Options {
    /// The daemon
    #[arg(long)]
    pid: u32,
}

pub(crate) fn list(bpffs: &Path, options: &Options) -> Result<()> {
    let mut pinned = Vec::new();
    for entry in fs::read_dir(bpffs.join("links")).context("the daemon has pinned no links")? {
        pinned.push(PinnedLink::from_pin(entry?.path())?);
    }
    let mut hooks = BTreeSet::new();
    for process in ["self".to_owned(), options.pid.to_string()] {
        for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
            // Closed meanwhile: the directory's own, say.
            let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
            let names = info.lines().filter_map(|line| line.strip_prefix("tp_name:"));
            hooks.extend(names.map(|name| name.trim().to_owned()));
        }
    }
    drop(pinned);
    println!("{}", json!({"name": "hooks", "hooks": hooks}));
    Ok(())
}
