//! The end-to-end tests: the real daemon, real QEMUs, real guests, real taps and disks.
//!
//! They run through libtest-mimic, so that a test that can't run here says *ignored*, and why. Each has
//! its own network namespace, directory and name for QEMU's executable, by which its daemon knows its
//! guests from those of the other tests. `cargo xtask test` builds what they need.

mod alerts;
mod answers;
mod brought_back;
mod counts;
mod documents;
mod evidence;
mod executables;
mod fake_tenants;
mod foreign;
mod heartbeats;
mod hostile;
mod hubs;
mod idle_costs;
mod kdump;
mod killed;
mod known_dead;
mod kvm_stats;
mod ladder;
mod left_alone;
mod lifecycle;
mod masked_wait;
mod memory;
mod metrics;
mod missed_programs;
mod named_files;
mod neighbours;
mod network;
mod overcommitted;
mod owners;
mod packages;
mod page;
mod peers;
mod programs;
mod recordings;
mod reload;
mod reports;
mod rig;
mod run_states;
mod sockets;
mod state_dir;
mod storage;
mod taps;
mod telling;
mod tenants_at_once;
mod tenants_attaching;
mod tenants_commands;
mod tenants_http;
mod tenants_identity;
mod tenants_quotas;
mod tenants_sockets;
mod tenants_storm;
mod tenants_taps;
mod tenants_turns;
mod top;
mod turns;
mod unreadable;
mod upgrade;
mod version_before;
mod web_access;
mod witnesses;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// What makes a subject's tests.
type Trials = fn() -> Vec<Trial>;

/// Each subject and its tests, in the order in which they begin.
const SUBJECTS: &[(&str, Trials)] = &[
    ("left_alone", left_alone::trials),
    ("masked_wait", masked_wait::trials),
    ("idle_costs", idle_costs::trials),
    ("brought_back", brought_back::trials),
    ("unreadable", unreadable::trials),
    ("counts", counts::trials),
    ("network", network::trials),
    ("missed_programs", missed_programs::trials),
    ("taps", taps::trials),
    ("neighbours", neighbours::trials),
    ("storage", storage::trials),
    ("reports", reports::trials),
    ("recordings", recordings::trials),
    ("documents", documents::trials),
    ("kdump", kdump::trials),
    ("kvm_stats", kvm_stats::trials),
    ("evidence", evidence::trials),
    ("answers", answers::trials),
    ("lifecycle", lifecycle::trials),
    ("reload", reload::trials),
    ("upgrade", upgrade::trials),
    ("version_before", version_before::trials),
    ("ladder", ladder::trials),
    ("state_dir", state_dir::trials),
    ("run_states", run_states::trials),
    ("killed", killed::trials),
    ("owners", owners::trials),
    ("hostile", hostile::trials),
    ("peers", peers::trials),
    ("named_files", named_files::trials),
    ("executables", executables::trials),
    ("tenants_taps", tenants_taps::trials),
    ("tenants_attaching", tenants_attaching::trials),
    ("tenants_sockets", tenants_sockets::trials),
    ("tenants_commands", tenants_commands::trials),
    ("tenants_http", tenants_http::trials),
    ("sockets", sockets::trials),
    ("tenants_quotas", tenants_quotas::trials),
    ("tenants_storm", tenants_storm::trials),
    ("tenants_turns", tenants_turns::trials),
    ("tenants_at_once", tenants_at_once::trials),
    ("heartbeats", heartbeats::trials),
    ("metrics", metrics::trials),
    ("page", page::trials),
    ("web_access", web_access::trials),
    ("alerts", alerts::trials),
    ("witnesses", witnesses::trials),
    ("overcommitted", overcommitted::trials),
    ("known_dead", known_dead::trials),
    ("memory", memory::trials),
    ("packages", packages::trials),
    ("top", top::trials),
    ("telling", telling::trials),
    ("tenants_identity", tenants_identity::trials),
];
/// Names the subjects to be tested, with commas between; without it all are.
const CHOSEN: &str = "FLATLINE_SUBJECTS";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if let Err(error) = flatline_tests::interrupt::install() {
        eprintln!("signals can't be handled: {error:#}");
        return ExitCode::FAILURE;
    }
    let trials = match trials() {
        Ok(trials) => trials,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    // Each has a thread, in which it waits for its turn.
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    turns::summarize();
    conclusion.exit_code()
}

/// The tests of the chosen subjects, or why that can't be told.
fn trials() -> Result<Vec<Trial>, String> {
    let Ok(chosen) = std::env::var(CHOSEN) else {
        return Ok(SUBJECTS.iter().flat_map(|(_, trials)| trials()).collect());
    };
    let chosen: Vec<_> = chosen.split(',').collect();
    if let Some(name) = chosen.iter().find(|name| !SUBJECTS.iter().any(|(known, _)| known == *name))
    {
        return Err(format!("{CHOSEN}: no subject is called {name:?}"));
    }
    let wanted = SUBJECTS.iter().filter(|(name, _)| chosen.contains(name));
    Ok(wanted.flat_map(|(_, trials)| trials()).collect())
}
