//! `flatline check`: is this host fit.

use flatline::check::{Item, Report, check};
use flatline::config::Config;

use super::table::table;
use super::{Answer, Failure, json};

pub(super) fn run(config: &Config, as_json: bool) -> Result<Answer, Failure> {
    let report = check(config);
    let text = if as_json { json(&report)? } else { text(&report) };
    Ok(Answer { text, remark: String::new(), bad_news: !report.is_fit() })
}

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
    table(["ITEM", "ANSWER", "", "DETAIL"], &rows)
}
