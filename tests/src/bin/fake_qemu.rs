//! Poses as a QEMU and misbehaves at its monitor: what a QEMU that its guest took over could do.
//!
//! It takes a command line like QEMU's, `-name NAME -qmp unix:PATH,server=on,wait=off -fake MANNER`,
//! listens on the socket, and treats one client after the other in that manner. It ends when its
//! standard input does, so that none outlives a test that was killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// What a QEMU 7.2 says first.
const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);
/// Events at a time: writing each by itself would make the flood a brook.
const EVENTS_A_WRITE: usize = 1000;
/// Deeper than any parser should follow, within four megabytes.
const DEPTH: usize = 100_000;
/// How long the liar takes for each answer: below any limit for one command.
const SLOW: Duration = Duration::from_secs(1);
/// From one byte to the next, of one that is patient and of one whose greeting takes a quarter of a minute.
const QUICK_BYTES: Duration = Duration::from_micros(500);
const SLOW_BYTES: Duration = Duration::from_millis(150);
/// From one reset of the guest's own to the next: no burst, which would count as one.
const RESETS_APART: Duration = Duration::from_millis(2100);
/// How long a reset takes that is slow.
const SLOW_RESET: Duration = Duration::from_secs(8);
/// How long an answer takes that is late.
const LATE: Duration = Duration::from_secs(20);
/// One that aborts is found before that.
const ABORTS_AFTER: Duration = Duration::from_secs(4);
/// Just less than the longest message that is taken.
const HOARD_BYTES: usize = 4_000_000;
/// Messages of a quarter of what is taken for a flood, however it was asked for.
const BABBLE_BYTES: usize = 200_000;
const BABBLES_EVERY: Duration = Duration::from_millis(25);
/// The memory of a guest, and from one byte to the next where it comes slowly.
const MEMORY_BYTES: usize = 3 << 20;
const SLOW_MEMORY: Duration = Duration::from_millis(50);
/// What no screen ever showed, and how much the painter claims to have written of it.
const PICTURE: &[u8] = b"P6\n100000 100000\n255\n";
const PICTURE_BYTES: u64 = 1 << 40;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option);
        at.and_then(|at| arguments.get(at + 1)).with_context(|| format!("no {option}"))
    };
    let socket = value("-qmp")?.strip_prefix("unix:").context("-qmp is no unix: socket")?;
    let path = socket.split(',').next().unwrap_or(socket);
    let manner = match value("-fake")?.as_str() {
        "silent" => say_nothing,
        "mute" => greet_only,
        "events" => flood_events,
        "garbage" => flood_garbage,
        "endless" => one_endless_line,
        "deep" => nest_deeply,
        "liar" => |client| lie(client, SLOW),
        "lies" => |client| lie(client, Duration::ZERO),
        "bytewise" => |client| speak_in_bytes(client, QUICK_BYTES),
        "dripping" => |client| speak_in_bytes(client, SLOW_BYTES),
        "cut" => hang_up_within_a_reply,
        "painter" => paint,
        "verbose" => |client| panicked(client, verbose),
        "hangs-up" => |client| panicked(client, hangs_up_once),
        "turns" => |client| panicked(client, turns_to_garbage),
        "resets" => reset_without_end,
        "slow-reset" => |client| panicked(client, slow_reset),
        "late" => |client| panicked(client, late),
        "hoards" => hoard,
        "babbles" => babble,
        "dumps" => |client| dump(client, false),
        "dumps-slowly" => |client| dump(client, true),
        "aborts" => {
            std::thread::sleep(ABORTS_AFTER);
            std::process::abort()
        }
        other => bail!("no manner {other}"),
    };
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {path}"))?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // The client hanging up is how each of these ends.
            let _ = manner(client);
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn say_nothing(mut client: UnixStream) -> Result<()> {
    Ok(std::io::copy(&mut client, &mut std::io::sink()).map(|_| ())?)
}

fn greet_only(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    say_nothing(client)
}

/// Behaves until the client trusts it, then reports that the VM stopped, over and over.
fn flood_events(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    let event = json!({"timestamp": {"seconds": 1, "microseconds": 1}, "event": "STOP"});
    let events = format!("{event}\r\n").repeat(EVENTS_A_WRITE);
    loop {
        client.write_all(events.as_bytes())?;
    }
}

/// Behaves until the client trusts it, and begins a message that has no end.
fn hoard(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    client.write_all(b"{\"event\": \"")?;
    client.write_all(&vec![b'x'; HOARD_BYTES])?;
    say_nothing(client)
}

/// Behaves until the client trusts it, and then says what it was not asked, in long messages that say nothing.
fn babble(mut client: UnixStream) -> Result<()> {
    behave(&mut client)?;
    let message = format!("{{\"x\": [{}0]}}\r\n", "0,".repeat(BABBLE_BYTES / 2));
    loop {
        client.write_all(message.as_bytes())?;
        std::thread::sleep(BABBLES_EVERY);
    }
}

/// Answers what a client asks first.
fn behave(client: &mut UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    for answer in [json!({}), json!({"status": "running", "singlestep": false, "running": true})] {
        let id = next_request(&mut requests)?["id"].clone();
        client.write_all(format!("{}\r\n", json!({"return": answer, "id": id})).as_bytes())?;
    }
    Ok(())
}

fn flood_garbage(mut client: UnixStream) -> Result<()> {
    let garbage = vec![0xff; 1 << 16];
    loop {
        client.write_all(&garbage)?;
    }
}

fn one_endless_line(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    client.write_all(b"{\"event\": \"")?;
    let name = vec![b'x'; 1 << 16];
    loop {
        client.write_all(&name)?;
    }
}

fn nest_deeply(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let message = format!("{}1{}\r\n", "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
    loop {
        client.write_all(message.as_bytes())?;
    }
}

/// Says that the guest panicked whatever is done about it, and takes so long over each answer.
fn lie(mut client: UnixStream, takes: Duration) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        std::thread::sleep(takes);
        let answer = match request["execute"].as_str() {
            Some("query-status") => {
                json!({"status": "guest-panicked", "singlestep": false, "running": false})
            }
            Some("query-cpus-fast") => json!([]),
            _ => json!({}),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// Says that the guest runs, and again and again that it reset itself.
fn reset_without_end(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut says = Some(client.try_clone()?);
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        let answer = match request["execute"].as_str() {
            Some("query-status") => {
                json!({"status": "running", "singlestep": false, "running": true})
            }
            Some("query-cpus-fast") => json!([]),
            _ => json!({}),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
        // No event comes before the first command is answered.
        if let Some(mut client) = says.take() {
            std::thread::spawn(move || {
                let (at, data) = (json!({"seconds": 1, "microseconds": 1}), json!({"guest": true}));
                let event = json!({"timestamp": at, "event": "RESET", "data": data});
                while client.write_all(format!("{event}\r\n").as_bytes()).is_ok() {
                    std::thread::sleep(RESETS_APART);
                }
            });
        }
    }
}

/// Says that the guest runs, a byte at a time.
fn speak_in_bytes(mut client: UnixStream, pause: Duration) -> Result<()> {
    let say = |client: &mut UnixStream, text: &str| -> Result<()> {
        for byte in text.bytes() {
            client.write_all(&[byte])?;
            std::thread::sleep(pause);
        }
        Ok(())
    };
    say(&mut client, GREETING)?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        let status = json!({"status": "running", "singlestep": false, "running": true});
        let answer = if request["execute"] == "query-status" { status } else { json!({}) };
        say(&mut client, &format!("{}\r\n", json!({"return": answer, "id": request["id"]})))?;
    }
}

/// Answers twice as it should, and is gone in the middle of the third answer.
fn hang_up_within_a_reply(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    for answer in [json!({}), json!({"status": "running", "singlestep": false, "running": true})] {
        let id = next_request(&mut requests)?["id"].clone();
        client.write_all(format!("{}\r\n", json!({"return": answer, "id": id})).as_bytes())?;
    }
    next_request(&mut requests)?;
    Ok(client.write_all(b"{\"return\": [{\"cpu-ind")?)
}

/// Says that the guest panicked, and draws a picture of an absurd size of it.
fn paint(mut client: UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let (mut bytes, mut canvas) = (Vec::new(), None);
    loop {
        let request = next_request_with(&mut client, &mut bytes, &mut canvas)?;
        let answer = match request["execute"].as_str() {
            Some("query-status") => {
                json!({"status": "guest-panicked", "singlestep": false, "running": false})
            }
            Some("query-cpus-fast") => json!([]),
            Some("add-fd") => json!({"fdset-id": 1, "fd": 3}),
            Some("screendump") => {
                let mut canvas = canvas.take().map(File::from).context("nothing to paint on")?;
                canvas.write_all(PICTURE)?;
                canvas.set_len(PICTURE_BYTES)?;
                json!({})
            }
            _ => json!({}),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// Whether it was told to reset the guest, and then to let it go on.
static WAS_RESET: AtomicBool = AtomicBool::new(false);
static GOES_ON: AtomicBool = AtomicBool::new(false);
/// Whether it has misbehaved once.
static HAS_ONCE: AtomicBool = AtomicBool::new(false);

/// What comes of one command.
enum Says {
    /// This is its result, as JSON.
    Text(String),
    /// The result that a QEMU in good health gives.
    Usual,
    /// These bytes, and then the connection ends.
    Last(&'static [u8]),
}

/// Says that the guest panicked until that is reset and let go on, as a QEMU does, but for what `says` has it do.
fn panicked(mut client: UnixStream, says: fn(&str) -> Says) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    loop {
        let request = next_request(&mut requests)?;
        let command = request["execute"].as_str().unwrap_or_default();
        let result = match says(command) {
            Says::Text(text) => text,
            Says::Usual => usual(command).to_string(),
            Says::Last(bytes) => return Ok(client.write_all(bytes)?),
        };
        client.write_all(
            format!("{{\"return\": {result}, \"id\": {}}}\r\n", request["id"]).as_bytes(),
        )?;
    }
}

fn usual(command: &str) -> Value {
    match command {
        "query-status" => {
            let status = match (WAS_RESET.load(Relaxed), GOES_ON.load(Relaxed)) {
                (false, _) => "guest-panicked",
                (true, false) => "prelaunch",
                (true, true) => "running",
            };
            json!({"status": status, "singlestep": false, "running": status == "running"})
        }
        "system_reset" => {
            WAS_RESET.store(true, Relaxed);
            json!({})
        }
        "cont" => {
            GOES_ON.store(true, Relaxed);
            json!({})
        }
        command if command.starts_with("query-") => json!([]),
        _ => json!({}),
    }
}

/// Says that the guest panicked, and hands its memory out where that is asked for, a byte at a time without end if it is slow.
fn dump(mut client: UnixStream, is_slow: bool) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let (mut bytes, mut pipe) = (Vec::new(), None);
    loop {
        let request = next_request_with(&mut client, &mut bytes, &mut pipe)?;
        let answer = match request["execute"].as_str().unwrap_or_default() {
            "query-dump-guest-memory-capability" => json!({"formats": ["elf"]}),
            "dump-guest-memory" => {
                let mut pipe = File::from(pipe.take().context("no pipe")?);
                HAS_ONCE.store(true, Relaxed);
                std::thread::spawn(move || {
                    if is_slow {
                        while pipe.write_all(&[0]).is_ok() {
                            std::thread::sleep(SLOW_MEMORY);
                        }
                    }
                    let _ = pipe.write_all(&vec![0; MEMORY_BYTES]);
                    HAS_ONCE.store(false, Relaxed);
                });
                json!({})
            }
            "query-dump" => {
                let status = if HAS_ONCE.load(Relaxed) { "active" } else { "completed" };
                json!({"status": status, "completed": 1, "total": MEMORY_BYTES})
            }
            command => usual(command),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// Answers questions at a length that no client takes: by its bytes, its members or its depth.
fn verbose(command: &str) -> Says {
    match command {
        "human-monitor-command" => Says::Text(format!("\"{}\"", "x".repeat(6 << 20))),
        "query-block" => Says::Text(format!("[{}0]", "0,".repeat(1_000_000))),
        "query-named-block-nodes" => Says::Text("[".repeat(DEPTH) + &"]".repeat(DEPTH)),
        _ => Says::Usual,
    }
}

/// Is gone, once, when it is asked for its disks.
fn hangs_up_once(command: &str) -> Says {
    if command == "query-block" && !HAS_ONCE.swap(true, Relaxed) {
        return Says::Last(b"{\"return\": [{\"device\"");
    }
    Says::Usual
}

/// Has no QMP to say when it is asked for its disks.
fn turns_to_garbage(command: &str) -> Says {
    if command == "query-block" { Says::Last(b"\xff\xff") } else { Says::Usual }
}

/// Takes longer for an account of its disks than a client waits for all that comes after it.
fn late(command: &str) -> Says {
    if command == "query-block" {
        std::thread::sleep(LATE);
    }
    Says::Usual
}

/// Takes longer for a reset than a client waits for one command.
fn slow_reset(command: &str) -> Says {
    if command == "system_reset" {
        std::thread::sleep(SLOW_RESET);
    }
    Says::Usual
}

/// The next request of which `bytes` may be the beginning, and the last descriptor that came with any.
fn next_request_with(
    client: &mut UnixStream,
    bytes: &mut Vec<u8>,
    descriptor: &mut Option<OwnedFd>,
) -> Result<Value> {
    loop {
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            return serde_json::from_slice(&line).context("the client sent no JSON line");
        }
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let received = recvmsg(&*client, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                *descriptor = rights.last().or(descriptor.take());
            }
        }
        if received.bytes == 0 {
            bail!("the client hung up");
        }
        bytes.extend_from_slice(&chunk[..received.bytes]);
    }
}

fn next_request(requests: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = Vec::new();
    requests.by_ref().take(1 << 20).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).context("the client sent no JSON line")
}
