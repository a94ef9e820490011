//! The HTTP listener: read only, for whoever may open its address, which is this host alone unless configured otherwise.
//!
//! No client can hold anything: a connection serves one request within [`TIME_LIMIT`], and where there are
//! [`CONNECTIONS_MAX`], the oldest one makes room for the next. An address that can't be listened on (yet) is tried
//! again; nothing else waits for it.

mod api;
mod evidence;
mod hosts;
mod page;
pub mod page_snapshot;
mod peer;
mod reply;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpListener as BlockingListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    config::EvidenceReaders, history::RateHistory, metrics::Exposition,
    storage::incidents::IncidentStore,
};
use api::Api;

/// Connections at a time; the oldest one is cut off for one more.
pub const CONNECTIONS_MAX: usize = 16;
/// Time in which a connection must have asked, and taken the answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Of that, for the request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// The most that is kept of a request: hyper's least.
const HEAD_MAX_BYTES: usize = 8192;
/// Header fields of a request.
const HEADERS_MAX: usize = 64;
/// Time from one attempt to listen to the next.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// After a failed accept, which is a lack of file descriptors and fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served.
#[derive(Debug)]
pub struct Site {
    /// The figures.
    pub exposition: Exposition,
    /// The page, and what it asks for; `None`: there is none.
    pub pages: Option<Pages>,
}

/// The page, and what it asks for.
#[derive(Debug)]
pub struct Pages {
    hosts: Vec<String>,
    api: Api,
}

/// Where the page has what it shows from, and whom it is for.
#[derive(Debug)]
pub struct Sources {
    /// What a tick leaves.
    pub subscriber: page_snapshot::Subscriber,
    /// The VMs' lines.
    pub lines: RateHistory,
    /// The incidents.
    pub store: Arc<IncidentStore>,
    /// Where their evidence is.
    pub state_dir: PathBuf,
    /// Who may have that.
    pub evidence: EvidenceReaders,
    /// Names by which browsers may ask.
    pub hosts: Vec<String>,
}

impl Pages {
    /// Of these sources.
    pub fn new(sources: Sources) -> Self {
        let Sources { subscriber, lines, store, state_dir, evidence, hosts } = sources;
        let evidence = evidence::Evidence::new(state_dir, evidence);
        Self { hosts, api: Api::new(subscriber, lines, store, evidence) }
    }
}

/// Both ends of a client's connection.
#[derive(Clone, Copy, Debug)]
struct Visitor {
    peer: SocketAddr,
    own: SocketAddr,
}

/// The listener, which ends with it.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    complaint: watch::Receiver<Option<String>>,
}

impl Server {
    /// Listens on `address` and answers from now on. Call it within a tokio runtime.
    pub fn start(address: SocketAddr, site: Site) -> Self {
        let (complain, complaint) = watch::channel(None);
        let listener = listen(address, &complain);
        let task = async move {
            let mut listener = listener;
            let listener = loop {
                match listener {
                    Some(listener) => break listener,
                    None => sleep(AGAIN_AFTER).await,
                }
                listener = listen(address, &complain);
            };
            serve(listener, Arc::new(site)).await;
        };
        Self { task: tokio::spawn(task), complaint }
    }

    /// Why nothing is served, as long as nothing is.
    pub fn complaint(&self) -> Option<String> {
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

/// Accepts clients until it is dropped, and cuts them all off then.
async fn serve(listener: TcpListener, site: Arc<Site>) {
    let mut connections: VecDeque<Connection> = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("can't accept an HTTP client: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.0.is_finished());
        if connections.len() == CONNECTIONS_MAX {
            connections.pop_front();
        }
        // A client that is gone has no address any more.
        let Ok(own) = stream.local_addr() else { continue };
        let visitor = Visitor { peer, own };
        connections.push_back(Connection(tokio::spawn(converse(stream, visitor, site.clone()))));
    }
}

/// A client's task, which ends with it.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn converse(stream: TcpStream, visitor: Visitor, site: Arc<Site>) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { routes::answer(&request, &site, visitor).await }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(TIME_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("an HTTP client went away: {error}"),
        Err(_) => debug!("an HTTP client took too long"),
    }
}
