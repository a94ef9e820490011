//! Monitors are found wherever their sockets are bound, whatever else needs one, and in whatever PID namespace their
//! QEMU lives; and nothing is started by looking for them.

use std::{
    fs,
    io::Write as _,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, qemu_command},
    interrupt::{sleep, wait_until},
    qmp::Qmp,
};
use libtest_mimic::Trial;
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};

use crate::rig::{Rig, boot_all, trial, vm, wait_for_incident, wait_for_vm};

/// For a QEMU to be found, and its monitor to answer, on a machine that other tests' guests load.
const WITHIN: Duration = Duration::from_secs(40);
/// Longer than two attempts to connect that are given up after 2 s each, with 5 s in between.
const A_WHILE: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("sockets_are_found_where_they_are_bound_and_not_where_they_are_written", bound),
        trial("another_monitor_is_used_while_the_first_is_held_and_kept_then", held),
        trial("the_vcpus_of_a_qemu_in_its_own_pid_namespace_are_known", own_pids),
        trial("a_qemu_that_waits_for_its_first_client_is_not_started_by_looking", waits),
        trial("the_owners_tool_gets_a_place_in_the_queue_of_a_qemu_in_its_init", queue),
    ]
}

/// A QEMU that this test started otherwise than as a [`Guest`](flatline_tests::guest::Guest); killed when dropped.
struct Qemu {
    child: Option<Child>,
    pid: Option<Pid>,
}

impl Qemu {
    /// What is to become a QEMU without devices, in `directory`.
    fn command(rig: &Rig, name: &str, directory: &Path) -> Command {
        let mut command = qemu_command(&rig.qemu, directory);
        command.args(["-name", name, "-no-user-config", "-nodefaults", "-display", "none"]);
        command.args(["-machine", "pc", "-cpu", "qemu64", "-m", "16"]);
        command.stdin(Stdio::null());
        command
    }

    fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().context("cannot start QEMU")?;
        let pid = Some(Pid::from_child(&child));
        Ok(Self { child: Some(child), pid })
    }

    /// One that goes into the background, and leaves its pid in a file.
    fn daemonize(command: &mut Command, pid_file: &Path) -> Result<Self> {
        let status = command.arg("-daemonize").arg("-pidfile").arg(pid_file).status()?;
        ensure!(status.success(), "QEMU: {status}");
        let pid: i32 = fs::read_to_string(pid_file)?.trim().parse()?;
        Ok(Self { child: None, pid: Pid::from_raw(pid) })
    }

    /// How many threads it has.
    fn threads(&self) -> Result<usize> {
        let pid = self.pid.context("it has ended")?.as_raw_nonzero();
        Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

fn monitor(daemon: &Daemon, name: &str) -> Option<String> {
    daemon.show(name).ok()?["qmp"].as_str().map(str::to_owned)
}

fn wait_for_monitor(daemon: &Daemon, name: &str, wanted: &str) -> Result<()> {
    let mut said = None;
    wait_until(&format!("{name}: {wanted}"), WITHIN, || {
        said = monitor(daemon, name);
        Ok(said.as_ref().is_some_and(|said| said.contains(wanted)).then_some(()))
    })
    .with_context(|| format!("{name}: {said:?}\n{}", daemon.log().text()))
}

/// A human monitor, past its banner.
fn human(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path).with_context(|| format!("{}", path.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Says a line to it, and reads on until the answer has `wanted`.
fn tell(mut stream: &UnixStream, line: &str, wanted: &str) -> Result<String> {
    writeln!(stream, "{line}")?;
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = match std::io::Read::read(&mut stream, &mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.context("no answer")?,
        };
        if length == 0 {
            bail!("QEMU hung up: {}", String::from_utf8_lossy(&said));
        }
        said.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&said);
        if text.contains(wanted) {
            return Ok(text.into_owned());
        }
    }
}

/// Paths that mean something else by the time that they are looked at, and descriptors.
fn bound() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    let sub = rig.dir().join("sub");
    fs::create_dir(&sub)?;

    // The background's working directory is /, but for what was opened before.
    let image = rig.dir().join("panics.img");
    BootSector::Pvpanic.write(&image)?;
    let drive = format!("file={},format=raw,if=ide,file.locking=off", image.display());
    let heart = "socket,id=heart,path=../heart,server=on,wait=off";
    let port = "virtserialport,chardev=heart,name=org.flatline.heartbeat.0";
    let mut command = Qemu::command(&rig, "background", &sub);
    command.args(["-S", "-qmp", "unix:../q.sock,server=on,wait=off", "-device", "pvpanic"]);
    command.args(["-monitor", "unix:../human,server=on,wait=off", "-drive", &drive]);
    command.args(["-chardev", heart, "-device", "virtio-serial-pci", "-device", port]);
    let _background = Qemu::daemonize(&mut command, &rig.dir().join("background.pid"))?;

    let mut command = Qemu::command(&rig, "above", &sub);
    let _above = Qemu::start(command.args(["-S", "-qmp", "unix:../a.sock,server=on,wait=off"]))?;

    // From its new root, nothing of this is to be seen.
    let root = rig.dir().join("root");
    fs::create_dir(&root)?;
    let outside = rig.dir().join("outside.sock");
    let qmp = format!("unix:{},server=on,wait=off", outside.display());
    let mut command = Qemu::command(&rig, "elsewhere", &sub);
    let _elsewhere = Qemu::start(command.args(["-S", "-qmp", &qmp, "-chroot"]).arg(&root))?;

    let listener = UnixListener::bind(rig.dir().join("handed-over.sock"))?;
    let mut command = Qemu::command(&rig, "handed-over", &sub);
    command.args(["-S", "-qmp", "unix:fd=0,server=on,wait=off"]).stdin(OwnedFd::from(listener));
    let _handed_over = Qemu::start(&mut command)?;

    // A QEMU that can't be reached, and says why.
    let name = format!("flatline-test-{}", std::process::id());
    let nameless = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let mut command = Qemu::command(&rig, "no-path", &sub);
    command.args(["-S", "-qmp", "unix:fd=0,server=on,wait=off"]).stdin(OwnedFd::from(nameless));
    let _no_path = Qemu::start(&mut command)?;

    for name in ["background", "above", "elsewhere", "handed-over"] {
        wait_for_monitor(&daemon, name, "answers; run state prelaunch")?;
    }
    let why = "descriptor 0, which process";
    wait_for_monitor(&daemon, "no-path", why)?;
    wait_for_monitor(&daemon, "no-path", "is a socket that is bound to no path")?;
    let nobody_else = |status: &Value| {
        let degraded = status["host"]["degraded"].as_str().unwrap_or_default();
        degraded.contains(&format!("QMP is not used of no-path ({why}"))
    };
    wait_until("what is unseen to be named", WITHIN, || {
        Ok(nobody_else(&daemon.status()?).then_some(()))
    })
    .with_context(|| format!("{:?}", daemon.status()))?;

    // The agent's port is listened at, and the panic heard.
    let human = human(&rig.dir().join("human"))?;
    wait_until("the port to be listened at", WITHIN, || {
        let said = tell(&human, "info chardev", "heart:")?;
        Ok(said.contains("heart: filename=unix:").then_some(()))
    })?;
    tell(&human, "cont", "(qemu)")?;
    wait_for_incident(&daemon, "background", "panicked", WITHIN, |incident| {
        incident["cause"] == "panicked"
    })?;
    Ok(())
}

/// The first two monitors have other clients.
fn held() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.boot_sector("three", BootSector::StiHlt, Accelerator::Tcg);
    let third = rig.dir().join("third.qmp");
    let qmp = format!("unix:{},server=on,wait=off", third.display());
    config.extra_args.extend(["-qmp".to_owned(), qmp]);
    let guests = boot_all(&[config])?;
    let first = Qmp::new(UnixStream::connect(guests[0].qmp_path())?)?;

    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    wait_for_monitor(&daemon, "three", "answers; run state running")?;
    // The first one becomes free, and nothing changes for that.
    drop(first);
    let mut again = None;
    wait_until("the first monitor to be free", WITHIN, || {
        let stream = UnixStream::connect(guests[0].qmp_path())?;
        again = Some(Qmp::new(stream)?);
        Ok(Some(()))
    })?;
    drop(again);
    let end = std::time::Instant::now() + A_WHILE;
    while std::time::Instant::now() < end {
        let said = monitor(&daemon, "three").unwrap_or_default();
        ensure!(said.contains("answers"), "{said}\n{}", daemon.log().text());
        sleep(Duration::from_millis(500))?;
    }
    // It is still the third that is held.
    let stream = UnixStream::connect(&third)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let greeted = std::io::Read::read(&mut &stream, &mut [0; 16]);
    ensure!(greeted.is_err(), "flatline left the monitor that it had");
    ensure!(!daemon.log().text().contains("QMP can't be used"), "{}", daemon.log().text());
    ensure!(daemon.status()?["host"]["degraded"].is_null(), "{}", daemon.status()?);
    Ok(())
}

/// Its threads bear no names, and its own account of them is in other numbers than its host's.
fn own_pids() -> Result<()> {
    let rig = Rig::new()?;
    let image = rig.dir().join("idle.img");
    BootSector::StiHlt.write(&image)?;
    let drive = format!("file={},format=raw,if=ide,file.locking=off", image.display());
    let qmp = rig.dir().join("q.sock");
    let qmp = format!("unix:{},server=on,wait=off", qmp.display());
    let inner = Qemu::command(&rig, "inside", rig.dir());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(inner.get_program());
    command
        .args(inner.get_args())
        .envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.args(["-smp", "2", "-accel", "tcg,thread=multi", "-drive", &drive, "-qmp", &qmp]);
    command.current_dir(rig.dir()).stdin(Stdio::null());
    let _inside = Qemu::start(&mut command)?;
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let has_two = |row: &Value| row["vcpus"].as_array().is_some_and(|vcpus| vcpus.len() == 2);
    let row = wait_for_vm(&daemon, "inside", "its vCPUs", WITHIN, has_two)?;
    let pid = row["pid"].as_u64().context("no pid")?;
    for vcpu in row["vcpus"].as_array().into_iter().flatten() {
        let status = format!("/proc/{pid}/task/{}/status", vcpu["tid"]);
        let status = fs::read_to_string(&status).context("no thread of it")?;
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ensure!(inside.is_some_and(|ids| ids.split_whitespace().count() == 2), "{status}");
        // Two threads that are no vCPU's, and that of its monitors, were there before.
        ensure!(vcpu["tid"] != pid, "{row}");
    }
    // The peer of its socket is known by its number here.
    wait_for_monitor(&daemon, "inside", "answers; run state running")?;
    ensure!(vm(&daemon, "inside")?["state"] != "unobservable", "{}", vm(&daemon, "inside")?);
    Ok(())
}

/// Every kind that is told in another way: by the names of threads, by KVM's descriptors, by the number of threads.
fn waits() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    let mut kinds = vec![
        ("named", ",debug-threads=on", "tcg", 2),
        ("unnamed", ",debug-threads=off", "tcg", 2),
        ("with-iothread", ",debug-threads=off", "tcg", 3),
    ];
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        kinds.push(("of-kvm", ",debug-threads=off", "kvm", 2));
    }
    let mut qemus = Vec::new();
    for (name, named, accelerator, threads) in kinds {
        let socket = rig.dir().join(format!("{name}.qmp"));
        let qmp = format!("unix:{},server=on,wait=on", socket.display());
        let mut command = Qemu::command(&rig, name, rig.dir());
        command.args(["-name", &format!("{name}{named}"), "-accel", accelerator, "-qmp", &qmp]);
        if threads == 3 {
            command.args(["-object", "iothread,id=i0"]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        qemus.push((name, threads, socket, Qemu::start(&mut command)?));
    }
    let waits = |row: &Value| {
        let why = row["reason"].as_str().unwrap_or_default();
        row["state"] == "held"
            && why.contains(
                "not started yet: QEMU has no vCPUs yet, and waits until somebody connects",
            )
    };
    for (name, ..) in &qemus {
        wait_for_vm(&daemon, name, "held as not started", WITHIN, waits)?;
    }
    sleep(A_WHILE)?;
    let degraded = daemon.status()?["host"]["degraded"].as_str().unwrap_or_default().to_owned();
    for (name, threads, socket, qemu) in &qemus {
        let row = vm(&daemon, name)?;
        ensure!(waits(&row), "{row}");
        ensure!(qemu.threads()? == *threads, "{name} has {} threads", qemu.threads()?);
        ensure!(degraded.contains(&format!("{name} (QEMU has no vCPUs yet")), "{degraded}");
        wait_for_monitor(&daemon, name, "waits until somebody connects to")?;
        // Its owner starts it, and leaves.
        let mut owner = Qmp::new(UnixStream::connect(socket)?).context("the owner's turn")?;
        owner.execute("query-status", &json!({}))?;
        drop(owner);
        wait_for_monitor(&daemon, name, "answers; run state running")?;
    }
    ensure!(daemon.incidents()?.is_empty(), "{:?}", daemon.incidents()?);
    Ok(())
}

/// It listens for its monitor's clients, and serves none, since it waits for one of its serial line's.
fn queue() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let daemon = rig.daemon(&config)?;
    let mut qemus = Vec::new();
    for (name, named) in [("named", ",debug-threads=on"), ("unnamed", ",debug-threads=off")] {
        let socket = rig.dir().join(format!("{name}.qmp"));
        let serial = rig.dir().join(format!("{name}.serial"));
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let chardev = format!("socket,id=late,path={},server=on,wait=on", serial.display());
        let mut command = Qemu::command(&rig, name, rig.dir());
        command.args(["-name", &format!("{name}{named}"), "-accel", "tcg", "-qmp", &qmp]);
        command.args(["-chardev", &chardev, "-serial", "chardev:late"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        qemus.push((name, socket, serial, Qemu::start(&mut command)?));
    }
    for (name, ..) in &qemus {
        let found = || Ok(vm(&daemon, name).ok());
        wait_until(name, WITHIN, found)?;
    }
    sleep(A_WHILE)?;
    for (name, socket, serial, _qemu) in &qemus {
        let owner = at_once(socket).with_context(|| format!("the owner's tool of {name}"))?;
        let _line = UnixStream::connect(serial)?;
        // flatline's one place before the owner's, if it has that, is not given up.
        if *name == "named" {
            Qmp::new(owner)?.execute("query-status", &json!({}))?;
        }
        wait_for_monitor(&daemon, name, "answers; run state running")?;
    }
    Ok(())
}

/// A connection, or an error where it would have to be waited for.
fn at_once(path: &PathBuf) -> Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
