//! What the page asks for: JSON of the last tick's snapshot, and of the incidents on disk.
//!
//! `/api/show?pid=PID` says what the command of this name says, `line` beside it draws it. `/api/status` and `/api/lines` are all
//! VMs in one: for scripts, and for a page of an earlier version that is open still. What all clients are told alike is made
//! once a tick, however many ask; the list is told by [`super::page_list`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{
    Site,
    page_snapshot::{PageSnapshot, Subscriber},
};
use crate::{
    api::{
        response::{Body, text},
        view::{HostView, LineView, LinesView, ShowView, VmView},
    },
    history::{HISTORY_TICKS, RateHistory},
    rfc3339,
    single_flight::SingleFlight,
    storage::incidents::IncidentStore,
};

/// The newest incidents, so many; `flatline incidents` has all.
const INCIDENTS_MAX: usize = 200;
/// They are read from disk so often at most.
const INCIDENTS_EVERY: Duration = Duration::from_secs(2);
/// So many ticks stand beside a status: a page that missed more asks for all lines.
const LAST_TICKS: usize = 5;

/// What the page is told, and from what.
#[derive(Debug)]
pub(super) struct PageData {
    pub(super) subscriber: Subscriber,
    pub(super) lines: RateHistory,
    store: Arc<IncidentStore>,
    begun: Instant,
    /// By the tick that they are of.
    status: SingleFlight<u64, Body>,
    all_lines: SingleFlight<u64, Body>,
    /// By the time.
    incidents: SingleFlight<u64, Body>,
}

/// The answer to `/api/status`.
#[derive(Serialize)]
struct StatusPage<'a> {
    #[serde(flatten)]
    as_of: AsOf,
    host: &'a HostView,
    vms: &'a [VmView],
    lines: LinesPage,
}

/// The answer to `/api/lines`.
#[derive(Serialize)]
struct LinesPage {
    /// How many ticks there were.
    tick: u64,
    #[serde(flatten)]
    lines: LinesView,
}

/// The answer to `/api/show`.
#[derive(Serialize)]
struct ShowPage<'a> {
    #[serde(flatten)]
    as_of: AsOf,
    interval_seconds: f64,
    /// `None` where there is none, or no longer.
    vm: Option<&'a ShowView>,
    line: Option<LineView>,
}

/// Which tick an answer is of.
#[derive(Clone, Copy, Serialize)]
pub(super) struct AsOf {
    tick: u64,
    #[serde(with = "rfc3339")]
    as_of: std::time::SystemTime,
}

impl From<&PageSnapshot> for AsOf {
    fn from(snapshot: &PageSnapshot) -> Self {
        Self { tick: snapshot.tick, as_of: snapshot.at }
    }
}

impl PageData {
    /// Of these sources.
    pub(super) fn new(
        subscriber: Subscriber,
        lines: RateHistory,
        store: Arc<IncidentStore>,
    ) -> Self {
        Self {
            subscriber,
            lines,
            store,
            begun: Instant::now(),
            status: SingleFlight::default(),
            all_lines: SingleFlight::default(),
            incidents: SingleFlight::default(),
        }
    }
}

pub(super) type Shared = State<Arc<Site>>;
pub(super) type Answer = Result<Response, Response>;

pub(super) fn no_tick() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "nothing was sampled so far, or for a while")
}

pub(super) fn failed(error: std::io::Error) -> Response {
    debug!("no answer for the page: {error}");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the answer can't be made")
}

/// All VMs, as `flatline status` has them, and their last ticks.
pub(super) async fn status(State(site): Shared, headers: HeaderMap) -> Answer {
    let data = &site.data;
    let snapshot = data.subscriber.all().await.ok_or_else(no_tick)?;
    let (tick, lines) = (snapshot.tick, data.lines.clone());
    let make = move || {
        let (tick, lines) = lines.last(LAST_TICKS);
        let (host, vms) = (&snapshot.host, snapshot.vms.as_deref().unwrap_or_default());
        let lines = LinesPage { tick, lines };
        Body::json(&StatusPage { as_of: AsOf::from(&*snapshot), host, vms, lines })
    };
    Ok(data.status.get(tick, make).await.map_err(failed)?.answer(&headers).await)
}

/// The last ticks of all VMs.
pub(super) async fn lines(State(site): Shared, headers: HeaderMap) -> Answer {
    let data = &site.data;
    let snapshot = data.subscriber.all().await.ok_or_else(no_tick)?;
    let lines = data.lines.clone();
    let make = move || {
        let (tick, lines) = lines.last(HISTORY_TICKS);
        Body::json(&LinesPage { tick, lines })
    };
    Ok(data.all_lines.get(snapshot.tick, make).await.map_err(failed)?.answer(&headers).await)
}

/// The newest incidents.
pub(super) async fn incidents(State(site): Shared, headers: HeaderMap) -> Answer {
    let data = &site.data;
    let store = data.store.clone();
    let number = data.begun.elapsed().as_secs() / INCIDENTS_EVERY.as_secs();
    let make = move || Body::json(&store.newest(INCIDENTS_MAX));
    Ok(data.incidents.get(number, make).await.map_err(failed)?.answer(&headers).await)
}

/// Which VM.
#[derive(Deserialize)]
pub(super) struct Wanted {
    pid: u32,
}

/// One VM, as `flatline show` has it.
pub(super) async fn show(
    State(site): Shared,
    Query(Wanted { pid }): Query<Wanted>,
    headers: HeaderMap,
) -> Answer {
    let data = &site.data;
    let snapshot = data.subscriber.vm(pid).await.ok_or_else(no_tick)?;
    let page = ShowPage {
        as_of: AsOf::from(&*snapshot),
        interval_seconds: snapshot.interval.as_secs_f64(),
        vm: snapshot.shown.get(&pid).and_then(Option::as_ref),
        line: data.lines.of(pid),
    };
    Ok(Body::json(&page).map_err(failed)?.answer(&headers).await)
}
