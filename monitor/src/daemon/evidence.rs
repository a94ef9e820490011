//! Evidence: what is shown of a VM before its restart, and what clients are handed of its incidents.

use tokio::{sync::oneshot, task::spawn_blocking};

use super::event_loop::EventLoop;
use crate::{
    api::{RefusalKind, Reply, view::DumpView},
    recovery::evidence::dump,
    storage::evidence,
};
use flatline_qemu::discover::VmId;

impl EventLoop {
    /// All that is known of a VM, but for the last minutes, which are in the recording.
    pub(super) fn figures(&self, id: VmId) -> String {
        let shown = self.registry.vms.get(&id).map(|watched| self.show(watched, None));
        // It is made of values, strings and words, which always have a JSON form.
        serde_json::to_string_pretty(&shown).unwrap_or_default() + "\n"
    }

    /// How far the memory dump of a VM is.
    pub(super) fn dump_view(&self, id: VmId) -> Option<DumpView> {
        let dump::State { since, completed_bytes, total_bytes, written_bytes } =
            self.recovery.dump_of(id)?;
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
