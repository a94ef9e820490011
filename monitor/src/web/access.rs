//! What a TCP client may see: the figures if it asks for this host, the page with a session's cookie as well, evidence
//! with that on a loopback address. All of it is checked here, before a route is reached.
//!
//! `flatline web` asks the Unix socket for a link; opening it exchanges its token for the cookie. A loopback address
//! keeps out no process of the host, a QEMU that its guest took over as little as another one; the cookie does.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Extension,
    extract::{Query, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{COOKIE, HOST, LOCATION, SET_COOKIE},
        uri::Authority,
    },
    middleware::Next,
    response::Response,
};
use serde::Deserialize;

use super::{
    EVIDENCE, METRICS, Site, hosts, page,
    session::{LINK_LIFE, SESSION_LIFE},
};
use crate::{
    api::{
        RefusalKind, Reply,
        listener::{SocketPeer, TcpPeer},
        response::{only_reading, text},
        view::LinkView,
    },
    config::{EvidenceReaders, Metrics},
};

/// Where a link leads.
pub(super) const LOGIN: &str = "/login";
const COOKIE_NAME: &str = "flatline-session";
/// Says why no evidence is served to this client.
const NO_EVIDENCE: &str = "flatline-no-evidence";
const OTHER_HOST: &str =
    "ask for this host's address or for localhost; names of its own go into metrics.hosts";
const HINT: &str = "the page needs a session: `flatline web` on this host prints a link that opens one; \
                    flatline's figures are at /metrics";

/// Lets a TCP client's request through to its route, or refuses it.
pub(super) async fn check(
    State(site): State<Arc<Site>>,
    Extension(peer): Extension<TcpPeer>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let settings = site.settings();
    let is_ours = site.is_asked_for(&request, &settings.hosts);
    if path == METRICS {
        return if !is_reading {
            only_reading()
        } else if is_ours || hosts::names_none(&request) {
            next.run(request).await
        } else {
            site.complain_of_host(request.headers());
            text(StatusCode::MISDIRECTED_REQUEST, OTHER_HOST)
        };
    }
    if !settings.page {
        return text(StatusCode::NOT_FOUND, "flatline's figures are at /metrics");
    }
    let withheld = withheld(settings.evidence, peer);
    let mut answer = if !is_reading {
        only_reading()
    } else if !is_ours {
        text(StatusCode::MISDIRECTED_REQUEST, OTHER_HOST)
    } else if path != LOGIN && !has_session(&site, request.headers()) {
        // What there isn't is no secret.
        if path == "/" || path.starts_with("/page/") || path.starts_with("/api/") {
            text(StatusCode::FORBIDDEN, HINT)
        } else {
            page::nothing()
        }
    } else {
        match withheld.filter(|_| path.starts_with(EVIDENCE)) {
            Some(why) => text(StatusCode::FORBIDDEN, why),
            None => next.run(request).await,
        }
    };
    if let Some(why) = withheld
        && path == "/api/incidents"
    {
        answer.headers_mut().insert(NO_EVIDENCE, HeaderValue::from_static(why));
    }
    page::confine(&mut answer);
    answer
}

/// Why this client is served no evidence; `None` where it is.
fn withheld(readers: EvidenceReaders, TcpPeer { peer, own }: TcpPeer) -> Option<&'static str> {
    let is_local = own.ip().is_loopback() && peer.ip().is_loopback();
    match readers {
        EvidenceReaders::Off => Some("no evidence is served here: metrics.evidence is \"off\""),
        EvidenceReaders::Root if !is_local => Some(
            "evidence is served on a loopback address only, unless metrics.evidence is \"all\"",
        ),
        EvidenceReaders::Root | EvidenceReaders::All => None,
    }
}

fn has_session(site: &Site, headers: &HeaderMap) -> bool {
    let name = cookie_name(headers);
    let now = Instant::now();
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|it| it.split_once('='));
    pairs.any(|(key, token)| key.trim() == name && site.sessions().is_open(token.trim(), now))
}

/// The cookie's name has the port that the browser asks for: cookies know none, and two hosts may be reached through
/// ports of one address.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match host.and_then(|host| host.port_u16()) {
        Some(port) => format!("{COOKIE_NAME}-{port}"),
        None => COOKIE_NAME.to_owned(),
    }
}

#[derive(Deserialize)]
pub(super) struct Token {
    token: String,
}

/// Exchanges a link's token for a cookie, and leads to the page.
pub(super) async fn login(
    State(site): State<Arc<Site>>,
    Extension(peer): Extension<TcpPeer>,
    method: Method,
    headers: HeaderMap,
    Query(Token { token }): Query<Token>,
) -> Response {
    // What only looks at the head, such as a preview, is not to use the link up.
    let session = (method == Method::GET).then(|| site.sessions().open(&token, Instant::now()));
    let Some(session) = session.flatten() else {
        let advice = "this link was used, or is too old: `flatline web` prints another one";
        return text(StatusCode::FORBIDDEN, advice);
    };
    let is_tls = peer.peer.ip().is_loopback()
        && headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let cookie = format!(
        "{}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{}",
        cookie_name(&headers),
        SESSION_LIFE.as_secs(),
        if is_tls { "; Secure" } else { "" }
    );
    let mut answer = text(StatusCode::SEE_OTHER, "the page is at /");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

/// Hands out a link to a client of the Unix socket.
pub(super) async fn link(
    State(site): State<Arc<Site>>,
    Extension(SocketPeer { uid }): Extension<SocketPeer>,
) -> Reply {
    let Metrics { listen, page, .. } = site.settings();
    let Some(address) = listen.filter(|_| page) else {
        let why = "there is no page: metrics.listen is \"off\", or metrics.page is false";
        return Reply::error(RefusalKind::Nothing, why);
    };
    let Ok(token) = site.sessions().link(Instant::now()) else {
        return Reply::error(RefusalKind::Internal, "the system has no random numbers");
    };
    tracing::info!(uid, "a link to the page was handed out");
    let mut reached = address;
    if address.ip().is_unspecified() {
        reached.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Reply::ok(&LinkView {
        url: format!("http://{reached}{LOGIN}?token={token}"),
        valid_seconds: LINK_LIFE.as_secs(),
        expires_at: SystemTime::now() + LINK_LIFE,
    })
}
