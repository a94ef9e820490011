//! What libvirt takes to tell of its domains: real ones, of a libvirtd of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatline_tests::boot_sector::BootSector;
use flatline_tests::guest::private_qemu;
use flatline_tests::libvirt::Libvirtd;
use flatline_tests::{cpu, interrupt};

use super::figures::Rounds;

pub(crate) const DOMAINS: usize = 10;
const ROUNDS: usize = 9;
/// Polls of all domains in a round.
const POLLS: u32 = 10;
/// Says that the answer before it is whole.
const END: &str = "flatline-bench-end";
/// For the domains to come to rest.
const SETTLE: Duration = Duration::from_secs(5);

/// What it takes, in us a domain and poll.
#[derive(Debug)]
pub(crate) struct Domstats {
    /// CPU time of libvirtd and of its client.
    pub(crate) cpu: Rounds,
    /// Until the answer is there.
    pub(crate) elapsed: Rounds,
}

/// Measures, or says why that can't be done here.
pub(crate) fn measure(dir: &Path) -> Result<Domstats> {
    if let Some(program) = Libvirtd::missing() {
        bail!("{program} is not installed");
    }
    let place = dir.join("v");
    std::fs::create_dir_all(&place)?;
    for dir in [dir, &place] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    }
    let mut libvirtd = Libvirtd::start(&place, &private_qemu(&place)?)?;
    for number in 0..DOMAINS {
        let uuid = format!("5f0b9d3e-6f0a-4b7b-9c1f-0f1d3c5b7b{number:02}");
        libvirtd.create((&format!("bench-{number}"), &uuid), BootSector::StiHlt)?;
    }
    interrupt::sleep(SETTLE)?;
    let mut client = Client::start(libvirtd.uri())?;
    client.poll()?;
    let (mut took, mut elapsed) = (Vec::new(), Vec::new());
    let each = 1e6 / f64::from(POLLS) / DOMAINS as f64;
    for _ in 0..ROUNDS {
        interrupt::check()?;
        let (begin, before) = (Instant::now(), time(&libvirtd, &client)?);
        for _ in 0..POLLS {
            client.poll()?;
        }
        elapsed.push(begin.elapsed().as_secs_f64() * each);
        took.push((time(&libvirtd, &client)? - before).as_secs_f64() * each);
    }
    Ok(Domstats { cpu: Rounds::new(took)?, elapsed: Rounds::new(elapsed)? })
}

/// CPU time of both so far.
fn time(libvirtd: &Libvirtd, client: &Client) -> Result<Duration> {
    Ok(cpu::process_time(libvirtd.pid())? + cpu::process_time(client.child.id())?)
}

/// A virsh that stays connected, as an exporter does; dropping it ends it.
struct Client {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(uri: &str) -> Result<Self> {
        let mut child = Command::new("virsh")
            .args(["-q", "-c", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start virsh")?;
        let commands = child.stdin.take().context("the pipe was asked for")?;
        let answers = child.stdout.take().context("the pipe was asked for")?;
        Ok(Self { child, commands, answers: BufReader::new(answers) })
    }

    /// Asks for all that is told of all domains.
    fn poll(&mut self) -> Result<()> {
        // What is echoed ends no line, but the next command does, if an empty one.
        write!(self.commands, "domstats --list-running\necho {END}\n\n")?;
        let mut domains = 0;
        let mut line = String::new();
        while !line.starts_with(END) {
            line.clear();
            ensure!(self.answers.read_line(&mut line)? != 0, "virsh has ended");
            domains += usize::from(line.starts_with("Domain: "));
        }
        ensure!(domains == DOMAINS, "virsh told of {domains} domains");
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
