//! KVM's tracepoints on guests of a few bytes, alive and dead, while their registers are looked at.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use flatline::parts::{
    Config, KvmHooks, KvmLook, KvmReader, ProbeThread, SHORTEST_SILENCE, interrupts_are_hidden,
    judge,
};
use flatline_detector::verdict::Answer;
use flatline_qemu::discover::{Accelerator, VmId, start_ticks};
use flatline_samples::Reading;
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Bpffs,
    guest::{self, Guest, GuestConfig, GuestKind, private_qemu},
    interrupt::wait_until,
};
use monitor_ebpf::KvmCounters;
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use crate::{Outcome, qemu};

/// On two cores, firmware takes its time while other guests spin.
const PATIENCE: Duration = Duration::from_secs(60);
/// As often as a suspect's registers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a guest is to be found as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    Lives,
    Silent,
    Neither,
}

/// Those that don't spin first: they boot faster so.
const GUESTS: [(&str, BootSector, Expected); 6] = [
    ("sti-hlt", BootSector::StiHlt, Expected::Lives),
    ("cli-hlt", BootSector::CliHlt, Expected::Silent),
    ("timer-cli-hlt", BootSector::TimerCliHlt, Expected::Silent),
    ("sti-jmp", BootSector::StiJmp, Expected::Lives),
    ("cli-jmp", BootSector::CliJmp, Expected::Silent),
    ("port-cli-jmp", BootSector::PortCliJmp, Expected::Neither),
];

/// Starts a guest, and waits until it has left its firmware.
fn boot(dir: &Path, qemu: &Path, name: &str, code: BootSector) -> Result<Guest, String> {
    let mut config = GuestConfig::new(name, GuestKind::BootSector(code), qemu, dir);
    config.accelerator = guest::Accelerator::Kvm;
    let guest = config.start().map_err(|error| format!("KVM runs no guest: {error:#}"))?;
    let booted = wait_until("the boot sector runs", PATIENCE, || {
        Ok(look_at_registers(&guest)?.contains("EIP=00007c").then_some(()))
    });
    booted.map_err(|error| format!("KVM runs no boot sector: {error:#}"))?;
    Ok(guest)
}

/// Which takes each vCPU out of KVM for a moment.
fn look_at_registers(guest: &Guest) -> anyhow::Result<String> {
    let command = json!({ "command-line": "info registers -a" });
    let text = guest.qmp("human-monitor-command", &command)?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}

fn vm_of(guest: &Guest) -> VmId {
    VmId { pid: guest.pid(), start_ticks: start_ticks(guest.pid()).expect("our child") }
}

fn count(probes: &ProbeThread, suspects: &[VmId]) -> KvmHooks {
    // Once more must change nothing.
    for _ in 0..2 {
        probes.count_kvm(suspects.iter().copied().collect());
    }
    let hooks = probes.kvm_hooks();
    let hooks = wait_until("KVM's tracepoints", PATIENCE, || {
        let hooks = hooks.borrow().clone();
        let is_so = hooks.counted.len() == suspects.len()
            && suspects.iter().all(|vm| hooks.counted.contains_key(vm))
            && hooks.attached != suspects.is_empty();
        Ok(is_so.then_some(hooks))
    });
    hooks.expect("attached or detached")
}

/// Looks at all guests for a while, and holds what is found of each against what is expected.
fn judge_all(
    guests: &[(Guest, Expected)],
    hooks: &KvmHooks,
    read: impl Fn() -> Vec<Reading<KvmCounters>>,
) {
    let (start, before) = (Instant::now(), read());
    while start.elapsed() < SHORTEST_SILENCE + Duration::from_secs(1) {
        for (guest, _) in guests {
            look_at_registers(guest).expect("registers");
        }
        sleep(LOOK_EVERY);
    }
    let (elapsed, after) = (start.elapsed(), read());
    for (n, (guest, expected)) in guests.iter().enumerate() {
        let finding = judge(&KvmLook {
            accelerator: &Accelerator::Kvm,
            hooks,
            before: &before[n],
            after: &after[n],
            elapsed,
            // What the host does to them is another question, too.
            waited: Some(Duration::ZERO),
            // Whether such a guest was seen to live before is another question.
            took_one: true,
            set_timer: false,
            interrupts_are_hidden: interrupts_are_hidden(),
        });
        println!("{}: {finding:?}; {:?}", guest.name(), after[n]);
        let found = match finding {
            Answer::Lives(_) => Expected::Lives,
            Answer::Silent(_) => Expected::Silent,
            Answer::Nothing(_) if interrupts_are_hidden() && *expected == Expected::Silent => {
                continue;
            }
            Answer::Nothing(_) => Expected::Neither,
            other => panic!("{}: {other:?}", guest.name()),
        };
        assert_eq!(found, *expected, "{}: {:?}", guest.name(), after[n]);
    }
}

/// Those that are put in are counted, and no other; each begins at zero.
fn counts_those_alone_that_it_is_to(
    guests: &[(Guest, Expected)],
    probes: &ProbeThread,
    kvm: &KvmReader,
) {
    let vms: Vec<VmId> = guests.iter().map(|(guest, _)| vm_of(guest)).collect();
    let read = || vms.iter().map(|vm| kvm.of(*vm)).collect::<Vec<_>>();
    let alone = count(probes, &vms[..1]);
    sleep(LOOK_EVERY * 4);
    let counted = kvm.of(vms[0]).expect("it is counted");
    assert!(counted.apic_eois + counted.pic_eois > 0, "{counted:?}");
    assert!(read()[1..].iter().all(Result::is_err), "{:?}", read());

    let hooks = count(probes, &vms);
    assert_eq!(hooks.counted[&vms[0]], alone.counted[&vms[0]], "its counters go on");
    // An arm64 KVM has that one alone.
    for row in hooks.health.iter().filter(|row| row.hook != "kvm_wfx_arm64") {
        assert_eq!(row.failure, None, "{} on {}", row.program, row.hook);
    }
    judge_all(guests, &hooks, read);

    let hooks = count(probes, &[]);
    assert!(!hooks.sees_any() && !hooks.health.is_empty(), "{hooks:?}");
    assert!(read().iter().all(Result::is_err), "counted after they were taken out");
    let again = count(probes, &vms[..1]);
    assert_ne!(again.counted[&vms[0]], alone.counted[&vms[0]], "its counters began anew");
    count(probes, &[]);
}

pub(crate) fn guests_that_take_interrupts_live_and_dead_ones_are_silent() -> Outcome {
    qemu()?;
    if !rustix::process::geteuid().is_root() {
        return Err("only root may attach programs".to_owned());
    }
    let dir = tempfile::tempdir().expect("a directory");
    let qemu = private_qemu(dir.path()).expect("a QEMU of our own");
    let guests = GUESTS
        .map(|(name, code, expected)| Ok((boot(dir.path(), &qemu, name, code)?, expected)))
        .into_iter()
        .collect::<Result<Vec<_>, String>>()?;

    let bpffs = dir.path().join("bpf");
    let _bpffs = Bpffs::mount(bpffs.clone()).expect("a bpffs");
    let pins = bpffs.join("flatline");
    let toml = format!("[paths]\nbpffs_dir = \"{}\"\n", pins.display());
    let config = Config::parse(&toml, "test").expect("a configuration");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    let (sender, _reports) = unbounded_channel();
    let (probes, _events, _health) = ProbeThread::start(&config, sender).expect("the programs");
    let kvm = KvmReader::open(&pins).expect("the map");
    counts_those_alone_that_it_is_to(&guests, &probes, &kvm);
    assert!(
        guests.iter().all(|(guest, _)| guest.run_state().is_ok_and(|state| state == "running"))
    );
    drop(entered);
    runtime.block_on(probes.stop(false)).expect("an end");
    Ok(())
}
