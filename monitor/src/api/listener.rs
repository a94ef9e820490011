//! Accepting clients of either listener, within bounds: a connection serves one request within its time, and where there
//! are as many as may be, the oldest one makes room for the next.
//!
//! A new client is never refused as *busy* for the lack of a place. That would let whatever opens all places and says
//! nothing keep out `flatline status` for as long as it likes, by opening each again when its time is over; so it loses
//! them to those that come after it. A request takes milliseconds, and loses its place only if as many clients as there
//! are places come meanwhile: its command then ends as if the daemon could not be reached, and can be given again.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
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
    /// Who is at its other end.
    type Peer: Clone + Send + Sync + 'static;

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
    let mut connections: VecDeque<Connection> = VecDeque::with_capacity(limits.connections);
    loop {
        let (stream, peer) = match listener.next().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("can't accept a client: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.0.is_finished());
        if connections.len() == limits.connections {
            connections.pop_front();
        }
        let routes = routes.clone().layer(Extension(peer));
        connections.push_back(Connection(tokio::spawn(converse(stream, limits.time, routes))));
    }
}

/// A client's task, which ends with it.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn converse<S>(stream: S, limit: Duration, routes: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match timeout(limit, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client went away: {error}"),
        Err(_) => debug!("a client took too long"),
    }
}
