//! What is wanted of a crashed guest before it is restarted, and what clients are handed of it.

use tokio::{sync::oneshot, task::spawn_blocking};

use super::engine::Engine;
use crate::{
    api::{RefusalKind, Reply, view::DumpView},
    config::EvidencePolicy,
    recovery::evidence::{Wanted, dump},
    storage::{evidence, incident::Incident},
    vm::WatchedVm,
};
use flatline_detector::verdict::Cause;
use flatline_qemu::discover::VmId;

impl Engine {
    /// What is to be gathered of a VM that is about to be restarted.
    pub(super) fn wanted(&self, watched: &WatchedVm, incident: &Incident) -> Wanted {
        let EvidencePolicy { limit, memory, memory_limit, own_dump } =
            self.config.evidence_policy_for(&watched.vm.name);
        let retention = &self.config.retention;
        let memory = memory.then(|| dump::Wanted {
            directory: retention.memory_dir.clone(),
            quota_bytes: u64::from(retention.memory_quota_mib) << 20,
            limit: memory_limit,
            under_way: self.dumps.clone(),
        });
        Wanted {
            vm: watched.vm.clone(),
            incident: incident.id.clone(),
            limit,
            announced: watched.detector.watch.state.cause() == Some(Cause::Panicked),
            figures: self.figures(watched),
            memory,
            insight: watched.sensors.insight.clone(),
            own_dump,
            asks: watched.recovery.case.as_ref().is_none_or(|case| !case.tries.is_curt),
        }
    }

    /// All that is known of a VM, but for the last minutes, which are in the recording.
    fn figures(&self, watched: &WatchedVm) -> String {
        // It is made of values, strings and words, which always have a JSON form.
        serde_json::to_string_pretty(&self.show(watched, None)).unwrap_or_default() + "\n"
    }

    /// How far the memory dump of a VM is.
    pub(super) fn dump_view(&self, id: VmId) -> Option<DumpView> {
        let dump::State { since, completed_bytes, total_bytes, written_bytes } =
            self.dumps.of(id)?;
        Some(DumpView { since, completed_bytes, total_bytes, written_bytes })
    }

    /// Hands a client a part of a file of an incident's.
    pub(super) fn evidence(
        &self,
        id: String,
        file: String,
        offset: u64,
        reply: oneshot::Sender<Reply>,
    ) {
        let state_dir = self.config.paths.state_dir.clone();
        spawn_blocking(move || {
            let answer = match evidence::read(&state_dir, &id, &file, offset) {
                Ok(view) => Reply::ok(&view),
                Err(error @ evidence::ReadError::Nothing { .. }) => {
                    Reply::error(RefusalKind::Nothing, error.to_string())
                }
                Err(error) => {
                    Reply::error(RefusalKind::Internal, flatline_qemu::text::error_chain(&error))
                }
            };
            // The client may have gone.
            let _ = reply.send(answer);
        });
    }
}
