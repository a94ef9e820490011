//! What the daemon is asked for a picture, in one go.

use std::path::Path;

use crate::api::view::{LinesView, ShowView, StatusView};
use crate::api::{ClientError, RefusalKind, Request, ask};
use crate::storage::incident::IncidentsView;

use super::model::{Key, PageAnswer};
use flatline_qemu::text::error_chain;

/// What is to be asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// How all VMs stand.
    pub(super) status: bool,
    /// All of this VM, and its incidents if that is set.
    pub(super) page: Option<(Key, bool)>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answers {
    /// Or why there is none.
    pub(super) status: Option<Result<StatusView, String>>,
    pub(super) page: Option<PageAnswer>,
}

/// The first question, with the ticks of before, where the daemon has any to tell of. Its failure is the caller's.
pub(super) fn begin(runtime_dir: &Path) -> Result<(StatusView, Option<LinesView>), ClientError> {
    let status = ask(runtime_dir, &Request::Status)?;
    // An older daemon doesn't know the question; the lines begin now then.
    Ok((status, ask(runtime_dir, &Request::Lines { vm: None }).ok()))
}

/// Asks, and waits for the answers.
pub(super) fn answers(runtime_dir: &Path, question: Question) -> Answers {
    let Question { status, page } = question;
    let status =
        status.then(|| ask(runtime_dir, &Request::Status).map_err(|error| error_chain(&error)));
    // A daemon that doesn't answer one question is not asked another.
    let page = page.filter(|_| !matches!(status, Some(Err(_))));
    Answers { status, page: page.map(|(key, incidents)| page_answer(runtime_dir, key, incidents)) }
}

fn page_answer(runtime_dir: &Path, key: Key, incidents: bool) -> PageAnswer {
    // By its process id, since several VMs may have one name.
    let show = ask::<ShowView>(runtime_dir, &Request::Show { vm: key.pid.to_string() });
    let show = show.map(Box::new).map_err(|error| match error {
        ClientError::Refused(refusal) if refusal.kind == RefusalKind::NoSuchVm => None,
        error => Some(error_chain(&error)),
    });
    let incidents = incidents.then(|| {
        let wanted = if show.is_ok() { key.pid.to_string() } else { key.name.clone() };
        let request = Request::Incidents { vm: Some(wanted) };
        ask::<IncidentsView>(runtime_dir, &request).map(|view| view.incidents)
    });
    let incidents = incidents.and_then(Result::ok);
    PageAnswer { key, show, incidents }
}
