//! An incident as one HTML file: to be read elsewhere, and sent on. Pure: text out of the record and
//! its files.
//!
//! The file needs nothing else, and does nothing: no scripts, no fetches (a policy in it forbids both), the picture
//! stands in it as a data URI. The template escapes all text; the picture is the PNG that the daemon made.

mod chart;
mod escape;
mod recorded;
#[cfg(test)]
mod tests;
mod words;

use std::time::SystemTime;

use crate::storage::evidence::LIST;
use crate::storage::incident::Incident;
use crate::{rfc3339, storage::evidence};
use askama::Template;

use self::recorded::Recorded;
use super::table::seconds;

const STYLE: &str = include_str!("style.css");
/// The recording, among the files.
const RECORDING: &str = "recording.flr";
/// The console's picture.
const PICTURE: &str = "screen.png";
/// What a PNG begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A file of the incident's, and its content; `None`: it is no longer kept.
pub(super) type File = (String, Option<Vec<u8>>);

/// What the template shows.
#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    style: &'static str,
    version: &'static str,
    incident: &'a Incident,
    title: String,
    summary: String,
    cause: String,
    outcome: &'static str,
    moments: Vec<Moment>,
    recorded: Option<&'a Recorded>,
    complaint: Option<&'a str>,
    /// An SVG drawing.
    chart: Option<String>,
    /// The console's PNG in Base64.
    picture: Option<String>,
    files: &'a [File],
    texts: Vec<Text<'a>>,
    facts: [(&'static str, String); 7],
}

/// A row of the timeline as it is shown.
struct Moment {
    at: String,
    since: String,
    what: &'static str,
    why: String,
}

/// A file that is text, to be opened.
struct Text<'a> {
    name: &'a str,
    what: &'static str,
    is_open: bool,
    /// `None`: it is no longer kept.
    lines: Option<Vec<String>>,
}

/// The page.
pub(super) fn page(incident: &Incident, files: &[File]) -> anyhow::Result<String> {
    let content = |wanted: &str| {
        let (_, content) = files.iter().find(|(name, _)| name == wanted)?;
        content.as_deref()
    };
    let recorded = content(RECORDING).map(Recorded::read);
    let recorded = recorded.as_ref();
    let picture = content(PICTURE).filter(|png| png.starts_with(PNG));
    let page = Page {
        style: STYLE,
        version: env!("CARGO_PKG_VERSION"),
        incident,
        title: format!("{}: {}", incident.vm, words::headline(incident)),
        summary: words::summary(incident),
        cause: words::cause(&incident.cause),
        outcome: words::outcome(incident),
        moments: timeline(incident, recorded),
        recorded,
        complaint: recorded.and_then(|recorded| recorded.complaint.as_deref()),
        chart: recorded.map_or(Ok(None), |recorded| chart::draw(recorded, incident))?,
        picture: picture.map(evidence::base64),
        files,
        texts: texts(files),
        facts: facts(incident),
    };
    Ok(page.render()?)
}

/// A row of the timeline: when, what, and why.
type Row = (SystemTime, &'static str, String);

fn timeline(incident: &Incident, recorded: Option<&Recorded>) -> Vec<Moment> {
    let mut rows: Vec<Row> = Vec::new();
    if let Some(at) = incident.last_sign_of_life {
        rows.push((at, "last sign of life", String::new()));
    }
    rows.push((
        incident.detected_at,
        "verdict",
        format!("{}: {}", incident.cause, incident.reason),
    ));
    // The last attempt is what the record tells as its action.
    let earlier = incident.attempts.iter().rev().skip(1).rev();
    rows.extend(earlier.map(|attempt| {
        let why = format!("in vain: {}, out of {}", attempt.steps.join(", "), attempt.run_state);
        (attempt.reset_at.unwrap_or(attempt.begun_at), "restarted", why)
    }));
    if let (Some(at), Some(action)) = (incident.action_at, &incident.action) {
        let limit = incident.attempts.last().map(|attempt| attempt.limit.as_str());
        let limit = limit.map_or_else(String::new, |limit| format!(" ({limit})"));
        rows.push((at, "restarted", format!("QEMU was told: {action}{limit}")));
    }
    if let Some(at) = incident.recovered_at {
        rows.push((at, "lives again", String::new()));
    }
    // What the record has is not told twice; what else was decided on the way is.
    rows.extend(recorded.into_iter().flat_map(|recorded| recorded.other_moments(incident)));
    rows.sort_by_key(|(at, _, _)| *at);
    let zero = incident.last_sign_of_life.unwrap_or(incident.detected_at);
    let moment = |(at, what, why): Row| {
        let since = match at.duration_since(zero) {
            Ok(after) => format!("+{:.0} s", after.as_secs_f64()),
            Err(before) => format!("-{:.0} s", before.duration().as_secs_f64()),
        };
        Moment { at: rfc3339::format(at), since, what, why }
    };
    rows.into_iter().map(moment).collect()
}

fn texts<'a>(files: &'a [File]) -> Vec<Text<'a>> {
    let texts = files.iter().filter(|(name, _)| name != RECORDING && name != PICTURE);
    let text = |(name, content): &'a File| Text {
        name,
        what: words::file(name),
        is_open: name == LIST || name == "console.txt",
        lines: content.as_ref().map(|content| {
            let content = String::from_utf8_lossy(content);
            content.lines().map(|line| line.replace('\t', "    ")).collect()
        }),
    };
    texts.map(text).collect()
}

fn facts(incident: &Incident) -> [(&'static str, String); 7] {
    [
        ("incident", incident.id.clone()),
        ("VM", incident.vm.clone()),
        ("UUID", incident.uuid.clone().unwrap_or_else(|| "not known".to_owned())),
        ("QEMU's process", incident.pid.to_string()),
        ("detected after", seconds(incident.detect_seconds)),
        ("held meanwhile", seconds(incident.held_seconds)),
        ("recovered after", seconds(incident.recover_seconds)),
    ]
}
