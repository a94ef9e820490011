//! A QEMU that waits for somebody, for good, in the middle of a command: neither its guest nor its monitor gets a turn.

use std::{
    fs::{Permissions, create_dir},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::interrupt::sleep;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::{
    A_WHILE, Ends, WITHIN, alive,
    ended::{Machine, NOBODY},
};
use crate::rig::{Rig, incidents_of, vm, wait_for_incident, wait_for_vm};

/// The least that may be configured, and what the suspicion before it and the restart after it take.
const MUTE_FOR: Duration = Duration::from_secs(30);

/// Has a QEMU open a FIFO that nobody reads.
fn hang(machine: &Machine<'_>) -> Result<()> {
    use std::io::Write as _;
    let fifo = machine.file("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
    chown(&fifo, Some(NOBODY), Some(NOBODY))?;
    let mut monitor = UnixStream::connect(machine.file("second.qmp"))?;
    let dump = json!({"execute": "screendump", "arguments": {"filename": fifo}});
    writeln!(monitor, "{}\n{dump}", json!({"execute": "qmp_capabilities"}))?;
    // Until it has read that.
    sleep(Duration::from_secs(1))
}

pub(super) fn test() -> Result<()> {
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let dir = rig.dir().join("v");
    create_dir(&dir)?;
    chown(&dir, Some(NOBODY), Some(NOBODY))?;
    let machines = ["replaced", "left"].map(|name| Machine { dir: &dir, name });
    let mut pids = Vec::new();
    for machine in &machines {
        let second = machine.file("second.qmp");
        let second = format!("unix:{},server=on,wait=off", second.display());
        machine.write(&rig.qemu, &["-device", "VGA", "-qmp", &second])?;
        pids.push(Ends(machine.start()?));
    }
    let [replaced, left] = &machines;
    let mut config = rig.daemon_config()?;
    config.boot_grace = Duration::from_secs(5);
    let command = |machine: &Machine<'_>| json!([machine.file("sh")]);
    config.extra_toml = format!(
        "[recovery]\ncommand_user = \"vm\"\n\n\
         [[vm]]\nmatch = \"replaced\"\ncommand = {}\nunresponsive_for = \"{}s\"\n\n\
         [[vm]]\nmatch = \"left\"\ncommand = {}\n",
        command(replaced),
        MUTE_FOR.as_secs(),
        command(left)
    );
    let daemon = rig.daemon(&config)?;
    for machine in &machines {
        wait_for_vm(&daemon, machine.name, "alive", WITHIN, alive)?;
        hang(machine)?;
    }
    let incident = wait_for_incident(&daemon, "replaced", "recovered", MUTE_FOR * 3, |incident| {
        incident["outcome"] == "recovered"
    })?;
    ensure!(incident["cause"] == "qemu-unresponsive", "{incident}");
    println!("replaced: {}", incident["reason"]);
    ensure!(incidents_of(&daemon, "replaced")?.len() == 1, "{incident}");
    let row = wait_for_vm(&daemon, "replaced", "alive", WITHIN, alive)?;
    let pid = row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid")?;
    ensure!(pid != pids[0].0 && replaced.began().len() == 2, "{row}");
    pids.push(Ends(pid));

    sleep(A_WHILE)?;
    let row: Value = vm(&daemon, "left")?;
    ensure!(row["state"] == "unobservable" && row["pid"] == pids[1].0, "{row}");
    let incidents = incidents_of(&daemon, "left")?;
    ensure!(incidents.is_empty() && left.began().len() == 1, "{incidents:?}");
    ensure!(Path::new(&format!("/proc/{}", pids[1].0)).exists(), "it is gone");
    Ok(())
}
