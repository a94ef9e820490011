//! Stands in for the programs by which owners restart their VMs: called `qm`, for Proxmox VE's, and called
//! `systemctl`, for systemd's.
//!
//! It knows only VMs that a test has entered in [`TABLE`], each by its number or unit: a JSON object with `record`, the
//! file to which each call is appended, and with what the call then needs: `socket`, QEMU's monitor; `pid`, its
//! process; `active_state`, the unit's. It does what the real one does to a QEMU, through the same socket, and says in
//! each line that it is a stand-in.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flatline_tests::owners::TABLE;
use flatline_tests::qmp::Qmp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let (program, arguments) = words.split_first().context("no name")?;
    let program = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = arguments.last().context("no VM to do it to")?;
    let entry = std::fs::read_to_string(Path::new(TABLE).join(name))
        .with_context(|| format!("stand-in {program}: no {name}"))?;
    let entry: Value = serde_json::from_str(&entry)?;
    let record = entry["record"].as_str().context("no record")?;
    let mut record = std::fs::OpenOptions::new().create(true).append(true).open(record)?;
    writeln!(record, "{program} {}", arguments.join(" "))?;
    match (program, arguments[0].as_str()) {
        ("qm", "reset") => tell(&entry, "system_reset")?,
        ("qm", "resume") => tell(&entry, "cont")?,
        ("qm", "start") | ("systemctl", "start") => {}
        ("systemctl", "show") => match arguments[1].as_str() {
            "--property=MainPID" => println!("MainPID={}", entry["pid"]),
            "--property=ActiveState" => {
                println!("ActiveState={}", entry["active_state"].as_str().unwrap_or("failed"));
            }
            other => bail!("stand-in {program}: {other}"),
        },
        ("systemctl", "restart") => {
            let pid = entry["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            let pid = pid.and_then(Pid::from_raw).context("no pid")?;
            kill_process(pid, Signal::KILL).context("cannot end the unit's process")?;
        }
        (_, other) => bail!("stand-in {program}: {other}"),
    }
    if arguments[0] != "show" {
        println!("stand-in {program}: {} of {name}", arguments[0]);
    }
    Ok(())
}

/// Tells QEMU something as Proxmox VE does, which waits for its turn at the socket.
fn tell(entry: &Value, command: &str) -> Result<()> {
    let socket = entry["socket"].as_str().context("no socket")?;
    let begin = Instant::now();
    let stream = UnixStream::connect(socket)?;
    // It has no greeting as long as another client holds the socket.
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut qmp = Qmp::new(stream).context("stand-in: the socket is not free")?;
    qmp.execute(command, &Value::Null)?;
    println!("stand-in: {command} after {:.1?}", begin.elapsed());
    Ok(())
}
