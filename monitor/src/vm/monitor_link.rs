//! Link to a QEMU's monitor: the session, and what QEMU said last.

use flatline_detector::verdict::Monitor;
use flatline_qemu::{
    discover::Vm,
    qmp::{QmpHandle, QmpState},
};
use flatline_samples::{QmpEvent, RunState};

/// The link to the monitor of one VM.
#[derive(Debug)]
pub(crate) struct MonitorLink {
    /// The session; `None` where no socket is used.
    pub(crate) qmp: Option<QmpHandle>,
    /// Why no socket is used, where none is.
    why_none: String,
    pub(crate) state: QmpState,
    pub(crate) run_state: Option<RunState>,
    /// Questions for the run state so far, and the last one whose answer counts: answers come from tasks
    /// of their own, and an old one must not replace a newer one.
    pub(crate) run_state_asked: u64,
    pub(crate) run_state_answered: u64,
    /// Its events are heard late or never: while it is suspected, its run state is asked for.
    pub(crate) hears_late: bool,
    /// The last `SHUTDOWN` event, unless it was reset since: it may say why QEMU ends.
    pub(crate) shutdown: Option<QmpEvent>,
}

impl MonitorLink {
    /// To the monitor of `vm` through `qmp`, whose events may be heard late.
    pub(crate) fn new(vm: &Vm, qmp: Option<QmpHandle>, hears_late: bool) -> Self {
        let why_none = match vm.unused_monitors.first() {
            Some(why) if vm.qmp_sockets.is_empty() => why.clone(),
            _ => "no QMP socket is known".to_owned(),
        };
        Self {
            qmp,
            why_none,
            state: QmpState::Connecting,
            run_state: None,
            run_state_asked: 0,
            run_state_answered: 0,
            hears_late,
            shutdown: None,
        }
    }

    /// Takes note of what may be QEMU's last event.
    pub(crate) fn note_shutdown(&mut self, event: &QmpEvent) {
        match event {
            QmpEvent::Shutdown { .. } => self.shutdown = Some(event.clone()),
            QmpEvent::Reset { .. } => self.shutdown = None,
            _ => {}
        }
    }

    /// What QEMU's monitor has to say.
    pub(crate) fn monitor(&self) -> Monitor {
        if self.qmp.is_none() {
            return Monitor::Unknown(self.why_none.clone());
        }
        match (&self.state, &self.run_state) {
            (QmpState::Ready, Some(run_state)) => Monitor::Answers(run_state.clone()),
            (QmpState::Ready | QmpState::Connecting, _) => {
                Monitor::Unknown("QMP is being connected".to_owned())
            }
            (QmpState::Busy, _) => {
                Monitor::Unknown("another client holds the QMP socket".to_owned())
            }
            (QmpState::Unresponsive { .. }, _) => {
                Monitor::Unresponsive("a QMP command got no answer in time".to_owned())
            }
            (QmpState::NotStarted { reason }, _) => Monitor::NotStarted(reason.clone()),
            (QmpState::Refused { reason } | QmpState::Closed { reason }, _) => {
                Monitor::Unknown(reason.clone())
            }
        }
    }

    /// The QMP handle, where QEMU can be told something now.
    ///
    /// # Errors
    /// Why it can't be.
    pub(crate) fn ready(&self) -> Result<QmpHandle, String> {
        match (self.monitor(), &self.qmp) {
            (Monitor::Answers(_), Some(qmp)) => Ok(qmp.clone()),
            (Monitor::Unknown(why) | Monitor::Unresponsive(why) | Monitor::NotStarted(why), _) => {
                Err(why)
            }
            (Monitor::Answers(_), None) => Err("no QMP socket is known".to_owned()),
        }
    }

    /// What it was says nothing about what it is, nor does an answer to an earlier question.
    pub(crate) fn forget_run_state(&mut self) {
        self.run_state = None;
        self.run_state_answered = self.run_state_asked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatline_qemu::discover::Ownership;

    #[test]
    fn a_shutdown_counts_until_the_machine_is_reset() {
        let said = QmpEvent::Shutdown { guest: true, reason: "guest-shutdown".to_owned() };
        let mut link = MonitorLink::new(&Vm::stand_in(Ownership::bare(), &[]), None, false);
        link.note_shutdown(&said);
        link.note_shutdown(&QmpEvent::Stop);
        assert_eq!(link.shutdown.as_ref(), Some(&said));
        link.note_shutdown(&QmpEvent::Reset { guest: false });
        assert_eq!(link.shutdown, None);
    }
}
