//! `flatline top` on a terminal, by its keys and by what is seen there.

mod fake;
mod thousand;
mod tmux;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{
    BOOT_LIMIT, FLAT_FOR, Load, MARGIN, Rig, boot_all, skippable_trial_with, trial_that_may_skip,
    wait_for_vm,
};
use tmux::{PROMPT, Tmux};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 50);
/// What a crash, a restart and the next sign of life may take on a busy machine.
const RESTART_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip("top_shows_a_crash_as_it_happens_and_outlives_all_around_it", || {
            tmux::missing().map_or_else(|| live().map(|()| None), |why| Ok(Some(why)))
        }),
        skippable_trial_with(Load::Alone, "top_shows_a_thousand_vms_of_a_fake_daemon", || {
            tmux::missing().map_or_else(|| thousand::test().map(|()| None), |why| Ok(Some(why)))
        }),
    ]
}

/// The row of a VM on the screen, as words; the cursor's mark is left out.
fn row<'a>(screen: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let rows = screen.lines().map(|line| line.trim_start_matches(['>', ' ']));
    let words = rows.map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find(|words| words.first() == Some(&name) && words.len() > 6)
}

fn state<'a>(screen: &'a str, name: &str) -> Option<&'a str> {
    row(screen, name)?.get(1).copied()
}

/// The names in the order of their rows.
fn order(screen: &str) -> Vec<&str> {
    let is_row = |name: &&str| ["works", "idles", "dies"].contains(name);
    let lines = screen.lines().map(|line| line.trim_start_matches(['>', ' ']));
    lines.filter_map(|line| line.split(' ').next()).filter(is_row).collect()
}

/// How often a screen with its codes has a colour set to another one than the terminal's own.
fn colours(screen: &str) -> usize {
    let codes = screen.split("\x1b[").skip(1).filter_map(|part| Some(part.split_once('m')?.0));
    let is_colour = |code: &&str| {
        let own = ["39", "49"].contains(code);
        code.len() > 1 && code.starts_with(['3', '4', '9']) && !own
    };
    codes.flat_map(|codes| codes.split(';')).filter(is_colour).count()
}

fn live() -> Result<()> {
    let rig = Rig::new()?;
    let works = rig.boot_sector_on_disk("works", BootSector::OnCommand)?;
    let dies = rig.boot_sector_on_disk("dies", BootSector::OnCommand)?;
    // It has neither a tap nor a disk that can be seen.
    let idles = rig.boot_sector("idles", BootSector::StiHlt, Accelerator::Tcg);
    let mut guests = boot_all(&[works, idles, dies])?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let mut daemon = rig.daemon(&config)?;
    for name in ["works", "dies"] {
        wait_for_vm(&daemon, name, "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    }
    let output = daemon.client(&["top"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && said.contains("needs a terminal"), "{said}");
    let tmux = Tmux::start(rig.dir(), SMALL)?;
    let top = format!(
        "{} top --config {}",
        crate::rig::binary()?.display(),
        daemon.config_path().display()
    );
    tmux.enter(&top)?;
    healthy(&tmux)?;
    crash(&tmux, &daemon, &guests[2])?;
    keys(&tmux)?;
    page(&tmux, &mut guests)?;
    without_a_daemon(&tmux, &mut daemon)?;
    stopped_and_ended(&tmux, &top)
}

fn healthy(tmux: &Tmux) -> Result<()> {
    let screen = tmux.wait_for("three rows", |screen| {
        state(screen, "works") == Some("alive") && state(screen, "idles").is_some()
    })?;
    ensure!(screen.contains("3 VMs: ") && screen.contains("mode recover"), "{screen}");
    // What reads its disk is high, what idles is flat, and of before the daemon's start nothing is known.
    let screen = tmux.wait_for("a line", |screen| {
        row(screen, "works").and_then(|row| row.last().copied()).is_some_and(|line| {
            line.ends_with(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']) && line.chars().count() > 9
        })
    })?;
    let idle = row(&screen, "idles").and_then(|row| row.last().copied()).context("a line")?;
    ensure!(idle.starts_with('·') && idle.ends_with(['─', '━']), "{screen}");
    let codes = tmux.coloured_screen()?;
    ensure!(colours(&codes) > 0, "no colours: {codes:?}");
    Ok(())
}

fn crash(tmux: &Tmux, daemon: &Daemon, dies: &Guest) -> Result<()> {
    // Any word but `p` halts it for good.
    dies.send("h")?;
    let limit = FLAT_FOR + MARGIN + RESTART_LIMIT;
    let screen = tmux.wait_within("a suspicion", limit, |screen| {
        state(screen, "dies").is_some_and(|state| state != "alive")
    })?;
    ensure!(order(&screen).first() == Some(&"dies"), "it stands first: {screen}");
    let line = row(&screen, "dies").and_then(|row| row.last().copied()).context("a line")?;
    ensure!(line.ends_with("━━"), "it is drawn as silent for too long: {screen}");
    ensure!(screen.lines().any(|line| line.starts_with("dies: ")), "no reason: {screen}");
    let screen = tmux.wait_within("its restart", limit, |screen| {
        state(screen, "dies") == Some("alive")
            && row(screen, "dies").is_some_and(|row| row.get(8) == Some(&"1"))
    })?;
    ensure!(state(&screen, "works") == Some("alive"), "{screen}");
    let restarts = crate::rig::vm(daemon, "dies")?["restarts_in_window"].clone();
    ensure!(restarts == 1, "{restarts}");
    Ok(())
}

fn keys(tmux: &Tmux) -> Result<()> {
    tmux.press(&["N"])?;
    tmux.wait_for("the order of names", |screen| {
        order(screen) == ["dies", "idles", "works"] && screen.contains("by name")
    })?;
    tmux.press(&["R"])?;
    tmux.wait_for("that order reversed", |screen| order(screen) == ["works", "idles", "dies"])?;
    tmux.press(&["/", "d", "i", "e"])?;
    tmux.wait_for("the filter", |screen| order(screen) == ["dies"] && screen.contains("/die"))?;
    tmux.press(&["Enter", "F1"])?;
    tmux.wait_for("the help", |screen| screen.contains("flatline top: keys"))?;
    tmux.press(&["x"])?;
    tmux.wait_for("the list", |screen| order(screen) == ["dies"])?;
    for size in [(9, 3), (1, 1), LARGE] {
        tmux.resize(size)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let wide = tmux.wait_for("the reasons", |screen| screen.contains(" REASON"))?;
    ensure!(wide.contains("1 of 3: /die"), "{wide}");
    tmux.resize(SMALL)?;
    tmux.wait_for("few columns", |screen| !screen.contains("REASON")).map(|_| ())
}

/// The page of the guest that died; then it ends while its page is open.
fn page(tmux: &Tmux, guests: &mut Vec<Guest>) -> Result<()> {
    tmux.press(&["Enter"])?;
    let top = tmux.wait_for("its page", |screen| screen.contains("packets sent"))?;
    ensure!(top.starts_with("dies  (process ") && top.contains("requests done"), "{top}");
    tmux.resize((80, 200))?;
    let all = tmux.wait_for("all of it", |screen| screen.contains("boot grace"))?;
    for part in ["SIGNAL ", "THRESHOLD", "sign of life", "suspect after 3s", "INCIDENTS"] {
        ensure!(all.contains(part), "no {part:?}: {all}");
    }
    ensure!(all.contains("halted, system_reset: recovered"), "{all}");
    tmux.resize(SMALL)?;
    drop(guests.pop());
    let limit = Duration::from_secs(30);
    tmux.wait_within("that it is gone", limit, |screen| screen.contains("this VM is gone"))?;
    tmux.press(&["Escape"])?;
    tmux.wait_for("the list without it", |screen| screen.contains("no VM matches"))?;
    tmux.press(&["Escape"])?;
    tmux.wait_for("the others", |screen| order(screen) == ["works", "idles"]).map(|_| ())
}

fn without_a_daemon(tmux: &Tmux, daemon: &mut Daemon) -> Result<()> {
    daemon.kill()?;
    let screen = tmux.wait_for("that it is away", |screen| screen.contains("STALE"))?;
    ensure!(screen.contains("can't reach the daemon"), "{screen}");
    ensure!(order(&screen) == ["works", "idles"], "the last picture is kept: {screen}");
    daemon.start_again()?;
    tmux.wait_for("its return", |screen| {
        !screen.contains("STALE") && state(screen, "works").is_some()
    })
    .map(|_| ())
}

/// A stop by the shell, an end by a signal, and a terminal without colours: each leaves the shell as it was.
fn stopped_and_ended(tmux: &Tmux, top: &str) -> Result<()> {
    tmux.press(&["C-z"])?;
    let screen = tmux.wait_for("the shell", |screen| screen.contains("Stopped"))?;
    ensure!(screen.contains(PROMPT) && !screen.contains("works"), "{screen}");
    tmux.enter("fg")?;
    tmux.wait_for("the list again", |screen| order(screen) == ["works", "idles"])?;
    tmux.press(&["q"])?;
    tmux.wait_for("the shell", |screen| screen.contains(PROMPT) && !screen.contains("VMs:"))?;

    tmux.enter(&format!(
        "clear; TERM=vt100 LC_ALL=C {top}; echo it ended with $?; stty -a | grep -oE -- '-?\\b(echo|icanon)\\b'"
    ))?;
    let screen = tmux.wait_for("the list", |screen| order(screen).len() == 2)?;
    ensure!(screen.is_ascii(), "{screen}");
    let codes = tmux.coloured_screen()?;
    ensure!(colours(&codes) == 0 && codes.contains("\x1b["), "{codes:?}");
    let pid = Pid::from_raw(tmux.child()?.cast_signed()).context("a pid")?;
    kill_process(pid, Signal::TERM)?;
    let screen = tmux.wait_for("its end", |screen| screen.trim_end().ends_with(PROMPT))?;
    let lines: Vec<&str> = screen.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut modes = lines.clone();
    modes.sort_unstable();
    ensure!(modes == ["echo", "icanon", "it ended with 0", PROMPT], "{screen}");
    Ok(())
}
