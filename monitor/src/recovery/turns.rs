//! Turns of VMs that wait for a place among the restarts of their host.

use std::time::SystemTime;

use tracing::info;

use super::{
    Case, Clearance, HOST_WINDOW, Stage, Supervisor,
    case::{Progress, Respawn},
    places::{Place, Room},
};
use crate::vm::{Context, Vms, WatchedVm};
use flatline_qemu::discover::VmId;

impl Supervisor {
    /// So many users' VMs are on this host now, among which places are shared out.
    pub(crate) fn share_among(&mut self, owners: usize) {
        self.places.owners = owners;
    }

    /// A VM waits for its turn, and `why`.
    pub(super) fn await_turn(&mut self, watched: &mut WatchedVm, why: &str) {
        let Some(case) = &mut watched.recovery.case else { return };
        if std::mem::replace(&mut case.stage, Stage::AwaitingPlace) == Stage::AwaitingPlace {
            return;
        }
        let incident = &case.incident.id;
        info!(vm = watched.vm.name, incident, "waits for its turn to be restarted: {why}");
        watched.detector.watch.reason =
            format!("{}; waits for its turn to be restarted: {why}", case.incident.reason);
        self.writer.record(&case.incident);
    }

    /// Restarts those whose turn it is, as long as there are places.
    pub(crate) fn take_turns(&mut self, vms: &mut Vms, context: &Context<'_>) {
        while let Some((vm, place)) = self.next_turn(context) {
            match vms.get_mut(&vm) {
                Some(watched) => self.turn_of(watched, place, context),
                None => self.turn_of_respawn(vm, place, vms, context),
            }
        }
    }

    fn next_turn(&mut self, context: &Context<'_>) -> Option<(VmId, Place)> {
        if self.places.waiting() == 0 {
            return None;
        }
        let room = self.room(context);
        self.places.next(room)
    }

    /// How much room for restarts there is on the host.
    pub(super) fn room(&self, context: &Context<'_>) -> Room {
        let since = context.wall.checked_sub(HOST_WINDOW).unwrap_or(SystemTime::UNIX_EPOCH);
        Room {
            begun: self.store.restarts_since(None, since).len(),
            most: usize::try_from(context.config.max_restarts_per_minute).unwrap_or(usize::MAX),
            now: context.wall,
        }
    }

    /// What may be done about it is asked anew: it may have been put on hold while it waited, or live.
    fn turn_of(&mut self, watched: &mut WatchedVm, place: Place, context: &Context<'_>) {
        let waits = |case: &Case| case.stage == Stage::AwaitingPlace;
        let case = watched.recovery.case.as_deref().filter(|case| waits(case));
        let cause = watched.detector.watch.state.cause().filter(|_| watched.is_crashed());
        let (Some(_), Some(cause)) = (case, cause) else { return };
        match self.clearance(watched, context) {
            Clearance::Granted(limit) => self.begin_restart(watched, limit, place, context),
            withheld => self.withhold(watched, cause, withheld, context),
        }
    }

    fn turn_of_respawn(&mut self, vm: VmId, place: Place, vms: &Vms, context: &Context<'_>) {
        let waits =
            |respawn: &Respawn| respawn.vm.id == vm && respawn.progress == Progress::AwaitingPlace;
        if let Some(index) = self.respawns.iter().position(waits) {
            let respawn = self.respawns.swap_remove(index);
            self.start_if_cleared(respawn, Some(place), vms, context);
        }
    }
}
