//! QEMUs that are replaced by others: one that waits for good in the middle of a command, so that neither its guest nor
//! its monitor gets a turn, and one whose guest no reset brings back.
//!
//! They wait together: a hanging QEMU is given half a minute at least, and a restarted guest a minute to show life.

use std::{
    fs::{Permissions, create_dir},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest},
    interrupt::{sleep, wait_until},
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::{
    A_WHILE, Ends, WITHIN, alive,
    ended::{Machine, NOBODY},
    script, text,
};
use crate::rig::{Rig, incidents_of, outer_resets, vm, wait_for_incident, wait_for_vm};

/// The least that may be configured.
const HUNG_FOR: Duration = Duration::from_secs(30);
/// What a restarted guest is given to show life.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has a QEMU open a FIFO that is not read.
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

/// A machine whose guest is dead after each reset, and what its command was told.
struct Cycled {
    guest: Guest,
    program: PathBuf,
    calls: PathBuf,
}

impl Cycled {
    const NAME: &str = "cycled";

    fn start(rig: &Rig) -> Result<Self> {
        let guest = rig.boot_sector(Self::NAME, BootSector::CliHlt, Accelerator::Tcg).start()?;
        let (program, calls) = (rig.dir().join("again"), rig.dir().join("calls"));
        let lines =
            format!("echo \"$FLATLINE_ACTION\" >> {}; kill -9 \"$FLATLINE_PID\"", calls.display());
        script(&program, &lines)?;
        Ok(Self { guest, program, calls })
    }

    /// Once its reset and its minute are over, its command has ended it; another QEMU takes its place and lives.
    fn finish(self, rig: &Rig, daemon: &Daemon) -> Result<()> {
        wait_until("the command's run", PATIENCE + WITHIN, || {
            Ok((text(&self.calls) == "restart\n").then_some(()))
        })
        .with_context(|| daemon.log().text())?;
        ensure!(outer_resets(&self.guest).is_ok_and(|resets| resets.len() == 1));
        drop(self.guest);
        let guest = rig.boot_sector_on_disk(Self::NAME, BootSector::OnCommand)?.start()?;
        let incident = recovered(daemon, Self::NAME, WITHIN)?;
        let action = incident["action"].as_str().unwrap_or_default();
        ensure!(action.ends_with("/again"), "{incident}");
        let attempts = incident["attempts"].as_array().context("no attempts")?;
        ensure!(attempts.len() == 2 && attempts[0]["steps"][1] == "system_reset", "{incident}");
        ensure!(incidents_of(daemon, Self::NAME)?.len() == 1, "{incident}");
        ensure!(vm(daemon, Self::NAME)?["pid"] == guest.pid(), "{incident}");
        Ok(())
    }
}

fn recovered(daemon: &Daemon, name: &str, limit: Duration) -> Result<Value> {
    wait_for_incident(daemon, name, "recovered", limit, |incident| {
        incident["outcome"] == "recovered"
    })
}

pub(super) fn test() -> Result<()> {
    let rig = Rig::new()?;
    let cycled = Cycled::start(&rig)?;
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
    let command = |machine: &Machine<'_>| json!([machine.file("sh")]);
    config.extra_toml = format!(
        "[recovery]\ncommand_user = \"vm\"\n\n\
         [[vm]]\nmatch = \"replaced\"\ncommand = {}\nunresponsive_for = \"{}s\"\n\n\
         [[vm]]\nmatch = \"left\"\ncommand = {}\n\n\
         [[vm]]\nmatch = \"{}\"\npause = \"1s\"\npower_cycle_after = 1\ncommand_user = \"root\"\ncommand = {}\n",
        command(replaced),
        HUNG_FOR.as_secs(),
        command(left),
        Cycled::NAME,
        json!([cycled.program]),
    );
    let daemon = rig.daemon(&config)?;
    for machine in &machines {
        wait_for_vm(&daemon, machine.name, "alive", WITHIN, alive)?;
        hang(machine)?;
    }
    let incident = recovered(&daemon, "replaced", HUNG_FOR * 3)?;
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
    cycled.finish(&rig, &daemon)
}
