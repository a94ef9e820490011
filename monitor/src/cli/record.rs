//! `flatline record`: has the last minutes of a VM, or of all, written to files.

use crate::api::Request;
use crate::api::view::RecordView;
use crate::config::Config;

use super::ask::ask;
use super::table::safe;
use super::{Answer, Failure, json};

pub(super) fn run(config: &Config, vm: Option<String>, as_json: bool) -> Result<Answer, Failure> {
    let view: RecordView = ask(config, &Request::Record { vm })?;
    let text = if as_json {
        json(&view)?
    } else {
        view.paths.iter().map(|path| safe(path) + "\n").collect()
    };
    let bad_news = !view.complaints.is_empty();
    Ok(Answer { text, remark: view.complaints.join("\n"), bad_news })
}
