//! The programs that are loaded once a host, the maps that all copies share, and their pins.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData, PerCpuHashMap, PerCpuValues, RingBuf},
    programs::BtfTracePoint,
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use monitor_ebpf::{ProcessEvent, VmRow};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::{debug, warn};

use super::{OBJECT, ProbeError, ProgramHealth, SHARED_MAPS, kernel_types::KernelTypes};
use crate::config::ProbeLog;

/// Programs on tracepoints: name in the object, tracepoint, required.
///
/// Completion comes before submission, so that nothing is followed whose end would be missed.
const TRACEPOINTS: [(&str, &str, bool); 5] = [
    ("block_request_completed", "block_rq_complete", true),
    ("block_bio_completed", "block_bio_complete", true),
    ("block_submitted", "block_bio_queue", true),
    ("process_ended", "sched_process_exit", false),
    ("process_started", "sched_process_exec", false),
];

/// What every load of the object needs.
#[derive(Debug)]
pub(super) struct Loader {
    bio_opf: u32,
    bio_size: u32,
    bio_status: u32,
    bio_next: u32,
    request_bio: u32,
    task_exit_code: u32,
    bpffs_dir: PathBuf,
    log: ProbeLog,
    runtime: tokio::runtime::Handle,
}

impl Loader {
    /// Resolves what depends on the running kernel. Programs that log are heard on `runtime`.
    pub(super) fn new(
        bpffs_dir: &Path,
        log: ProbeLog,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, ProbeError> {
        let types = KernelTypes::of_running_kernel()?;
        Ok(Self {
            bio_opf: types.offset_of(&["bio", "bi_opf"])?,
            bio_size: types.offset_of(&["bio", "bi_iter", "bi_size"])?,
            bio_status: types.offset_of(&["bio", "bi_status"])?,
            bio_next: types.offset_of(&["bio", "bi_next"])?,
            request_bio: types.offset_of(&["request", "bio"])?,
            task_exit_code: types.offset_of(&["task_struct", "exit_code"])?,
            bpffs_dir: bpffs_dir.to_owned(),
            log,
            runtime,
        })
    }

    /// Loads one copy of the object, for the network namespace `netns`; its maps are the pinned ones.
    pub(super) fn load(&self, netns: u32) -> Result<Ebpf, ProbeError> {
        let level = log_level(self.log);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("NETNS", &netns, true)
            .override_global("BIO_OPF_OFFSET", &self.bio_opf, true)
            .override_global("BIO_SIZE_OFFSET", &self.bio_size, true)
            .override_global("BIO_STATUS_OFFSET", &self.bio_status, true)
            .override_global("BIO_NEXT_OFFSET", &self.bio_next, true)
            .override_global("REQUEST_BIO_OFFSET", &self.request_bio, true)
            .override_global("TASK_EXIT_CODE_OFFSET", &self.task_exit_code, true)
            .override_global(aya_log::LEVEL, &level, true);
        for (map, pin) in SHARED_MAPS {
            loader.map_pin_path(map, self.bpffs_dir.join(pin));
        }
        let mut ebpf = loader.load(OBJECT).map_err(ProbeError::Object)?;
        if self.log != ProbeLog::Off {
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

/// Removes pins that a daemon which was killed left behind. Their counters end with it: nothing is
/// attached to them any more.
pub(super) fn remove_pins(bpffs_dir: &Path) -> Result<(), ProbeError> {
    for (_, pin) in SHARED_MAPS {
        let path = bpffs_dir.join(pin);
        match fs::remove_file(&path) {
            Ok(()) => debug!("removed the pin {}", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(ProbeError::Path { what: "cannot remove the pin", path, source });
            }
        }
    }
    Ok(())
}

/// The host's programs, attached for as long as this lives.
pub(super) struct HostPrograms {
    _ebpf: Ebpf,
    vms: PerCpuHashMap<MapData, u32, VmRow>,
}

/// QEMUs that start and end, as the kernel tells of them.
pub type ProcessEvents = RingBuf<MapData>;

impl HostPrograms {
    /// Loads and attaches. A required program that fails is an error; another one only a gap in the
    /// health summary.
    pub(super) fn start(
        loader: &Loader,
    ) -> Result<(Self, ProcessEvents, Vec<ProgramHealth>), ProbeError> {
        let mut ebpf = loader.load(0)?;
        // 30 MB once parsed, so it is not kept.
        let btf = Btf::from_sys_fs().map_err(ProbeError::Btf)?;
        let mut health = Vec::new();
        for (program, tracepoint, required) in TRACEPOINTS {
            let result = attach(&mut ebpf, program, tracepoint, &btf);
            match result {
                Err(source) if required => return Err(ProbeError::Program { program, source }),
                result => health.push(ProgramHealth {
                    program,
                    hook: tracepoint,
                    required,
                    failure: result.err().map(|error| error.to_string()),
                }),
            }
        }
        let vms = ebpf.take_map("VMS").ok_or(ProbeError::Incomplete("map VMS"))?;
        let vms = PerCpuHashMap::try_from(vms)
            .map_err(|source| ProbeError::Map { map: "vms", source })?;
        let events: Map =
            ebpf.take_map("PROCESS_EVENTS").ok_or(ProbeError::Incomplete("map PROCESS_EVENTS"))?;
        let events = RingBuf::try_from(events)
            .map_err(|source| ProbeError::Map { map: "process_events", source })?;
        Ok((Self { _ebpf: ebpf, vms }, events, health))
    }

    /// Makes the VM's row, if it isn't there: from now on its requests and packets count.
    pub(super) fn count(&mut self, pid: u32) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::Map { map: "vms", source };
        let cpus = nr_cpus().map_err(|(_, error)| failed(aya::maps::MapError::IoError(error)))?;
        let lanes = PerCpuValues::try_from(vec![VmRow::default(); cpus])
            .map_err(|error| failed(aya::maps::MapError::IoError(error)))?;
        const BPF_NOEXIST: u64 = 1;
        match self.vms.insert(pid, lanes, BPF_NOEXIST) {
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            result => result.map_err(failed),
        }
    }

    /// Removes the VM's row, if it is there.
    pub(super) fn forget(&mut self, pid: u32) {
        if let Err(error) = self.vms.remove(&pid) {
            debug!("no row of VM {pid} to remove: {error}");
        }
    }
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    btf: &Btf,
) -> Result<(), aya::programs::ProgramError> {
    let missing = || aya::programs::ProgramError::IOError(io::Error::other("not in the object"));
    let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or_else(missing)?.try_into()?;
    program.load(tracepoint, btf)?;
    program.attach()?;
    Ok(())
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
