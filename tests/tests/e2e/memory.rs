//! Figures of memory, against what the guest's own kernel and the host's say of it.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::boot_sector::BootSector;
use flatline_tests::{
    daemon::{Daemon, DaemonConfig},
    guest::{Accelerator, Guest},
    interrupt,
    qmp::Qmp,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{FLAT_FOR, Load, Rig, boot_all, incidents_of, trial, trial_with, vm, wait_for_vm};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("memory_is_what_the_guest_and_the_host_say_and_nulls_without_a_balloon", figures),
        trial_with(Load::Spins(1), "a_guest_that_thrashes_is_alive_and_named_as_that", thrashing),
        trial("reading_memory_leaves_a_qmp_socket_and_others_polling_alone", left_alone),
    ]
}

/// A figure may differ by so much of what it is held against.
const TOLERANCE: f64 = 0.01;
/// Time for a reading, and for a guest that is asked for its own figures.
const LIMIT: Duration = Duration::from_secs(30);

/// Memory is read every second; guests are given time to do nothing.
fn config(rig: &Rig, more: &str) -> Result<DaemonConfig> {
    let mut config = rig.daemon_config()?;
    config.flat_for = Duration::from_secs(60);
    // In the table that stands last before it, `detection`.
    config.extra_toml = format!("memory_every = \"1s\"\n{more}");
    Ok(config)
}

fn figures() -> Result<()> {
    let rig = Rig::new()?;
    let mut with = rig.linux("with-balloon", 1)?;
    (with.balloon, with.memory_mib) = (true, 256);
    let without = rig.boot_sector("without-balloon", BootSector::StiHlt, Accelerator::Tcg);
    let guests = boot_all(&[with, without])?;
    let daemon = rig.daemon(&config(&rig, "")?)?;

    let told = wait_for_vm(&daemon, "with-balloon", "memory", LIMIT, |vm| {
        vm["memory"]["major_faults_per_second"].is_number()
    })?;
    ensure!(told["memory"]["thrashing"] == false, "{told}");
    interrupt::wait_until("figures as the guest's own", LIMIT, || {
        let own = own_figures(&guests[0])?;
        let memory = &read_after(&daemon, "with-balloon", "as_of")?["memory"];
        let of = |name: &str| memory[name].as_f64().unwrap_or(-1.0);
        let used = own.total - own.available;
        let pairs = [
            (of("total_bytes"), own.total),
            (of("available_bytes"), own.available),
            (of("used_bytes"), used),
            (of("major_faults"), own.major_faults),
        ];
        println!("told {memory}, of its own {own:?}");
        Ok(pairs.iter().all(|(told, own)| is_close(*told, *own)).then_some(()))
    })?;
    for guest in &guests {
        interrupt::wait_until("QEMU's memory as the host says", LIMIT, || {
            let rss = resident_bytes(guest.pid())?;
            let memory = &read_after(&daemon, guest.name(), "qemu_as_of")?["memory"];
            println!("{}: {} resident, told {memory}", guest.name(), rss);
            Ok(memory["qemu_rss_bytes"].as_f64().filter(|told| is_close(*told, rss)))
        })?;
    }

    let bare = vm(&daemon, "without-balloon")?;
    let memory = &bare["memory"];
    for name in ["total_bytes", "used_bytes", "available_bytes", "major_faults", "as_of"] {
        ensure!(memory[name].is_null(), "{name}: {memory}");
    }
    ensure!(memory["guest_missing"] == "it has no balloon", "{memory}");
    let history = &daemon.show("with-balloon")?["history"]["memory"];
    let recorded = history.as_array().context("no history of memory")?;
    let is_told = |moment: &Value| moment["available_bytes"].as_u64() > Some(50 << 20);
    ensure!(recorded.iter().any(is_told), "{history}");
    let shown = daemon.client(&["show", "with-balloon"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("MiB used, ") && shown.contains("MiB resident"), "{shown}");
    check_nobody_polls(&guests[0])
}

/// It takes twice the memory that it has, the rest of which is on its disk.
fn thrashing() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = config(&rig, "")?;
    config.flat_for = FLAT_FOR;
    let mut guest = rig.linux("thrashes", 1)?;
    (guest.balloon, guest.memory_mib) = (true, 256);
    guest.disk.as_mut().context("it has a disk")?.size = 512 << 20;
    let guests = boot_all(&[guest])?;
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, "thrashes", "well", LIMIT, |vm| vm["memory"]["thrashing"] == false)?;

    guests[0].run("thrash 300000", LIMIT)?;
    let thrashes = wait_for_vm(&daemon, "thrashes", "thrashing", Duration::from_secs(120), |vm| {
        vm["memory"]["thrashing"] == true
    })?;
    let reason = thrashes["reason"].as_str().unwrap_or_default();
    println!("{reason}: {}", thrashes["memory"]);
    ensure!(thrashes["state"] == "alive", "{thrashes}");
    ensure!(reason.contains("; thrashing: ") && reason.contains(" major faults/s"), "{reason}");
    // For longer than it takes to suspect, and to convict, a guest that does nothing.
    let until = Instant::now() + FLAT_FOR * 4;
    while Instant::now() < until {
        let now = vm(&daemon, "thrashes")?;
        ensure!(now["state"] == "alive", "{now}");
        interrupt::sleep(Duration::from_millis(500))?;
    }
    ensure!(incidents_of(&daemon, "thrashes")?.is_empty(), "{:?}", daemon.incidents());

    guests[0].send("stop-load")?;
    wait_for_vm(&daemon, "thrashes", "well again", Duration::from_secs(120), |vm| {
        vm["memory"]["thrashing"] == false
            && !vm["reason"].as_str().unwrap_or_default().contains("thrashing")
    })?;
    interrupt::wait_until("figures as the guest's own", LIMIT, || {
        let own = own_figures(&guests[0])?;
        let memory = &read_after(&daemon, "thrashes", "as_of")?["memory"];
        let of = |name: &str| memory[name].as_f64().unwrap_or(-1.0);
        println!("told {memory}, of its own {own:?}");
        let pairs = [
            (of("swap_in_bytes"), own.swap_in),
            (of("swap_out_bytes"), own.swap_out),
            (of("major_faults"), own.major_faults),
        ];
        let close = pairs.iter().all(|(told, own)| *own > 0.0 && is_close(*told, *own));
        Ok(close.then_some(()))
    })
}

/// The daemon opens a socket that others need for moments only, and sets nothing where another client polls.
fn left_alone() -> Result<()> {
    let rig = Rig::new()?;
    let mut guest = rig.linux("shared", 1)?;
    guest.balloon = true;
    let guests = boot_all(&[guest])?;
    let daemon = rig.daemon(&config(&rig, "[recovery]\nqmp = \"brief\"\n")?)?;
    let is_told = |vm: &Value| vm["memory"]["available_bytes"].is_number();
    wait_for_vm(&daemon, "shared", "memory", LIMIT, is_told)?;

    let mut longest = Duration::ZERO;
    // Three readings, and some time more.
    for _ in 0..30 {
        let began = Instant::now();
        Qmp::new(UnixStream::connect(guests[0].qmp_path())?)?;
        longest = longest.max(began.elapsed());
        interrupt::sleep(Duration::from_millis(130))?;
    }
    println!("another client was greeted within {longest:?}");
    ensure!(longest < Duration::from_secs(1), "another client waited for {longest:?}");

    let interval = json!({
        "path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"
    });
    let mut set = interval.clone();
    set["value"] = json!(1);
    check_nobody_polls(&guests[0])?;
    guests[0].qmp("qom-set", &set)?;
    let mut seen = Vec::new();
    interrupt::wait_until("figures by another client's polling", LIMIT, || {
        seen.push(vm(&daemon, "shared")?["memory"]["as_of"].clone());
        seen.dedup();
        ensure!(guests[0].qmp("qom-get", &interval)? == 1, "another client's polling was changed");
        Ok((seen.len() >= 5).then_some(()))
    })
    .with_context(|| format!("read at {seen:?}"))
}

/// The daemon has left QEMU as it was.
fn check_nobody_polls(guest: &Guest) -> Result<()> {
    let question = json!({
        "path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"
    });
    interrupt::wait_until("polling off", Duration::from_secs(5), || {
        Ok((guest.qmp("qom-get", &question)? == 0).then_some(()))
    })
}

/// A guest's own figures, in bytes and numbers.
#[derive(Debug)]
struct Own {
    total: f64,
    available: f64,
    major_faults: f64,
    swap_in: f64,
    swap_out: f64,
}

fn own_figures(guest: &Guest) -> Result<Own> {
    guest.run("meminfo", LIMIT)?;
    let text = guest.log().text();
    let figure = |name: &str| -> Result<f64> {
        let wanted = format!("MEMINFO {name} ");
        let line = text.lines().rev().find_map(|line| line.split_once(&wanted));
        let (_, figure) = line.with_context(|| format!("no {name} in {text}"))?;
        Ok(figure.trim().parse()?)
    };
    Ok(Own {
        total: figure("MemTotal")? * 1024.0,
        available: figure("MemAvailable")? * 1024.0,
        major_faults: figure("pgmajfault")?,
        swap_in: figure("pswpin")? * 4096.0,
        swap_out: figure("pswpout")? * 4096.0,
    })
}

fn is_close(told: f64, own: f64) -> bool {
    (told - own).abs() <= own * TOLERANCE
}

/// The VM's row with a reading of after now. Times in it have whole seconds, rounded down.
fn read_after(daemon: &Daemon, name: &str, time: &str) -> Result<Value> {
    let now = SystemTime::now();
    wait_for_vm(daemon, name, "a later reading", LIMIT, |vm| {
        let text = vm["memory"][time].as_str().unwrap_or_default();
        humantime::parse_rfc3339(text).is_ok_and(|at| at > now)
    })
}

fn resident_bytes(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}
