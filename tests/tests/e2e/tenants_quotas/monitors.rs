//! Monitors: what the daemon keeps of what they say, and what it takes to read it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::wait_until, tenants::Fake};
use libtest_mimic::Trial;

use super::{CONTROL, HOSTILE, MARGIN, Tenants, VICTIM, WITHIN};
use crate::{
    hostile::memory_kib,
    rig::{Load, trial_with},
};

/// Messages without an end together are several times as much as is kept of all.
const HOARDERS: usize = 16;
const BABBLERS: usize = 4;
/// What the daemon may take of memory more than without them.
const MOST_MORE_KIB: u64 = 32 << 10;
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(1),
        "monitors_that_hoard_or_babble_take_neither_memory_nor_time_of_others",
        monitors,
    )]
}

fn monitor(daemon: &Daemon, name: &str) -> Result<String> {
    let shown = daemon.show(name)?;
    Ok(shown["qmp"].as_str().unwrap_or_default().to_owned())
}

fn monitors() -> Result<()> {
    let tenants = Tenants::new()?;
    let daemon = tenants.daemon("[recovery]\nmax_restarts = 1")?;
    let (_control, usual) = tenants.is_found_dead(&daemon, CONTROL, "control")?;
    let before = memory_kib(&daemon, "RssAnon:")?;

    let start = |count: usize, manner: &str| -> Result<Vec<Fake>> {
        (0..count).map(|n| tenants.fake(HOSTILE, &format!("{manner}-{n}"), manner)).collect()
    };
    let _hoarders = start(HOARDERS, "hoards")?;
    let _babblers = start(BABBLERS, "babbles")?;
    let mut most = before;
    let names: Vec<String> = (0..HOARDERS).map(|n| format!("hoards-{n}")).collect();
    let hung_up = wait_until("one to be hung up on", WITHIN, || {
        most = most.max(memory_kib(&daemon, "RssAnon:")?);
        let said = names.iter().filter_map(|name| monitor(&daemon, name).ok());
        Ok(said.into_iter().find(|said| said.contains("more than its user's share")))
    })
    .with_context(|| daemon.log_tail(30))?;
    println!("{hung_up}");
    let (_victim, took) = tenants.is_found_dead(&daemon, VICTIM, "victim")?;
    ensure!(took <= usual + MARGIN, "{took:?}, and {usual:?} without the attack");
    for n in 0..BABBLERS {
        let name = format!("babbles-{n}");
        let said = wait_until(&name, WITHIN, || {
            let said = monitor(&daemon, &name)?;
            Ok(said.contains("that were not asked for").then_some(said))
        })
        .with_context(|| daemon.log_tail(30))?;
        println!("{name}: {said}");
    }
    for _ in 0..10 {
        most = most.max(memory_kib(&daemon, "RssAnon:")?);
        std::thread::sleep(LOOK_EVERY);
    }
    println!("{before} KiB before, {most} KiB at most");
    ensure!(most <= before + MOST_MORE_KIB, "{most} KiB, and {before} before");
    Ok(())
}
