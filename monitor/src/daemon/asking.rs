//! Asks a VM's witnesses: finds out who can be asked, and starts the round.

use std::{net::Ipv4Addr, sync::Arc};

use tracing::debug;

use super::{
    Message,
    engine::Engine,
    plugged::counted,
    vm::{Asking, Probed},
};
use crate::{
    discover::{Tap, TapKind, VmId},
    probe::namespace_of,
    sample::{TapAddress, TapAddresses},
    verdict::{Monitor, Questions},
    witness::{self, ArpTarget, ProbeSocket},
};

impl Engine {
    /// Starts a round of questions, unless one is under way.
    pub(super) fn ask(&mut self, id: VmId, questions: Questions) {
        let target = if questions.arp {
            self.arp_target(id).and_then(|(tap, guest)| {
                let socket = self.arp_socket(id, &tap)?;
                let watched = self.vms.get(&id).ok_or("it is gone")?;
                let row = watched.row(&self.counters).map_err(|missing| missing.to_string())?;
                let target = ArpTarget { socket, ifindex: tap.ifindex, guest };
                Ok((target, row.network.probe_answers))
            })
        } else {
            Err("it may still be testing its address".to_owned())
        };
        let (targets, probed) = match target {
            Ok((target, answers_before)) => {
                let address = target.guest.ip;
                (vec![target], Ok(Probed { address, answers_before }))
            }
            Err(why) => (Vec::new(), Err(why)),
        };
        let watched = self.vms.get(&id);
        let unseen_storage =
            watched.is_some_and(|watched| !self.unseen_storage(watched).is_empty());
        let Some(watched) = self.vms.get_mut(&id) else { return };
        if watched.asking.is_some() {
            return;
        }
        if questions.registers {
            // Whoever is suspected is to be seen: its programs are looked at, too.
            self.probes.attach(id, counted(&watched.vm.plugged));
        }
        watched.asking = Some(Asking { boot_began: watched.watch.boot.began, probed });
        let qmp = watched.qmp.clone().filter(|_| matches!(watched.monitor(), Monitor::Answers(_)));
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let round = witness::ask(questions, targets, qmp, unseen_storage).await;
            let _ = messages.send(Message::Round(id, round));
        });
    }

    /// A tap whose guest's address is known, or why there is none.
    pub(super) fn arp_target(&self, id: VmId) -> Result<(Tap, TapAddress<Ipv4Addr>), String> {
        let Some(watched) = self.vms.get(&id) else { return Err("it is gone".to_owned()) };
        let mut why = "it has no tap";
        for probe in watched.taps.iter().filter(|probe| probe.hook.is_ok()) {
            if probe.tap.kind == TapKind::Macvtap {
                // What is sent there goes to the network below, and not to the guest.
                why = "nothing can be sent to a macvtap's guest alone";
                continue;
            }
            match self.counters.tap_addresses(&probe.tap) {
                Ok(TapAddresses { ipv4: Some(guest), .. }) => {
                    return Ok((probe.tap.clone(), guest));
                }
                Ok(TapAddresses { ipv4: None, .. }) => why = "it was not seen to use an address",
                Err(_) => why = "its address can't be read",
            }
        }
        Err(why.to_owned())
    }

    fn arp_socket(&mut self, id: VmId, tap: &Tap) -> Result<Arc<ProbeSocket>, String> {
        if let Some(socket) = self.arp_sockets.get(&tap.netns) {
            return Ok(socket.clone());
        }
        let socket = namespace_of(id.pid, tap)
            .and_then(|netns| ProbeSocket::open(&netns))
            .map_err(|error| format!("no socket to probe through: {error}"))?;
        Ok(self.arp_sockets.entry(tap.netns).or_insert(Arc::new(socket)).clone())
    }

    /// The guest boots anew: whatever address it used before, it has to test first.
    pub(super) fn forget_addresses(&mut self, id: VmId) {
        let Some(watched) = self.vms.get(&id) else { return };
        for probe in &watched.taps {
            if let Err(error) = self.counters.forget_addresses(&probe.tap) {
                debug!(vm = watched.vm.name, "its addresses could not be forgotten: {error}");
            }
        }
    }
}
