//! flatline's tasks: `cargo xtask TASK`, one module a task.
//!
//! Each task first makes sure of what it needs, so that any of them works on a fresh clone.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flatline_tests::interrupt;

mod apt;
mod architecture;
mod bench;
mod btf_names;
mod build_ebpf;
mod build_heartbeat;
mod cross;
mod demo;
mod dist;
mod document;
mod executable;
mod first_steps;
mod fuzz;
mod guest;
mod hostile;
mod hosts;
mod lint;
mod matrix;
mod packages;
mod process;
mod setup;
mod soak;
mod test;
mod tools;
mod verdicts;

/// Sets up, builds and tests flatline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and to test
    Setup {
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Compile the eBPF programs into target/ebpf/flatline-ebpf.o
    BuildEbpf,
    /// Compile the guests' agent into target/heartbeat
    BuildHeartbeat,
    /// Build the images of the tests' guests into target/guest
    Guest,
    /// Check the formatting, and run clippy and rustdoc on everything
    Lint,
    /// Show three real guests, crash one, and watch flatline bring it back
    Demo,
    /// Make Debian packages, and a tarball with a static program, in target/dist
    Dist(dist::Options),
    /// Play the README's first steps on a fresh Debian in a VM, and write docs/first-steps.md
    FirstSteps,
    /// Measure what flatline costs, and write docs/costs.md
    Bench {
        /// Measures this part alone, and writes no document
        #[arg(long)]
        only: Option<bench::Part>,
    },
    /// Let one user do all that it can to others' VMs at once, and tell whether any was hurt
    Hostile(hostile::Options),
    /// What `bench` runs in a guest
    #[command(name = bench::INSIDE, hide = true)]
    BenchInside,
    /// Play real KVM hosts under emulation, with kernels and QEMUs of Debian's suites, and write docs/hosts.md
    Hosts(hosts::Options),
    /// What `hosts` runs in a host
    #[command(name = hosts::inside::TASK, hide = true)]
    HostsInside,
    /// Look for bytes that break a parser
    Fuzz(fuzz::Options),
    /// Let guests fail in every way that there is, and write docs/verdicts.md
    Matrix(matrix::Options),
    /// Let random faults come to many guests for long, and write down what came of it
    Soak(soak::Options),
    /// Fetch and make what the end-to-end tests need; `test` runs it beside the compiling
    #[command(name = test::PREPARE, hide = true)]
    PrepareTests,
    /// Lint, then run the unit tests and the end-to-end tests with real guests
    Test(test::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup { dry_run } => setup::task(dry_run),
        Task::BuildEbpf => setup::ensure().and_then(|()| {
            let object = build_ebpf::build()?;
            println!("{}", object.display());
            Ok(())
        }),
        Task::BuildHeartbeat => setup::ensure().and_then(|()| build_heartbeat::build().map(|_| ())),
        Task::Guest => guest::task(),
        Task::Lint => lint::task(),
        Task::Demo => demo::task(),
        Task::Dist(options) => dist::task(&options),
        Task::FirstSteps => first_steps::task(),
        Task::Bench { only } => bench::task(only),
        Task::BenchInside => bench::inside(),
        Task::Hostile(options) => hostile::task(&options),
        Task::Hosts(options) => hosts::task(&options),
        Task::HostsInside => hosts::inside::task(),
        Task::Fuzz(options) => fuzz::task(&options),
        Task::Matrix(options) => matrix::task(&options),
        Task::Soak(options) => soak::task(&options),
        Task::PrepareTests => test::prepare(),
        Task::Test(options) => test::task(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // What a shell reports for a program that Ctrl-C ended.
            if interrupt::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
