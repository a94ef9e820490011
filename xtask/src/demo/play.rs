//! The play: what happens on the stage, step by step, and the proof of each.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use flatline_tests::console::Mark;
use flatline_tests::guest::{BANNER, Guest};
use flatline_tests::interrupt;
use serde_json::Value;

use super::screen::{Screen, safe};
use super::stage::{BOOT_LIMIT, CRUNCHER, IDLER, PATIENCE, PLAYERS, SHOP, Stage};
use super::traces::Traces;
use crate::process::workspace_root;

/// How long the healthy guests are shown: long enough for the idle one to be suspected, and to answer.
const HEALTHY_FOR: Duration = Duration::from_secs(10);

/// Times from the panic, measured, and how long the other guests ran through it all.
pub(super) struct Measured {
    pub(super) verdict: Duration,
    pub(super) reset: Duration,
    pub(super) back: Duration,
    pub(super) alive: Duration,
    pub(super) undisturbed: Duration,
}

/// The panic: the place on the console before it, and how long after that the kernel announced it.
struct Crash {
    mark: Mark,
    marked: Instant,
    marked_at: SystemTime,
    offset: Duration,
}

impl Crash {
    fn elapsed(&self) -> Duration {
        self.since_mark(self.marked.elapsed())
    }

    /// Makes a time from the mark one from the panic.
    fn since_mark(&self, time: Duration) -> Duration {
        time.saturating_sub(self.offset)
    }
}

impl Stage {
    /// Plays; what the daemon logged is added to an error that isn't the audience's own Ctrl-C.
    pub(super) fn play(&mut self, screen: &mut Screen, traces: &mut Traces) -> Result<Measured> {
        let played = self.tell(screen, traces);
        if played.is_err() && !interrupt::interrupted() {
            screen.say("What the daemon logged:");
            screen.say(self.daemon.log().text().trim_end());
        }
        played
    }

    fn tell(&mut self, screen: &mut Screen, traces: &mut Traces) -> Result<Measured> {
        self.show_healthy(screen)?;
        // Those on the taps came with the guests.
        traces.note_programs(self.daemon.pid().context("the daemon ended")?)?;
        let crash = self.crash_shop(screen)?;
        let verdict = self.await_verdict(screen, &crash)?;
        let (reset, back, alive) = self.await_return(screen, &crash)?;
        self.check_others(screen)?;
        let undisturbed = self.booted.elapsed();
        // The verdict is polled for, and was given before the reset.
        let verdict = verdict.min(reset);
        Ok(Measured { verdict, reset, back, alive, undisturbed })
    }

    fn show_healthy(&mut self, screen: &mut Screen) -> Result<()> {
        let [idler, cruncher] = &self.others;
        cruncher.run("compute 1", PATIENCE)?;
        // What happened while they booted is not what is looked for later.
        for guest in [&self.shop, idler, cruncher] {
            guest.events()?;
        }
        self.last_trade = Some(Instant::now());
        screen.step("3. All three are healthy, and no two look alike from outside.");
        screen
            .say("   `shop` pings and writes to its disk, `idler` does nothing at all, `cruncher`");
        screen
            .say("   computes and says nothing. A silent one is asked for a sign of life, by ARP:");
        let begin = Instant::now();
        self.watch(screen, "all three alive", PATIENCE, |stage| {
            let all_alive = PLAYERS.iter().all(|name| stage.is_alive(name));
            Ok((begin.elapsed() >= HEALTHY_FOR && all_alive).then_some(()))
        })?;
        let incidents = self.daemon.incidents()?;
        ensure!(incidents.is_empty(), "incidents before anything happened: {incidents:?}");
        Ok(())
    }

    fn crash_shop(&mut self, screen: &mut Screen) -> Result<Crash> {
        self.last_trade = None;
        screen.step("4. The kernel of `shop` panics in silence: no pvpanic, no reboot.");
        let mark = self.shop.mark();
        let (marked, marked_at) = (Instant::now(), SystemTime::now());
        self.shop.send("panic")?;
        let offset = self.shop.wait_for_after(mark, "Kernel panic", PATIENCE)?;
        let at = humantime::format_rfc3339_millis(marked_at + offset);
        screen.say(&format!("   {at}: the last words on its console:"));
        // Its last line: until then the lines above may still be growing.
        self.shop.wait_for_after(mark, "end Kernel panic", PATIENCE)?;
        for part in ["sysrq: Trigger", "Kernel panic - not"] {
            quote(screen, &self.shop, part, 0);
        }
        screen.say(&format!(
            "   To QEMU it still looks fine: its run state is {}.",
            self.shop.run_state()?
        ));
        Ok(Crash { mark, marked, marked_at, offset })
    }

    fn await_verdict(&mut self, screen: &mut Screen, crash: &Crash) -> Result<Duration> {
        screen.say(
            "   Its vCPU spins, that of `cruncher` computes: flatline has to tell them apart.",
        );
        let incident = self.watch(screen, "a verdict on shop", PATIENCE, |stage| {
            Ok(stage.incidents_of(SHOP)?.pop())
        })?;
        let verdict = crash.elapsed();
        screen.step(&format!(
            "5. The verdict on `shop`, {:.1} s after the panic: {}",
            verdict.as_secs_f64(),
            text(&incident["cause"])
        ));
        screen.say(&format!("   {}", text(&incident["reason"])));
        Ok(verdict)
    }

    fn await_return(
        &mut self,
        screen: &mut Screen,
        crash: &Crash,
    ) -> Result<(Duration, Duration, Duration)> {
        screen.step("6. flatline resets `shop` through QMP, and waits for a sign of life.");
        let reset_at = self.watch(screen, "the reset of shop", PATIENCE, |stage| {
            let events = stage.shop.events()?;
            Ok(events.iter().filter(|event| event["event"] == "RESET").find_map(event_time))
        })?;
        let since_mark = reset_at.duration_since(crash.marked_at);
        let reset = crash.since_mark(since_mark.context("a reset before the panic")?);
        self.watch(screen, "the banner of shop", BOOT_LIMIT, |stage| {
            Ok((stage.shop.banner_count() == 2).then_some(()))
        })?;
        let back = self.shop.wait_for_after(crash.mark, BANNER, Duration::ZERO)?;
        let back = crash.since_mark(back);
        self.last_trade = Some(Instant::now());
        let incident = self.watch(screen, "the end of shop's incident", PATIENCE, |stage| {
            let incident = stage.incidents_of(SHOP)?.pop();
            let over = incident.filter(|incident| incident["outcome"].is_string());
            Ok(over.filter(|_| stage.is_alive(SHOP)))
        })?;
        let alive = crash.elapsed();
        let seconds = |key: &str| incident[key].as_f64();
        let recovered = incident["outcome"] == "recovered";
        ensure!(recovered, "not recovered: {incident}");
        let action = text(&incident["action"]);
        ensure!(action.starts_with("system_reset"), "another action: {incident}");
        let detect = seconds("detect_seconds").context("no detect_seconds")?;
        let recover = seconds("recover_seconds").context("no recover_seconds")?;
        screen.say(&format!(
            "   `shop` is back {:.1} s after the panic; its console says for the second time:",
            back.as_secs_f64()
        ));
        quote(screen, &self.shop, BANNER, 1);
        screen.say("   flatline's own record of it, as `flatline incidents` tells it:");
        for (key, value) in [
            ("id", text(&incident["id"])),
            ("last sign of life", text(&incident["last_sign_of_life"])),
            (
                "detected",
                format!("{}, after {detect:.1} s of silence", text(&incident["detected_at"])),
            ),
            ("action", format!("{action}, {}", text(&incident["action_at"]))),
            ("outcome", format!("recovered, {recover:.1} s after the action")),
            ("evidence", evidence(&incident)),
        ] {
            screen.say(&format!("     {key:<18} {value}"));
        }
        self.write_page(screen, &text(&incident["id"]))?;
        Ok((reset, back, alive))
    }

    /// Puts the incident, with all its evidence, on a page that outlives the demo.
    fn write_page(&self, screen: &mut Screen, id: &str) -> Result<()> {
        let page = workspace_root().join("target/demo.html");
        let file = page.to_str().context("the workspace's path is no UTF-8")?;
        let output = self.daemon.client(&["incidents", "show", id, "--html", file])?;
        ensure!(output.status.success(), "no page of the incident: {output:?}");
        let bytes = std::fs::metadata(&page)?.len();
        screen.say(
            "   The same, with what `shop` showed, and its lines, as a page for others to read:",
        );
        screen.say(&format!("     {file} ({} KiB)", bytes >> 10));
        Ok(())
    }

    fn check_others(&mut self, screen: &mut Screen) -> Result<()> {
        screen.step("7. The other two were left alone all the while.");
        self.watch(screen, "the others alive", PATIENCE, |stage| {
            Ok([IDLER, CRUNCHER].iter().all(|name| stage.is_alive(name)).then_some(()))
        })?;
        for guest in &self.others {
            let name = guest.name();
            let incidents = self.incidents_of(name)?;
            ensure!(incidents.is_empty(), "{name}: {incidents:?}");
            ensure!(guest.is_running() && guest.banner_count() == 1, "{name} booted again");
            let events = guest.events()?;
            let resets = events.iter().filter(|event| event["event"] == "RESET").count();
            ensure!(resets == 0, "{name} was reset: {events:?}");
            screen.say(&format!(
                "   `{name}`: no incident, no reset, booted once, {:.0} s ago.",
                self.booted.elapsed().as_secs_f64()
            ));
        }
        let incidents = self.daemon.incidents()?.len();
        ensure!(incidents == 1, "{incidents} incidents instead of one");
        Ok(())
    }
}

/// When QEMU says that its event happened.
fn event_time(event: &Value) -> Option<SystemTime> {
    let time = &event["timestamp"];
    let seconds = Duration::from_secs(time["seconds"].as_u64()?);
    let micros = Duration::from_micros(time["microseconds"].as_u64()?);
    Some(SystemTime::UNIX_EPOCH + seconds + micros)
}

/// Shows the lines of a guest's console that contain `part`, but not the first `skipped` of them.
fn quote(screen: &mut Screen, guest: &Guest, part: &str, skipped: usize) {
    let console = guest.log().text();
    for line in console.lines().filter(|line| line.contains(part)).skip(skipped) {
        // The log puts its own time first.
        let line = line.trim_start().split_once(' ').map_or(line, |(_, said)| said);
        screen.say(&format!("   | {}", safe(line.trim_end())));
    }
}

/// A string of the daemon's, fit for a terminal.
fn text(value: &Value) -> String {
    safe(value.as_str().unwrap_or("-"))
}

fn evidence(incident: &Value) -> String {
    let names = incident["evidence"].as_array().into_iter().flatten().map(text);
    names.collect::<Vec<_>>().join(", ")
}
