//! Poses as a QEMU of a tenant, whose guest does what it is told by a word on standard input.
//!
//! Its command line is like QEMU's: `-name NAME -qmp unix:PATH,server=on,wait=off -chardev socket,id=ID,path=PATH,..`. It has one
//! vCPU, which stands still, and a guest agent. `silent`: the agent answers no more, and the registers can't be read. `panic`: the
//! guest panics, and QEMU tells so. `live`, or a reset: the agent answers. `busy`: it does, and the guest reads its disk five
//! times a second. It ends when its standard input does, so that none
//! outlives a test that was killed.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::{FileExt as _, OpenOptionsExt as _},
        net::{UnixListener, UnixStream},
    },
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::thread::gettid;
use serde_json::{Value, json};

/// What a QEMU 7.2 says first.
const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    Lives,
    /// Likewise, and reads its disk.
    Busy,
    Silent,
    Panicked,
    /// It was reset after its panic, and waits to be let go on.
    Prelaunch,
}

struct Shared {
    guest: Guest,
    /// The client of the monitor.
    client: Option<UnixStream>,
    /// The thread of the vCPU.
    vcpu: i32,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { guest: Guest::Lives, client: None, vcpu: 0 });

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option);
        at.and_then(|at| arguments.get(at + 1)).with_context(|| format!("no {option}"))
    };
    let qmp = value("-qmp")?.strip_prefix("unix:").context("-qmp is no unix: socket")?;
    let qmp = qmp.split(',').next().unwrap_or(qmp).to_owned();
    let agent = value("-chardev")?.split(',').find_map(|part| part.strip_prefix("path="));
    let agent = agent.context("-chardev has no path")?.to_owned();
    thread::Builder::new().name("CPU 0/TCG".to_owned()).spawn(|| {
        shared().vcpu = gettid().as_raw_pid();
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    })?;
    read_disk(&format!("{qmp}.disk"))?;
    serve(&agent, answer_agent)?;
    serve(&qmp, answer_monitor)?;
    for word in std::io::stdin().lines() {
        match word?.as_str() {
            "silent" => shared().guest = Guest::Silent,
            "live" => shared().guest = Guest::Lives,
            "busy" => shared().guest = Guest::Busy,
            "panic" => panic_now()?,
            _ => {}
        }
    }
    Ok(())
}

/// One block, as direct I/O takes it.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// Makes a disk, and has it read while the guest is busy.
fn read_disk(path: &str) -> Result<()> {
    let mut block = Block([0xa5; 4096]);
    std::fs::write(path, block.0).with_context(|| format!("cannot make {path}"))?;
    let disk = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    disk.sync_all()?;
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(200));
            if shared().guest == Guest::Busy && disk.read_exact_at(&mut block.0, 0).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Listens at `path`, and treats one client after the other.
fn serve(path: &str, answer: fn(UnixStream) -> Result<()>) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {path}"))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // The client hanging up is how each of these ends.
            let _ = answer(client);
        }
    });
    Ok(())
}

fn panic_now() -> Result<()> {
    let mut shared = shared();
    shared.guest = Guest::Panicked;
    let Some(client) = &mut shared.client else { return Ok(()) };
    let timestamp = json!({"seconds": 1, "microseconds": 1});
    let data = json!({"action": "pause", "info": null});
    let event = json!({"event": "GUEST_PANICKED", "data": data, "timestamp": timestamp});
    Ok(client.write_all(format!("{event}\r\n").as_bytes())?)
}

/// Answers `guest-sync-delimited` as long as the guest lives, and reads on when it doesn't.
fn answer_agent(mut client: UnixStream) -> Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let mut line = Vec::new();
        if requests.by_ref().take(1 << 16).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let json = line.iter().position(|byte| *byte == b'{').map(|at| &line[at..]);
        let request: Option<Value> = json.and_then(|json| serde_json::from_slice(json).ok());
        let Some(request) =
            request.filter(|_| matches!(shared().guest, Guest::Lives | Guest::Busy))
        else {
            continue;
        };
        let answer = json!({"return": request["arguments"]["id"]});
        client.write_all(b"\xff")?;
        client.write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn answer_monitor(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    shared().client = Some(client.try_clone()?);
    let mut requests = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        if requests.by_ref().take(1 << 20).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let request: Value = serde_json::from_slice(&line)?;
        let mut shared = shared();
        let (kind, said) = result(request["execute"].as_str().unwrap_or_default(), &mut shared);
        let answer = json!({kind: said, "id": request["id"]});
        if let Some(client) = &mut shared.client {
            client.write_all(format!("{answer}\r\n").as_bytes())?;
        }
    }
}

fn result(command: &str, shared: &mut Shared) -> (&'static str, Value) {
    let refused =
        || ("error", json!({"class": "CommandNotFound", "desc": "it is made up, and has none"}));
    let said = match command {
        "query-status" => {
            let status = match shared.guest {
                Guest::Lives | Guest::Busy | Guest::Silent => "running",
                Guest::Panicked => "guest-panicked",
                Guest::Prelaunch => "prelaunch",
            };
            json!({"status": status, "singlestep": false, "running": status == "running"})
        }
        "system_reset" => {
            shared.guest = match shared.guest {
                Guest::Panicked | Guest::Prelaunch => Guest::Prelaunch,
                Guest::Lives | Guest::Busy | Guest::Silent => Guest::Lives,
            };
            json!({})
        }
        "cont" => {
            shared.guest = Guest::Lives;
            json!({})
        }
        "query-cpus-fast" => json!([{"cpu-index": 0, "thread-id": shared.vcpu}]),
        "human-monitor-command" | "screendump" => return refused(),
        command if command.starts_with("query-") => json!([]),
        _ => json!({}),
    };
    ("return", said)
}
