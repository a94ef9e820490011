//! What a local user without any right gets over HTTP, and of a report that root writes: nothing but the figures, and no reader of
//! others is held up by it.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, free_address},
};
use libtest_mimic::Trial;

use crate::{
    rig::{Crash, Rig, binary, boot_all, check_restart, trial, wait_for_incident, wait_for_vm},
    web_access::{ask, session},
};

const USER: &str = "64983";
/// For any answer.
const SOON: Duration = Duration::from_secs(10);
/// For a guest of a few bytes to be seen alive.
const WITHIN: Duration = Duration::from_secs(30);
/// Three times as many as the listener holds.
const FLOOD: usize = 48;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_user_whom_the_control_socket_refuses_reads_figures_alone_and_displaces_no_reader",
            http,
        ),
        trial("a_report_is_roots_alone_and_no_link_of_a_user_leads_it_elsewhere", report),
    ]
}

/// A command of the user.
fn as_user(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).args(words);
    command.stdin(Stdio::null());
    command
}

/// What the user gets for a request that names this host.
fn asked_by_user(address: SocketAddr, path: &str, host: &str) -> Result<String> {
    let (ip, port) = (address.ip(), address.port());
    let script = format!(
        "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' {path} {host} >&3; cat <&3"
    );
    let output = as_user(&["bash", "-c", &script]).output().context("cannot run setpriv")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Connections of the user that say nothing; they end with it.
struct Silent(Child);

impl Silent {
    fn open(address: SocketAddr) -> Result<Self> {
        let (ip, port) = (address.ip(), address.port());
        let script = format!(
            "for i in $(seq {FLOOD}); do exec {{fd}}<>/dev/tcp/{ip}/{port} || exit; done; echo open; exec sleep 60"
        );
        let mut command = as_user(&["bash", "-c", &script]);
        let mut silent =
            Self(command.stdout(Stdio::piped()).spawn().context("cannot run setpriv")?);
        let mut line = String::new();
        BufReader::new(silent.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "open\n", "the user can't connect: {line:?}");
        Ok(silent)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A reader of root's that is in the middle of its question while `meanwhile` happens; what it is answered.
fn interrupted<T>(address: SocketAddr, meanwhile: impl FnOnce() -> Result<T>) -> Result<String> {
    let mut reader = TcpStream::connect_timeout(&address, SOON)?;
    reader.set_read_timeout(Some(SOON))?;
    reader.write_all(b"GET /metrics HTTP/1.1\r\n")?;
    let _others = meanwhile()?;
    let mut answer = Vec::new();
    // It may have been cut off.
    let _ = reader.write_all(format!("Host: {address}\r\n\r\n").as_bytes());
    let _ = reader.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn http() -> Result<()> {
    let rig = Rig::new()?;
    fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let mut victim = rig.boot_sector_on_disk("victim", BootSector::OnCommand)?;
    victim.pvpanic = true;
    victim.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let daemon = rig.daemon(&config)?;
    let guests = boot_all(&[victim])?;
    wait_for_vm(&daemon, "victim", "alive", WITHIN, |row| row["state"] == "alive")?;

    let binary = binary()?.display().to_string();
    let config = daemon.config_path().display().to_string();
    let refused = as_user(&[&binary, "status", "--config", &config]).output()?;
    ensure!(refused.status.code() == Some(3), "the control socket is open to it: {refused:?}");
    let own = address.to_string();
    for path in ["/", "/api/list", "/api/status", "/api/show?pid=1", "/api/lines", "/api/incidents"]
    {
        let answer = asked_by_user(address, path, &own)?;
        ensure!(
            answer.starts_with("HTTP/1.1 403 ") && !answer.contains("victim"),
            "{path}: {answer}"
        );
    }
    for host in ["evil.example", "evil.example:9477", "127.0.0.1.evil.example"] {
        let answer = asked_by_user(address, "/metrics", host)?;
        ensure!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("victim"), "{answer}");
    }
    // Beside it: figures for those that ask for this host, and the page for a session.
    for host in [own.as_str(), "localhost"] {
        let answer = asked_by_user(address, "/metrics", host)?;
        ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("victim"), "{answer}");
    }
    let (cookie, _) = session(&daemon, address)?;
    for path in ["/api/list", "/api/status"] {
        ensure!(ask(address, path, &cookie)?.contains("victim"), "{path}");
    }

    let answer = interrupted(address, || Silent::open(address))?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "a user displaced root's reader: {answer:?}");
    // As many of its own do displace it.
    let own = || {
        (0..FLOOD)
            .map(|_| Ok(TcpStream::connect_timeout(&address, SOON)?))
            .collect::<Result<Vec<_>>>()
    };
    let answer = interrupted(address, own)?;
    ensure!(!answer.starts_with("HTTP/1.1 200 "), "places are not shared out by user: {answer:?}");
    let silent = Silent::open(address)?;
    let crash = Crash::now(&daemon, &guests[0])?;
    guests[0].send("p")?;
    check_restart(&daemon, &guests[0], &crash)?;
    drop(silent);
    Ok(())
}

/// `incidents show ID --html PATH`, as root.
fn written(daemon: &Daemon, id: &str, path: &Path) -> Result<Output> {
    daemon.client(&["incidents", "show", id, "--html", &path.display().to_string()])
}

fn report() -> Result<()> {
    let rig = Rig::new()?;
    fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
    let mut config = rig.boot_sector_on_disk("panics", BootSector::OnCommand)?;
    config.pvpanic = true;
    config.extra_args.extend(["-action", "panic=pause"].map(str::to_owned));
    let daemon = rig.daemon(&rig.daemon_config()?)?;
    let guests = boot_all(&[config])?;
    wait_for_vm(&daemon, "panics", "alive", WITHIN, |row| row["state"] == "alive")?;
    let crash = Crash::now(&daemon, &guests[0])?;
    guests[0].send("p")?;
    check_restart(&daemon, &guests[0], &crash)?;
    let recovered = |incident: &serde_json::Value| incident["outcome"] == "recovered";
    let incident = wait_for_incident(&daemon, "panics", "recovered", WITHIN, recovered)?;
    let id = incident["id"].as_str().context("no id")?;

    // A directory in which all may make files, as /tmp is one, and a file of root's.
    let (open, kept) = (rig.dir().join("open"), rig.dir().join("kept"));
    fs::create_dir(&open)?;
    fs::set_permissions(&open, Permissions::from_mode(0o1777))?;
    fs::write(&kept, "kept")?;
    let (trap, page) = (open.join("trap.html"), open.join("page.html"));
    let link =
        ["ln", "-s", &kept.display().to_string(), &trap.display().to_string()].map(str::to_owned);
    let made = as_user(&link.each_ref().map(String::as_str)).status()?;
    ensure!(made.success() && trap.is_symlink(), "the user can't make its link");
    let refused = written(&daemon, id, &trap)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("trap.html"), "{refused:?}");
    ensure!(fs::read_to_string(&kept)? == "kept", "what the link leads to was written: {said}");
    println!("{}", said.trim());

    // Beside it: where there is no link, and again over what is there.
    for _ in 0..2 {
        let output = written(&daemon, id, &page)?;
        ensure!(output.status.success(), "{output:?}");
        let metadata = fs::symlink_metadata(&page)?;
        ensure!(metadata.mode() & 0o7777 == 0o600 && metadata.uid() == 0, "{:o}", metadata.mode());
        ensure!(fs::read_to_string(&page)?.contains(id), "it is no report");
    }
    let read = as_user(&["cat", &page.display().to_string()]).stderr(Stdio::null()).output()?;
    ensure!(!read.status.success() && read.stdout.is_empty(), "the user reads it");
    Ok(())
}
