//! An incident as one HTML file: for people who weren't there, and to be sent on. Pure: text out of the record and
//! its files.
//!
//! The file needs nothing else, and does nothing: no scripts, no fetches (a policy in it forbids both), the picture
//! stands in it as a data URI. All text, whoever it is from, is escaped; the picture is the PNG that the daemon made.

mod chart;
mod escape;
mod recorded;
#[cfg(test)]
mod tests;
mod words;

use std::fmt::Write as _;
use std::time::SystemTime;

use flatline::recovery::evidence::LIST;
use flatline::storage::incident::Incident;
use flatline::{rfc3339, storage::evidence};

use self::escape::{escape, lines};
use self::recorded::Recorded;
use super::table::seconds;

const STYLE: &str = include_str!("style.css");
/// The recording, among the files.
const RECORDING: &str = "recording.flr";
/// What a PNG begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A file of the incident's, and its content; `None`: it is no longer kept.
pub(super) type File = (String, Option<Vec<u8>>);

/// The page.
pub(super) fn page(incident: &Incident, files: &[File]) -> String {
    let content = |wanted: &str| {
        let (_, content) = files.iter().find(|(name, _)| name == wanted)?;
        content.as_deref()
    };
    let recorded = content(RECORDING).map(Recorded::read);
    let title = format!("{}: {}", incident.vm, words::headline(incident));
    let mut out = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<p class=\"lead\">{}</p>\n",
        escape(&words::summary(incident)),
        title = escape(&title),
    );
    timeline(&mut out, incident, recorded.as_ref());
    why(&mut out, incident);
    lines_of_the_guest(&mut out, incident, recorded.as_ref());
    picture(&mut out, content("screen.png"));
    details(&mut out, files);
    facts(&mut out, incident);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// A row of the timeline: when, what, and why.
type Row = (SystemTime, &'static str, String);

fn timeline(out: &mut String, incident: &Incident, recorded: Option<&Recorded>) {
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
    out.push_str("<h2>What happened when</h2>\n<table class=\"timeline\">\n");
    for (at, what, why) in rows {
        let since = match at.duration_since(zero) {
            Ok(after) => format!("+{:.0} s", after.as_secs_f64()),
            Err(before) => format!("-{:.0} s", before.duration().as_secs_f64()),
        };
        let _ = writeln!(
            out,
            "<tr><td><time>{}</time></td><td class=\"number\">{since}</td>\
             <th scope=\"row\">{what}</th><td>{}</td></tr>",
            rfc3339::format(at),
            escape(&why)
        );
    }
    let _ = writeln!(
        out,
        "<tr class=\"outcome\"><td></td><td></td><th scope=\"row\">outcome</th><td>{}</td></tr>\n</table>",
        escape(words::outcome(incident))
    );
}

fn why(out: &mut String, incident: &Incident) {
    let _ = write!(
        out,
        "<h2>Why</h2>\n<p>{}</p>\n<p>What the verdict was made from: <q>{}</q></p>\n",
        escape(&words::cause(&incident.cause)),
        escape(&incident.reason)
    );
}

fn lines_of_the_guest(out: &mut String, incident: &Incident, recorded: Option<&Recorded>) {
    out.push_str("<h2>The guest's lines</h2>\n");
    match recorded {
        None => out
            .push_str("<p class=\"missing\">Nothing was recorded, or it is no longer kept.</p>\n"),
        Some(recorded) => {
            if let Some(complaint) = &recorded.complaint {
                let _ = writeln!(out, "<p class=\"missing\">{}</p>", escape(complaint));
            }
            if let Some(drawn) = chart::draw(recorded, incident) {
                out.push_str(&drawn);
            }
        }
    }
}

fn picture(out: &mut String, png: Option<&[u8]>) {
    out.push_str("<h2>What its console showed</h2>\n");
    match png.filter(|png| png.starts_with(PNG)) {
        Some(png) => {
            let data = evidence::base64(png);
            let alt = "The guest's console, right before the restart";
            let _ = writeln!(
                out,
                "<p><img class=\"screen\" alt=\"{alt}\" src=\"data:image/png;base64,{data}\"></p>"
            );
        }
        None => out.push_str(
            "<p class=\"missing\">There is no picture of it; the list of the evidence says why.</p>\n",
        ),
    }
}

/// Every file that is text, to be opened.
fn details(out: &mut String, files: &[File]) {
    out.push_str("<h2>The evidence</h2>\n");
    if files.is_empty() {
        out.push_str("<p class=\"missing\">None was kept.</p>\n");
    }
    for (name, content) in files {
        if name == RECORDING || name == "screen.png" {
            continue;
        }
        let open = if name == LIST || name == "console.txt" { " open" } else { "" };
        let _ = write!(
            out,
            "<details{open}><summary>{}: {}</summary>",
            escape(name),
            words::file(name)
        );
        match content {
            Some(content) => {
                let _ = write!(out, "<pre>{}</pre>", lines(&String::from_utf8_lossy(content)));
            }
            None => out.push_str("<p class=\"missing\">It is no longer kept.</p>"),
        }
        out.push_str("</details>\n");
    }
}

fn facts(out: &mut String, incident: &Incident) {
    let dash = || "not known".to_owned();
    let facts = [
        ("incident", incident.id.clone()),
        ("VM", incident.vm.clone()),
        ("UUID", incident.uuid.clone().unwrap_or_else(dash)),
        ("QEMU's process", incident.pid.to_string()),
        ("detected after", seconds(incident.detect_seconds)),
        ("held meanwhile", seconds(incident.held_seconds)),
        ("recovered after", seconds(incident.recover_seconds)),
    ];
    out.push_str("<h2>The record</h2>\n<table>\n");
    for (name, value) in facts {
        let _ = writeln!(out, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escape(&value));
    }
    let _ = write!(
        out,
        "</table>\n<footer>Times are UTC. Written by flatline {}; the recording can be judged again by \
         <code>flatline replay</code>.</footer>\n",
        escape(env!("CARGO_PKG_VERSION"))
    );
}
