//! What the page's list asks for: the rows that changed since it last did, and of the VMs in sight their figures and newest ticks.
//!
//! `/api/list?since=SINCE&lines=PID.TICK,PID&figures=all`: `since` is what the last answer said, `lines` are the VMs in sight,
//! each with the tick up to which its line is known, and `figures=all` is for a list that is ordered by one of them.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};

use super::{
    page_data::{Answer, AsOf, Shared, failed, no_tick},
    page_rows::{Changes, Since},
    page_snapshot::{IN_SIGHT_MAX, InSight, PageSnapshot},
};
use crate::{
    api::{
        response::{Body, text},
        view::HostView,
    },
    history::{LineSince, NewestRates, RateHistory},
};
use flatline_detector::policy::Mode;

/// What is asked for. What is empty is not.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Question {
    since: String,
    lines: String,
    figures: String,
}

/// The same, understood.
#[derive(Debug)]
struct Wanted {
    since: Option<Since>,
    /// The VMs in sight, by pid, with the ticks up to which they are known.
    lines: Vec<(u32, Option<u64>)>,
    in_sight: InSight,
}

impl Question {
    /// What it means; `None`: nothing.
    fn understood(&self) -> Option<Wanted> {
        let line = |text: &str| {
            let (pid, tick) = match text.split_once('.') {
                Some((pid, tick)) => (pid, Some(tick.parse().ok()?)),
                None => (text, None),
            };
            Some((pid.parse().ok()?, tick))
        };
        let wanted = self.lines.split(',').filter(|one| !one.is_empty());
        let lines: Vec<(u32, Option<u64>)> = wanted.map(line).collect::<Option<_>>()?;
        let since = Some(self.since.as_str()).filter(|since| !since.is_empty());
        let in_sight = match self.figures.as_str() {
            "" => InSight::Of(lines.iter().map(|(pid, _)| *pid).collect::<BTreeSet<u32>>()),
            "all" => InSight::All,
            _ => return None,
        };
        let since = since.map(str::parse).transpose().ok()?;
        (lines.len() <= IN_SIGHT_MAX).then_some(Wanted { since, lines, in_sight })
    }
}

/// The answer, but for the rows, which stand at its end as they are kept.
#[derive(Serialize)]
struct ListPage<'a> {
    #[serde(flatten)]
    as_of: AsOf,
    interval_seconds: f64,
    host: ListHost<'a>,
    since: Since,
    is_whole: bool,
    gone: &'a [u32],
    figures: Vec<Figures>,
    lines: &'a [LineSince],
}

/// What the list says of the host.
#[derive(Serialize)]
struct ListHost<'a> {
    hostname: Option<&'a str>,
    mode: Mode,
    degraded: Option<&'a str>,
}

impl<'a> From<&'a HostView> for ListHost<'a> {
    fn from(HostView { hostname, mode, degraded, .. }: &'a HostView) -> Self {
        Self { hostname: hostname.as_deref(), mode: *mode, degraded: degraded.as_deref() }
    }
}

/// A VM's figures of the last tick, in a row: its pid, CPUs that its vCPUs use, requests in flight, seconds since the last sign of
/// life; then per second the packets from it and to it, and requests that completed.
type Figures = (u32, Option<f64>, Option<u64>, Option<f64>, Option<f32>, Option<f32>, Option<f32>);

/// The figures in `snapshot` of those that are wanted.
fn figures(snapshot: &PageSnapshot, wanted: &Wanted, lines: &RateHistory) -> Vec<Figures> {
    let is_wanted = |pid: &u32| match &wanted.in_sight {
        InSight::Of(pids) => pids.contains(pid),
        InSight::All => true,
    };
    let those: Vec<_> = snapshot.figures.iter().filter(|(pid, _)| is_wanted(pid)).collect();
    let rates = lines.newest(those.iter().map(|(pid, _)| **pid));
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let figures = those.into_iter().zip(rates).map(|((pid, own), rates)| {
        let NewestRates { packets_from_guest, packets_to_guest, completed } = rates;
        let (vcpu, flat) = (own.vcpu.map(rounded), own.flat_seconds.map(rounded));
        (*pid, vcpu, own.in_flight, flat, packets_from_guest, packets_to_guest, completed)
    });
    figures.collect()
}

/// The list, as of the last tick.
pub(super) async fn list(
    State(site): Shared,
    Query(question): Query<Question>,
    headers: HeaderMap,
) -> Answer {
    let refusal = || text(StatusCode::BAD_REQUEST, "the question is not understood");
    let wanted = question.understood().ok_or_else(refusal)?;
    let data = &site.data;
    let snapshot = data.subscriber.list(&wanted.in_sight).await.ok_or_else(no_tick)?;
    let changes = data.subscriber.rows.since(wanted.since).ok_or_else(no_tick)?;
    let body = written(&snapshot, &wanted, changes, &data.lines).map_err(failed)?;
    Ok(Body::of(body).answer(&headers).await)
}

fn written(
    snapshot: &Arc<PageSnapshot>,
    wanted: &Wanted,
    changes: Changes,
    lines: &RateHistory,
) -> std::io::Result<Vec<u8>> {
    let Changes { since, is_whole, gone, rows } = changes;
    let page = ListPage {
        as_of: AsOf::from(&**snapshot),
        interval_seconds: snapshot.interval.as_secs_f64(),
        host: ListHost::from(&snapshot.host),
        since,
        is_whole,
        gone: &gone,
        figures: figures(snapshot, wanted, lines),
        lines: &lines.since(&wanted.lines),
    };
    let mut body = serde_json::to_vec(&page)?;
    // Before the brace at its end.
    body.pop();
    body.extend_from_slice(b",\"vms\":[");
    body.extend_from_slice(rows.as_bytes());
    body.extend_from_slice(b"]}");
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(lines: &str, figures: &str) -> Option<Wanted> {
        let (lines, figures) = (lines.to_owned(), figures.to_owned());
        Question { since: "5-77".to_owned(), lines, figures }.understood()
    }

    #[test]
    fn vms_in_sight_are_named_with_the_ticks_up_to_which_they_are_known() {
        let wanted = understood("7.12,8", "").expect("understood");
        assert_eq!(wanted.lines, [(7, Some(12)), (8, None)]);
        assert_eq!(wanted.in_sight, InSight::Of([7, 8].into()));
        assert_eq!(wanted.since.map(String::from), Some("5-77".to_owned()));
        assert_eq!(understood("7", "all").map(|wanted| wanted.in_sight), Some(InSight::All));
        let nothing = Question::default().understood().expect("understood");
        assert_eq!((nothing.since, nothing.lines.len()), (None, 0));
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for lines in ["7.", "x", "7.x", "-1", "7.1.1", "4294967296"] {
            assert!(understood(lines, "").is_none(), "{lines}");
        }
        assert!(understood("7", "some").is_none());
        let many = vec!["7"; IN_SIGHT_MAX + 1].join(",");
        assert!(understood(&many, "").is_none());
        let since = Question { since: "x".to_owned(), ..Question::default() };
        assert!(since.understood().is_none());
    }
}
