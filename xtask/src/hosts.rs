//! `cargo xtask hosts`: real KVM hosts under emulation, with flatline and 64-bit Linux guests inside; writes `docs/hosts.md`.
//!
//! A host is a Debian in a QEMU of this machine's, with a kernel and a QEMU of Debian's suites, and without a network: see
//! [`machine`]. What is tried there is this program's own hidden task, [`inside`].

mod arm;
mod catalogue;
mod cell;
mod disks;
mod emulator;
pub(crate) mod inside;
mod kernel;
mod kit;
mod machine;
mod report;
mod results;
mod withheld;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use flatline_tests::interrupt;

use crate::process::{capture, elapsed, heading, workspace_root};
use crate::setup;
use catalogue::Host;
use cell::Cell;
use kit::Kit;
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
    /// One that was built before, if it is not to be built.
    daemon: Option<PathBuf>,
    /// Of the architectures of hosts that were played.
    kits: Vec<Kit>,
    results: Results,
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
        for host in &hosts {
            let suite = host.qemu_suite.unwrap_or(crate::apt::RELEASE);
            println!("{}: Linux {}x, QEMU of {suite}", host.name, host.kernel);
            println!("  columns: {}", slugs(host).join(", "));
        }
        return Ok(());
    }
    let known: Vec<String> = hosts.iter().flat_map(slugs).collect();
    if let Some(unknown) = options.only.iter().find(|name| !known.contains(name)) {
        bail!("no column is called {unknown}: see `cargo xtask hosts --list`");
    }
    if options.document {
        return write_document(&Results::new(results())?);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("hosts needs root, to unpack a Debian");
    }
    setup::ensure()?;
    let mut ground = Ground::new(options.daemon.clone())?;
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

/// Where packages and disks are kept.
fn directory() -> PathBuf {
    workspace_root().join("target/hosts")
}

/// Where results are: beside the document, so that a host can be played anew without the others.
fn results() -> PathBuf {
    workspace_root().join("docs/hosts")
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
        return Ok(catalogue::hosts().collect());
    }
    let host = |name: &String| {
        let host = catalogue::host(name);
        host.with_context(|| format!("no host is called {name}: see `cargo xtask hosts --list`"))
    };
    names.iter().map(host).collect()
}

/// What `--only` calls a host's columns.
fn slugs(host: &Host) -> Vec<String> {
    catalogue::columns(host).iter().map(inside::slug).collect()
}

impl Ground {
    fn new(daemon: Option<PathBuf>) -> Result<Self> {
        let began = Instant::now();
        let dir = directory();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let results = Results::new(results())?;
        Ok(Self { dir, daemon, kits: Vec::new(), results, began })
    }

    /// What a host's architecture needs, made once.
    fn kit(&mut self, host: &Host) -> Result<usize> {
        let is_its = |kit: &Kit| kit.architecture == host.architecture;
        if let Some(at) = self.kits.iter().position(is_its) {
            return Ok(at);
        }
        self.kits.push(Kit::new(host.architecture, &self.dir, self.daemon.as_deref())?);
        Ok(self.kits.len() - 1)
    }

    /// Boots a host, says each cell as it comes, and keeps them.
    fn play(&mut self, host: &Host, columns: &str) -> Result<()> {
        let at = self.kit(host)?;
        let kit = &self.kits[at];
        let kernel = kit.packages.kernel(host.kernel)?;
        let kernel = &kernel::prepare(&kit.packages, &kernel, &self.dir.join("kernels"))?;
        let mut disks = vec![kit.debian.clone(), kit.payload.clone()];
        if let Some(suite) = host.qemu_suite {
            disks.push(disks::qemu(&kit.packages, suite, &self.dir)?);
        }
        heading(&format!("{}: Linux {}", host.name, kernel.version));
        let place = tempfile::Builder::new().prefix(".host-").tempdir_in(&self.dir)?;
        let console = self.dir.join(format!("{}.console", host.name));
        let mut cells = Vec::new();
        let told = |cell: Cell| {
            println!("{:>8}  {}", elapsed(self.began.elapsed()), told(host, &cell));
            cells.push(cell);
        };
        let machine = Machine { kit, kernel, disks, dir: place.path(), console: &console };
        // What was tried before it ended counts.
        let broken_off = machine.play(host.name, columns, told).err();
        let qemu = cells.iter().position(|cell| cell.column == inside::QEMU);
        let qemu = qemu.map(|at| cells.remove(at).text).unwrap_or_default();
        let on = capture(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
        let (name, daemon_crc32) = (host.name.to_owned(), kit.daemon_crc32);
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
