//! `flatline check`: is this host fit.

use std::fmt::Write;

use crate::check::{Item, Report, Verdict, survey};
use crate::config::Config;

use super::table::{safe, table};
use super::{Answer, Failure, json};

pub(super) fn run(config: &Config, as_json: bool) -> Result<Answer, Failure> {
    let report = survey(config);
    let text = if as_json { json(&report)? } else { text(&report) };
    Ok(Answer { text, remark: String::new(), bad_news: report.first_gap().is_some() })
}

/// A row for each item, and then, for what isn't there, what is lost and what to do.
fn text(report: &Report) -> String {
    let row = |item: &Item| {
        let required = if item.required { "required" } else { "optional" };
        [
            item.name.clone(),
            item.verdict.as_str().to_owned(),
            required.to_owned(),
            item.detail.clone(),
        ]
    };
    let rows = report.items.iter().map(row).collect::<Vec<_>>();
    let mut text = table(["ITEM", "ANSWER", "", "DETAIL"], &rows);
    for item in report.items.iter().filter(|item| item.verdict != Verdict::Ok) {
        let Item { name, needed_for, without, remedy, .. } = item;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{}: for {}\n", safe(name), safe(needed_for));
        let _ = writeln!(text, "  without it: {}", safe(without));
        let _ = writeln!(text, "  what to do: {}", safe(remedy));
    }
    text
}
