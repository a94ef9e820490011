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
mod foreign;
mod heartbeats;
mod hostile;
mod idle_costs;
mod killed;
mod known_dead;
mod ladder;
mod left_alone;
mod lifecycle;
mod masked_wait;
mod memory;
mod metrics;
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
mod top;
mod turns;
mod unreadable;
mod upgrade;
mod version_before;
mod witnesses;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if let Err(error) = flatline_tests::interrupt::install() {
        eprintln!("signals can't be handled: {error:#}");
        return ExitCode::FAILURE;
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(left_alone::trials());
    trials.extend(masked_wait::trials());
    trials.extend(idle_costs::trials());
    trials.extend(brought_back::trials());
    trials.extend(unreadable::trials());
    trials.extend(counts::trials());
    trials.extend(network::trials());
    trials.extend(taps::trials());
    trials.extend(neighbours::trials());
    trials.extend(storage::trials());
    trials.extend(reports::trials());
    trials.extend(recordings::trials());
    trials.extend(documents::trials());
    trials.extend(evidence::trials());
    trials.extend(answers::trials());
    trials.extend(lifecycle::trials());
    trials.extend(reload::trials());
    trials.extend(upgrade::trials());
    trials.extend(version_before::trials());
    trials.extend(ladder::trials());
    trials.extend(state_dir::trials());
    trials.extend(run_states::trials());
    trials.extend(killed::trials());
    trials.extend(owners::trials());
    trials.extend(hostile::trials());
    trials.extend(peers::trials());
    trials.extend(named_files::trials());
    trials.extend(executables::trials());
    trials.extend(sockets::trials());
    trials.extend(heartbeats::trials());
    trials.extend(metrics::trials());
    trials.extend(page::trials());
    trials.extend(alerts::trials());
    trials.extend(witnesses::trials());
    trials.extend(overcommitted::trials());
    trials.extend(known_dead::trials());
    trials.extend(memory::trials());
    trials.extend(packages::trials());
    trials.extend(top::trials());
    trials.extend(telling::trials());
    // Each has a thread, in which it waits for its turn.
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    turns::summarize();
    conclusion.exit_code()
}
