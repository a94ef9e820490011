//! `cargo xtask hostile`: one user without rights does all that it can at once, beside guests of others.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use flatline_tests::{
    hostile::{self, MARGIN, MOST_BYTES, MOST_CPU, MOST_STATE_BYTES, Phase, Plan, Scale, Summary},
    interrupt,
    scenario::FLAT_FOR,
    tenants::Fakes,
};

use crate::{
    build_ebpf,
    document::{machine, spread, table},
    executable,
    process::{elapsed, heading},
    setup,
};

/// How many users the other guests are of.
const USERS: u32 = 5;
/// How much of each attack there is: as much as was seen to hurt once, or what two CPUs bear beside 25 guests.
const SCALE: Scale = Scale {
    processes: 300,
    files: 19_000,
    threads: 16_000,
    taps: 300,
    storm: 8,
    crashes: 10,
    monitors: 2,
};

/// How long and how much.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How long the attack lasts; without one the same is played before for a quarter of that
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// How many guests of others there are that nothing happens to
    #[arg(long, default_value_t = 20)]
    healthy: usize,
    /// How many guests of others crash again and again
    #[arg(long, default_value_t = 5)]
    crashing: usize,
}

/// Builds what is missing, plays, and tells.
///
/// # Errors
///
/// If a guest of another user was reset wrongly or too late, the daemon took more than it may, something could not be
/// played, or Ctrl-C came.
pub(crate) fn task(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root, for its users and to load eBPF programs");
    }
    setup::ensure()?;
    build_ebpf::build()?;
    let fake =
        |name: &str| executable::build(name, &["--package", "flatline-tests", "--bin", name]);
    let plan = Plan {
        daemon: executable::build("the daemon", &["--package", "flatline"])?,
        fakes: Fakes { qemu: fake("fake-qemu")?, tenant: fake("fake-tenant")? },
        flat_for: FLAT_FOR,
        control: Duration::from_secs(options.minutes * 15),
        attack: Duration::from_secs(options.minutes * 60),
        healthy: options.healthy,
        crashing: options.crashing,
        users: USERS,
        scale: SCALE,
    };
    interrupt::install()?;
    heading(&format!("one hostile user for {} minutes", options.minutes));
    let begin = Instant::now();
    let summary = hostile::run(&plan, |line| println!("{:>12}  {line}", elapsed(begin.elapsed())))?;
    println!("\n{}\n{}", machine()?, figures(&summary));
    let wrong = [summary.wrong(), summary.dear()].concat();
    if !wrong.is_empty() {
        bail!(
            "not as it is due:\n{}\nthe end of the daemon's log:\n{}",
            wrong.join("\n"),
            summary.log
        );
    }
    heading(&format!("all as it is due, in {}", elapsed(begin.elapsed())));
    Ok(())
}

/// All figures, as tables.
fn figures(summary: &Summary) -> String {
    let Summary { flat_for, control, attack, .. } = summary;
    let of = |what: &str, figure: &dyn Fn(&Phase) -> String, most: String| {
        [what.to_owned(), figure(control), figure(attack), most]
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let limit = (*flat_for + MARGIN).as_secs();
    let lines = [
        ["what", "without an attack", "with it", "at most"].map(str::to_owned),
        of("crashes answered", &|phase| phase.answers.len().to_string(), String::new()),
        of("not answered", &|phase| phase.missed.len().to_string(), "0".to_owned()),
        of(
            "halt to reset, s (least / median / most)",
            &|phase| spread(phase.times("hang").into_iter()),
            limit.to_string(),
        ),
        of(
            "panic to reset, s",
            &|phase| spread(phase.times("panic").into_iter()),
            limit.to_string(),
        ),
        of(
            "later than that, by the clock",
            &|phase| phase.late(*flat_for)[0].to_string(),
            String::new(),
        ),
        of(
            "- less what the host withheld",
            &|phase| phase.late(*flat_for)[1].to_string(),
            "0".to_owned(),
        ),
        of("the daemon's share of a CPU", &|phase| percent(phase.cost.cpu), percent(MOST_CPU)),
        of("its memory, at most", &|phase| mib(phase.cost.resident_bytes), mib(MOST_BYTES)),
        of(
            "its state directory, at most",
            &|phase| mib(phase.cost.state_bytes),
            mib(MOST_STATE_BYTES),
        ),
        of(
            "slowest answer to `status`",
            &|phase| format!("{:.0?}", phase.cost.slowest),
            String::new(),
        ),
        of("VMs that it knew at once", &|phase| phase.cost.vms.to_string(), String::new()),
    ];
    let mut attacks = vec![["attack", "rounds"].map(str::to_owned)];
    attacks.extend(summary.attacks.iter().map(|one| [one.name.to_owned(), one.rounds.to_string()]));
    format!(
        "{}\nResets that no crash was due: {}. Incidents kept: {}.\n\n{}",
        table(&lines),
        summary.wrong_resets,
        summary.incidents,
        table(&attacks)
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
