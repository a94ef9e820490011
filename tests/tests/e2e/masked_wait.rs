//! Healthy guests that stand at one spot with interrupts off are left alone, whatever crashes beside them.
//!
//! One waits so for its timer, as an idle CPU in MWAIT may; the other is a hypervisor, whose registers are those of its
//! own guest, which spins for good. Both take every interrupt that comes. For how long they are watched here is told by
//! [`Terms`].

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    brought_back::kvm,
    left_alone::check_untouched,
    rig::{
        BOOT_LIMIT, Load, Rig, incidents_of, outer_resets, skippable_trial_with,
        trial_that_may_skip, trial_with, vm, wait_for_incident,
    },
};

/// How long each is watched at the configuration's own times, such as `5m`: longer than any test can take that runs
/// each time.
const LONG: &str = "FLATLINE_WATCHED_FOR";
/// For a neighbour to be restarted: it shares the CPUs with the guest that is watched, and is given more time for that.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            Load::Spins(1),
            "a_guest_that_waits_with_interrupts_off_is_left_alone_under_tcg",
            || masked_wait(Accelerator::Tcg, &Terms::short()),
        ),
        skippable_trial_with(
            Load::Spins(1),
            "a_guest_that_waits_with_interrupts_off_is_left_alone_under_kvm",
            || match kvm()? {
                None => masked_wait(Accelerator::Kvm, &Terms::short()).map(|()| None),
                why => Ok(why),
            },
        ),
        skippable_trial_with(
            Load::Spins(1),
            "a_hypervisor_whose_guest_spins_is_left_alone",
            || hypervisor(&Terms::short()),
        ),
        trial_that_may_skip(
            "a_guest_that_waits_with_interrupts_off_is_left_alone_for_long_under_tcg",
            || match Terms::long()? {
                Ok(terms) => masked_wait(Accelerator::Tcg, &terms).map(|()| None),
                Err(why) => Ok(Some(why)),
            },
        ),
        trial_that_may_skip(
            "a_guest_that_waits_with_interrupts_off_is_left_alone_for_long_under_kvm",
            || match Terms::long()? {
                Ok(terms) => match kvm()? {
                    None => masked_wait(Accelerator::Kvm, &terms).map(|()| None),
                    why => Ok(why),
                },
                Err(why) => Ok(Some(why)),
            },
        ),
        trial_that_may_skip("a_hypervisor_whose_guest_spins_is_left_alone_for_long", || {
            match Terms::long()? {
                Ok(terms) => hypervisor(&terms),
                Err(why) => Ok(Some(why)),
            }
        }),
    ]
}

/// What the daemon goes by, and for how long a guest is watched that is to be left alone.
struct Terms {
    flat_for: Duration,
    unconfirmed_flat_for: Duration,
    watched_for: Duration,
    /// The same once a neighbour has crashed.
    beside_for: Duration,
}

impl Terms {
    /// Twice as long as the longest silence that counts.
    fn short() -> Self {
        let [flat_for, unconfirmed_flat_for, watched_for, beside_for] =
            [2, 5, 10, 1].map(Duration::from_secs);
        Self { flat_for, unconfirmed_flat_for, watched_for, beside_for }
    }

    /// The configuration's defaults, where there is time for them; else why not.
    fn long() -> Result<Result<Self, String>> {
        let Ok(watched_for) = std::env::var(LONG) else {
            return Ok(Err(format!(
                "it takes minutes: set {LONG} to how long to watch, such as 5m"
            )));
        };
        let watched_for = humantime::parse_duration(&watched_for).context(LONG)?;
        let [flat_for, unconfirmed_flat_for] = [10, 120].map(Duration::from_secs);
        Ok(Ok(Self { flat_for, unconfirmed_flat_for, watched_for, beside_for: watched_for }))
    }

    fn daemon(&self, rig: &Rig) -> Result<Daemon> {
        let mut config: DaemonConfig = rig.daemon_config()?;
        config.flat_for = self.flat_for;
        config.boot_grace = Duration::from_secs(2);
        let unconfirmed = humantime::format_duration(self.unconfirmed_flat_for);
        config.extra_toml = format!("unconfirmed_flat_for = \"{unconfirmed}\"");
        rig.daemon(&config)
    }
}

/// Alone first, and then beside one that crashes and is restarted.
fn masked_wait(accelerator: Accelerator, terms: &Terms) -> Result<()> {
    let rig = Rig::new()?;
    let waits = rig.boot_sector("waits", BootSector::MaskedWait, accelerator).start()?;
    wait_until("interrupts are taken", BOOT_LIMIT, || {
        Ok((waits.dword_at(BootSector::COUNTER_AT)? > 0).then_some(()))
    })?;
    waits.events()?;
    check_masked(&waits, "7ca")?;
    let daemon = terms.daemon(&rig)?;
    let (begin, taken) = (Instant::now(), waits.dword_at(BootSector::COUNTER_AT)?);
    watch(&daemon, &waits, terms.watched_for)?;

    let crashes = rig.boot_sector("crashes", BootSector::CliJmp, accelerator).start()?;
    let incident = wait_for_incident(&daemon, "crashes", "restarted", NEIGHBOUR_LIMIT, |one| {
        !one["action_at"].is_null()
    })?;
    println!("the neighbour: {}: {}", incident["cause"], incident["reason"]);
    ensure!(incident["cause"] == "spinning", "{incident}");
    ensure!(!outer_resets(&crashes)?.is_empty(), "no reset of the neighbour: {incident}");
    watch(&daemon, &waits, terms.beside_for)?;

    let taken = waits.dword_at(BootSector::COUNTER_AT)?.wrapping_sub(taken);
    let rate = f64::from(taken) / begin.elapsed().as_secs_f64();
    println!("it took {rate:.1} interrupts a second, for {:.0?}", begin.elapsed());
    // Its timer asks for ten. A machine that is busy gives it no time for some.
    ensure!(
        rate > 2.0,
        "it took {rate} interrupts a second: not healthy, and no proof of anything"
    );
    Ok(())
}

/// A Linux that can't be asked, whose own guest spins with interrupts off.
fn hypervisor(terms: &Terms) -> Result<Option<String>> {
    let rig = Rig::new()?;
    let config = match rig.hypervisor("hypervisor") {
        Ok(config) => config,
        Err(why) => return Ok(Some(why)),
    };
    let guest = config.start()?;
    guest.wait_until_booted(BOOT_LIMIT)?;
    guest.send("hypervisor")?;
    guest.wait_for("hypervisor: its guest spins", BOOT_LIMIT)?;
    guest.events()?;
    check_masked(&guest, "1001")?;
    let daemon = terms.daemon(&rig)?;
    watch(&daemon, &guest, terms.watched_for)?;
    check_masked(&guest, "1001")?;
    // It schedules, and takes the serial line's interrupts: it is not its guest that spins.
    guest.run("idle", BOOT_LIMIT)?;
    Ok(None)
}

/// Watches a guest that nothing may be done to.
fn watch(daemon: &Daemon, guest: &Guest, watched_for: Duration) -> Result<()> {
    let end = Instant::now() + watched_for;
    while Instant::now() < end {
        sleep(Duration::from_millis(500))?;
        // It may not have been found yet.
        if vm(daemon, guest.name()).is_ok() {
            check_untouched(daemon, guest).with_context(|| daemon.log_tail(20))?;
        }
    }
    let row = vm(daemon, guest.name())?;
    println!("{}: {} ({})", guest.name(), row["state"], row["reason"]);
    let state = row["state"].as_str();
    ensure!(state != Some("starting"), "{watched_for:?} were no time to be watched: {row}");
    let incidents = incidents_of(daemon, guest.name())?;
    ensure!(incidents.is_empty(), "{incidents:?}");
    let reset = |event: &Value| event["event"] == "RESET";
    ensure!(!guest.events()?.iter().any(reset), "{} was reset", guest.name());
    Ok(())
}

/// The guest looks dead: of several looks, most show interrupts off, and an instruction pointer with these digits.
fn check_masked(guest: &Guest, digits: &str) -> Result<()> {
    const LOOKS: usize = 10;
    let mut masked = 0;
    for _ in 0..LOOKS {
        let command = json!({ "command-line": "info registers" });
        let shown = guest.qmp("human-monitor-command", &command)?;
        let text = shown.as_str().context("no registers")?;
        let field = |name: &str| text.split(name).nth(1)?.split_whitespace().next();
        let flags = u64::from_str_radix(field("EFL=").unwrap_or("200"), 16)?;
        let spot = field("EIP=").is_some_and(|ip| ip.trim_start_matches('0').starts_with(digits));
        masked += usize::from(flags & 0x200 == 0 && spot);
        sleep(Duration::from_millis(130))?;
    }
    println!("{}: {masked} of {LOOKS} looks show that spot, and interrupts off", guest.name());
    ensure!(2 * masked > LOOKS, "{}: {masked} of {LOOKS} looks", guest.name());
    Ok(())
}
