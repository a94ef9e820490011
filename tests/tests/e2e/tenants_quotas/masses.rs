//! Processes of a user that have more of what is looked at one by one: open files, and threads that it calls its vCPUs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{cpu, daemon::Daemon, interrupt::wait_until};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{CONTROL, HOSTILE, MARGIN, Tenants, VICTIM, WITHIN};
use crate::rig::{Load, trial_with};

/// More than are looked at, and more vCPUs than any QEMU gives a guest.
const FILES: &str = "19000";
const THREADS: &str = "16000";
/// What the daemon's loop may take for it all, a program that is not optimized.
const MOST_OF_THE_LOOP: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(1),
        "thousands_of_open_files_or_threads_of_one_process_delay_no_other_vm",
        masses,
    )]
}

fn shown(daemon: &Daemon, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_until(name, WITHIN, || Ok(daemon.show(name).ok().filter(&wanted)))
        .with_context(|| format!("{:?}\n{}", daemon.show(name), daemon.log_tail(30)))
}

fn masses() -> Result<()> {
    let tenants = Tenants::new()?;
    let daemon = tenants.daemon("[recovery]\nmax_restarts = 1")?;
    let (_control, usual) = tenants.is_found_dead(&daemon, CONTROL, "control")?;
    let pid = daemon.pid().context("the daemon does not run")?;
    let before = cpu::main_thread_time(pid)?;

    let _files = tenants.fake_with(HOSTILE, "files", "lives", &["-files", FILES])?;
    let _threads = tenants.fake_with(HOSTILE, "threads", "lives", &["-threads", THREADS])?;
    let (_victim, took) = tenants.is_found_dead(&daemon, VICTIM, "victim")?;
    ensure!(took <= usual + MARGIN, "{took:?}, and {usual:?} without the attack");
    let files = shown(&daemon, "files", |shown| shown["unseen_networks"].is_string())?;
    ensure!(files.to_string().contains("beyond the first"), "{files}");
    let threads = shown(&daemon, "threads", |shown| shown["qmp"].is_string())?;
    println!("{threads}");
    let of_the_loop = cpu::main_thread_time(pid)?.saturating_sub(before);
    println!("the loop took {of_the_loop:.1?}");
    ensure!(of_the_loop <= MOST_OF_THE_LOOP, "the loop took {of_the_loop:?}");
    Ok(())
}
