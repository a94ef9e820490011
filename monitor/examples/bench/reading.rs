//! What one reading of many VMs costs, by flatline's own readers and by the ways that it doesn't go.

use std::{
    collections::HashSet,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::mpsc,
};

use anyhow::{Context as _, Result, ensure};
use aya::{Btf, Ebpf, programs::Iter};
use clap::Args;
use flatline::parts::{CounterMaps, ProcessReader, THREADS, ThreadReader, VcpuClocks};
use flatline_qemu::discover::{self, Passed, Scope, VcpuThreads};
use flatline_samples::Missing;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{clock, kernel, print};

#[derive(Args)]
pub(crate) struct Options {
    /// The empty programs
    #[arg(long)]
    object: PathBuf,
    /// The executable of the VMs
    #[arg(long)]
    executable: String,
    /// How many VMs there are
    #[arg(long)]
    vms: u32,
    /// vCPUs of each
    #[arg(long)]
    vcpus: usize,
    /// Threads of other processes that are made for one of the figures
    #[arg(long)]
    strangers: usize,
    #[arg(long)]
    rounds: u32,
}

/// A VM, and its threads as (vCPU, thread id).
type Threads = (u32, Vec<(u32, u32)>);

pub(crate) fn measure(bpffs: &Path, options: &Options) -> Result<()> {
    raise_file_limit()?;
    let vms = find(options)?;
    let counters = CounterMaps::open(bpffs)?;
    let threads = ThreadReader::new(bpffs.join(THREADS));
    let clocks = vms
        .iter()
        .map(|(pid, threads)| VcpuClocks::open(*pid, threads))
        .collect::<Result<Vec<_>, _>>()
        .context("the threads' clocks")?;
    let processes = ProcessReader::open(&bpffs.join(THREADS)).context("one process' threads")?;
    let own = vms.iter().map(|(pid, _)| processes.of(*pid)).collect::<Result<Vec<_>, _>>()?;
    let slots = options.vms;
    let mut object = kernel::load(&options.object)?;
    let empty = empty_iterator(&mut object)?;
    let mut figures = [
        Figure::new("threads/empty", 4, || read_empty(empty)),
        Figure::new("rows", 20, || {
            let rows = counters.rows().take(slots as usize);
            let sums = rows.map(|row| (row.network(), row.storage()));
            sums.for_each(|sum| {
                std::hint::black_box(sum);
            });
            Ok(())
        }),
        Figure::new("threads/iterator", 4, || threads.read().map(drop).map_err(missing)),
        Figure::new("threads/own", 1, || {
            own.iter().try_for_each(|threads| threads.read().map(drop)).map_err(Into::into)
        }),
        Figure::new("threads/kept_open", 1, || {
            clocks.iter().try_for_each(|clocks| clocks.read().map(drop)).map_err(missing)
        }),
        Figure::new("threads/reopened", 1, || {
            vms.iter().try_for_each(|(pid, threads)| read_schedstats(*pid, threads))
        }),
        Figure::new("proc", 1, || {
            vms.iter().try_for_each(|(pid, threads)| {
                read(&format!("/proc/{pid}/stat"))?;
                read(&format!("/proc/{pid}/io"))?;
                read_schedstats(*pid, threads)
            })
        }),
    ];
    for _ in 0..options.rounds {
        for figure in &mut figures {
            figure.measure()?;
        }
    }
    for figure in &figures {
        print(&format!("reading/{}", figure.name), &figure.rounds);
    }
    let _strangers = strangers(options.strangers)?;
    let mut crowded = Figure::new("", 4, || threads.read().map(drop).map_err(missing));
    for _ in 0..options.rounds {
        crowded.measure()?;
    }
    print("reading/threads/iterator_crowded", &crowded.rounds);
    Ok(())
}

/// Something that is measured in rounds.
struct Figure<'a> {
    name: &'static str,
    calls: u32,
    call: Box<dyn FnMut() -> Result<()> + 'a>,
    rounds: Vec<f64>,
}

impl<'a> Figure<'a> {
    fn new(name: &'static str, calls: u32, call: impl FnMut() -> Result<()> + 'a) -> Self {
        Self { name, calls, call: Box::new(call), rounds: Vec::new() }
    }

    fn measure(&mut self) -> Result<()> {
        self.rounds.push(clock::per_call(self.calls, &mut self.call)?);
        Ok(())
    }
}

/// An iterator over all threads whose program does nothing.
fn empty_iterator(object: &mut Ebpf) -> Result<&mut Iter> {
    let program = object.program_mut("empty_threads").context("no empty iterator")?;
    let program: &mut Iter = program.try_into()?;
    program.load("task", &Btf::from_sys_fs()?)?;
    Ok(program)
}

/// Attaching it each time takes next to nothing beside going through all threads.
fn read_empty(iterator: &mut Iter) -> Result<()> {
    let id = iterator.attach()?;
    let mut file = iterator.take_link(id)?.into_file()?;
    // As nothing is ever written, the first read goes through all of them.
    ensure!(file.read(&mut [0; 64])? == 0, "the empty iterator wrote something");
    Ok(())
}

fn missing(missing: Missing) -> anyhow::Error {
    anyhow::anyhow!("{missing}")
}

fn find(options: &Options) -> Result<Vec<Threads>> {
    let executables = vec![glob::Pattern::new(&options.executable)?];
    let scope = Scope { executables, users: Vec::new() };
    let mut found = Vec::new();
    let take = &mut |vm| found.push(vm);
    discover::sweep(&scope, &HashSet::new(), &mut Passed::default(), take);
    let vms = found.into_iter().map(|vm| {
        let pid = vm?.id.pid;
        let VcpuThreads::Each(threads) = discover::vcpu_threads(pid)? else {
            anyhow::bail!("process {pid} has no vCPU threads");
        };
        ensure!(threads.len() == options.vcpus, "process {pid} has {} vCPUs", threads.len());
        Ok((pid, threads.iter().map(|thread| (thread.index, thread.tid)).collect()))
    });
    let vms = vms.collect::<Result<Vec<_>>>()?;
    ensure!(vms.len() == options.vms as usize, "{} VMs were found", vms.len());
    Ok(vms)
}

fn read_schedstats(pid: u32, threads: &[(u32, u32)]) -> Result<()> {
    threads.iter().try_for_each(|(_, tid)| read(&format!("/proc/{pid}/task/{tid}/schedstat")))
}

/// Opens, reads and closes, as a tool that polls does.
fn read(path: &str) -> Result<()> {
    let mut buffer = [0; 1024];
    let length = File::open(PathBuf::from(path))?.read(&mut buffer)?;
    ensure!(length != 0, "{path} is empty");
    Ok(())
}

/// Idle threads that are no VM's; they end when what is returned is dropped.
fn strangers(count: usize) -> Result<Vec<mpsc::Sender<()>>> {
    let start = |_| -> Result<mpsc::Sender<()>> {
        let (sender, receiver) = mpsc::channel::<()>();
        std::thread::Builder::new().stack_size(16 << 10).spawn(move || receiver.recv().is_ok())?;
        Ok(sender)
    };
    (0..count).map(start).collect()
}

fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("the limit of open files")
}
