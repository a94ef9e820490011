//! `flatline incidents`: what was detected, what was done, what came of it.

use anyhow::{Context, anyhow};
use flatline::config::Config;
use flatline::report::control::Request;
use flatline::report::incident::{Incident, IncidentsView, Outcome};

use super::ask::ask;
use super::table::{fields, or_dash, seconds, table, time};
use super::{Answer, Failure, json};

pub(super) fn list(config: &Config, vm: Option<String>, as_json: bool) -> Result<Answer, Failure> {
    let view: IncidentsView = ask(config, &Request::Incidents { vm })?;
    let text = if as_json { lines(&view.incidents)? } else { rows(&view.incidents) };
    Ok(Answer { text, remark: view.complaints.join("\n"), bad_news: false })
}

pub(super) fn show(config: &Config, id: &str, as_json: bool) -> Result<Answer, Failure> {
    let view: IncidentsView = ask(config, &Request::Incidents { vm: None })?;
    let incident = view.incidents.iter().find(|incident| incident.id == id);
    let incident = incident.ok_or_else(|| Failure::BadNews(anyhow!("no incident {id}")))?;
    if as_json {
        return json(incident).map(Answer::good);
    }
    let directory = config.paths.state_dir.join("incidents").join(&incident.id);
    let text = fields(&[
        ("id", incident.id.clone()),
        ("vm", incident.vm.clone()),
        ("uuid", or_dash(incident.uuid.as_ref())),
        ("pid", incident.pid.to_string()),
        ("cause", incident.cause.clone()),
        ("reason", incident.reason.clone()),
        ("last sign of life", time(incident.last_sign_of_life)),
        ("detected", time(Some(incident.detected_at))),
        ("detected after", seconds(incident.detect_seconds)),
        ("action", or_dash(incident.action.as_ref())),
        ("action at", time(incident.action_at)),
        ("outcome", outcome(incident)),
        ("recovered", time(incident.recovered_at)),
        ("recovered after", seconds(incident.recover_seconds)),
        ("evidence", incident.evidence.join(", ")),
        ("kept in", directory.display().to_string()),
    ]);
    Ok(Answer::good(text))
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
