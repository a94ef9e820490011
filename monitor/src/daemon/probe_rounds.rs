//! Asks a VM's witnesses: finds out who can be asked, and starts the round.

use std::{sync::Arc, time::Duration};

use tokio::task::spawn_blocking;
use tracing::debug;

use super::{Message, engine::Engine, hotplug::counted};
use crate::{
    bpf::{namespace_of, near_namespace},
    probes::{self, Notes, ProbeContext, ProbeSocket, TapTarget, of_suspects},
    sampler::TapAddresses,
};
use flatline_detector::verdict::{Input, Questions, Testimony};
use flatline_qemu::discover::{Accelerator, Tap, TapKind, Vm, VmId};

impl Engine {
    /// Starts a round of questions, unless one is under way or began just now: a later tick asks again.
    pub(super) fn ask(&mut self, id: VmId, questions: Questions) {
        let now = self.now();
        if of_suspects(questions) {
            let Some(watched) = self.vms.get_mut(&id) else { return };
            let apart = watched.detector.watch.rounds_apart(now);
            let began = watched.detector.suspected_at;
            if watched.detector.notes.is_none()
                || began.is_some_and(|began| now.saturating_sub(began) < apart)
            {
                return;
            }
            watched.detector.suspected_at = Some(now);
        }
        let ways = self.ways(id);
        let unseen_storage =
            self.vms.get(&id).is_some_and(|watched| !self.unseen_storage(watched).is_empty());
        let Some(watched) = self.vms.get(&id) else { return };
        let qmp = watched.link.ready();
        if !matches!(questions, Questions::Calibrate) && watched.link.hears_late {
            self.ask_run_state(id);
        }
        let Some(watched) = self.vms.get_mut(&id) else { return };
        let Some(notes) = watched.detector.notes.take() else { return };
        watched.memory.give_up();
        let mut scene = ProbeContext {
            questions,
            vm: watched.vm.clone(),
            vcpu_threads: watched.sensors.threads.clone(),
            boot_age: now.saturating_sub(watched.detector.watch.boot.began),
            silence: watched.detector.watch.quiet.since_life(now),
            slot: watched.sensors.slot.clone(),
            counters: self.counters.clone(),
            kvm: self.kvm.clone(),
            kvm_hooks: self.probes.kvm_hooks(),
            qmp,
            insight: watched.sensors.insight.clone(),
            balloon: watched.memory.turns.clone(),
            targets: Err("its taps are not open yet".to_owned()),
            unseen_storage,
        };
        if !matches!(questions, Questions::Calibrate | Questions::IsItUp) {
            // Whoever is suspected is to be seen: its programs are looked at, too.
            self.probes.attach(id, counted(&watched.vm.plugged));
        }
        // An answer about another boot says nothing.
        let (boot_began, messages) = (watched.detector.watch.boot.began, self.messages.clone());
        tokio::spawn(async move {
            scene.targets = targets(id.pid, ways).await;
            let (testimony, notes) = probes::ask(Arc::new(scene), notes).await;
            let _ = messages.send(Message::Round { id, boot_began, testimony, notes });
        });
    }

    /// A round of questions ended.
    pub(super) fn answered(
        &mut self,
        id: VmId,
        boot_began: Duration,
        testimony: Testimony,
        notes: Notes,
    ) {
        let now = self.now();
        let Some(watched) = self.vms.get_mut(&id) else { return };
        watched.detector.notes = Some(notes);
        if boot_began != watched.detector.watch.boot.began || watched.recovery.is_restarting() {
            return;
        }
        let testimony = Arc::new(testimony);
        watched.detector.testimony = Some(testimony.clone());
        let act = watched.step(&Input::Testimony(testimony), now);
        self.act(id, act);
    }

    /// KVM's tracepoints are attached while it runs a suspect, and only then.
    pub(super) fn watch_kvm(&self) {
        let suspects = self.vms.values().any(|watched| {
            watched.vm.accelerator == Accelerator::Kvm && watched.detector.watch.is_being_asked()
        });
        if suspects != self.probes.kvm_is_attached() {
            self.probes.kvm(suspects);
        }
    }

    /// Whether a witness is there that has to answer once before its silence means something.
    pub(super) fn somebody_answers(&self, id: VmId) -> bool {
        let inside = |vm: &Vm| vm.has_balloon || vm.has_agent_channel;
        self.vms.get(&id).is_some_and(|watched| inside(&watched.vm)) || self.addresses(id).is_ok()
    }

    /// The taps of whose guest an address is known, or why there is none.
    fn addresses(&self, id: VmId) -> Result<Vec<(Tap, TapAddresses)>, String> {
        let Some(watched) = self.vms.get(&id) else { return Err("it is gone".to_owned()) };
        let mut why = "it has no tap";
        let mut known = Vec::new();
        for probe in watched.sensors.taps.iter().filter(|probe| probe.hook.is_ok()) {
            if probe.tap.kind == TapKind::Macvtap {
                // What is sent there goes to the network below, and not to the guest.
                why = "nothing can be sent to a macvtap's guest alone";
                continue;
            }
            match self.counters.tap_addresses(&probe.tap) {
                Ok(TapAddresses { ipv4: None, ipv6: None }) => {
                    why = "it was not seen to use an address";
                }
                Ok(addresses) => known.push((probe.tap.clone(), addresses)),
                Err(_) => why = "its address can't be read",
            }
        }
        if known.is_empty() { Err(why.to_owned()) } else { Ok(known) }
    }

    fn ways(&mut self, id: VmId) -> Result<Vec<Way>, String> {
        let known = self.addresses(id)?;
        let way =
            |(tap, addresses)| Ok(Way { socket: self.probe_socket(id, &tap)?, tap, addresses });
        known.into_iter().map(way).collect()
    }

    /// The socket for a tap's namespace, which is kept; `None` for a tap that was moved to another than its QEMU is
    /// in and we are: to find that may wait, and a socket that was kept would keep the namespace as well.
    fn probe_socket(&mut self, id: VmId, tap: &Tap) -> Result<Option<Arc<ProbeSocket>>, String> {
        if let Some(socket) = self.probe_sockets.get(&tap.netns) {
            return Ok(Some(socket.clone()));
        }
        let Some(netns) = near_namespace(id.pid, tap).map_err(no_socket)? else { return Ok(None) };
        let socket = Arc::new(ProbeSocket::open(&netns).map_err(no_socket)?);
        self.probe_sockets.insert(tap.netns, socket.clone());
        Ok(Some(socket))
    }

    /// The guest boots anew: whatever address it used before, it has to test first, and what it told of its memory
    /// was another boot's.
    pub(super) fn forget_boot(&mut self, id: VmId) {
        let Some(watched) = self.vms.get_mut(&id) else { return };
        watched.memory.forget_guest();
        for probe in &watched.sensors.taps {
            if let Err(error) = self.counters.forget_addresses(&probe.tap) {
                debug!(vm = watched.vm.name, "its addresses could not be forgotten: {error}");
            }
        }
    }
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
