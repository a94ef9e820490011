//! Probe runner: finds out which of a VM's witnesses can be asked, and runs the rounds of questions.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use tokio::task::spawn_blocking;
use tracing::warn;

use super::{host_sampler::HostSampler, hotplug::counted, message::Message};
use crate::{
    bpf::{namespace_of, near_namespace},
    probes::{self, KvmWay, ProbeContext, ProbeSocket, TapTarget, of_suspects},
    sampler::{KvmReader, TapAddresses},
    vm::WatchedVm,
};
use flatline_detector::verdict::Questions;
use flatline_qemu::discover::{Accelerator, Tap, TapKind};

/// See the module.
pub(super) struct ProbeRunner {
    /// Reads what the vCPUs of suspects do; `None` where the map can't be read.
    kvm: Option<Arc<KvmReader>>,
    /// By network namespace.
    pub(super) sockets: HashMap<u32, Arc<ProbeSocket>>,
}

impl ProbeRunner {
    /// Opens KVM's counters in `bpffs_dir`.
    pub(super) fn open(bpffs_dir: &Path) -> Self {
        let kvm = KvmReader::open(bpffs_dir)
            .inspect_err(|error| warn!("KVM's counters can't be read: {error}"));
        Self { kvm: kvm.ok().map(Arc::new), sockets: HashMap::new() }
    }

    /// Whether a round may begin now: not while one is under way, nor soon after one of suspects. One that may is counted as
    /// begun.
    pub(super) fn may_begin(watched: &mut WatchedVm, questions: Questions, now: Duration) -> bool {
        if !of_suspects(questions) {
            return true;
        }
        let apart = watched.detector.watch.rounds_apart(now);
        let began = watched.detector.suspected_at;
        if watched.detector.notes.is_none()
            || began.is_some_and(|began| now.saturating_sub(began) < apart)
        {
            return false;
        }
        watched.detector.suspected_at = Some(now);
        true
    }

    /// Begins a round of questions, which the future carries out and reports; `None` where one is under way.
    pub(super) fn begin(
        &mut self,
        watched: &mut WatchedVm,
        (questions, unseen_storage): (Questions, bool),
        sampler: &HostSampler,
        now: Duration,
    ) -> Option<impl Future<Output = Message> + Send + use<>> {
        let id = watched.vm.id;
        let ways = self.ways(watched, sampler);
        let notes = watched.detector.notes.take()?;
        watched.memory.give_up();
        // An answer about another boot says nothing.
        let boot_began = watched.detector.watch.boot.began;
        let mut context = ProbeContext {
            questions,
            vm: watched.vm.clone(),
            vcpu_threads: watched.sensors.threads.clone(),
            boot_age: now.saturating_sub(boot_began),
            silence: watched.detector.watch.silence.since_life(now),
            slot: watched.sensors.slot.clone(),
            counters: sampler.counters.clone(),
            kvm: KvmWay {
                reader: self.kvm.clone(),
                hooks: sampler.probes.kvm_hooks(),
                turn: sampler.kvm_turns.of(id),
            },
            qmp: watched.link.ready(),
            insight: watched.sensors.insight.clone(),
            balloon: watched.memory.turns.clone(),
            targets: Err("its taps are not open yet".to_owned()),
            unseen_storage,
        };
        if !matches!(questions, Questions::Calibrate | Questions::IsItUp) {
            // A suspect is to be seen: its programs are looked at, too. Not where the first round may acquit it, since they
            // were looked at in this silence already.
            if !watched.detector.watch.is_to_be_asked_first() {
                sampler.probes.attach(id, counted(&watched.vm));
            }
            if watched.vm.accelerator == Accelerator::Kvm {
                sampler.probes.load_kvm();
            }
        }
        Some(async move {
            context.targets = targets(id.pid, ways).await;
            let (testimony, notes) = probes::ask(&context, notes).await;
            Message::Round { id, boot_began, testimony, notes }
        })
    }

    /// Whether a witness is there that has to answer once before its silence means something.
    pub(super) fn is_calibratable(watched: &mut WatchedVm, sampler: &HostSampler) -> bool {
        let vm = &watched.vm;
        if vm.has_balloon || vm.has_agent_channel {
            return true;
        }
        // An address is known by what a guest sends, and to look for it takes a system call.
        let sent = watched.sensors.sent();
        if sent.is_some() && sent == watched.sensors.sent_addressless {
            return false;
        }
        let is_known = addresses(watched, sampler).is_ok();
        watched.sensors.sent_addressless = sent.filter(|_| !is_known);
        is_known
    }

    fn ways(&mut self, watched: &WatchedVm, sampler: &HostSampler) -> Result<Vec<Way>, String> {
        let known = addresses(watched, sampler)?;
        let pid = watched.vm.id.pid;
        let way =
            |(tap, addresses)| Ok(Way { socket: self.socket_for(pid, &tap)?, tap, addresses });
        known.into_iter().map(way).collect()
    }

    /// The socket for a tap's namespace, which is kept; `None` for a tap that was moved to another than its QEMU is
    /// in and we are: to find that may wait, and a socket that was kept would keep the namespace as well.
    fn socket_for(&mut self, pid: u32, tap: &Tap) -> Result<Option<Arc<ProbeSocket>>, String> {
        if let Some(socket) = self.sockets.get(&tap.netns) {
            return Ok(Some(socket.clone()));
        }
        let Some(netns) = near_namespace(pid, tap).map_err(no_socket)? else { return Ok(None) };
        let socket = Arc::new(ProbeSocket::open(&netns).map_err(no_socket)?);
        self.sockets.insert(tap.netns, socket.clone());
        Ok(Some(socket))
    }
}

/// The taps with a guest's address that is known, or why there is none.
fn addresses(
    watched: &WatchedVm,
    sampler: &HostSampler,
) -> Result<Vec<(Tap, TapAddresses)>, String> {
    let mut why = "it has no tap";
    let mut known = Vec::new();
    for probe in watched.sensors.taps.iter().filter(|probe| probe.hook.is_ok()) {
        if probe.tap.kind == TapKind::Macvtap {
            // What is sent there goes to the network below, and not to the guest.
            why = "nothing can be sent to a macvtap's guest alone";
            continue;
        }
        match sampler.counters.tap_addresses(&probe.tap) {
            Ok(TapAddresses { ipv4: None, ipv6: None }) => {
                why = "it was not seen to use an address";
            }
            Ok(addresses) => known.push((probe.tap.clone(), addresses)),
            Err(_) => why = "its address can't be read",
        }
    }
    if known.is_empty() { Err(why.to_owned()) } else { Ok(known) }
}

/// A tap to probe, and the socket to do it through, if there is one already.
struct Way {
    socket: Option<Arc<ProbeSocket>>,
    tap: Tap,
    addresses: TapAddresses,
}

/// Opens what is not open yet, for one round.
async fn targets(pid: u32, ways: Result<Vec<Way>, String>) -> Result<Vec<TapTarget>, String> {
    let mut targets = Vec::new();
    for Way { socket, tap, addresses } in ways? {
        let ifindex = tap.ifindex;
        let socket = match socket {
            Some(socket) => socket,
            None => {
                let open = move || ProbeSocket::open(&namespace_of(pid, &tap)?);
                let opened = spawn_blocking(open).await.map_err(std::io::Error::other);
                Arc::new(opened.flatten().map_err(no_socket)?)
            }
        };
        targets.push(TapTarget { socket, ifindex, addresses });
    }
    Ok(targets)
}

fn no_socket(error: std::io::Error) -> String {
    format!("no socket to probe through: {error}")
}
