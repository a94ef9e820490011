//! Stands in for a QEMU where a thousand real ones don't fit: to be found, counted and read, not to run
//! a guest.
//!
//! It takes a command line like QEMU's, and does what its options say:
//!
//! - `-smp N`: that many idle threads, named as QEMU names its vCPUs';
//! - `-netdev tap,ifname=NAME`: makes the tap, sets it up and holds it, with room for more queues where it has `queues=`;
//!   there may be several;
//! - `-qmp unix:PATH,..`: listens there, and answers like a QEMU whose guest runs, and is idle;
//! - `-registers reset`: shows those of a vCPU's reset, as a QEMU does whose guest is encrypted;
//! - `-confidential TYPE`: says of its machine that it has an object of this type, which need not be among its options;
//! - `-ticks on`: its vCPUs are busy for 2 ms in a second, as those of an idle Linux;
//! - `-asked FILE`: notes there each QMP command, one a line;
//! - `-count FILE`: on its end, writes there how many QMP commands it was given;
//! - `-load KIND:FILE`: reads or writes the file, see [`load`];
//! - `-every FILE`: so many milliseconds, as the file says at the time, lie between two frames that it sends on its first tap, or,
//!   where it has none, between two reads of a `trickle`; 0: none.
//!
//! It ends when its standard input does, so that none outlives what started it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::aio::{self, BLOCK, Block};
use flatline_tests::netns;
use flatline_tests::paced::{self, Pace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// What a QEMU 7.2 says first.
const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);
/// What `info registers` of a QEMU 7.2 prints of a Linux that waits in `hlt` with interrupts on, where it matters.
const IDLE_VCPU: &str = concat!(
    "RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000\r\n",
    "RIP=ffffffff81c0e10f RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n",
    "CR0=80050033 CR2=0000000000000000 CR3=0000000002c10000 CR4=000006f0\r\n"
);
/// What it prints where KVM keeps a guest's registers from it: those that it gave the vCPU at its reset.
const RESET_VCPU: &str = concat!(
    "EAX=00000000 EBX=00000000 ECX=00000000 EDX=00a00f11\r\n",
    "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n",
    "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000\r\n"
);
/// An idle Linux is busy for 1.2 to 9 ms in a second: twenty ticks, of so much each.
const TICK_EVERY: Duration = Duration::from_millis(50);
const TICK_TAKES: Duration = Duration::from_micros(100);
/// What a guest sends as a sign of life: to all, from an address of its own, of a kind that is for experiments (IEEE 802).
const FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    let header = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01, 0x88, 0xb5];
    let mut at = 0;
    while at < header.len() {
        frame[at] = header[at];
        at += 1;
    }
    frame
};
/// A thread here does next to nothing, and there are thousands of them.
const STACK_BYTES: usize = 64 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1).map(String::as_str)
    };
    let vcpus = value("-smp").map_or(Ok(1), str::parse).context("-smp")?;
    let ticks = value("-ticks") == Some("on");
    let threads: Vec<i32> = (0..vcpus).map(|n| vcpu(n, ticks)).collect::<Result<_>>()?;
    let options = arguments.iter().zip(arguments.iter().skip(1));
    let netdevs = options.filter(|(option, _)| *option == "-netdev");
    let taps: Vec<File> = netdevs.map(|(_, netdev)| tap(netdev)).collect::<Result<_>>()?;
    let every = value("-every").map(|file| Pace::By(file.into()));
    let commands = Arc::new(AtomicU64::new(0));
    if let Some(qmp) = value("-qmp") {
        let path = qmp.strip_prefix("unix:").context("-qmp is no unix: socket")?;
        let path = path.split(',').next().unwrap_or(path);
        let commands = commands.clone();
        let shown = Shown {
            registers: if value("-registers") == Some("reset") { RESET_VCPU } else { IDLE_VCPU },
            confidential: value("-confidential").map(str::to_owned),
            asked: value("-asked").map(std::fs::File::create).transpose().context("-asked")?,
        };
        let listener = UnixListener::bind(path).with_context(|| format!("cannot bind {path}"))?;
        spawn("qmp".to_owned(), move || {
            for client in listener.incoming().flatten() {
                // The client hanging up is how each of these ends.
                let _ = answer(client, &threads, &shown, &commands);
            }
        })?;
    }
    if let Some(what) = value("-load") {
        let (kind, file) = what.split_once(':').context("-load is not KIND:FILE")?;
        let (kind, file) = (kind.to_owned(), file.to_owned());
        let pace = every.clone().unwrap_or(Pace::Every(paced::IDLE));
        spawn("worker".to_owned(), move || {
            if let Err(error) = load(&kind, &file, &pace) {
                eprintln!("{kind}:{file}: {error:#}");
                std::process::exit(1);
            }
        })?;
    }
    match (taps.first(), &every) {
        (Some(tap), Some(pace)) => send(tap, pace)?,
        _ => drop(io::copy(&mut io::stdin(), &mut io::sink())?),
    }
    if let Some(file) = value("-count") {
        std::fs::write(file, commands.load(Ordering::Relaxed).to_string())?;
    }
    Ok(())
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(work)?;
    Ok(())
}

/// What its monitor shows.
struct Shown {
    registers: &'static str,
    confidential: Option<String>,
    asked: Option<std::fs::File>,
}

/// Starts an idle thread and returns its id.
fn vcpu(index: u32, ticks: bool) -> Result<i32> {
    let (sender, receiver) = std::sync::mpsc::channel();
    spawn(format!("CPU {index}/TCG"), move || {
        let _ = sender.send(rustix::thread::gettid().as_raw_nonzero().get());
        loop {
            if ticks {
                std::thread::sleep(TICK_EVERY);
                let begun = Instant::now();
                while begun.elapsed() < TICK_TAKES {}
            } else {
                std::thread::park();
            }
        }
    })?;
    Ok(receiver.recv()?)
}

/// Makes the tap that a `-netdev` names, with room for more queues where it has `queues=`. It goes with the last descriptor of it.
fn tap(netdev: &str) -> Result<File> {
    let name = netdev.split(',').find_map(|member| member.strip_prefix("ifname="));
    let name = name.context("-netdev has no ifname")?;
    let has_queues = netdev.split(',').any(|member| member.starts_with("queues="));
    let tap = if has_queues { netns::open_tap(name)? } else { netns::make_tap(name)? };
    netns::set_up(name)?;
    Ok(tap)
}

/// Sends frames until its standard input ends.
fn send(mut tap: &File, pace: &Pace) -> Result<()> {
    let (mut wait, mut is_due) = (pace.phase()?, false);
    loop {
        let timeout = Timespec::try_from(wait)?;
        let stdin = io::stdin();
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        if poll(&mut polled, Some(&timeout))? != 0 && io::stdin().read(&mut [0; 64])? == 0 {
            return Ok(());
        }
        if is_due {
            tap.write_all(&FRAME).context("cannot send a frame")?;
        }
        (wait, is_due) = pace.next()?;
    }
}

/// Reads or writes until the process ends.
///
/// - `trickle`: one direct read now and then, at its pace;
/// - `read`, `write`: direct I/O without a pause, one request after the other;
/// - `deep`: direct reads, 32 at a time;
/// - `writeback`: buffered writes of every other block, each pass followed by a sync, so that each block
///   is written back by itself.
fn load(kind: &str, path: &str, pace: &Pace) -> Result<()> {
    let direct = if kind == "writeback" { 0 } else { libc::O_DIRECT };
    let writes = kind.starts_with("write");
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(writes)
        .custom_flags(direct)
        .open(path)
        .context("cannot open it")?;
    // A disk has no length of a file's.
    let blocks = file.seek(SeekFrom::End(0))? / BLOCK as u64;
    ensure!(blocks > 1, "it is too small");
    let mut block = Block([0x5a; BLOCK]);
    // A stride that meets all blocks, and no two in a row.
    let offset = |round: u64| (round * 7919) % blocks * BLOCK as u64;
    if kind == "trickle" {
        std::thread::sleep(pace.phase()?);
    }
    if kind == "deep" {
        return Err(aio::read_forever(&file, offset).into());
    }
    for round in 0_u64.. {
        match kind {
            "trickle" => {
                let (wait, is_due) = pace.next()?;
                if is_due {
                    file.read_exact_at(&mut block.0, offset(round))?;
                }
                std::thread::sleep(wait);
            }
            "read" => file.read_exact_at(&mut block.0, offset(round))?,
            "write" => file.write_all_at(&block.0, offset(round))?,
            "writeback" => {
                let at = round * 2 % blocks;
                file.write_all_at(&block.0, at * BLOCK as u64)?;
                if at + 2 >= blocks {
                    file.sync_data()?;
                }
            }
            other => bail!("no load {other}"),
        }
    }
    Ok(())
}

/// Serves one QMP client.
fn answer(
    mut client: UnixStream,
    threads: &[i32],
    shown: &Shown,
    commands: &AtomicU64,
) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let requests = BufReader::new(client.try_clone()?);
    for line in requests.lines() {
        let request: Value = serde_json::from_str(&line?)?;
        commands.fetch_add(1, Ordering::Relaxed);
        if let (Some(mut asked), Some(command)) =
            (shown.asked.as_ref(), request["execute"].as_str())
        {
            writeln!(asked, "{command}")?;
        }
        let property = (&request["arguments"]["path"], &request["arguments"]["property"]);
        let answer = match request["execute"].as_str() {
            Some("query-status") => {
                json!({"status": "running", "singlestep": false, "running": true})
            }
            Some("query-cpus-fast") => threads
                .iter()
                .enumerate()
                .map(|(index, tid)| {
                    json!({"cpu-index": index, "thread-id": tid, "target": "x86_64",
                           "qom-path": format!("/machine/unattached/device[{index}]"),
                           "props": {"core-id": 0, "thread-id": 0, "socket-id": index}})
                })
                .collect(),
            Some("human-monitor-command") => {
                let vcpu = |index| format!("CPU#{index}\r\n{}", shown.registers);
                (0..threads.len()).map(vcpu).collect::<String>().into()
            }
            Some("query-target") => json!({"arch": "x86_64"}),
            Some("qom-get") => match (property.0.as_str(), property.1.as_str()) {
                (_, Some("type")) => json!(shown.confidential),
                (Some("/machine"), Some("confidential-guest-support")) => {
                    json!(shown.confidential.as_ref().map_or("", |_| "/objects/lsec0"))
                }
                _ => json!({}),
            },
            _ => json!({}),
        };
        let answer = json!({"return": answer, "id": request["id"]});
        client.write_all(format!("{answer}\r\n").as_bytes())?;
    }
    Ok(())
}
