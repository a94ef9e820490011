//! `flatline incidents`: what was detected, what was done, what came of it.

use std::path::Path;

use crate::api::Request;
use crate::config::Config;
use crate::storage::evidence::{EvidenceView, LIST};
use crate::storage::incident::{Incident, IncidentsView, Outcome};
use crate::storage::incidents::EVIDENCE_MAX_BYTES;
use anyhow::{Context, anyhow};

use super::ask::ask;
use super::table::{fields, or_dash, safe, seconds, table, time};
use super::{Answer, Failure, json, page, report};

pub(super) fn list(config: &Config, vm: Option<String>, as_json: bool) -> Result<Answer, Failure> {
    let view: IncidentsView = ask(config, &Request::Incidents { vm })?;
    let text = if as_json { lines(&view.incidents)? } else { rows(&view.incidents) };
    Ok(Answer { text, remark: view.complaints.join("\n"), bad_news: false })
}

pub(super) fn show(config: &Config, id: &str, as_json: bool) -> Result<Answer, Failure> {
    let incident = &find(config, id)?;
    if as_json {
        return json(incident).map(Answer::good);
    }
    let directory = config.paths.state_dir.join("incidents").join(&incident.id);
    let text = fields(&[
        ("id", incident.id.clone()),
        ("vm", incident.vm.clone()),
        ("uuid", or_dash(incident.uuid.as_ref())),
        ("user", or_dash(incident.uid.map(|uid| uid.to_string()))),
        ("pid", incident.pid.to_string()),
        ("cause", incident.cause.clone()),
        ("reason", incident.reason.clone()),
        ("last sign of life", time(incident.last_sign_of_life)),
        ("detected", time(Some(incident.detected_at))),
        ("detected after", seconds(incident.detect_seconds)),
        ("held meanwhile", seconds(incident.held_seconds)),
        ("action", or_dash(incident.action.as_ref())),
        ("action at", time(incident.action_at)),
        ("outcome", outcome(incident)),
        ("recovered", time(incident.recovered_at)),
        ("recovered after", seconds(incident.recover_seconds)),
        ("evidence", incident.evidence.join(", ")),
        ("kept in", directory.display().to_string()),
    ]);
    // Older incidents have none, and older daemons hand out none.
    let list = file(config, incident, LIST).ok().flatten().unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let list: String = list.lines().map(|line| safe(line) + "\n").collect();
    let gap = if list.is_empty() { "" } else { "\n" };
    Ok(Answer::good(text + gap + &list))
}

/// Writes an incident with all its evidence to `path`, as one HTML file.
pub(super) fn write_html(config: &Config, id: &str, path: &Path) -> Result<Answer, Failure> {
    let incident = find(config, id)?;
    let mut files = Vec::new();
    for name in &incident.evidence {
        files.push((name.clone(), file(config, &incident, name)?));
    }
    let page = page::page(&incident, &files).map_err(Failure::BadNews)?;
    if path == Path::new("-") {
        return Ok(Answer::good(page));
    }
    report::write(path, page.as_bytes())
        .with_context(|| format!("can't write {}", path.display()))
        .map_err(Failure::BadNews)?;
    Ok(Answer::good(String::new()))
}

fn find(config: &Config, id: &str) -> Result<Incident, Failure> {
    let view: IncidentsView = ask(config, &Request::Incidents { vm: None })?;
    let incident = view.incidents.into_iter().find(|incident| incident.id == id);
    incident.ok_or_else(|| Failure::BadNews(anyhow!("no incident {id}")))
}

/// A file of an incident's, asked for part by part; `None` where it is no longer kept.
fn file(config: &Config, incident: &Incident, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut whole = Vec::new();
    loop {
        let (id, file, offset) = (incident.id.clone(), name.to_owned(), whole.len() as u64);
        let view: EvidenceView = match ask(config, &Request::Evidence { id, file, offset }) {
            Ok(view) => view,
            // What there is no more is no reason to tell nothing.
            Err(Failure::BadNews(_)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let part = view.decode().ok_or_else(|| anyhow!("{name} came as no base64"));
        let part = part.map_err(Failure::BadNews)?;
        whole.extend_from_slice(&part);
        if part.is_empty() || whole.len() as u64 >= view.bytes {
            return Ok(Some(whole));
        }
        if whole.len() > EVIDENCE_MAX_BYTES {
            return Err(Failure::BadNews(anyhow!(
                "{name} has more than {EVIDENCE_MAX_BYTES} bytes"
            )));
        }
    }
}

fn lines(incidents: &[Incident]) -> Result<String, Failure> {
    let line = |incident| serde_json::to_string(incident).map(|line| line + "\n");
    let lines = incidents.iter().map(line).collect::<Result<String, _>>();
    lines.context("can't put the incidents as JSON").map_err(Failure::BadNews)
}

fn rows(incidents: &[Incident]) -> String {
    if incidents.is_empty() {
        return "no incidents\n".to_owned();
    }
    let row = |incident: &Incident| {
        [
            incident.id.clone(),
            incident.vm.clone(),
            incident.cause.clone(),
            or_dash(incident.action.as_ref()),
            outcome(incident),
            seconds(incident.detect_seconds),
            seconds(incident.recover_seconds),
            incident.reason.clone(),
        ]
    };
    let rows = incidents.iter().map(row).collect::<Vec<_>>();
    let header = ["ID", "VM", "CAUSE", "ACTION", "OUTCOME", "DETECT", "RECOVER", "REASON"];
    table(header, &rows)
}

fn outcome(incident: &Incident) -> String {
    incident.outcome.map_or("under way", Outcome::as_str).to_owned()
}
