//! A daemon takes over from another one: with other programs, with another layout, and out of room.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    command,
    daemon::{Daemon, DaemonConfig},
    guest::was_killed,
    interrupt,
    netns::Tap,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::{Requests, Traffic, fill_disk},
    programs,
    rig::{BOOT_LIMIT, Rig, boot_all, put, trial, vm, wait_for_vm},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("programs_that_changed_are_exchanged_under_load_without_a_loss", || {
            programs_exchanged("auto")
        }),
        trial("programs_in_filters_are_exchanged_under_load_without_a_loss", || {
            programs_exchanged("clsact")
        }),
        trial("a_layout_that_changed_is_replaced_and_said", layout_replaced),
        trial("a_vm_for_which_there_is_no_room_is_named", no_room),
    ]
}

/// The only row of the pinned map `layout`.
struct Layout {
    pin: PathBuf,
    version: u64,
    generation: u64,
    sizes: u64,
    programs: u64,
}

impl Layout {
    fn read(rig: &Rig) -> Result<Self> {
        let pin = rig.dir().join("bpf/flatline/layout");
        let words = ["-j", "map", "dump", "pinned"].map(Into::into).into_iter();
        let output = command::run("bpftool", words.chain([pin.clone().into_os_string()]))?;
        let rows: Value = serde_json::from_slice(&output)?;
        let value = &rows[0]["formatted"]["value"];
        let field = |name: &str| value[name].as_u64().with_context(|| format!("no {name}: {rows}"));
        Ok(Self {
            version: field("version")?,
            generation: field("generation")?,
            sizes: field("sizes")?,
            programs: field("programs")?,
            pin,
        })
    }

    fn write(&self) -> Result<()> {
        let Self { pin, version, generation, sizes, programs } = self;
        let small = |number: &u64| anyhow::Ok(u32::try_from(*number)?.to_ne_bytes().to_vec());
        let bytes = [
            small(version)?,
            small(generation)?,
            sizes.to_ne_bytes().to_vec(),
            programs.to_ne_bytes().to_vec(),
        ];
        let mut words: Vec<String> = ["map", "update", "pinned"].map(str::to_owned).to_vec();
        words.push(pin.display().to_string());
        words.extend(["key", "0", "0", "0", "0", "value"].map(str::to_owned));
        words.extend(bytes.concat().iter().map(u8::to_string));
        command::run("bpftool", words)?;
        Ok(())
    }
}

fn programs_exchanged(hook: &str) -> Result<()> {
    let rig = Rig::new()?;
    let config = rig.linux("works-on", 1)?;
    let tap = config.tap.clone().context("it has a tap")?;
    fill_disk(&config)?;
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let extra_toml = format!("[probes]\ntap_hook = \"{hook}\"");
    let mut daemon = rig.daemon(&DaemonConfig { extra_toml, ..rig.daemon_config()? })?;
    wait_for_vm(&daemon, "works-on", "its figures", BOOT_LIMIT, |row| {
        row["network"].is_object() && row["storage"].is_object()
    })?;
    interrupt::sleep(Duration::from_secs(2))?;
    let traffic = (Traffic::of_daemon(&daemon, "works-on")?, Traffic::of_kernel(&tap)?);
    let requests = (Requests::of_daemon(&daemon, "works-on")?, Requests::of_qemu(guest)?);
    let before = programs::on_tap(&tap)?;
    let news = rig.dir().join("filters");
    let _monitor = write_down_filters(&tap, &news)?;

    guest.run("disk", Duration::from_secs(5))?;
    let mark = guest.mark();
    guest.send("net 3000")?;
    let mut generations = Vec::new();
    for _ in 0..3 {
        interrupt::sleep(Duration::from_millis(500))?;
        ensure!(was_killed(daemon.kill()?), "it ended by itself: {}", daemon.log().text());
        // What a binary with other programs of the same layout finds.
        let mut layout = Layout::read(&rig)?;
        layout.programs ^= 1;
        layout.write()?;
        daemon.start_again()?;
        generations.push(Layout::read(&rig)?.generation);
    }
    guest.wait_for_after(mark, "DONE net", BOOT_LIMIT)?;
    guest.run("stop-load", Duration::from_secs(20))?;
    ensure!(generations.is_sorted_by(|a, b| a < b), "generations {generations:?}");
    // Each daemon finds its VMs, and the programs on their taps, by itself.
    let end = Instant::now() + Duration::from_secs(20);
    while programs::on_tap(&tap)?.iter().any(|id| before.contains(id)) {
        ensure!(Instant::now() < end, "the first programs are still on the tap");
        interrupt::sleep(Duration::from_millis(200))?;
    }
    ensure!(programs::on_tap(&tap)?.len() == 2, "on the tap: {:?}", programs::on_tap(&tap)?);

    interrupt::sleep(Duration::from_secs(2))?;
    let end = Instant::now() + Duration::from_secs(40);
    let (ours, kernels) = loop {
        let kernels = Traffic::of_kernel(&tap)?;
        interrupt::sleep(Duration::from_millis(1500))?;
        let ours = Traffic::of_daemon(&daemon, "works-on")?;
        if kernels == Traffic::of_kernel(&tap)? {
            break (ours.since(traffic.0), kernels.since(traffic.1));
        }
        ensure!(Instant::now() < end, "never quiet");
    };
    println!("works-on: {ours:?}; kernel: {kernels:?}");
    let news = std::fs::read_to_string(news)?;
    ensure!(!news.contains("deleted"), "there was no program in between: {news}");
    ensure!(hook != "clsact" || news.matches("tap_from_guest").count() >= 3, "{news}");
    ensure!(ours == kernels && ours.figures()[0] >= 3000, "{ours:?}, kernel {kernels:?}");
    let ours = Requests::of_daemon(&daemon, "works-on")?.since(requests.0);
    let qemus = Requests::of_qemu(guest)?.since(requests.1);
    println!("works-on: {ours:?}; QEMU: {qemus:?}");
    ensure!(ours.is_close_to(qemus), "{ours:?}, QEMU {qemus:?}");
    Ok(())
}

fn layout_replaced() -> Result<()> {
    let rig = Rig::new()?;
    let config = rig.linux("starts-anew", 1)?;
    let tap = config.tap.clone().context("it has a tap")?;
    let guests = boot_all(&[config])?;
    let mut daemon = rig.daemon(&rig.daemon_config()?)?;
    let is_read = |row: &Value| row["network"].is_object();
    wait_for_vm(&daemon, "starts-anew", "its figures", BOOT_LIMIT, is_read)?;
    guests[0].run("net 20", Duration::from_secs(20))?;
    let before = programs::on_tap(&tap)?;
    ensure!(was_killed(daemon.kill()?), "it ended by itself: {}", daemon.log().text());
    let mut layout = Layout::read(&rig)?;
    layout.version -= 1;
    layout.write()?;

    daemon.start_again()?;
    ensure!(daemon.log().text().contains("its counters are given up: layout"), "nothing was said");
    wait_for_vm(&daemon, "starts-anew", "its figures", BOOT_LIMIT, is_read)?;
    let after = programs::on_tap(&tap)?;
    ensure!(
        after.len() == 2 && after.iter().all(|id| !before.contains(id)),
        "{before:?}, {after:?}"
    );
    let [sent, ..] = Traffic::of_daemon(&daemon, "starts-anew")?.figures();
    ensure!(sent < 20, "the old counters went on: {sent} packets");
    guests[0].run("net 30", Duration::from_secs(20))?;
    wait_for_vm(&daemon, "starts-anew", "packets", Duration::from_secs(5), |row| {
        row["network"]["guest_tx_packets"].as_u64() >= Some(sent + 30)
    })?;
    Ok(())
}

/// Processes that end with the test: such that pose as QEMUs, or write down what the kernel says.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes down which filters come to the tap's namespace and which go.
fn write_down_filters(tap: &Tap, into: &Path) -> Result<Processes> {
    let [program, namespace] = tap.enter_prefix();
    let mut command = Command::new(program);
    command.arg(namespace).args(["tc", "monitor"]).stdout(File::create(into)?);
    let child = command.spawn().context("cannot start tc")?;
    Ok(Processes(vec![child]))
}

fn uncounted(daemon: &Daemon) -> Result<Vec<String>> {
    let status = daemon.status()?;
    let vms = status["vms"].as_array().context("no vms")?;
    let blind = vms.iter().filter(|row| row["storage"].is_null());
    Ok(blind.filter_map(|row| row["name"].as_str().map(str::to_owned)).collect())
}

fn no_room() -> Result<()> {
    let rig = Rig::new()?;
    let fake = rig.dir().join("qemu-system-x86_64-fake");
    put(std::path::Path::new(env!("CARGO_BIN_EXE_fake-qemu")), &fake)?;
    let mut config = rig.daemon_config()?;
    config.executables = vec![fake.display().to_string()];
    config.extra_toml = "[probes]\nmax_vms = 16".to_owned();
    let daemon = rig.daemon(&config)?;
    let start = |number: usize| -> Result<Child> {
        let name = format!("crowd-{number}");
        let socket = rig.dir().join(format!("{name}.qmp")).display().to_string();
        Command::new(&fake)
            .args(["-name", &name, "-qmp", &format!("unix:{socket},server=on,wait=off")])
            .args(["-fake", "silent"])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start a fake QEMU")
    };
    let mut fakes = Processes(Vec::new());
    for number in 0..17 {
        fakes.0.push(start(number)?);
    }
    let mut blind = Vec::new();
    interrupt::wait_until("sixteen of them to be counted", Duration::from_secs(20), || {
        blind = uncounted(&daemon)?;
        let all = daemon.status()?["vms"].as_array().map_or(0, Vec::len) == 17;
        Ok((all && blind.len() == 1).then_some(()))
    })
    .with_context(|| format!("not counted: {blind:?}"))?;
    let name = &blind[0];
    let degraded = daemon.status()?["host"]["degraded"].clone();
    let says = degraded.as_str().unwrap_or_default();
    ensure!(
        says.contains(name.as_str()) && says.contains("probes.max_vms"),
        "degraded: {degraded}"
    );
    let text = daemon.log().text();
    ensure!(text.contains("not counted") && text.contains("probes.max_vms"), "{text}");
    wait_for_vm(&daemon, name, "unobservable", Duration::from_secs(20), |row| {
        row["state"] == "unobservable"
    })?;

    // Another one ends, and makes room.
    let other = (0..17).find(|number| *name != format!("crowd-{number}"));
    let Some(other) = other else { bail!("two names differ") };
    fakes.0[other].kill()?;
    fakes.0[other].wait()?;
    interrupt::wait_until("the last one to be counted", Duration::from_secs(20), || {
        Ok(uncounted(&daemon)?.is_empty().then_some(()))
    })?;
    ensure!(vm(&daemon, name)?["storage"].is_object());
    ensure!(daemon.status()?["host"]["degraded"].is_null(), "{}", daemon.status()?["host"]);
    Ok(())
}
