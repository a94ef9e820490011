//! The shipped rules, judged by a real Prometheus on figures of a real daemon, and received by a real Alertmanager:
//! each alert comes from the crash or the fault that it is for.
//!
//! One daemon and one Prometheus for all of them. What takes minutes in the rules takes seconds here
//! ([`hastened`]); that the times as shipped are right is shown by `promtool test rules`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    command,
    daemon::{Daemon, free_address},
    dashboard::questions,
    guest::{Guest, GuestConfig},
    interrupt::{sleep, wait_until},
    netns::Tap,
    prometheus::{Alertmanager, Prometheus, hastened},
    stopped::Stopped,
    tools,
    traced::Traced,
};
use libtest_mimic::Trial;
use rustix::process::Pid;

use crate::{
    foreign::detach_link,
    rig::{BOOT_LIMIT, Rig, put, trial_that_may_skip, wait_for_vm},
};

/// For an alert to reach Alertmanager, on a busy machine.
const ALERT_LIMIT: Duration = Duration::from_secs(40);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// VMs and taps that there is room for: no configuration has fewer.
const ROOM: usize = 16;
/// How often the programs of a tap are detached: the daemon attaches them again when it notices.
const DETACHED_EVERY: Duration = Duration::from_millis(300);
/// A tick is due every second, and late when it begins more than half of that after its time.
const HELD_UP_FOR: Duration = Duration::from_millis(1600);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip(
            "each_alert_reaches_alertmanager_from_the_fault_that_it_is_for",
            alerts,
        ),
        trial_that_may_skip("promtool_finds_the_rules_sound_and_their_times_right", rules),
    ]
}

/// Where the rules are, and what they are to do.
fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitor/packaging/prometheus").join(file)
}

/// The names of all alerts in the rules.
fn alert_names(rules: &str) -> BTreeSet<String> {
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

fn rules() -> Result<Option<String>> {
    let promtool = match tools::PROMTOOL.needed() {
        Ok(promtool) => promtool,
        Err(why) => return Ok(Some(why)),
    };
    let promtool = |arguments: [&str; 2], file: &str| {
        command::run_command(Command::new(&promtool).args(arguments).arg(packaged(file)))
    };
    promtool(["check", "rules"], "flatline.rules.yml")?;
    let mut tests = String::new();
    for file in ["flatline.rules.test.yml", "flatline.rules.hold.test.yml"] {
        promtool(["test", "rules"], file)?;
        tests.push_str(&fs::read_to_string(packaged(file))?);
    }
    // An alert that isn't expected anywhere is tested by nothing.
    let lines: Vec<&str> = tests.lines().map(str::trim).collect();
    let fires = |name: &str| {
        let here = format!("- alertname: {name}");
        let mut after = lines.iter().enumerate().filter(|(_, line)| **line == here);
        after.any(|(at, _)| lines.get(at + 2).is_some_and(|line| line.starts_with("exp_alerts:")))
    };
    for name in alert_names(&fs::read_to_string(packaged("flatline.rules.yml"))?) {
        ensure!(fires(&name), "no test has {name} fire");
    }
    Ok(None)
}

/// All that is there for the faults to come to.
struct Scene {
    /// Ends first: what it detaches is the daemon's.
    detacher: Option<Detacher>,
    daemon: Daemon,
    prometheus: Prometheus,
    alertmanager: Alertmanager,
    guests: Vec<Guest>,
    _stand_ins: Vec<StandIn>,
    /// Alerts that Alertmanager ever had: name, and VM where there is one.
    seen: BTreeSet<(String, String)>,
    tap: Tap,
    rig: Rig,
}

impl Scene {
    fn guest(&self, name: &str) -> Result<&Guest> {
        let guest = self.guests.iter().find(|guest| guest.name() == name);
        guest.with_context(|| format!("no guest {name}"))
    }

    fn look(&mut self) -> Result<()> {
        for alert in self.alertmanager.alerts()? {
            let label = |name| alert["labels"][name].as_str().unwrap_or_default().to_owned();
            for annotation in ["summary", "runbook"] {
                let text = alert["annotations"][annotation].as_str();
                ensure!(text.is_some_and(|text| !text.contains("{{")), "{alert}");
            }
            if self.seen.insert((label("alertname"), label("vm"))) {
                println!("{}", alert["annotations"]["summary"]);
            }
        }
        Ok(())
    }

    /// Waits until Alertmanager has had all of these.
    fn wait_for(&mut self, wanted: &[(&str, &str)]) -> Result<()> {
        let wanted: BTreeSet<_> =
            wanted.iter().map(|(name, vm)| ((*name).to_owned(), (*vm).to_owned())).collect();
        let begun = Instant::now();
        let came = wait_until("alerts", ALERT_LIMIT, || {
            self.look()?;
            Ok(wanted.is_subset(&self.seen).then_some(()))
        });
        came.with_context(|| {
            let missing: Vec<_> = wanted.difference(&self.seen).collect();
            let log = self.daemon.log().text();
            let of_them =
                log.lines().filter(|line| missing.iter().any(|(_, vm)| line.contains(vm)));
            let last: Vec<_> = of_them.collect();
            let last = last[last.len().saturating_sub(40)..].join("\n");
            format!("without {missing:?}; {last}")
        })?;
        println!("  that took {:.1?}", begun.elapsed());
        Ok(())
    }
}

/// A guest that reads its disk all the time, and obeys what comes over its serial line.
fn reader(rig: &Rig, name: &str, code: BootSector) -> Result<GuestConfig> {
    let mut config = rig.boot_sector_on_disk(name, code)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
    Ok(config)
}

fn scene(prometheus: &Path, alertmanager: &Path, rules: &str) -> Result<Scene> {
    let rig = Rig::new()?;
    let on_command = |name| reader(&rig, name, BootSector::OnCommand);
    let mut blind = on_command("blind")?;
    let tap = rig.netns.tap("tap1", None)?;
    blind.tap = Some(tap.clone());
    let mut agent = rig.linux("agent", 2)?;
    agent.balloon = true;
    // With the two others', one more than there is room for.
    let mut left_alone = on_command("left-alone")?;
    left_alone.tap = Some(rig.netns.tap("more0", None)?);
    for number in 1..ROOM - 1 {
        let more = rig.netns.tap(&format!("more{number}"), None)?;
        let netdev = format!("tap,id=more{number},ifname={},script=no,downscript=no", more.name());
        left_alone.extra_args.extend(["-netdev".to_owned(), netdev]);
    }
    let configs = [
        agent,
        on_command("healthy")?,
        on_command("restarted")?,
        reader(&rig, "always-panics", BootSector::Pvpanic)?,
        on_command("observed")?,
        on_command("killed")?,
        blind,
        on_command("storm-1")?,
        on_command("storm-2")?,
        on_command("storm-3")?,
        left_alone,
    ];
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    (config.flat_for, config.boot_grace) = (Duration::from_secs(2), Duration::from_secs(2));
    config.extra_toml = format!(
        "storm_vms = 3\nstorm_share = 0.1\nmemory_every = \"1s\"\n\
         [probes]\nmax_vms = {ROOM}\nmax_taps = {ROOM}\n\
         [[vm]]\nmatch = \"always-panics\"\nmax_restarts = 1\npause = \"1s\"\n\
         [[vm]]\nmatch = \"observed\"\nmode = \"observe\"\n"
    );
    config.executables.push(StandIn::put(&rig)?.display().to_string());
    let daemon = rig.daemon(&config)?;
    let alertmanager = Alertmanager::start(alertmanager, rig.dir(), Alertmanager::TELLS_NONE)?;
    let prometheus = Prometheus::start(prometheus, rig.dir(), address, rules, &alertmanager)?;
    let guests = configs.iter().map(GuestConfig::start).collect::<Result<Vec<_>>>()?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "counted", BOOT_LIMIT, |row| {
            row["storage"].is_object()
        })?;
    }
    // There is no row for the last one.
    let stand_ins = (guests.len()..=ROOM).map(|number| StandIn::start(&rig, number));
    let _stand_ins = stand_ins.collect::<Result<Vec<_>>>()?;
    let (detacher, seen) = (None, BTreeSet::new());
    Ok(Scene { detacher, daemon, prometheus, alertmanager, guests, _stand_ins, seen, tap, rig })
}

/// A process that takes a VM's place in the daemon's maps, and costs nothing.
struct StandIn(Child);

impl StandIn {
    /// Puts its program where only this test's daemon looks for VMs.
    fn put(rig: &Rig) -> Result<PathBuf> {
        let program = rig.dir().join("stand-in");
        put(Path::new(env!("CARGO_BIN_EXE_stand-in")), &program)?;
        Ok(program)
    }

    fn start(rig: &Rig, number: usize) -> Result<Self> {
        let mut command = Command::new(rig.dir().join("stand-in"));
        command.args(["-name", &format!("stand-in-{number}"), "-smp", "1"]);
        // It ends with its standard input.
        Ok(Self(command.stdin(Stdio::piped()).spawn().context("cannot start a stand-in")?))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It is gone already, or ends by this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Detaches the programs of one tap again and again, as `bpftool link detach` does.
struct Detacher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Detacher {
    fn start(links: PathBuf, tap: &Tap) -> Result<Self> {
        let index = interface_index(tap)?;
        let pins = ["from", "to"].map(|way| format!("-{index}-{way}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for link in fs::read_dir(&links).into_iter().flatten().flatten() {
                    let name = link.file_name().to_string_lossy().into_owned();
                    if name.starts_with("tap-") && pins.iter().any(|pin| name.ends_with(pin)) {
                        // It may be detached already, or be attached just now.
                        let _ = detach_link(&link.path());
                    }
                }
                std::thread::sleep(DETACHED_EVERY);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Detacher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere, and there is nothing to tell if it did.
            let _ = thread.join();
        }
    }
}

fn alerts() -> Result<Option<String>> {
    let (prometheus, alertmanager) =
        match (tools::PROMETHEUS.needed(), tools::ALERTMANAGER.needed()) {
            (Ok(prometheus), Ok(alertmanager)) => (prometheus, alertmanager),
            (Err(why), _) | (_, Err(why)) => return Ok(Some(why)),
        };
    let shipped = fs::read_to_string(packaged("flatline.rules.yml"))?;
    let mut scene = scene(&prometheus, &alertmanager, &hastened(&shipped)?)?;

    // One is restarted before Prometheus first hears of it, and one after that.
    wait_until("a scrape", ALERT_LIMIT, || {
        let before = scene.prometheus.query("flatline_vm_restarts_total{vm=\"restarted\"} == 0")?;
        Ok((!before.is_empty()).then_some(()))
    })?;
    for name in ["restarted", "observed"] {
        scene.guest(name)?.send("p")?;
    }
    let held = scene.daemon.client(&["hold", "left-alone"])?;
    ensure!(held.status.success(), "{held:?}");
    scene.wait_for(&[
        ("FlatlineVmRestarted", "restarted"),
        ("FlatlineVmRestarted", "always-panics"),
        ("FlatlineVmFailed", "always-panics"),
        ("FlatlineVmCrashed", "observed"),
        ("FlatlineVmHeldForLong", "left-alone"),
        ("FlatlineDegraded", ""),
        ("FlatlineMapNearlyFull", ""),
        ("FlatlineTapUncounted", ""),
    ])?;

    let agent = scene.guest("agent")?;
    agent.wait_until_booted(BOOT_LIMIT)?;
    agent.run("heartbeat", COMMAND_LIMIT)?;
    wait_for_vm(&scene.daemon, "agent", "its heart is heard", COMMAND_LIMIT, |row| {
        row["heartbeat"]["beats"].as_u64() > Some(1)
    })?;
    look_at_dashboard(&scene.prometheus)?;
    agent.run("heartbeat-kill KILL", COMMAND_LIMIT)?;
    scene.guest("killed")?.kill()?;
    let links = scene.rig.dir().join("bpf/flatline/links");
    scene.detacher = Some(Detacher::start(links, &scene.tap)?);
    scene.guest("blind")?.send("x")?;
    scene.wait_for(&[
        ("FlatlineVmNotBroughtBack", ""),
        ("FlatlineVmAgentMissed", "agent"),
        ("FlatlineVmUnobservable", "blind"),
    ])?;
    scene.detacher = None;
    // After that: a VM that falls silent during a storm belongs to it.
    for number in 1..=3 {
        scene.guest(&format!("storm-{number}"))?.send("x")?;
    }
    scene.wait_for(&[("FlatlineStorm", "")])?;

    let pid = scene.daemon.pid().context("the daemon runs")?;
    let hangs = Traced::main_thread(pid)?;
    scene.wait_for(&[("FlatlineHangs", "")])?;
    drop(hangs);
    for _ in 0..3 {
        let process = Pid::from_raw(i32::try_from(pid)?).context("no process has the number 0")?;
        let stopped = Stopped::new(process)?;
        sleep(HELD_UP_FOR)?;
        drop(stopped);
        // For the tick that is late, and for a scrape: it isn't away.
        sleep(Duration::from_millis(500))?;
    }
    scene.wait_for(&[("FlatlineTicksLate", "")])?;

    let is_there = |name: &str| scene.seen.iter().any(|(alert, _)| alert == name);
    ensure!(!is_there("FlatlineAway"), "{:?}", scene.seen);
    scene.daemon.kill()?;
    scene.wait_for(&[("FlatlineAway", "")])?;

    let fired: BTreeSet<String> = scene.seen.iter().map(|(name, _)| name.clone()).collect();
    let all = alert_names(&shipped);
    ensure!(fired == all, "fired: {fired:?}, of {all:?}");
    ensure!(!scene.seen.iter().any(|(_, vm)| vm == "healthy"), "{:?}", scene.seen);
    Ok(None)
}

/// Asks Prometheus all that the dashboard would, of a host where everything is to be seen.
fn look_at_dashboard(prometheus: &Prometheus) -> Result<()> {
    let questions = questions(&fs::read_to_string(packaged("../grafana/flatline.json"))?)?;
    for question in &questions {
        let asked = question.of_all("1m", "2m")?;
        // Nothing stalls here.
        let may_be_empty = question.expression.contains("oldest_in_flight");
        // A rate takes two scrapes, and a guest that booted just now may not have told of its memory yet.
        wait_until(&format!("something to be seen: {question:?}"), ALERT_LIMIT, || {
            let series = prometheus.query(&asked)?;
            Ok((may_be_empty || !series.is_empty()).then_some(()))
        })?;
    }
    println!("{} questions of the dashboard were answered", questions.len());
    Ok(())
}

fn interface_index(tap: &Tap) -> Result<u32> {
    let name = std::ffi::CString::new(tap.name())?;
    let index = tap.inside(move || {
        // SAFETY: `name` is a C string that outlives the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    })?;
    ensure!(index != 0, "{} is gone", tap.name());
    Ok(index)
}
