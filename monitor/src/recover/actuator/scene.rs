//! Whom a restart is about, and what it may use.

use std::sync::Arc;

use crate::{config::Means, discover::Vm, qmp::QmpHandle, recover::evidence::Wanted};

/// Whom it is about, and what may be used.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its means.
    pub means: Means,
    /// Its monitor, or why it can't be asked; the latter is `None` where there is none at all.
    pub monitor: Result<QmpHandle, Option<String>>,
    /// The incident's id, cause and reason, for the configured command.
    pub incident: (String, String, String),
    /// What is to be gathered of the guest before it is restarted.
    pub evidence: Wanted,
}

impl Scene {
    /// What a command finds in its environment. Only values come from outside, and a value can't become anything
    /// else; what can't stand in one (a null character) was replaced long before.
    pub(super) fn environment(&self, action: &str) -> Vec<(&'static str, String)> {
        let (id, cause, reason) = &self.incident;
        let ownership = &self.vm.ownership;
        let clean = |text: &str| text.replace(char::is_control, "?");
        vec![
            ("FLATLINE_ACTION", action.to_owned()),
            ("FLATLINE_VM", clean(&self.vm.name)),
            ("FLATLINE_UUID", self.vm.uuid.clone().unwrap_or_default()),
            ("FLATLINE_PID", self.vm.id.pid.to_string()),
            ("FLATLINE_OWNER", ownership.owner.kind().to_owned()),
            ("FLATLINE_OWNER_NAME", clean(&ownership.owner.name().unwrap_or_default())),
            ("FLATLINE_INCIDENT", clean(id)),
            ("FLATLINE_CAUSE", clean(cause)),
            ("FLATLINE_REASON", clean(reason)),
        ]
    }
}
