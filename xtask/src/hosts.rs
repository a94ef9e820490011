//! `cargo xtask hosts`: real KVM hosts under emulation, with flatline and 64-bit Linux guests inside; writes `docs/hosts.md`.
//!
//! A host is a Debian in a QEMU of this machine's, with a kernel and a QEMU of Debian's suites, and without a network: see
//! [`machine`]. What is tried there is this program's own hidden task, [`inside`].

mod catalogue;
mod cell;
mod disks;
mod emulator;
pub(crate) mod inside;
mod kernel;
mod machine;
mod report;
mod results;
mod withheld;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use flatline_tests::{image, interrupt};

use crate::architecture::Architecture;
use crate::packages::Packages;
use crate::process::{capture, cargo_command, elapsed, heading, workspace_root};
use crate::{build_ebpf, executable, guest, setup};
use catalogue::{HOSTS, Host};
use cell::Cell;
use emulator::Emulator;
use machine::Machine;
use results::{Played, Results};

/// What to play.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these hosts
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only these columns (may be repeated); the others stay what they were
    #[arg(long, value_name = "COLUMN")]
    only: Vec<String>,
    /// Try this daemon, rather than one that is built now
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Only name the hosts and the columns
    #[arg(long)]
    list: bool,
    /// Only write the document, of what was played before
    #[arg(long)]
    document: bool,
}

/// What all hosts have in common.
struct Ground {
    dir: PathBuf,
    packages: Packages,
    emulator: Emulator,
    debian: PathBuf,
    payload: PathBuf,
    results: Results,
    daemon_crc32: u32,
    began: Instant,
}

/// Builds what is missing, plays, and writes.
///
/// # Errors
///
/// If a cell is not as is due, a host could not be played, or Ctrl-C came.
pub(crate) fn task(options: &Options) -> Result<()> {
    let hosts = chosen(&options.names)?;
    if options.list {
        for Host { name, kernel, qemu_suite } in hosts {
            println!(
                "{name}: Linux {kernel}x, QEMU of {}",
                qemu_suite.unwrap_or(crate::apt::RELEASE)
            );
        }
        let columns: Vec<String> =
            catalogue::columns().map(|column| inside::slug(&column)).collect();
        println!("columns: {}", columns.join(", "));
        return Ok(());
    }
    let slugs: Vec<String> = catalogue::columns().map(|column| inside::slug(&column)).collect();
    if let Some(unknown) = options.only.iter().find(|name| !slugs.contains(name)) {
        bail!("no column is called {unknown}: see `cargo xtask hosts --list`");
    }
    if options.document {
        return write_document(&Results::new(directory().join("results"))?);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("hosts needs root, to unpack a Debian");
    }
    setup::ensure()?;
    let ground = Ground::new(options.daemon.as_deref())?;
    interrupt::install()?;
    let mut unplayed = Vec::new();
    for host in &hosts {
        interrupt::check()?;
        let played = ground.play(host, &options.only.join(","));
        // What was played counts, whatever becomes of the rest.
        write_document(&ground.results)?;
        if let Err(error) = played {
            interrupt::check()?;
            println!("{}: NOT PLAYED: {error:#}", host.name);
            unplayed.push(host.name);
        }
    }
    if !unplayed.is_empty() {
        bail!("not played: {}", unplayed.join(", "));
    }
    let failed = report::failures(&report::with_results(|host| ground.results.of(host)));
    if !failed.is_empty() {
        bail!("not as it is due:\n{}", failed.join("\n"));
    }
    heading(&format!("all as it is due, in {}", elapsed(ground.began.elapsed())));
    Ok(())
}

/// Where packages, disks and results are kept.
fn directory() -> PathBuf {
    workspace_root().join("target/hosts")
}

fn write_document(results: &Results) -> Result<()> {
    let path = workspace_root().join("docs/hosts.md");
    let text = report::document(&report::with_results(|host| results.of(host)));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    heading(&format!("{} has it all", path.display()));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<Host>> {
    if names.is_empty() {
        return Ok(HOSTS.to_vec());
    }
    let host = |name: &String| {
        let host = catalogue::host(name);
        host.with_context(|| format!("no host is called {name}: see `cargo xtask hosts --list`"))
    };
    names.iter().map(host).collect()
}

impl Ground {
    fn new(daemon: Option<&Path>) -> Result<Self> {
        let began = Instant::now();
        let daemon = match daemon {
            Some(daemon) => daemon.to_owned(),
            None => {
                build_ebpf::build()?;
                executable::build("the daemon", &["--package", "flatline"])?
            }
        };
        let mut command = cargo_command(["test", "--workspace", "--no-run", "--test", "e2e"]);
        heading("building the end-to-end tests");
        let tests = executable::built(&mut command)?.into_iter().find(|test| test.name == "e2e");
        let tests = tests.context("cargo built no end-to-end tests")?.path;
        let images = guest::build()?;
        image::build(&images, |step| eprintln!("{step}"))?;
        let dir = directory();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let packages =
            Packages::new(&dir.join("apt"), &catalogue::SUITES, &[Architecture::X86_64])?;
        let emulator = Emulator::find(&packages, &dir)?;
        let debian = disks::debian(&dir)?;
        let daemon_crc32 = crc32fast::hash(&std::fs::read(&daemon)?);
        let payload = payload(&dir, daemon, tests, &images)?;
        let results = Results::new(dir.join("results"))?;
        Ok(Self { dir, packages, emulator, debian, payload, results, daemon_crc32, began })
    }

    /// Boots a host, says each cell as it comes, and keeps them.
    fn play(&self, host: &Host, columns: &str) -> Result<()> {
        let kernel = self.packages.kernel(host.kernel)?;
        let kernel = kernel::prepare(&self.packages, &kernel, &self.dir.join("kernels"))?;
        let mut disks = vec![self.debian.clone(), self.payload.clone()];
        if let Some(suite) = host.qemu_suite {
            disks.push(disks::qemu(&self.packages, suite, &self.dir)?);
        }
        heading(&format!("{}: Linux {}", host.name, kernel.version));
        let place = tempfile::Builder::new().prefix(".host-").tempdir_in(&self.dir)?;
        let console = self.dir.join(format!("{}.console", host.name));
        let mut cells = Vec::new();
        let told = |cell: Cell| {
            println!("{:>8}  {}", elapsed(self.began.elapsed()), told(host, &cell));
            cells.push(cell);
        };
        let (emulator, kernel) = (&self.emulator, &kernel);
        let machine = Machine { emulator, kernel, disks, dir: place.path(), console: &console };
        // What was tried before it ended counts.
        let broken_off = machine.play(host.name, columns, told).err();
        let qemu = cells.iter().position(|cell| cell.column == inside::QEMU);
        let qemu = qemu.map(|at| cells.remove(at).text).unwrap_or_default();
        let on = capture(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
        let (name, daemon_crc32) = (host.name.to_owned(), self.daemon_crc32);
        let played =
            Played { host: name, kernel: kernel.version.clone(), qemu, on, daemon_crc32, cells };
        self.results.keep(host, &played)?;
        broken_off.map_or(Ok(()), Err)
    }
}

/// A cell in a line, with what there is to look for if it is not as is due.
fn told(host: &Host, cell: &Cell) -> String {
    let Cell { column, text, as_due, detail, overdue: _ } = cell;
    let name = host.name;
    match (as_due, detail) {
        (Some(true), _) => format!("{name}, {column}: {text}"),
        (None, _) => format!("{name}, {column}: empty: {text}"),
        (Some(false), detail) => {
            format!("{name}, {column}: WRONG: {text}\n{}", detail.as_deref().unwrap_or_default())
        }
    }
}

/// The disk with what is tried, and with what.
fn payload(dir: &Path, daemon: PathBuf, tests: PathBuf, images: &Path) -> Result<PathBuf> {
    let script = dir.join("init");
    std::fs::write(&script, machine::script())?;
    let mut mode = Command::new("chmod");
    crate::process::run(mode.arg("755").arg(&script))?;
    let mut files = vec![
        ("init", script),
        ("flatline", daemon),
        ("e2e", tests),
        ("xtask", std::env::current_exe()?),
        ("busybox", disks::busybox()?),
    ];
    let of_guests = ["kernel", "initramfs", "stamp", image::AGENT].map(|name| images.join(name));
    let names = ["guest/kernel", "guest/initramfs", "guest/stamp", "guest/flatline-heartbeat"];
    files.extend(names.into_iter().zip(of_guests).filter(|(_, path)| path.exists()));
    let image = dir.join("payload.ext4");
    disks::payload(&files, &image)?;
    Ok(image)
}
