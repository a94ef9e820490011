//! `flatline hold` and `flatline release`: which VMs are left alone, and which get a new start.

use std::time::{Duration, SystemTime};

use crate::api::Request;
use crate::api::view::HoldView;
use crate::config::Config;
use crate::rfc3339;

use super::ask::ask;
use super::table::safe;
use super::{Answer, Failure};

pub(super) fn hold(
    config: &Config,
    vm: Option<String>,
    span: Option<Duration>,
) -> Result<Answer, Failure> {
    // A part of a second is held, too.
    let seconds = span.map(|span| span.as_secs() + u64::from(span.subsec_nanos() > 0));
    let view: HoldView = ask(config, &Request::Hold { vm, seconds })?;
    let until = view.until.map_or_else(
        || "until `flatline release`".to_owned(),
        |until: SystemTime| format!("until {}", rfc3339::format(until)),
    );
    Ok(said(&view, &format!("on hold {until}: watched and judged, and not touched")))
}

pub(super) fn release(config: &Config, vm: Option<String>) -> Result<Answer, Failure> {
    let view: HoldView = ask(config, &Request::Release { vm })?;
    Ok(said(&view, "released: no restart of before counts any more"))
}

fn said(view: &HoldView, what: &str) -> Answer {
    Answer::good(view.vms.iter().map(|name| format!("{}: {what}\n", safe(name))).collect())
}
