//! One POST, within bounds: of time in all, of connections that are tried, and of what is read of the answer.
//!
//! Each delivery has a connection of its own, and goes nowhere but to the configured address: no redirect is followed,
//! and no proxy is asked for. Names are looked up on a thread of their own, as the C library may take its time, and the end
//! of the daemon must not wait for that.

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use tokio_util::task::AbortOnDropHandle;

use super::url::Url;
use flatline_qemu::text::error_chain;
use flatline_samples::printable;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// The head of an answer.
const HEAD_MAX_BYTES: usize = 16 << 10;
/// What is read of an answer's body, to quote it.
const BODY_MAX_BYTES: usize = 4 << 10;
/// Characters of it that are quoted.
const QUOTED_CHARS: usize = 200;
/// A body that comes slowly is not waited for: the status said it all.
const BODY_LIMIT: Duration = Duration::from_secs(1);

/// Why a POST was not delivered.
#[derive(Debug, Error)]
pub(crate) enum PostError {
    /// Its name has no address.
    #[error("no address is known of {host}: {why}; check its name and this host's DNS")]
    Unknown {
        /// The name.
        host: String,
        /// Why not.
        why: String,
    },
    /// Nothing listens there.
    #[error("cannot connect to {at}: check that it runs and that no firewall is between")]
    Connect {
        /// Where.
        at: String,
        /// Why not.
        source: io::Error,
    },
    /// No encrypted connection can be made.
    #[error(
        "no TLS with {host}; where it has a CA of its own, add that to this host's \
         (update-ca-certificates), or name it in the daemon's SSL_CERT_FILE"
    )]
    Tls {
        /// The other side.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// There are no certificates to check its own by.
    #[error("this host trusts no certificates at all: install ca-certificates ({0})")]
    NoRoots(String),
    /// What came is no answer.
    #[error("{host} doesn't answer in HTTP")]
    Http {
        /// The receiver.
        host: String,
        /// What came.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{host} did not answer within {limit:?}")]
    TimeLimit {
        /// The receiver.
        host: String,
        /// The time that it had.
        limit: Duration,
    },
    /// It answered, and hasn't taken it now.
    #[error("{said}")]
    Later {
        /// Its answer.
        said: String,
        /// The pause that it asked for.
        after: Option<Duration>,
    },
    /// It answered, and will never take it.
    #[error("{0}")]
    Never(String),
}

impl PostError {
    /// Whether to try again makes no sense.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Never(_))
    }

    /// The pause that the receiver asked for.
    pub(crate) fn asked_pause(&self) -> Option<Duration> {
        match self {
            Self::Later { after, .. } => *after,
            _ => None,
        }
    }
}

/// What a target needs to be posted to, beyond its address.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Read from this host's store once, and again after a failure.
    tls: Option<Arc<ClientConfig>>,
    /// A name is being looked up; a look-up that hangs is not followed by others.
    looks_up: Arc<AtomicBool>,
}

impl Client {
    /// Posts `body` as JSON, and is done when the receiver has said that it has it.
    ///
    /// # Errors
    /// Whatever else happens, within `limit`.
    pub(crate) async fn post(
        &mut self,
        url: &Url,
        headers: &[(&'static str, String)],
        body: String,
        limit: Duration,
    ) -> Result<(), PostError> {
        let posted = timeout(limit, self.exchange(url, headers, body)).await;
        let late = || PostError::TimeLimit { host: url.authority(), limit };
        let result = posted.unwrap_or_else(|_| Err(late()));
        if matches!(result, Err(PostError::Tls { .. })) {
            self.tls = None;
        }
        result
    }

    async fn exchange(
        &mut self,
        url: &Url,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<(), PostError> {
        let stream = self.connect(url).await?;
        if !url.is_tls {
            return send(url, headers, body, stream).await;
        }
        let connector = TlsConnector::from(self.tls()?);
        let of = |source| PostError::Tls { host: url.authority(), source };
        let name = ServerName::try_from(url.host.clone()).map_err(|e| of(io::Error::other(e)))?;
        let stream = connector.connect(name, stream).await.map_err(of)?;
        send(url, headers, body, stream).await
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, PostError> {
        let mut last = None;
        for address in self.look_up(url).await?.into_iter().take(ADDRESSES_MAX) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some((address, error)),
            }
        }
        Err(match last {
            Some((at, source)) => PostError::Connect { at: at.to_string(), source },
            None => unknown(url, "it has none"),
        })
    }

    async fn look_up(&self, url: &Url) -> Result<Vec<SocketAddr>, PostError> {
        if let Ok(address) = url.host.parse() {
            return Ok(vec![SocketAddr::new(address, url.port)]);
        }
        if self.looks_up.swap(true, Ordering::AcqRel) {
            return Err(unknown(url, "the last look-up has not ended"));
        }
        let (done, found) = oneshot::channel();
        let (asked, looks_up) = ((url.host.clone(), url.port), Arc::clone(&self.looks_up));
        let ask = move || {
            let addresses = asked.to_socket_addrs().map(Vec::from_iter);
            looks_up.store(false, Ordering::Release);
            // Its caller may wait no longer.
            let _ = done.send(addresses);
        };
        if let Err(error) = std::thread::Builder::new().name("look-up".to_owned()).spawn(ask) {
            self.looks_up.store(false, Ordering::Release);
            return Err(unknown(url, &error.to_string()));
        }
        match found.await {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(unknown(url, &error.to_string())),
            Err(_) => Err(unknown(url, "the look-up failed")),
        }
    }

    fn tls(&mut self) -> Result<Arc<ClientConfig>, PostError> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            return Err(PostError::NoRoots(printable(&why.join(", "), QUOTED_CHARS)));
        }
        let provider = Arc::new(ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| PostError::NoRoots(error.to_string()))?;
        let tls = Arc::new(versions.with_root_certificates(roots).with_no_client_auth());
        Ok(self.tls.insert(tls).clone())
    }
}

fn unknown(url: &Url, why: &str) -> PostError {
    PostError::Unknown { host: url.host.clone(), why: printable(why, QUOTED_CHARS) }
}

async fn send<S>(
    url: &Url,
    headers: &[(&'static str, String)],
    body: String,
    stream: S,
) -> Result<(), PostError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let of = |source| PostError::Http { host: url.authority(), source };
    let mut request = Request::post(&*url.path)
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("flatline/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| PostError::Never(format!("no request can be made: {error}")))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_MAX_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(of)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Whatever ends it, the request hears of it.
        let _ = connection.await;
    }));
    let answer = sender.send_request(request).await.map_err(of)?;
    judge(url, answer).await
}

async fn judge(url: &Url, answer: Response<Incoming>) -> Result<(), PostError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let after = header(RETRY_AFTER).and_then(|text| retry_after(text, SystemTime::now()));
    let elsewhere = header(LOCATION).map(|text| printable(text, QUOTED_CHARS));
    let (host, code) = (url.authority(), status.as_u16());
    if status.is_redirection() {
        let to = elsewhere.unwrap_or_else(|| "elsewhere".to_owned());
        let said = format!("{host} answered {code}: it is at {to}; redirects are not followed");
        return Err(PostError::Never(format!("{said}, so configure that URL")));
    }
    let mut said = format!("{host} answered {status}");
    let quoted = quote(answer.into_body()).await;
    if !quoted.is_empty() {
        said.push_str(": ");
        said.push_str(&quoted);
    }
    if may_succeed_later(status) {
        Err(PostError::Later { said, after })
    } else {
        Err(PostError::Never(format!("{said}; check its URL and secret")))
    }
}

/// Whether the same request may be taken another time.
fn may_succeed_later(status: StatusCode) -> bool {
    let may = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || may.contains(&status)
}

/// The pause that a receiver asks for: in seconds, or until a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// The beginning of what it says, in one line.
async fn quote(mut body: Incoming) -> String {
    let mut text = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(data) = frame.data_ref() {
                let room = BODY_MAX_BYTES - text.len();
                text.extend_from_slice(&data[..room.min(data.len())]);
            }
            if text.len() >= BODY_MAX_BYTES {
                break;
            }
        }
    };
    // What came until then is quoted.
    let _ = timeout(BODY_LIMIT, read).await;
    let text = String::from_utf8_lossy(&text);
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "), QUOTED_CHARS)
}

/// What went wrong, in one line.
pub(super) fn words(error: &PostError) -> String {
    printable(&error_chain(error), 4 * QUOTED_CHARS)
}
