//! The daemon's whole job with exactly the capabilities and the mask that its unit has, and what is lost without each of them.
//!
//! The VMs are another user's, their sockets and console logs in a directory of that user alone, and one has its tap in
//! another network namespace: that is where root's name is not enough.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest, GuestConfig},
    interrupt::wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{unit, values};
use crate::rig::{Rig, boot_all, incidents_of, vm};

/// Whose VMs they are.
const USER: u32 = 65534;
/// For what comes within a tick or two, and for a guest to be restarted and seen alive: it boots in some 5 s.
const SOON: Duration = Duration::from_secs(10);
const RESTART_LIMIT: Duration = Duration::from_secs(30);
/// Kept of a guest that panicked, and where each comes from: QMP, QMP with a descriptor, and a file of the VM's user.
const EVIDENCE: [&str; 3] = ["registers.txt", "screen.png", "console.txt"];
/// The kernel takes another one for these (`bpf_capable` in `capability.h`, `generic_permission` in `fs/namei.c`), which is
/// needed in any case.
const STOOD_IN_FOR: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"];
/// Has all that is to be lost without a capability told, which takes minutes.
const EACH: &str = "FLATLINE_EACH_CAPABILITY";

pub(super) fn whole_job() -> Result<()> {
    let capabilities = of_unit()?;
    println!("{}", capabilities.join(" "));
    let lost = lost(&capabilities, "auto")?;
    ensure!(lost.is_empty(), "lost: {}", lost.join("\n"));
    Ok(())
}

pub(super) fn each() -> Result<Option<String>> {
    let Ok(wanted) = std::env::var(EACH) else {
        return Ok(Some(format!("it takes minutes: set {EACH} to one's name, or to `all`")));
    };
    let all = of_unit()?;
    let mut needless = Vec::new();
    for without in all.iter().filter(|name| wanted == "all" || wanted == **name) {
        let others: Vec<_> = all.iter().filter(|other| *other != without).cloned().collect();
        let mut lost = lost(&others, "auto")?;
        if lost.is_empty() {
            // What the kernel's newer hook can do without, its older one may not.
            lost = self::lost(&others, "clsact")?;
        }
        println!("without {without}:");
        lost.iter().for_each(|lost| println!("- {lost}"));
        if lost.is_empty() && !STOOD_IN_FOR.contains(&without.as_str()) {
            needless.push(without.as_str());
        }
    }
    ensure!(needless.is_empty(), "not needed: {}", needless.join(", "));
    Ok(None)
}

/// The unit's capabilities, by their names.
fn of_unit() -> Result<Vec<String>> {
    let unit = unit()?;
    let lines = values(&unit, "CapabilityBoundingSet");
    let names: Vec<_> =
        lines.iter().flat_map(|line| line.split_whitespace()).map(str::to_owned).collect();
    ensure!(names.iter().all(|name| name.starts_with("CAP_")), "{names:?}");
    ensure!(!names.is_empty() && values(&unit, "User").is_empty(), "root, within bounds");
    Ok(names)
}

/// Two VMs of another user.
struct Scene {
    rig: Rig,
    guests: Vec<Guest>,
    /// The user's, where its command leaves word.
    home: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        fs::set_permissions(rig.dir(), fs::Permissions::from_mode(0o755))?;
        let home = rig.dir().join("home");
        fs::create_dir(&home)?;
        let as_user = |config: &mut GuestConfig| {
            config.dir.clone_from(&home);
            config.extra_args.extend(["-runas", "nobody"].map(str::to_owned));
        };
        let mut linux = rig.linux("crashes", 1)?;
        (linux.vga, linux.pvpanic, linux.console_log) = (true, true, true);
        linux.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
        as_user(&mut linux);
        let mut other = rig.boot_sector("ends", BootSector::StiHlt, Accelerator::Tcg);
        as_user(&mut other);
        // It hangs.
        let script = "#!/bin/sh\necho $(id -u) $$ > \"$(dirname \"$0\")/said\"\nexec sleep 1000\n";
        fs::write(home.join("again"), script)?;
        let guests = boot_all(&[linux, other])?;
        for entry in fs::read_dir(&home)? {
            let path = entry?.path();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            chown(&path, Some(USER), Some(USER))?;
        }
        chown(&home, Some(USER), Some(USER))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        Ok(Self { rig, guests, home })
    }

    fn daemon(&self, capabilities: &[String], hook: &str) -> Result<Daemon> {
        let mut config = self.rig.daemon_config()?;
        let bounds = capabilities.iter().filter_map(|name| name.strip_prefix("CAP_"));
        let bounds = bounds.map(|name| format!(",+{}", name.to_lowercase())).collect::<String>();
        let umask = format!("umask {}; exec \"$@\"", values(&unit()?, "UMask").join(""));
        let bounds = format!("--bounding-set=-all{bounds}");
        config.prefix = ["sh", "-c", &umask, "sh", "setpriv", &bounds].map(str::to_owned).to_vec();
        config.extra_toml = format!(
            "[probes]\ntap_hook = \"{hook}\"\n[recovery]\ncommand_user = \"vm\"\ncommand_limit = \"2s\"\n\
             [[vm]]\nmatch = \"ends\"\nstart_exited = true\ncommand = {}",
            json!([self.home.join("again")])
        );
        self.rig.daemon(&config)
    }
}

/// What of the job is not done with these capabilities and that way into taps, each with what was found instead.
fn lost(capabilities: &[String], hook: &str) -> Result<Vec<String>> {
    let scene = Scene::new()?;
    let mut daemon = match scene.daemon(capabilities, hook) {
        Ok(daemon) => daemon,
        Err(error) => {
            let log = format!("{error:#}");
            let said = log.lines().rev().find(|line| line.contains("flatline:"));
            return Ok(vec![format!("it does not start: {}", said.unwrap_or(&log))]);
        }
    };
    let pid = daemon.pid().context("it runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(held.context("no CapEff")?.trim(), 16)?;
    ensure!(held.count_ones() as usize == capabilities.len(), "it has {held:x}");

    let mut lost = Vec::new();
    let mut part = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            let error = format!("{error:#}");
            lost.push(format!("{what}: {}", error.lines().next().unwrap_or_default()));
        }
    };
    let figure = |what, pointer: &'static str| {
        sees(&daemon, what, |row| row.pointer(pointer).and_then(Value::as_f64) > Some(0.0))
    };
    part("the VM is found", sees(&daemon, "alive", |row| row["state"] == "alive"));
    let guest = scene.guests.first().context("no guest")?;
    guest.run("net 5", SOON)?;
    guest.run("disk-write 10 4", SOON)?;
    part("what it sends is counted", figure("packets", "/network/guest_tx_packets"));
    part("what it stores is counted", figure("requests", "/storage/write_ops"));
    part("its vCPUs' time is read", sees(&daemon, "vCPUs", |row| row["vcpus"][0]["id"] == 0));
    part("its memory is read", figure("bytes", "/memory/qemu_rss_bytes"));
    part("its QMP is used", sees(&daemon, "QMP", |row| row["run_state"] == "running"));
    part("it answers a probe", figure("answers", "/network/probe_answers"));
    part("a crash is found, its evidence kept, and the guest restarted", crash(&daemon, &scene));
    part("a VM that ended is started by a command of its user's", ended(&daemon, &scene));
    part("it ends in good order", daemon.terminate().map(|_| ()));
    let pins = scene.rig.dir().join("bpf/flatline");
    ensure!(!pins.join("links").exists(), "something is left pinned: {}", pins.display());
    Ok(lost)
}

fn sees(daemon: &Daemon, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let found = wait_until(what, SOON, || Ok(vm(daemon, "crashes").ok().filter(&wanted)));
    match (found, vm(daemon, "crashes")) {
        (Ok(_), _) => Ok(()),
        (Err(_), Ok(row)) => bail!("{}", row["reason"]),
        (Err(_), Err(_)) => bail!("no such VM"),
    }
}

fn crash(daemon: &Daemon, scene: &Scene) -> Result<()> {
    let [guest, _] = &scene.guests[..] else { bail!("no guests") };
    guest.send("panic")?;
    let mut last = None;
    let recovered = wait_until("its recovery", RESTART_LIMIT, || {
        last = incidents_of(daemon, guest.name())?.pop();
        Ok(last.clone().filter(|incident| incident["outcome"] == "recovered"))
    });
    let incident = match (recovered, last, vm(daemon, guest.name())) {
        (Ok(incident), ..) => incident,
        (Err(_), Some(incident), _) => bail!("{}: {}", incident["outcome"], incident["reason"]),
        (Err(_), None, Ok(row)) => bail!("no incident; it is {}: {}", row["state"], row["reason"]),
        (Err(_), None, Err(_)) => bail!("no such VM"),
    };
    let kept = incident["evidence"].as_array().context("no evidence")?;
    let missing: Vec<_> =
        EVIDENCE.into_iter().filter(|name| !kept.iter().any(|file| file == name)).collect();
    ensure!(missing.is_empty(), "not kept: {}", missing.join(", "));
    Ok(())
}

fn ended(daemon: &Daemon, scene: &Scene) -> Result<()> {
    let [_, guest] = &scene.guests[..] else { bail!("no guests") };
    guest.signal(Signal::KILL)?;
    let done =
        || incidents_of(daemon, guest.name()).ok()?.pop().filter(|it| !it["outcome"].is_null());
    let incident = wait_until("the outcome", SOON, || Ok(done())).context("no outcome")?;
    let said = fs::read_to_string(scene.home.join("said")).unwrap_or_default();
    let Some((user, pid)) = said.trim().split_once(' ') else { bail!("{}", incident["reason"]) };
    ensure!(user == USER.to_string(), "it ran as {user}");
    let process = PathBuf::from("/proc").join(pid);
    let gone = wait_until("its end", SOON, || Ok((!process.exists()).then_some(())));
    gone.or_else(|_| {
        let pid = pid.parse().ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::KILL)?;
        bail!("at its time limit, it is not ended")
    })
}
