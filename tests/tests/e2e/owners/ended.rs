//! QEMUs that end unasked, each in another way, are started again by their own command, as their own user and in their
//! own control group.

use std::{
    fs::{Permissions, create_dir},
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    interrupt::{sleep, wait_until},
    libvirt::MODULES,
    owners::UnitGroup,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{A_WHILE, Ends, WITHIN, alive, script, small_machine, text};
use crate::rig::{Rig, incidents_of, wait_for_incident, wait_for_vm};

/// The user that they run as.
pub(super) const NOBODY: u32 = 65534;
/// For one that ended to be told from one that was stopped, and its command to run: some 50 ms, on a machine that has
/// the time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What ends a QEMU.
#[derive(Clone, Copy)]
enum End {
    Signal(Signal),
    Panic,
}

/// Each VM, what ends it, and what is said of that.
const ENDS: [(&str, End, &str); 4] = [
    ("killed", End::Signal(Signal::KILL), "signal 9 ended it"),
    ("dumped", End::Signal(Signal::ABORT), "signal 6 ended it"),
    ("panicked", End::Panic, "it exited because the guest panicked"),
    ("left", End::Signal(Signal::KILL), "recovery.start_exited is not set"),
];

/// A VM with the script that starts it.
pub(super) struct Machine<'a> {
    pub(super) dir: &'a Path,
    pub(super) name: &'static str,
}

impl Machine<'_> {
    pub(super) fn file(&self, end: &str) -> PathBuf {
        self.dir.join(format!("{}.{end}", self.name))
    }

    /// Writes the script, which says when it began, ends the QEMU that it is to restart, and ends itself once another
    /// one, with these arguments more, is on its way.
    pub(super) fn write(&self, qemu: &Path, more: &[&str]) -> Result<()> {
        let mut words = vec![qemu.display().to_string()];
        words.extend(small_machine(self.dir, self.name, BootSector::OnCommand)?);
        let serial = self.file("serial");
        words.extend(["-device".to_owned(), "pvpanic".to_owned(), "-serial".to_owned()]);
        words.push(format!("unix:{},server=on,wait=off", serial.display()));
        words.extend(more.iter().map(|&word| word.to_owned()));
        let words = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let modules = MODULES.into_iter().find(|folder| Path::new(folder).is_dir());
        let modules = modules.map_or(String::new(), |folder| format!("QEMU_MODULE_DIR={folder} "));
        let lines = format!(
            "date +%s%N >> {}\ncd {} && ulimit -c unlimited\n\
             if [ \"$FLATLINE_ACTION\" = restart ]; then kill -9 \"$FLATLINE_PID\"; sleep 1; fi\n\
             {modules}setsid {words} </dev/null >/dev/null 2>&1 &",
            self.file("began").display(),
            self.dir.display()
        );
        script(&self.file("sh"), &lines)?;
        Ok(chown(self.file("img"), Some(NOBODY), Some(NOBODY))?)
    }

    pub(super) fn start(&self) -> Result<u32> {
        let started = Command::new(self.file("sh")).uid(NOBODY).gid(NOBODY).status()?;
        ensure!(started.success(), "{started}");
        wait_until("its pid", WITHIN, || Ok(text(&self.file("pid")).trim().parse().ok()))
    }

    fn end(&self, pid: u32, end: End) -> Result<()> {
        match end {
            End::Signal(signal) => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
                Ok(kill_process(pid, signal)?)
            }
            End::Panic => Ok(UnixStream::connect(self.file("serial"))?.write_all(b"p")?),
        }
    }

    /// When its script began, each time.
    pub(super) fn began(&self) -> Vec<SystemTime> {
        let nanos = |line: &str| line.parse().ok().map(Duration::from_nanos);
        let text = text(&self.file("began"));
        text.lines().filter_map(nanos).map(|at| SystemTime::UNIX_EPOCH + at).collect()
    }
}

/// What must be the same of the new one: its arguments, user, and control groups.
fn traits(pid: u32) -> (String, String, String) {
    let read = |file: &str| text(Path::new(&format!("/proc/{pid}/{file}")));
    let status = read("status");
    let ids = status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
    (read("cmdline"), ids.collect::<Vec<_>>().join(" "), read("cgroup"))
}

pub(super) fn test() -> Result<Option<String>> {
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let dir = rig.dir().join("v");
    create_dir(&dir)?;
    chown(&dir, Some(NOBODY), Some(NOBODY))?;
    let machines = ENDS.map(|(name, ..)| Machine { dir: &dir, name });
    let (mut groups, mut pids, mut rules) = (Vec::new(), Vec::new(), String::new());
    for machine in &machines {
        machine.write(&rig.qemu, &[])?;
        let pid = machine.start()?;
        pids.push(Ends(pid));
        let Some(group) = UnitGroup::new(&format!("fl-{}-{pid}", machine.name), pid)? else {
            return Ok(Some("no hierarchy of control groups that systemd would use".to_owned()));
        };
        groups.push(group);
        let (name, command) = (machine.name, json!([machine.file("sh")]));
        let wanted = name != "left";
        rules +=
            &format!("[[vm]]\nmatch = \"{name}\"\nstart_exited = {wanted}\ncommand = {command}\n");
    }
    let mut config = rig.daemon_config()?;
    config.extra_toml = format!("[recovery]\ncommand_user = \"vm\"\n\n{rules}");
    let daemon = rig.daemon(&config)?;
    for machine in &machines {
        wait_for_vm(&daemon, machine.name, "alive", WITHIN, alive)?;
    }
    for (index, (name, end, said)) in ENDS.into_iter().enumerate() {
        let (machine, pid) = (&machines[index], pids[index].0);
        let before = traits(pid);
        let ended = SystemTime::now();
        machine.end(pid, end)?;
        let wanted = name != "left";
        let outcome = if wanted { "recovered" } else { "refused" };
        let incident = wait_for_incident(&daemon, name, outcome, WITHIN, |incident| {
            incident["outcome"] == outcome
        })?;
        let reason = incident["reason"].as_str().unwrap_or_default();
        ensure!(incident["cause"] == "qemu-exited" || name == "panicked", "{incident}");
        ensure!(reason.contains(said), "{incident}");
        if !wanted {
            continue;
        }
        let again = machine.began().last().copied().context("it never began")?;
        let took = again.duration_since(ended).context("it was not started again")?;
        println!("{name}: {said}; its command ran {took:.1?} after its end");
        ensure!(took < AT_ONCE, "started only {took:?} later");
        let row = wait_for_vm(&daemon, name, "alive", WITHIN, alive)?;
        let new = row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid")?;
        pids.push(Ends(new));
        ensure!(new != pid && traits(new) == before, "{before:?}\n{:?}", traits(new));
        ensure!(before.1.contains("65534") && before.2.contains("/fl-"), "{before:?}");
    }
    sleep(A_WHILE)?;
    let times = machines.each_ref().map(|machine| machine.began().len());
    ensure!(times == [2, 2, 2, 1], "{times:?}\n{}", daemon.log().text());
    let all = ENDS.map(|(name, ..)| incidents_of(&daemon, name).map(|all| all.len()));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(all == [1, 1, 1, 1], "{all:?}\n{}", daemon.log().text());
    Ok(None)
}
