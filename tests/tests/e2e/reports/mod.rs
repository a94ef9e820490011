//! What scripts and dashboards hold on to: the fields of every report, their types, and exit codes.

mod documented;
mod shape;

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    counts::{dump_vms, pid_of},
    rig::{BOOT_LIMIT, Rig, binary, boot_all, trial, vm, wait_for_incident, wait_for_vm},
};

use documented::{CHECK, INCIDENT, SHOW, STATUS};
use shape::time;

const UUID: &str = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0ff";
/// What a restart, a boot and the next sign of life may take on a busy machine.
const RESTART_LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("status_show_and_the_pinned_map_have_every_documented_field_of_every_vm", vms),
        trial("incidents_have_every_documented_field", incidents),
        trial("clients_without_a_daemon_end_with_3_and_check_needs_none", no_daemon),
        trial("a_wrong_configuration_ends_with_2_and_says_file_line_and_key", wrong_configuration),
        trial("a_torn_configuration_ends_with_2_and_says_file_line_and_key", torn_configuration),
    ]
}

/// Runs the client, whose exit code must be `code`; returns both its outputs.
fn client(daemon: &Daemon, arguments: &[&str], code: i32) -> Result<(String, String)> {
    outputs(daemon.client(arguments)?, code).with_context(|| format!("{arguments:?}"))
}

fn outputs(output: Output, code: i32) -> Result<(String, String)> {
    let Output { status, stdout, stderr } = output;
    let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.code() == Some(code), "{status}, not {code}: {stdout}{stderr}");
    Ok((stdout, stderr))
}

fn vms() -> Result<()> {
    let rig = Rig::new()?;
    let mut with_uuid = rig.linux("with-uuid", 1)?;
    with_uuid.extra_args.extend(["-uuid".to_owned(), UUID.to_owned()]);
    with_uuid.vcpus = 2;
    let without = rig.boot_sector("without-uuid", BootSector::StiHlt, Accelerator::Tcg);
    let guests = boot_all(&[with_uuid, without])?;
    let [with_uuid, without] = &guests[..] else { bail!("two guests were started") };
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    for guest in &guests {
        wait_for_vm(&daemon, guest.name(), "all is read", BOOT_LIMIT, |row| {
            let vcpus = row["vcpus"].as_array().map_or(&[][..], Vec::as_slice);
            let is_read = |vcpu: &Value| vcpu["busy_ratio"].is_f64();
            row["run_state"] == "running"
                && row["storage"].is_object()
                && !vcpus.is_empty()
                && vcpus.iter().all(is_read)
        })?;
    }

    let status = daemon.status()?;
    STATUS.check("status", &status)?;
    ensure!(status["host"]["vms"] == 2 && status["vms"].as_array().map(Vec::len) == Some(2));
    ensure!(status["host"]["degraded"].is_null(), "{}", status["host"]);
    let row = vm(&daemon, with_uuid.name())?;
    ensure!(row["uuid"] == UUID && row["pid"] == with_uuid.pid(), "{row}");
    ensure!(row["network"].is_object() && row["flat_seconds"].is_f64(), "{row}");
    ensure!(row["accelerator"] == "tcg" && row["restarts_in_window"] == 0, "{row}");
    check_vcpus(&row, with_uuid, 2)?;
    let row = vm(&daemon, without.name())?;
    ensure!(row["uuid"].is_null() && row["pid"] == without.pid(), "{row}");
    check_vcpus(&row, without, 1)?;

    check_show(&daemon, with_uuid, &[with_uuid.name(), UUID, &with_uuid.pid().to_string()])?;
    check_show(&daemon, without, &[without.name(), &without.pid().to_string()])?;
    ensure!(daemon.show(UUID)?["taps"][0]["attached"] == true, "its tap is attached");
    for arguments in [&["show", "nobody"][..], &["show", "nobody", "--json"]] {
        let (stdout, stderr) = client(&daemon, arguments, 1)?;
        ensure!(stdout.is_empty() && stderr.contains("nobody"), "{stdout}{stderr}");
    }

    let (human, _) = client(&daemon, &["status"], 0)?;
    for guest in &guests {
        let pid = guest.pid().to_string();
        let shown = human.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(guest.name()) && words.next() == Some(&pid)
        });
        ensure!(shown, "no row of {} ({pid}): {human}", guest.name());
    }
    let (human, _) = client(&daemon, &["show", UUID], 0)?;
    ensure!(human.contains(with_uuid.name()) && human.contains(UUID), "{human}");
    check_pinned_map(&rig, &guests)
}

/// The vCPUs are QEMU's own, by index and thread.
fn check_vcpus(row: &Value, guest: &Guest, count: usize) -> Result<()> {
    let shown = row["vcpus"].as_array().context("no vCPUs")?;
    let cpus = guest.qmp("query-cpus-fast", &Value::Null)?;
    let cpus = cpus.as_array().context("QEMU lists no vCPUs")?;
    ensure!(shown.len() == count && cpus.len() == count, "{shown:?}, QEMU: {cpus:?}");
    for cpu in cpus {
        let same =
            |vcpu: &&Value| vcpu["id"] == cpu["cpu-index"] && vcpu["tid"] == cpu["thread-id"];
        ensure!(shown.iter().any(|vcpu| same(&vcpu)), "no {cpu} in {shown:?}");
    }
    Ok(())
}

fn check_show(daemon: &Daemon, guest: &Guest, handles: &[&str]) -> Result<()> {
    for handle in handles {
        let shown = daemon.show(handle)?;
        SHOW.check("show", &shown)?;
        ensure!(shown["pid"] == guest.pid(), "show {handle}: {shown}");
        let signals = shown["signals"].as_array().map_or(0, Vec::len);
        ensure!(signals > 0, "show {handle} names no signal");
    }
    Ok(())
}

/// `bpftool` prints names, not hex, and a row for each VM.
fn check_pinned_map(rig: &Rig, guests: &[Guest]) -> Result<()> {
    let map = rig.dir().join("bpf/flatline/vms");
    let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&map).output()?;
    let (text, _) = outputs(output, 0)?;
    for name in ["guest_tx_packets", "read_ops"] {
        ensure!(text.contains(name), "bpftool prints no {name}: {text}");
    }
    let rows = dump_vms(rig.dir())?;
    let mut keys: Vec<_> = rows.iter().filter_map(pid_of).collect();
    keys.sort_unstable();
    let mut pids: Vec<_> = guests.iter().map(|guest| u64::from(guest.pid())).collect();
    pids.sort_unstable();
    ensure!(keys == pids && rows.len() == pids.len(), "rows of {keys:?}, VMs {pids:?}");
    Ok(())
}

fn incidents() -> Result<()> {
    let rig = Rig::new()?;
    let mut panics = rig.linux("with-uuid", 1)?;
    panics.extra_args.extend(["-uuid".to_owned(), UUID.to_owned()]);
    let guests = boot_all(&[panics])?;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(2);
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, "with-uuid", "alive", BOOT_LIMIT, |row| row["state"] == "alive")?;
    // Halted from its first instruction on: no sign of life, before or after its restart.
    let halts = rig.boot_sector("without-uuid", BootSector::CliHlt, Accelerator::Tcg).start()?;
    guests[0].send("panic")?;
    wait_for_incident(&daemon, "with-uuid", "recovered", RESTART_LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })?;
    wait_for_incident(&daemon, "without-uuid", "restarted", RESTART_LIMIT, |incident| {
        !incident["action_at"].is_null()
    })?;

    let all = daemon.incidents()?;
    for incident in &all {
        INCIDENT.check("incident", incident)?;
        let id = incident["id"].as_str().context("it is a text")?;
        let (shown, _) = client(&daemon, &["incidents", "show", id, "--json"], 0)?;
        ensure!(serde_json::from_str::<Value>(&shown)?["id"] == id, "{shown}");
    }
    let of = |name: &str| all.iter().find(|incident| incident["vm"] == name);
    let complete = of("with-uuid").context("no incident of the guest that panicked")?;
    ensure!(complete["uuid"] == UUID && complete["pid"] == guests[0].pid(), "{complete}");
    for (name, value) in complete.as_object().context("an object")? {
        ensure!(!value.is_null(), "{name} is known by now: {complete}");
    }
    let order = ["last_sign_of_life", "detected_at", "action_at", "recovered_at"];
    ensure!(order.map(|name| time(&complete[name])).is_sorted(), "out of order: {complete}");
    let evidence = complete["evidence"].as_array().map_or(0, Vec::len);
    ensure!(evidence > 0, "a restart without evidence: {complete}");
    let bare = of("without-uuid").context("no incident of the guest that was halted")?;
    ensure!(bare["uuid"].is_null() && bare["pid"] == halts.pid(), "{bare}");

    for handle in ["with-uuid", UUID] {
        let (lines, _) = client(&daemon, &["incidents", "--json", "--vm", handle], 0)?;
        ensure!(lines.lines().count() == 1, "--vm {handle}: {lines}");
    }
    let (_, stderr) = client(&daemon, &["incidents", "show", "none"], 1)?;
    ensure!(stderr.contains("none"), "{stderr}");
    Ok(())
}

fn no_daemon() -> Result<()> {
    let rig = Rig::new()?;
    let mut daemon = rig.daemon(&rig.daemon_config()?)?;
    client(&daemon, &["status"], 0)?;
    daemon.terminate()?;
    for arguments in
        [&["status"][..], &["status", "--json"], &["show", "any"], &["incidents", "--json"]]
    {
        let (stdout, stderr) = client(&daemon, arguments, 3)?;
        ensure!(stdout.is_empty() && !stderr.is_empty(), "{arguments:?}: {stdout}{stderr}");
    }
    let (report, _) = client(&daemon, &["check", "--json"], 0)?;
    let report: Value = serde_json::from_str(&report)?;
    CHECK.check("check", &report)?;
    let bpffs = report["items"].as_array().into_iter().flatten().find(|i| i["name"] == "bpffs");
    ensure!(bpffs.context("bpffs is not named")?["verdict"] == "ok", "{report}");
    // The same host, with its pins on no bpffs: a gap, which is bad news.
    let path = rig.dir().join("elsewhere.toml");
    fs::write(&path, "[paths]\nbpffs_dir = \"/proc/flatline\"\n")?;
    let output =
        Command::new(binary()?).args(["check", "--json", "--config"]).arg(&path).output()?;
    let (report, _) = outputs(output, 1)?;
    CHECK.check("check", &serde_json::from_str(&report)?)
}

/// What `check-config` says of `text`, which it must refuse.
fn complaint(rig: &Rig, text: &str) -> Result<(String, String)> {
    let path = rig.dir().join("checked.toml");
    fs::write(&path, text)?;
    let output = Command::new(binary()?).arg("check-config").arg(&path).output()?;
    let (stdout, stderr) = outputs(output, 2).with_context(|| text.to_owned())?;
    ensure!(stdout.is_empty(), "{stdout}");
    Ok((path.display().to_string(), stderr))
}

fn wrong_configuration() -> Result<()> {
    let rig = Rig::new()?;
    for (text, line, key) in [
        ("mode = \"observe\"\nmood = 1\n", 2, "mood"),
        ("mode = \"strike\"\n", 1, "mode"),
        ("[detection]\nflat_for = 10\n", 2, "detection.flat_for"),
        ("[detection]\n\nflat_for = \"soon\"\n", 3, "detection.flat_for"),
        ("[recovery]\nmax_restarts = -1\n", 2, "recovery.max_restarts"),
        ("[[vm]]\nmatch = \"a\"\n[[vm]]\nmatch = \"b\"\nflat_fro = \"1s\"\n", 5, "vm[1].flat_fro"),
    ] {
        let (file, complaint) = complaint(&rig, text)?;
        let wanted = format!("{file}:{line}: {key}: ");
        ensure!(complaint.contains(&wanted), "no {wanted:?} of {text:?}: {complaint}");
    }
    Ok(())
}

fn torn_configuration() -> Result<()> {
    let rig = Rig::new()?;
    for (text, line, key) in [
        ("mode = \"obse", 1, "mode"),
        ("mode = \"observe\"\n\n[detection]\nflat_for = \"10", 4, "flat_for"),
        ("[detection]\nflat_for = ", 2, "flat_for"),
        ("[[vm]]\nmatch = \"a\"\nmode = \"obser\nflat_for = \"5s\"\n", 3, "mode"),
    ] {
        let (file, complaint) = complaint(&rig, text)?;
        let rest = complaint.split_once(&format!("{file}:{line}: ")).map(|(_, rest)| rest);
        let rest = rest.with_context(|| format!("not line {line} of {text:?}: {complaint}"))?;
        ensure!(rest.contains(key), "{key} is not named for {text:?}: {complaint}");
    }
    Ok(())
}
