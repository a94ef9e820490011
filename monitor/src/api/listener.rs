//! Accepting clients of either listener, within bounds: a connection serves one request within its time, and where there
//! are as many as may be, one makes [`room`] for the next.
//!
//! A new client is never refused as *busy* for the lack of a place. That would let whatever opens all places and says
//! nothing keep out `flatline status` for as long as it likes, by opening each again when its time is over; so it loses
//! them to those that come after it. Places are shared out by user, so that its own are what it loses.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router};
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    peer_user,
    room::{self, Held, Party},
};

/// Time for a request's head.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// The most that is kept of a request's head: hyper's least.
pub(crate) const HEAD_MAX_BYTES: usize = 8192;
/// Header fields of a request.
const HEADERS_MAX: usize = 64;
/// After a failed accept, which is a lack of file descriptors and fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients of a listener may take together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Time in which a connection must have asked, and taken the answer.
    pub(crate) time: Duration,
}

/// A listening socket; routes find its clients' [`Self::Peer`] as an [`Extension`].
pub(crate) trait Accept {
    /// A client's connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is at its other end.
    type Peer: Clone + Into<Party> + Send + Sync + 'static;

    /// The next client.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

/// The process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketPeer {
    /// The user id that it connected with.
    pub(crate) uid: u32,
}

/// Both ends of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpPeer {
    /// The client's.
    pub(crate) peer: SocketAddr,
    /// The daemon's.
    pub(crate) own: SocketAddr,
}

impl From<SocketPeer> for Party {
    fn from(SocketPeer { uid }: SocketPeer) -> Self {
        Self::User(uid)
    }
}

impl From<TcpPeer> for Party {
    fn from(TcpPeer { peer, own }: TcpPeer) -> Self {
        peer_user::uid_of(peer, own).map_or(Self::Address(peer.ip()), Self::User)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Peer = SocketPeer;

    async fn next(&self) -> io::Result<(UnixStream, SocketPeer)> {
        let (stream, _) = self.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, SocketPeer { uid }))
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Peer = TcpPeer;

    async fn next(&self) -> io::Result<(TcpStream, TcpPeer)> {
        loop {
            let (stream, peer) = self.accept().await?;
            // A client that is gone has no address any more.
            if let Ok(own) = stream.local_addr() {
                return Ok((stream, TcpPeer { peer, own }));
            }
        }
    }
}

/// Serves clients by `routes` until it is dropped, and cuts them all off then.
pub(crate) async fn serve<L: Accept>(listener: L, limits: Limits, routes: Router) {
    let mut connections: Vec<Connection> = Vec::with_capacity(limits.connections);
    loop {
        let (stream, peer) = match listener.next().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("can't accept a client: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.task.is_finished());
        let party = peer.clone().into();
        if connections.len() >= limits.connections {
            let held: Vec<_> = connections.iter().map(Connection::held).collect();
            if let Some(place) = room::displaced(&held, party) {
                connections.remove(place);
            }
        }
        let routes = routes.clone().layer(Extension(peer));
        let has_asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(converse(stream, limits.time, routes, has_asked.clone()));
        connections.push(Connection { task, party, has_asked });
    }
}

/// A client's task, which ends with it.
struct Connection {
    task: JoinHandle<()>,
    party: Party,
    has_asked: Arc<AtomicBool>,
}

impl Connection {
    fn held(&self) -> Held {
        Held { party: self.party, has_asked: self.has_asked.load(Ordering::Relaxed) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one client's request, and notes when its head is there.
async fn converse<S>(stream: S, limit: Duration, routes: Router, has_asked: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(limit, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client went away: {error}"),
        Err(_) => debug!("a client took too long"),
    }
}
