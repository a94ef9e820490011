//! Incidents: of a user that starts QEMUs in a loop, each of which crashes.

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{daemon::Daemon, interrupt::wait_until};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{CONTROL, HOSTILE, MARGIN, Tenants, VICTIM, WITHIN};
use crate::rig::{Load, trial_with};

/// Incidents of one user that are written down within an hour, and crashes beyond that.
const HOURLY: usize = 120;
const CRASHES: usize = HOURLY + 40;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial_with(
        Load::Spins(2),
        "a_user_whose_qemus_crash_in_a_loop_does_not_fill_the_records",
        incidents,
    )]
}

/// The incidents of a user, but for those of these causes.
fn of(daemon: &Daemon, user: u32, cause: &str) -> Result<Vec<Value>> {
    let is_its = |one: &Value| one["uid"] == user && one["cause"] == cause;
    Ok(daemon.incidents()?.into_iter().filter(is_its).collect())
}

fn incidents() -> Result<()> {
    let tenants = Tenants::new()?;
    let daemon = tenants.daemon("[recovery]\nmax_restarts = 1")?;
    let (_control, usual) = tenants.is_found_dead(&daemon, CONTROL, "control")?;
    let _fakes = (0..CRASHES)
        .map(|n| tenants.fake(HOSTILE, &format!("hostile-{n}"), "aborts"))
        .collect::<Result<Vec<_>>>()?;
    let (_victim, took) = tenants.is_found_dead(&daemon, VICTIM, "victim")?;
    ensure!(took <= usual + MARGIN * 2, "{took:?}, and {usual:?} without the attack");

    let counted = wait_until("an incident that counts others", WITHIN, || {
        Ok(of(&daemon, HOSTILE, "too-many-incidents")?.pop())
    })
    .with_context(|| daemon.log_tail(30))?;
    println!("{counted}");
    wait_until("all crashes", WITHIN, || {
        let log = daemon.log().text();
        let counted = of(&daemon, HOSTILE, "too-many-incidents")?;
        let reason = counted[0]["reason"].as_str().unwrap_or_default();
        let more = reason.split_once("an hour: ").and_then(|(_, rest)| rest.split(' ').next());
        let more: usize = more.and_then(|more| more.parse().ok()).unwrap_or_default();
        ensure!(!log.contains("panicked at"), "{log}");
        Ok((more >= CRASHES - HOURLY - 10).then_some(()))
    })
    .with_context(|| daemon.log_tail(30))?;
    let written = of(&daemon, HOSTILE, "qemu-exited")?;
    ensure!(written.len() == HOURLY, "{} are written down", written.len());
    ensure!(of(&daemon, HOSTILE, "too-many-incidents")?.len() == 1);
    Ok(())
}
