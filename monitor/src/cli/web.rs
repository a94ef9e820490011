//! `flatline web`: a link that opens the page in one browser.

use crate::{api::ask_for_link, config::Config};

use super::{Answer, Failure, ask::failure, json, table::safe};

pub(super) fn run(config: &Config, as_json: bool) -> Result<Answer, Failure> {
    let link = ask_for_link(&config.paths.runtime_dir).map_err(failure)?;
    if as_json {
        return json(&link).map(Answer::good);
    }
    let minutes = link.valid_seconds / 60;
    let remark = format!(
        "good for {minutes} minutes and one browser; from elsewhere through `ssh -L`, as docs/web.md has it"
    );
    Ok(Answer { text: safe(&link.url) + "\n", remark, bad_news: false })
}
