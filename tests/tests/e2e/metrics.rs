//! What is served to Prometheus is what `status` says, whatever other clients ask, and of those VMs alone that there are.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, free_address},
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
    tools,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{
    BOOT_LIMIT, Rig, boot_all, trial, trial_that_may_skip, vm, wait_for_incident, wait_for_vm,
};

/// What an answer may take on a busy machine: no more than two seconds, where a tick is one.
const SCRAPE_LIMIT: Duration = Duration::from_secs(2);
/// Until a VM that ended is forgotten, or an address that was taken is tried again.
const SOON: Duration = Duration::from_secs(25);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const RESTART_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("figures_at_metrics_are_those_of_status_and_go_with_their_vm", figures),
        trial("clients_that_ask_or_take_nothing_hold_up_neither_figures_nor_ticks", slow_clients),
        trial("a_crash_is_counted_with_its_times", crash),
        trial("a_daemon_whose_address_is_taken_watches_on_and_listens_later", taken),
        trial_that_may_skip("promtool_finds_nothing_wrong_with_the_figures", promtool),
    ]
}

/// Whatever comes back for a GET, with its head.
fn get(address: SocketAddr, path: &str, accept: &str) -> Result<String> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, SCRAPE_LIMIT)?;
    stream.set_read_timeout(Some(SCRAPE_LIMIT))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(begun.elapsed() < SCRAPE_LIMIT, "the answer took {:?}", begun.elapsed());
    Ok(answer)
}

/// All figures as OpenMetrics.
pub(crate) fn scrape(address: SocketAddr) -> Result<String> {
    let answer = get(address, "/metrics", "application/openmetrics-text;version=1.0.0")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    ensure!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    ensure!(body.ends_with("\n# EOF\n"), "it is cut off: {body}");
    Ok(body.to_owned())
}

/// The value of the one series of that name with all these labels; `None`: there is none.
pub(crate) fn figure(text: &str, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>> {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let mut found = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let Some(line) = found.next() else { return Ok(None) };
    ensure!(found.next().is_none(), "{name} {labels:?} comes more than once");
    let value = line.rsplit(' ').next().context("no value")?;
    Ok(Some(value.parse().with_context(|| format!("no number: {line}"))?))
}

/// A figure of a VM, by its name without `flatline_vm_`.
pub(crate) fn of_vm(
    text: &str,
    name: &str,
    vm: &str,
    more: &[(&str, &str)],
) -> Result<Option<f64>> {
    let labels: Vec<_> = [("vm", vm)].into_iter().chain(more.iter().copied()).collect();
    figure(text, &format!("flatline_vm_{name}"), &labels)
}

/// A counter's label, and where `status` has it.
type Counter = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const COUNTERS: [Counter; 12] = [
    ("network_transmit_packets_total", &[], "/network/guest_tx_packets"),
    ("network_transmit_bytes_total", &[], "/network/guest_tx_bytes"),
    ("network_receive_packets_total", &[], "/network/guest_rx_packets"),
    ("network_receive_bytes_total", &[], "/network/guest_rx_bytes"),
    ("probe_answers_total", &[], "/network/probe_answers"),
    ("storage_operations_total", &[("operation", "read")], "/storage/read_ops"),
    ("storage_operations_total", &[("operation", "write")], "/storage/write_ops"),
    ("storage_bytes_total", &[("operation", "write")], "/storage/write_bytes"),
    ("storage_completed_operations_total", &[], "/storage/completed_ops"),
    ("storage_completion_seconds_total", &[], "/storage/completion_seconds"),
    ("heartbeats_total", &[], "/heartbeat/beats"),
    ("heartbeat_check_failures_total", &[], "/heartbeat/failures"),
];

/// Each counter lies between what `status` says before and after.
fn compare(daemon: &Daemon, address: SocketAddr, guest: &Guest) -> Result<()> {
    let before = vm(daemon, guest.name())?;
    let text = scrape(address)?;
    // Status reads some of it anew: one tick later, all is at least as new.
    sleep(Duration::from_millis(1500))?;
    let after = vm(daemon, guest.name())?;
    let pid = guest.pid().to_string();
    for (name, labels, path) in COUNTERS {
        let labels: Vec<_> = labels.iter().copied().chain([("pid", &*pid)]).collect();
        let served = of_vm(&text, name, guest.name(), &labels)?;
        let [from, to] = [&before, &after].map(|row| row.pointer(path).and_then(Value::as_f64));
        match (from, served, to) {
            (None, None, None) => {}
            (Some(from), Some(served), Some(to)) => {
                // A beat is read anew by status, and once a tick for Prometheus.
                let slack = if path.starts_with("/heartbeat") { 2.0 } else { 0.0 };
                ensure!(from - slack <= served && served <= to, "{name}: {from} {served} {to}");
            }
            unlike => bail!("{name}: {unlike:?}"),
        }
    }
    let state = before["state"].as_str().context("no state")?;
    if before["since"] == after["since"] {
        ensure!(of_vm(&text, "state", guest.name(), &[("state", state)])? == Some(1.0), "{text}");
    }
    let states = text.lines().filter(|line| {
        line.starts_with("flatline_vm_state{") && line.contains(&format!("pid=\"{pid}\""))
    });
    ensure!(states.filter(|line| line.ends_with(" 1")).count() == 1, "one state at a time");
    let owner = before["owner"]["kind"].as_str().context("no owner")?;
    let accelerator = before["accelerator"].as_str().context("no accelerator")?;
    let labels = [("owner", owner), ("accelerator", accelerator), ("pid", &*pid)];
    ensure!(of_vm(&text, "info", guest.name(), &labels)? == Some(1.0), "{text}");
    for vcpu in before["vcpus"].as_array().context("no vCPUs")? {
        let id = vcpu["id"].to_string();
        let seconds = of_vm(&text, "vcpu_seconds_total", guest.name(), &[("vcpu", &id)])?;
        ensure!(seconds > Some(0.0), "vCPU {id}: {seconds:?}");
    }
    Ok(())
}

fn figures() -> Result<()> {
    let rig = Rig::new()?;
    let mut busy = rig.linux("busy", 1)?;
    busy.vcpus = 2;
    let quiet = rig.boot_sector("no-card", BootSector::StiHlt, Accelerator::Tcg);
    let guests = boot_all(&[busy, quiet])?;
    let [busy, quiet] = &guests[..] else { bail!("two guests were started") };
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "all is read", BOOT_LIMIT, |row| {
            row["storage"].is_object() && row["vcpus"][0]["busy_ratio"].is_f64()
        })?;
    }
    compare(&daemon, address, busy)?;
    compare(&daemon, address, quiet)?;
    busy.run("heartbeat", COMMAND_LIMIT)?;
    busy.run("disk-write 64 64", COMMAND_LIMIT)?;
    wait_for_vm(&daemon, busy.name(), "its heart is heard", COMMAND_LIMIT, |row| {
        row["heartbeat"]["beats"].as_u64() > Some(1)
    })?;
    compare(&daemon, address, busy)?;

    let text = scrape(address)?;
    ensure!(of_vm(&text, "network_receive_packets_total", quiet.name(), &[])?.is_none());
    ensure!(of_vm(&text, "heartbeats_total", quiet.name(), &[])?.is_none());
    ensure!(of_vm(&text, "heartbeat_age_seconds", busy.name(), &[])?.is_some());
    let status = daemon.status()?;
    for probe in status["host"]["probes"].as_array().context("no probes")? {
        let name = probe["name"].as_str().context("no name")?;
        let attached = figure(&text, "flatline_ebpf_program_attached", &[("program", name)])?;
        ensure!(attached == Some(f64::from(u8::from(probe["state"] == "attached"))), "{name}");
    }
    ensure!(figure(&text, "flatline_map_entries", &[("map", "vms")])? == Some(2.0));
    ensure!(figure(&text, "flatline_map_entries", &[("map", "taps")])? == Some(1.0));
    ensure!(figure(&text, "flatline_degraded", &[])? == Some(0.0), "{status}");
    ensure!(figure(&text, "flatline_ticks_total", &[])? > Some(1.0));

    quiet.kill()?;
    wait_until("its series to go", SOON, || {
        let text = scrape(address)?;
        ensure!(of_vm(&text, "flat_seconds", busy.name(), &[])?.is_some(), "{text}");
        Ok((!text.contains("\"no-card\"")).then_some(()))
    })?;
    let status = daemon.status()?;
    ensure!(status["vms"].as_array().map(Vec::len) == Some(1), "{status}");
    let other = get(address, "/metric", "*/*")?;
    ensure!(other.starts_with("HTTP/1.1 404 ") && other.contains("/metrics"), "{other}");
    Ok(())
}

fn slow_clients() -> Result<()> {
    let rig = Rig::new()?;
    let guests = boot_all(&[rig.linux("watched", 1)?])?;
    let mut config = rig.daemon_config()?;
    // Longer than all of this takes: whether it is being asked just then is no matter of clients.
    config.flat_for = Duration::from_secs(30);
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, guests[0].name(), "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    let count = |name: &str| -> Result<f64> {
        let name = format!("flatline_{name}_total");
        figure(&scrape(address)?, &name, &[])?.with_context(|| format!("no {name}"))
    };
    let (ticks, late) = (count("ticks")?, count("ticks_late")?);
    let begun = Instant::now();
    let mut open = Vec::new();
    while begun.elapsed() < Duration::from_secs(8) {
        for request in
            ["", "GET /met", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "\0\u{1}\r\n\r\n"]
        {
            let mut client = TcpStream::connect_timeout(&address, SCRAPE_LIMIT)?;
            // A connection that was cut off by now can't be written to.
            let _ = client.write_all(request.as_bytes());
            open.push(client);
        }
        count("ticks")?;
        sleep(Duration::from_millis(50))?;
    }
    let (more, later) = (count("ticks")? - ticks, count("ticks_late")? - late);
    println!("{} clients that read nothing; {more} ticks, {later} of them late", open.len());
    ensure!(more >= 7.0 && later <= 1.0, "{more} ticks in 8 s, {later} late");
    let row = vm(&daemon, guests[0].name())?;
    ensure!(row["state"] == "alive", "{row}");
    Ok(())
}

fn crash() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.linux("panics", 1)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action".into(), "panic=pause".into()]);
    let guests = boot_all(&[config])?;
    let guest = &guests[0];
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, guest.name(), "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    let ended = [("cause", "panicked"), ("outcome", "recovered")];
    ensure!(figure(&scrape(address)?, "flatline_incidents_total", &ended)? == Some(0.0));
    guest.send("panic")?;
    let incident =
        wait_for_incident(&daemon, guest.name(), "recovered", RESTART_LIMIT, |incident| {
            incident["outcome"] == "recovered"
        })?;
    let text = scrape(address)?;
    ensure!(figure(&text, "flatline_incidents_total", &ended)? == Some(1.0), "{text}");
    ensure!(of_vm(&text, "restarts_total", guest.name(), &[])? == Some(1.0), "{text}");
    for (family, field) in [("detection", "detect_seconds"), ("recovery", "recover_seconds")] {
        let of_it = |suffix: &str| {
            let name = format!("flatline_{family}_seconds_{suffix}");
            figure(&text, &name, &[("cause", "panicked")])
        };
        ensure!(of_it("count")? == Some(1.0), "{family}: {text}");
        let sum = of_it("sum")?.context("no sum")?;
        let seconds = incident[field].as_f64().context("no time")?;
        ensure!((sum - seconds).abs() < 0.01, "{family}: {sum} and {seconds}");
    }
    Ok(())
}

fn taken() -> Result<()> {
    let rig = Rig::new()?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    let address = other.local_addr()?;
    let mut config = rig.daemon_config()?;
    config.metrics = address.to_string();
    let mut daemon = rig.daemon(&config)?;
    let degraded = |daemon: &Daemon| -> Result<Option<String>> {
        Ok(daemon.status()?["host"]["degraded"].as_str().map(str::to_owned))
    };
    let why = degraded(&daemon)?.context("nothing is said of it")?;
    ensure!(why.contains(&format!("no metrics: {address}: ")), "{why}");
    ensure!(daemon.log().text().contains("no metrics: "), "{}", daemon.log().text());
    drop(other);
    wait_until("it to listen", SOON, || Ok(degraded(&daemon)?.is_none().then_some(())))?;
    scrape(address)?;
    daemon.terminate()?;
    ensure!(TcpStream::connect(address).is_err(), "{address} is still listened at");
    Ok(())
}

fn promtool() -> Result<Option<String>> {
    let promtool = match tools::PROMTOOL.needed() {
        Ok(promtool) => promtool,
        Err(why) => return Ok(Some(why)),
    };
    let rig = Rig::new()?;
    let guests = boot_all(&[rig.linux("checked", 1)?])?;
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, guests[0].name(), "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    let answer = get(address, "/metrics", "text/plain;version=0.0.4")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    check.stdin.take().context("it was asked for")?.write_all(body.as_bytes())?;
    let output = check.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success() && said.trim().is_empty(), "{}: {said}", output.status);
    Ok(None)
}
