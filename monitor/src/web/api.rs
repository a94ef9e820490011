//! What the page asks for: JSON of what the last tick left, and of what is on disk.
//!
//! `/api/status` and `/api/show?pid=PID` say what the commands of these names say, `/api/lines` and what stands beside
//! them under `lines` draw them. All that is made for everybody is made once a tick, however many ask.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, header::HeaderName};
use serde::Serialize;
use tracing::debug;

use super::{
    evidence::Evidence,
    page_snapshot::{PageSnapshot, Subscriber},
    reply::{Body, text},
};
use crate::{
    api::view::{LineView, LinesView, ShowView, StatusView},
    history::{HISTORY_TICKS, RateHistory},
    rfc3339,
    single_flight::SingleFlight,
    storage::incidents::IncidentStore,
};

/// The newest incidents, so many; `flatline incidents` has all.
const INCIDENTS_MAX: usize = 200;
/// They are read from disk so often at most.
const INCIDENTS_EVERY: Duration = Duration::from_secs(2);
/// So many ticks stand beside a status: who missed more asks for all lines.
const LAST_TICKS: usize = 5;
/// Says why this visitor is served no evidence, where he isn't.
const NO_EVIDENCE: HeaderName = HeaderName::from_static("flatline-no-evidence");

/// What the API serves from.
#[derive(Debug)]
pub(super) struct Api {
    subscriber: Subscriber,
    lines: RateHistory,
    store: Arc<IncidentStore>,
    pub(super) evidence: Evidence,
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
    #[serde(flatten)]
    status: &'a StatusView,
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
struct AsOf {
    tick: u64,
    #[serde(with = "rfc3339")]
    as_of: std::time::SystemTime,
}

impl From<&PageSnapshot> for AsOf {
    fn from(snapshot: &PageSnapshot) -> Self {
        Self { tick: snapshot.tick, as_of: snapshot.at }
    }
}

impl Api {
    pub(super) fn new(
        subscriber: Subscriber,
        lines: RateHistory,
        store: Arc<IncidentStore>,
        evidence: Evidence,
    ) -> Self {
        Self {
            subscriber,
            lines,
            store,
            evidence,
            begun: Instant::now(),
            status: SingleFlight::default(),
            all_lines: SingleFlight::default(),
            incidents: SingleFlight::default(),
        }
    }

    /// The answer to a request for `path`, which is all after `/api/`; `None`: there is nothing of that name.
    pub(super) async fn answer<B>(
        &self,
        path: &str,
        request: &Request<B>,
        visitor: super::Visitor,
    ) -> Option<Response<Full<Bytes>>> {
        if let Some(file) = path.strip_prefix("evidence/") {
            return Some(self.evidence.answer(file, visitor).await);
        }
        let body = match path {
            "status" => self.status().await,
            "lines" => self.all_lines().await,
            "incidents" => self.incidents().await,
            "show" => match pid(request) {
                Some(pid) => self.show(pid).await,
                None => Err(text(StatusCode::BAD_REQUEST, "say which VM: /api/show?pid=PID")),
            },
            _ => return None,
        };
        let mut answer = body.map_or_else(|refusal| refusal, |body| body.answer(request));
        if path == "incidents"
            && let Err(why) = self.evidence.is_for(visitor).await
        {
            answer.headers_mut().insert(NO_EVIDENCE, why.header());
        }
        Some(answer)
    }

    async fn status(&self) -> Answer {
        let snapshot = self.subscriber.list().await.ok_or_else(no_tick)?;
        let (tick, lines) = (snapshot.tick, self.lines.clone());
        let make = move || {
            let (tick, lines) = lines.last(LAST_TICKS);
            let lines = LinesPage { tick, lines };
            Body::json(&StatusPage {
                as_of: AsOf::from(&*snapshot),
                status: &snapshot.status,
                lines,
            })
        };
        self.status.get(tick, make).await.map_err(failed)
    }

    async fn all_lines(&self) -> Answer {
        let snapshot = self.subscriber.list().await.ok_or_else(no_tick)?;
        let lines = self.lines.clone();
        let make = move || {
            let (tick, lines) = lines.last(HISTORY_TICKS);
            Body::json(&LinesPage { tick, lines })
        };
        self.all_lines.get(snapshot.tick, make).await.map_err(failed)
    }

    async fn show(&self, pid: u32) -> Answer {
        let snapshot = self.subscriber.vm(pid).await.ok_or_else(no_tick)?;
        let line = self.lines.of(pid);
        let interval_seconds = snapshot.interval.as_secs_f64();
        let vm = snapshot.shown.get(&pid);
        Body::json(&ShowPage { as_of: AsOf::from(&*snapshot), interval_seconds, vm, line })
            .map_err(failed)
    }

    async fn incidents(&self) -> Answer {
        let store = self.store.clone();
        let number = self.begun.elapsed().as_secs() / INCIDENTS_EVERY.as_secs();
        let make = move || Body::json(&store.newest(INCIDENTS_MAX));
        self.incidents.get(number, make).await.map_err(failed)
    }
}

type Answer = Result<Body, Response<Full<Bytes>>>;

fn no_tick() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "nothing was sampled so far, or for a while")
}

fn failed(error: std::io::Error) -> Response<Full<Bytes>> {
    debug!("no answer for the page: {error}");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the answer can't be made")
}

fn pid<B>(request: &Request<B>) -> Option<u32> {
    request.uri().query()?.strip_prefix("pid=")?.parse().ok()
}
