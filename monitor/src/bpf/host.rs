//! Programs that are attached once a host, to tracepoints, and the iterator over threads.

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{BtfTracePoint, Iter, ProgramError, links::FdLink},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use monitor_ebpf::{Layout, MARKED_SETS, ProcessEvent, REQUESTS_OF_SET, VM_LANES, slot_sets};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::{debug, info, warn};

use super::{
    OBJECT, ProbeError, ProgramHealth,
    numbers::Numbers,
    offsets::Offsets,
    pins::{Left, Pins, SHARED_MAPS, remove_pin},
};
use crate::config::{ProbeLog, Probes};
use flatline_qemu::text::error_chain;

/// Programs on tracepoints: name in the object, tracepoint, required.
///
/// Completion comes before submission, so that no request is followed of which the end would be missed.
const TRACEPOINTS: [(&str, &str, bool); 5] = [
    ("block_request_completed", "block_rq_complete", true),
    ("block_bio_completed", "block_bio_complete", true),
    ("block_submitted", "block_bio_queue", true),
    ("process_ended", "sched_process_exit", false),
    (STARTS, "sched_process_exec", false),
];
/// The program that tells of what is executed.
pub(crate) const STARTS: &str = "process_started";
/// The iterator's program, and what it iterates over.
const ITERATOR: (&str, &str) = ("threads", "task");

/// Room for the start or the end of each VM at the same moment, both in the kernel and in this process, which maps it twice over;
/// the kernel has eight bytes before each event. Of what finds no room a sweep tells.
const EVENT_BYTES_FOR_EACH: u32 = 32;
/// Room for what else the host executes, where all of that is told of.
const LEAST_EVENT_BYTES: u32 = 32 << 10;
/// Room for files of each VM: the host may write back their pages.
const FILES_OF_VM: u32 = 4;
/// Room for what the programs log: what aya's logger has, and a page, the least that there can be, where they log nothing.
const LOG_BYTES: u32 = 128 << 10;
const NO_LOG_BYTES: u32 = 4 << 10;

/// What every load of the object needs.
#[derive(Debug)]
pub(super) struct Loader {
    pub(super) pins: Pins,
    probes: Probes,
    runtime: tokio::runtime::Handle,
    /// Read when something is loaded first: a daemon that takes everything over never does.
    offsets: Option<Offsets>,
}

impl Loader {
    /// Programs that log are heard on `runtime`.
    pub(super) fn new(pins: Pins, probes: Probes, runtime: tokio::runtime::Handle) -> Self {
        Self { pins, probes, runtime, offsets: None }
    }

    /// Whether KVM's tracepoints are to be used.
    pub(super) fn wants_kvm(&self) -> bool {
        self.probes.kvm_tracepoints
    }

    fn offsets(&mut self) -> Result<&Offsets, ProbeError> {
        let offsets = match self.offsets.take() {
            Some(offsets) => offsets,
            None => Offsets::of_running_kernel()?,
        };
        Ok(self.offsets.insert(offsets))
    }

    /// Loads one copy of the object; its maps are the pinned ones, which are made where there are none.
    pub(super) fn load(&mut self, netns: u32, generation: u32) -> Result<Ebpf, ProbeError> {
        self.offsets()?;
        let Self { pins, probes, offsets, .. } = self;
        let Probes { max_vms, log, .. } = *probes;
        let level = log_level(log);
        let log_bytes = if log == ProbeLog::Off { NO_LOG_BYTES } else { LOG_BYTES };
        let sets = probes.requests() / REQUESTS_OF_SET;
        let mut numbers = Numbers::default();
        // As `note` and `tap_home` of the programs have it: powers of two, less one.
        numbers.set("TAPS_MASK", probes.taps() - 1);
        numbers.set("IN_FLIGHT_MASK", sets - 1);
        numbers.set("SLOTS_MASK", slot_sets(max_vms) - 1);
        let lanes_are_exclusive = nr_cpus().is_ok_and(|cpus| cpus <= VM_LANES);
        numbers.set("LANES_ARE_EXCLUSIVE", u32::from(lanes_are_exclusive));
        numbers.set("NETNS", netns);
        numbers.set("GENERATION", generation);
        for (name, number) in offsets.iter().flat_map(|offsets| &offsets.globals) {
            numbers.set(name, *number);
        }
        let mut loader = EbpfLoader::new();
        loader
            // There are no relocations to resolve, and parsing the kernel's types takes 14 ms.
            .btf(None)
            .map_max_entries("VMS", max_vms)
            .map_max_entries("LIFE", max_vms)
            .map_max_entries("HEARTBEATS", max_vms)
            .map_max_entries("SLOTS", slot_sets(max_vms))
            .map_max_entries("FILES", max_vms * FILES_OF_VM)
            .map_max_entries(
                "PROCESS_EVENTS",
                LEAST_EVENT_BYTES.max(max_vms * EVENT_BYTES_FOR_EACH),
            )
            .map_max_entries("TAPS", probes.taps())
            .map_max_entries("AYA_LOGS", log_bytes)
            .map_max_entries("IN_FLIGHT", sets)
            .map_max_entries("IN_FLIGHT_MARKS", sets.div_ceil(MARKED_SETS))
            .override_global(aya_log::LEVEL, &level, true);
        for (map, pin) in SHARED_MAPS {
            loader.map_pin_path(map, pins.map(pin));
        }
        let object = numbers.placed_in(OBJECT)?;
        let mut ebpf = loader.load(&object).map_err(ProbeError::Object)?;
        if log != ProbeLog::Off {
            self.listen(&mut ebpf);
        }
        Ok(ebpf)
    }

    /// Passes on what the programs log. Failing to is no reason not to watch.
    fn listen(&self, ebpf: &mut Ebpf) {
        let _context = self.runtime.enter();
        let logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(error) => return warn!("the eBPF programs' log cannot be heard: {error}"),
        };
        // SAFETY: the logger owns its ring buffer's descriptor and keeps it for as long as it lives.
        match unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) } {
            Ok(mut logger) => {
                self.runtime.spawn(async move {
                    while let Ok(mut ready) = logger.readable_mut().await {
                        ready.get_inner_mut().flush();
                        ready.clear_ready();
                    }
                });
            }
            Err(error) => warn!("the eBPF programs' log cannot be heard: {error}"),
        }
    }
}

/// As `AYA_LOG_LEVEL` has it; 0 lets the verifier drop the log calls as dead code.
fn log_level(log: ProbeLog) -> u8 {
    match log {
        ProbeLog::Off => 0,
        ProbeLog::Error => 1,
        ProbeLog::Warn => 2,
        ProbeLog::Info => 3,
        ProbeLog::Debug => 4,
        ProbeLog::Trace => 5,
    }
}

/// QEMUs that start and end, as the kernel tells of them.
pub(crate) type ProcessEvents = RingBuf<MapData>;

/// Sees to it that the programs are attached and pinned, those of an earlier daemon if they are the same.
/// A required program that fails is an error; another one only a gap in the health summary.
pub(super) fn attach_all(
    loader: &mut Loader,
    ours: Layout,
    left: Left,
) -> Result<Vec<ProgramHealth>, ProbeError> {
    let generation = match left {
        Left::Nothing => 1,
        Left::Maps { generation, same_programs: true } if is_complete(&loader.pins, generation) => {
            debug!("the programs of an earlier daemon go on");
            return Ok(health_of_all());
        }
        Left::Maps { generation, .. } => generation.wrapping_add(1),
    };
    let health = attach_generation(loader, generation)?;
    // From here on the new ones count, and the old ones don't.
    loader.pins.write_layout(Layout { generation, ..ours })?;
    let prefix = format!("{generation}-");
    for link in loader.pins.links() {
        if !link.starts_with(&prefix) && !link.starts_with("tap-") {
            loader.pins.remove_link(&link)?;
        }
    }
    Ok(health)
}

fn link_name(generation: u32, program: &str) -> String {
    format!("{generation}-{program}")
}

fn is_complete(pins: &Pins, generation: u32) -> bool {
    let pinned =
        TRACEPOINTS.iter().all(|(program, ..)| pins.link(&link_name(generation, program)).exists());
    pinned && pins.threads().exists()
}

fn health_of_all() -> Vec<ProgramHealth> {
    let tracepoints = TRACEPOINTS.iter().map(|(program, hook, required)| ProgramHealth {
        program,
        hook,
        required: *required,
        failure: None,
    });
    let (program, hook) = ITERATOR;
    tracepoints.chain([ProgramHealth { program, hook, required: false, failure: None }]).collect()
}

fn attach_generation(
    loader: &mut Loader,
    generation: u32,
) -> Result<Vec<ProgramHealth>, ProbeError> {
    let mut ebpf = loader.load(0, generation)?;
    // 30 MB once parsed, so it is not kept.
    let btf = Btf::from_sys_fs().map_err(ProbeError::Btf)?;
    let mut health = health_of_all();
    for row in &mut health {
        let pinned = if row.program == ITERATOR.0 {
            iterate(&mut ebpf, &btf).and_then(|link| pin(link, &loader.pins.threads()))
        } else {
            attach(&mut ebpf, row.program, row.hook, &btf)
                .and_then(|link| pin(link, &loader.pins.link(&link_name(generation, row.program))))
        };
        match pinned {
            Err(error) if row.required => return Err(error),
            result => row.failure = result.err().map(|error| error_chain(&error)),
        }
    }
    if let Some(offsets) = &loader.offsets {
        if let Err(error) = &offsets.threads {
            set_failure(&mut health, ITERATOR.0, error.to_string());
        }
        health.push(ProgramHealth {
            program: "writeback",
            hook: "block_bio_queue",
            required: false,
            failure: offsets.writeback.as_ref().err().map(ToString::to_string),
        });
        if let Err(error) = &offsets.executable {
            info!("every program that is executed on this host is looked at: {error}");
        }
    }
    Ok(health)
}

fn set_failure(health: &mut [ProgramHealth], program: &str, why: String) {
    if let Some(row) = health.iter_mut().find(|row| row.program == program) {
        row.failure.get_or_insert(why);
    }
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    btf: &Btf,
) -> Result<FdLink, ProbeError> {
    let failed = |source: ProgramError| ProbeError::program(name, source);
    let program = ebpf.program_mut(name).ok_or(ProbeError::Incomplete(name))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(failed)?;
    program.load(tracepoint, btf).map_err(failed)?;
    let id = program.attach().map_err(failed)?;
    Ok(program.take_link(id).map_err(failed)?.into())
}

fn iterate(ebpf: &mut Ebpf, btf: &Btf) -> Result<FdLink, ProbeError> {
    let (name, over) = ITERATOR;
    let failed = |source: ProgramError| ProbeError::program(name, source);
    let program = ebpf.program_mut(name).ok_or(ProbeError::Incomplete(name))?;
    let program: &mut Iter = program.try_into().map_err(failed)?;
    program.load(over, btf).map_err(failed)?;
    let id = program.attach().map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    link.try_into().map_err(|source| ProbeError::Link { link: name.to_owned(), source })
}

/// Pins a link in place of whatever is pinned there: an iterator of the last generation, or what a daemon
/// left that failed to start.
fn pin(link: FdLink, path: &std::path::Path) -> Result<(), ProbeError> {
    remove_pin(path)?;
    let pinned = link.pin(path);
    pinned.map(drop).map_err(|source| ProbeError::Pin { path: path.to_owned(), source })
}

/// The ring buffer of process events.
pub(super) fn process_events(pins: &Pins) -> Result<ProcessEvents, ProbeError> {
    MapData::from_pin(pins.map("process_events"))
        .and_then(|events| RingBuf::try_from(Map::RingBuf(events)))
        .map_err(|source| ProbeError::Map { map: "process_events", source })
}

/// Reads one record of the ring buffer; `None` for one of another size, which ours never is.
pub(crate) fn parse_process_event(record: &[u8]) -> Option<ProcessEvent> {
    let word = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    Some(ProcessEvent {
        kind: word(0)?,
        pid: word(4)?,
        status: word(8)?.cast_signed(),
        reserved: word(12)?,
    })
}
