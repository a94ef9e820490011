//! Context of a restart: the VM that it is about, and what it may use.

use std::sync::Arc;

use tracing::warn;

use super::ActuatorStep;
use crate::{
    config::{ActuatorConfig, CommandUser},
    recovery::{Overtaken, evidence::Wanted},
};
use flatline_qemu::{
    discover::{Vm, is_there},
    program::{Place, Program, User},
    qmp::QmpHandle,
};

/// What programs that systemd starts have by default: the unit's is narrower, and what a QEMU makes is for its users.
const USUAL_UMASK: u32 = 0o022;

/// The VM that is restarted or started, and what may be used for that.
#[derive(Clone, Debug)]
pub(crate) struct RestartContext {
    /// The VM.
    pub(crate) vm: Arc<Vm>,
    /// Its means.
    pub(crate) actuation: ActuatorConfig,
    /// Its monitor, or why it can't be asked; the latter is `None` where there is none at all.
    pub(crate) monitor: Result<QmpHandle, Option<String>>,
    /// Restarts for this crash that brought no life.
    pub(crate) attempts: usize,
    /// QEMU itself stands convicted of hanging.
    pub(crate) hangs: bool,
    /// Its owner had it locked when this was tried last.
    pub(crate) was_locked: bool,
    /// The incident's id, cause and reason, for the configured command.
    pub(crate) incident: (String, String, String),
    /// What is to be gathered of the guest before it is restarted.
    pub(crate) evidence: Wanted,
    /// Resets that came while this was prepared.
    pub(crate) overtaken: Overtaken,
}

impl RestartContext {
    /// User, control groups and mask of modes that the programs of these steps run with: those that are configured for the configured
    /// command, and one that starts a VM again runs where its QEMU was, so that the limits which held it hold its
    /// successor; not one that restarts a QEMU which is there, since it may have to end what is in that control group,
    /// or to wait for it. Programs of owners do all of that themselves.
    pub(super) fn place(&self, steps: &[ActuatorStep], action: &str) -> Place {
        let is_command = |program: &Program| program.words == self.actuation.command;
        let runs_it =
            steps.iter().any(|step| matches!(step, ActuatorStep::Run(one) if is_command(one)));
        let umask = Some(USUAL_UMASK);
        if !runs_it {
            return Place { umask, ..Place::default() };
        }
        let origin = &self.vm.origin;
        let user = (self.actuation.command_user == CommandUser::Vm).then(|| User {
            uid: origin.uid,
            gid: origin.gid,
            groups: origin.groups.clone(),
        });
        let cgroups = if action == "start" { origin.cgroups.clone() } else { Vec::new() };
        for gone in cgroups.iter().filter(|folder| !is_there(folder)) {
            warn!(vm = self.vm.name, "its control group {} is gone", gone.display());
        }
        Place { user, cgroups, umask }
    }

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
            // Whether a trace says so that no QEMU and no user can have left.
            ("FLATLINE_OWNER_CERTAIN", ownership.is_certain.to_string()),
            // The user that the QEMU runs as, by the kernel's word.
            ("FLATLINE_UID", self.vm.origin.uid.to_string()),
            ("FLATLINE_INCIDENT", clean(id)),
            ("FLATLINE_CAUSE", clean(cause)),
            ("FLATLINE_REASON", clean(reason)),
        ]
    }
}
