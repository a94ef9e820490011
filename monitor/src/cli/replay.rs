//! `flatline replay FILE`: judges a recording once more, by its own policy or by a configuration's.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use crate::config::Config;
use crate::recorder::open;
use flatline_detector::recording::file::ReadError;
use flatline_detector::recording::replay::{
    Decision, Line, Replay, Replayer, Summary, rfc3339_millis,
};

use super::table::safe;
use super::{Answer, Failure, json};

/// Columns that what was decided live is given, so that the replay's decisions stand below each other.
const LIVE: usize = 44;

pub(super) fn run(file: &Path, config: Option<&Config>, as_json: bool) -> Result<Answer, Failure> {
    let unreadable = |error: ReadError| Failure::BadNews(error.into());
    let mut reader = open(file).map_err(unreadable)?;
    let header = reader.header().clone();
    let policy = config.map(|config| config.policy_for(&header.vm, None));
    let mut replayer = Replayer::new(header, policy);
    let mut remark = String::new();
    loop {
        match reader.next_segment() {
            Ok(Some((segment, decoded))) => replayer.segment(&segment, decoded),
            Ok(None) => break,
            // What was recorded up to a crash of the host is as good as ever.
            Err(torn @ ReadError::Torn { .. }) => {
                remark = torn.to_string();
                break;
            }
            Err(error) => return Err(unreadable(error)),
        }
    }
    let replay = replayer.finish();
    let text = if as_json { json(&replay)? } else { text(&replay) };
    Ok(Answer { text, remark, bad_news: !replay.same })
}

fn text(replay: &Replay) -> String {
    let mut out = format!("{} (pid {}", safe(&replay.vm), replay.pid);
    // Writing to a string cannot fail.
    if let Some(uuid) = &replay.uuid {
        let _ = write!(out, ", {}", safe(uuid));
    }
    let terms = if replay.recorded_terms { "on its own terms" } else { "on the terms given" };
    match (replay.begins, replay.ends) {
        (Some(begins), Some(ends)) => {
            let (begins, ends) = (rfc3339_millis(begins.0), rfc3339_millis(ends.0));
            let _ = writeln!(out, "), {begins} to {ends}, {terms}");
        }
        _ => out.push_str("): the recording is empty\n"),
    }
    for line in &replay.lines {
        self::line(&mut out, line);
    }
    summary(&mut out, &replay.summary, replay.same);
    out
}

fn line(out: &mut String, line: &Line) {
    let time = clock(line.at);
    let what = |decision: &Option<Decision>| {
        decision.as_ref().map_or_else(|| "-".to_owned(), |decision| safe(&decision.what))
    };
    if line.live.is_some() || line.replay.is_some() {
        let live = what(&line.live);
        let replay = if line.same { "same".to_owned() } else { what(&line.replay) };
        let _ = writeln!(out, "{time}  live: {live:<LIVE$}  replay: {replay}");
        let reason = line.replay.as_ref().or(line.live.as_ref());
        if let Some(decision) = reason.filter(|decision| !decision.reason.is_empty()) {
            let _ = writeln!(out, "            {}", safe(&decision.reason));
        }
    } else if !line.same {
        let _ = writeln!(out, "{time}  the replay wants something else done");
    }
    if let Some(note) = &line.note {
        let _ = writeln!(out, "{time}  note: {}", safe(note));
    }
}

/// The time of day, to a tenth of a second, in UTC; the heading has the date.
fn clock(time: SystemTime) -> String {
    let text = rfc3339_millis(time);
    let time = text.split_once('T').map_or(text.as_str(), |(_, time)| time);
    time.get(..10).unwrap_or(time).to_owned()
}

fn summary(out: &mut String, summary: &Summary, same: bool) {
    let Summary {
        inputs,
        decisions,
        differing,
        same_convictions,
        other_causes,
        earlier_convictions,
        later_convictions,
        missing_convictions,
        additional_convictions,
        unasked_rounds,
        assumed_rounds,
        gaps,
        lines_left_out,
    } = summary;
    let _ = writeln!(
        out,
        "{inputs} inputs, {decisions} decisions, {}",
        if same { "all the same".to_owned() } else { format!("{differing} differ") }
    );
    let _ = writeln!(
        out,
        "convictions: {same_convictions} same, {earlier_convictions} earlier, {later_convictions} later, \
         {missing_convictions} missing, {additional_convictions} additional, {other_causes} of another cause"
    );
    let remarks = [
        (*unasked_rounds, "times the replay had questions before a witness was asked"),
        (*assumed_rounds, "times the witnesses' last answers were taken to stand"),
        (*gaps, "gaps, after which it began anew"),
        (*lines_left_out, "lines left out"),
    ];
    for (number, what) in remarks.iter().filter(|(number, _)| *number > 0) {
        let _ = writeln!(out, "{number} {what}");
    }
}
