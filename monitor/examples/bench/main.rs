//! The part of `cargo xtask bench` that looks into the kernel: measures a daemon that runs already, through
//! what it has pinned, and prints a JSON line a figure: `{"name": "..", "rounds": [..]}`.
//!
//! Part of this package, and not of xtask, because it measures this package's own readers, and xtask must
//! compile before there is an eBPF object to put into them.

mod clock;
mod hooks;
mod kernel;
mod maps;
mod packets;
mod qmp;
mod reading;
mod records;
mod storage;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde_json::json;

/// Measures a running daemon.
#[derive(Parser)]
struct Arguments {
    /// Where that daemon's pins are
    #[arg(long)]
    bpffs: PathBuf,
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// A packet through the programs of a tap
    Packets(packets::Options),
    /// A request to the block layer, under a load that another program makes
    Storage(storage::Options),
    /// Reading counters and threads' times
    Reading(reading::Options),
    /// Recording what is judged; needs no daemon
    Records(records::Options),
    /// Asking a QEMU how it does
    Qmp(qmp::Options),
    /// The kernel's memory for the daemon's maps
    Maps(maps::Options),
    /// The tracepoints that the daemon is hooked to
    Hooks(hooks::Options),
}

fn main() -> anyhow::Result<()> {
    let Arguments { bpffs, subject } = Arguments::parse();
    match subject {
        Subject::Packets(options) => packets::measure(&bpffs, &options),
        Subject::Storage(options) => storage::measure(&bpffs, &options),
        Subject::Reading(options) => reading::measure(&bpffs, &options),
        Subject::Records(options) => records::measure(&options),
        Subject::Qmp(options) => qmp::measure(&options),
        Subject::Maps(options) => maps::measure(&bpffs, &options),
        Subject::Hooks(options) => hooks::list(&bpffs, &options),
    }
}

/// Prints a figure with the values of all rounds.
fn print(name: &str, rounds: &[f64]) {
    println!("{}", json!({"name": name, "rounds": rounds}));
}
