//! The web page and the figures: routes that answer from snapshots, never from the loop.
//!
//! The Unix socket has all of them, and hands out links to the page; the TCP listener has them behind [`access`], for
//! this host alone unless configured otherwise. An address that can't be listened on (yet) is tried again; nothing else
//! waits for it.

mod access;
mod evidence;
mod hosts;
mod page;
mod page_data;
mod page_list;
pub(crate) mod page_rows;
pub(crate) mod page_snapshot;
mod session;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener as BlockingListener},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode, Uri,
        header::{ACCEPT, HOST},
    },
    middleware,
    response::Response,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};
use tracing::{info, warn};

use crate::{
    api::{
        listener::{self, Limits},
        response::{response, text},
    },
    config::Metrics,
    history::RateHistory,
    metrics::{Exposition, Format},
    storage::incidents::IncidentStore,
};
use flatline_samples::{MAX_TEXT_CHARS, printable};

use evidence::EvidenceFiles;
use page_data::PageData;
use session::Sessions;

/// Connections at a time; the oldest one is cut off for one more.
pub(crate) const CONNECTIONS_MAX: usize = 16;
/// Time in which a connection must have asked, and taken the answer.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Time from one attempt to listen to the next.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Where the figures are.
const METRICS: &str = "/metrics";
/// Where evidence is, by incident and file.
const EVIDENCE: &str = "/api/evidence/";

/// What the routes answer from.
#[derive(Debug)]
pub(crate) struct Site {
    exposition: Exposition,
    data: PageData,
    evidence: EvidenceFiles,
    sessions: Mutex<Sessions>,
    settings: Mutex<Metrics>,
    own_names: Vec<String>,
    /// Says once that the figures were asked for by another name.
    other_host: Once,
}

/// Where a [`Site`] has what it shows from.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The figures.
    pub exposition: Exposition,
    /// What a tick publishes for the page.
    pub subscriber: page_snapshot::Subscriber,
    /// The VMs' last ticks.
    pub lines: RateHistory,
    /// The incidents.
    pub store: Arc<IncidentStore>,
    /// Where their evidence is.
    pub state_dir: PathBuf,
}

impl Site {
    /// Of these sources.
    pub(crate) fn new(sources: Sources, settings: &Metrics) -> Arc<Self> {
        let Sources { exposition, subscriber, lines, store, state_dir } = sources;
        Arc::new(Self {
            exposition,
            data: PageData::new(subscriber, lines, store),
            evidence: EvidenceFiles::new(state_dir),
            sessions: Mutex::new(Sessions::new()),
            settings: Mutex::new(settings.clone()),
            own_names: hosts::own_names(),
            other_host: Once::new(),
        })
    }

    /// What the Unix socket has beside the loop's routes.
    pub(crate) fn socket_routes(self: &Arc<Self>) -> Router {
        routes().route("/web", post(access::link)).with_state(self.clone())
    }

    /// What the TCP listener has, for those that may see it.
    fn tcp_routes(self: &Arc<Self>) -> Router {
        let check = middleware::from_fn_with_state(self.clone(), access::check);
        routes().route(access::LOGIN, get(access::login)).layer(check).with_state(self.clone())
    }

    /// Whether `request` asks for this host, for which `names` are configured.
    fn is_asked_for(&self, request: &Request, names: &[String]) -> bool {
        hosts::is_ours(request, names) || hosts::is_ours(request, &self.own_names)
    }

    /// Has the log say by which name the figures were asked for in vain, once: it may be a Prometheus that is told to.
    fn complain_of_host(&self, headers: &HeaderMap) {
        let host = headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
        let host = printable(&host.unwrap_or_default(), MAX_TEXT_CHARS);
        self.other_host.call_once(|| {
            warn!(
                "{METRICS} was asked for as {host:?}, and refused: if that is this host, add the name to metrics.hosts"
            );
        });
    }

    fn settings(&self) -> Metrics {
        lock(&self.settings).clone()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }
}

/// What the locks guard is valid after every statement, so a panic elsewhere doesn't spoil it.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

fn routes() -> Router<Arc<Site>> {
    let evidence = |State(site): State<Arc<Site>>, uri: Uri| async move {
        // As it was asked for: no part of a name is decoded.
        site.evidence.answer(uri.path().strip_prefix(EVIDENCE).unwrap_or_default()).await
    };
    Router::new()
        .route(METRICS, get(metrics))
        .route("/api/list", get(page_list::list))
        .route("/api/status", get(page_data::status))
        .route("/api/lines", get(page_data::lines))
        .route("/api/show", get(page_data::show))
        .route("/api/incidents", get(page_data::incidents))
        .route("/api/evidence/{*file}", get(evidence))
        .fallback(page::file)
}

async fn metrics(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    match site.exposition.text(format).await {
        Some(body) => response(StatusCode::OK, format.content_type(), body),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "nothing was sampled so far"),
    }
}

/// The TCP listener, which ends with it.
#[derive(Debug)]
pub(crate) struct Server {
    task: JoinHandle<()>,
    complaint: watch::Receiver<Option<String>>,
}

impl Server {
    /// Serves `site` as `settings` have it from now on; `None` where they have no address. Call it within a tokio runtime.
    pub(crate) fn start(site: &Arc<Site>, settings: &Metrics) -> Option<Self> {
        lock(&site.settings).clone_from(settings);
        let address = settings.listen?;
        let (complain, complaint) = watch::channel(None);
        let listener = listen(address, &complain);
        let routes = site.tcp_routes();
        let task = async move {
            let mut listener = listener;
            let listener = loop {
                match listener {
                    Some(listener) => break listener,
                    None => sleep(AGAIN_AFTER).await,
                }
                listener = listen(address, &complain);
            };
            let limits = Limits { connections: CONNECTIONS_MAX, time: TIME_LIMIT };
            listener::serve(listener, limits, routes).await;
        };
        Some(Self { task: tokio::spawn(task), complaint })
    }

    /// Why nothing is served, as long as nothing is.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.complaint.borrow().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens, or says once why it can't.
fn listen(address: SocketAddr, complain: &watch::Sender<Option<String>>) -> Option<TcpListener> {
    let listener = bind(address);
    let complaint = listener.as_ref().err().map(|error| format!("no metrics: {address}: {error}"));
    let is_news = complain.send_if_modified(|known| {
        let is_news = *known != complaint;
        known.clone_from(&complaint);
        is_news
    });
    match complaint {
        None => info!(%address, "serving metrics"),
        Some(complaint) if is_news => {
            warn!("{complaint}; tried again every {} s", AGAIN_AFTER.as_secs());
        }
        Some(_) => {}
    }
    listener.ok()
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = BlockingListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
