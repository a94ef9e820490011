//! Supervisor of recovery: decides what becomes of each conviction, until the guest lives or a person is needed.
//!
//! It owns the incidents, the ledger of holds and resets, and the VMs that wait for another QEMU. It is told of one VM at a
//! time, with the moment that it is, and waits for nothing: what takes time is an [`Effect`], what happened an
//! [`Event`](super::Event). `cases` goes from a conviction to its outcome, `restarts` through one restart, `own_dump` through
//! a dump that the guest saves itself, `resume` on where an earlier daemon was ended, `respawn` from a QEMU's end to the next
//! one; `budget` says what may be done, `hold` what must not, and `places`, in `turns`, when.

use std::{collections::HashMap, sync::Arc};

use tracing::warn;

use super::{
    EventKind, allowance::Allowances, case::Respawn, effect::Effect, evidence::dump::UnderWay,
    incident_writer::IncidentWriter, places::Places,
};
use crate::{
    storage::{
        incident::{Incident, Outcome},
        incidents::IncidentStore,
        ledger::Ledger,
    },
    vm::{Context, WatchedVm},
};
use flatline_detector::verdict::Act;

/// What stands for the VM in the incident of a whole host.
const WHOLE_HOST: &str = "*";

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(super) store: Arc<IncidentStore>,
    pub(super) ledger: Ledger,
    pub(super) writer: IncidentWriter,
    /// Places among the restarts of the host.
    pub(super) places: Places,
    /// Memory dumps that are under way.
    pub(super) dumps: UnderWay,
    /// VMs whose QEMU is gone, and that are to come back.
    pub(super) respawns: Vec<Respawn>,
    /// The last incidents of QEMUs that earlier daemons watched, until these are found: by pid and start.
    pub(super) left: HashMap<(u32, u64), Incident>,
    /// How many incidents each user's VMs may have.
    pub(super) allowances: Allowances,
    /// What is to be carried out.
    pub(super) effects: Vec<Effect>,
}

impl Supervisor {
    /// Goes on with what `store` and `ledger` say of earlier daemons.
    pub(crate) fn new(store: Arc<IncidentStore>, ledger: Ledger, writer: IncidentWriter) -> Self {
        let left = store.last_of_each();
        Self {
            store,
            ledger,
            writer,
            places: Places::default(),
            dumps: UnderWay::default(),
            respawns: Vec::new(),
            left,
            allowances: Allowances::default(),
            effects: Vec::new(),
        }
    }

    /// What is to be carried out since this was asked last.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Does what the verdict says of a VM, but for questions, which are not recovery's.
    pub(crate) fn act(&mut self, watched: &mut WatchedVm, act: &Act, context: &Context<'_>) {
        match *act {
            Act::Nothing | Act::Ask(_) => {}
            // A guest that showed no life after a restart is as convicted as before.
            Act::Convict(cause) | Act::NotRecovered(cause) => {
                self.convicted(watched, cause, context);
            }
            Act::Recovered => self.recovered(watched, context),
            Act::GuestReset(times) => self.guest_reset(watched, times, context),
            Act::GiveUp(cause) => self.give_up(watched, cause, context),
            Act::Report(cause) => self.report(watched, cause, context),
            Act::BeatsAgain => self.beats_again(watched, context),
        }
    }

    /// Writes down that many VMs are silent together, which is one incident of the whole host.
    pub(crate) fn storm_begins(&self, reason: String, context: &Context<'_>) {
        let id = self.store.new_id(context.wall, "host");
        let (vm, cause) = (WHOLE_HOST.to_owned(), "storm".to_owned());
        let incident = Incident {
            outcome: Some(Outcome::Refused),
            ..Incident::new(id, vm, cause, reason, context.wall)
        };
        self.writer.say(EventKind::Storm, &incident);
    }

    /// Writes down how many incidents were only counted.
    pub(crate) fn write_counted(&mut self, context: &Context<'_>) {
        let new_id = |name: &str| self.store.new_id(context.wall, name);
        for incident in self.allowances.due(context.now, context.wall, new_id) {
            warn!(incident = incident.id, "{}", incident.reason);
            self.writer.record(&incident);
        }
    }

    /// The daemon ends: what comes later is not written.
    pub(crate) fn end(&self) {
        self.writer.end();
    }

    /// A tick of a VM, before it is judged: goes on with what waited.
    pub(crate) fn tick(&mut self, watched: &mut WatchedVm, context: &Context<'_>) {
        self.leave_to_its_dump(watched, context);
        self.retry_restart(watched, context);
        self.lives_after_all(watched, context);
    }
}
