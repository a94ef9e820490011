//! `cargo xtask soak`: many guests for long, to which random faults come, and its section of `docs/verdicts.md`.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;
use flatline_tests::scenario::{BOOT_GRACE, FLAT_FOR, Programs};
use flatline_tests::soak::{self, LATE_AFTER, LEAST_GUESTS, MISSED_AFTER, Plan, Summary, Verdict};
use flatline_tests::{image, interrupt};

use crate::document::{machine, spread, table, wrapped};
use crate::process::{elapsed, heading, workspace_root};
use crate::verdicts::{self, Section};
use crate::{build_ebpf, executable, guest, setup};

/// How long and how much.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How long faults are made, once all guests run
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// How many guests there are
    #[arg(long, default_value_t = 30)]
    guests: usize,
    /// The mean time from one fault to the next, in seconds
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    gap: u64,
    /// Makes the same choices again [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Only tell what came of it: docs/verdicts.md is then left as it is
    #[arg(long)]
    dry_run: bool,
}

impl Options {
    /// What the tests have time for: as many faults as fit.
    pub(crate) fn short() -> Self {
        Self { minutes: 1, guests: LEAST_GUESTS, gap: 10, seed: None, dry_run: true }
    }
}

/// Builds what is missing, plays, and writes.
///
/// # Errors
///
/// If a crash was missed, a guest was touched wrongly, something could not be played, or Ctrl-C came.
pub(crate) fn task(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a soak needs root, for its network namespaces and to load eBPF programs");
    }
    setup::ensure()?;
    build_ebpf::build()?;
    let daemon = executable::build("the daemon", &["--package", "flatline"])?;
    let programs = Programs { daemon, images: image::build(&guest::build()?, |_| {})? };
    interrupt::install()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let plan = Plan {
        lasts: Duration::from_secs(options.minutes * 60),
        guests: options.guests,
        gap: Duration::from_secs(options.gap),
        seed: options.seed.unwrap_or(now.as_secs()),
    };
    heading(&format!(
        "{} guests for {} minutes, --seed {}",
        plan.guests, options.minutes, plan.seed
    ));
    let begin = Instant::now();
    let summary =
        soak::run(plan, &programs, |line| println!("{:>12}  {line}", elapsed(begin.elapsed())))?;
    println!("\n{}", figures(&summary));
    if !options.dry_run {
        let path = workspace_root().join("docs/verdicts.md");
        verdicts::put(&path, Section::Soak, &text(&summary, options)?)?;
        heading(&format!("{} has it", path.display()));
    }
    if summary.missed > 0 || !summary.failures.is_empty() {
        bail!("not as it is due:\n{}", summary.failures.join("\n\n"));
    }
    heading(&format!("all as it is due, in {}", elapsed(begin.elapsed())));
    Ok(())
}

/// The section.
fn text(summary: &Summary, options: &Options) -> Result<String> {
    let Options { minutes, gap, .. } = options;
    let introduction = format!(
        "Written by `cargo xtask soak`: {} guests under one daemon (`flat_for` {} s, `boot_grace` {} s) for {minutes} \
         minutes, on {}. Random faults came to random guests, with an exponential gap of {gap} s; the seed was {}. A \
         verdict later than `flat_for` by more than {} s counts as missed.",
        summary.guests,
        FLAT_FOR.as_secs(),
        BOOT_GRACE.as_secs(),
        machine()?,
        summary.seed,
        MISSED_AFTER.as_secs(),
    );
    let mut text = format!("## Soak\n\n{}\n\n{}", wrapped(&introduction), figures(summary));
    if !summary.failures.is_empty() {
        let first = |failure: &String| {
            let line = failure.lines().next().unwrap_or_default();
            wrapped(&format!("- {line}"))
        };
        let failures: Vec<String> = summary.failures.iter().map(first).collect();
        let _ = write!(text, "\n### Not as it is due in the soak\n\n{}\n", failures.join("\n"));
    }
    Ok(text)
}

/// All figures, as tables.
fn figures(summary: &Summary) -> String {
    let disturbances: u32 = summary.disturbances.values().sum();
    let hours = summary.guest_time.as_secs_f64() / 3600.0;
    let found = summary.verdicts.len();
    let late = summary.later_than(FLAT_FOR + LATE_AFTER);
    let (least, most) = summary.load.unwrap_or_default();
    let line = |what: &str, figure: String| [what.to_owned(), figure];
    let mut lines = vec![
        line("what", "figure".to_owned()),
        line("VM-hours", format!("{hours:.1}")),
        line("crashes made", summary.crashes.to_string()),
        line("found", found.to_string()),
        line("recovered", summary.recovered().to_string()),
        line("missed", summary.missed.to_string()),
        line(
            "fault to verdict, s (least / median / most)",
            spread(summary.verdicts.iter().map(|verdict| verdict.took)),
        ),
        line(
            &format!("later than `flat_for` + {} s", LATE_AFTER.as_secs()),
            format!("{late} of {found}"),
        ),
        line("disturbances", disturbances.to_string()),
        line("daemon restarts", summary.daemon_restarts.to_string()),
        line("wrong convictions", summary.wrong_incidents.to_string()),
        line("wrong resets", summary.wrong_resets.to_string()),
        line("load of the host", format!("{least:.1} to {most:.1}")),
    ];
    let made = summary.disturbances.iter();
    lines.extend(made.map(|(name, count)| line(&format!("- {name}"), count.to_string())));
    let heading = ["crash", "found", "causes", "fault to verdict, s", "back after, s", "load"];
    let mut crashes = vec![heading.map(str::to_owned)];
    let mut names: Vec<&str> = summary.verdicts.iter().map(|verdict| verdict.fault).collect();
    names.sort_unstable();
    names.dedup();
    crashes.extend(names.into_iter().map(|name| row(name, &summary.verdicts)));
    format!("{}\n{}", table(&lines), table(&crashes))
}

/// All verdicts about one kind of crash.
fn row(name: &str, verdicts: &[Verdict]) -> [String; 6] {
    let its = || verdicts.iter().filter(move |verdict| verdict.fault == name);
    let mut causes: Vec<&str> = its().map(|verdict| verdict.cause.as_str()).collect();
    causes.sort_unstable();
    causes.dedup();
    let loads = its().map(|verdict| verdict.load);
    let (least, most) =
        loads.fold((f64::MAX, 0.0_f64), |(least, most), load| (least.min(load), most.max(load)));
    [
        name.to_owned(),
        its().count().to_string(),
        causes.join(", "),
        spread(its().map(|verdict| verdict.took)),
        spread(its().filter_map(|verdict| verdict.back)),
        format!("{least:.1} to {most:.1}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_have_the_spread_and_count_what_is_late() {
        let verdict = |seconds| Verdict {
            fault: "panic",
            cause: "spinning".to_owned(),
            took: Duration::from_secs(seconds),
            back: None,
            load: 2.0,
        };
        let summary = Summary {
            verdicts: [14, 11, 12].map(verdict).to_vec(),
            crashes: 3,
            ..Summary::default()
        };
        let text = figures(&summary);
        assert!(text.contains("11.0 / 12.0 / 14.0") && text.contains("1 of 3"), "{text}");
    }
}
