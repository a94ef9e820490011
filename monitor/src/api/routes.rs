//! The routes that the loop answers, which only the Unix socket has.

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequest, Query, Request as HttpRequest, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::{
    CONNECTIONS_MAX, REQUEST_MAX_BYTES, RefusalKind, Reply, Request, TIME_LIMIT,
    listener::{self, Limits},
    response::{JSON, response},
};

/// A request on its way to the task that answers it.
#[derive(Debug)]
pub(crate) struct ControlRequest {
    /// What is asked.
    pub request: Request,
    /// Where the reply goes; the client may be gone by then.
    pub reply: oneshot::Sender<Reply>,
}

type Requests = mpsc::Sender<ControlRequest>;

/// Serves clients of the Unix socket until it is dropped: `requests` go to the loop, and the routes of `others` are
/// there as well. A client that takes longer than [`TIME_LIMIT`] is cut off.
pub(crate) async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<ControlRequest>,
    others: Router,
) {
    let limits = Limits { connections: CONNECTIONS_MAX, time: TIME_LIMIT };
    listener::serve(listener, limits, routes(requests).merge(others)).await;
}

fn routes(requests: Requests) -> Router {
    let show = |State(to), Fields(OneVm { vm })| ask(to, Request::Show { vm });
    let lines = |State(to), Fields(AnyVm { vm })| ask(to, Request::Lines { vm });
    let incidents = |State(to), Fields(AnyVm { vm })| ask(to, Request::Incidents { vm });
    let evidence = |State(to), Fields(Part { id, file, offset })| {
        ask(to, Request::Evidence { id, file, offset })
    };
    let hold = |State(to), Fields(Span { vm, seconds })| ask(to, Request::Hold { vm, seconds });
    let release = |State(to), Fields(AnyVm { vm })| ask(to, Request::Release { vm });
    let record = |State(to), Fields(AnyVm { vm })| ask(to, Request::Record { vm });
    Router::new()
        .route("/status", get(|State(to)| ask(to, Request::Status)))
        .route("/show", get(show))
        .route("/lines", get(lines))
        .route("/incidents", get(incidents))
        .route("/evidence", get(evidence))
        .route("/hold", post(hold))
        .route("/release", post(release))
        .route("/record", post(record))
        .layer(DefaultBodyLimit::max(REQUEST_MAX_BYTES))
        .with_state(requests)
}

async fn ask(requests: Requests, request: Request) -> Reply {
    let (reply, answer) = oneshot::channel();
    if requests.send(ControlRequest { request, reply }).await.is_ok()
        && let Ok(reply) = answer.await
    {
        return reply;
    }
    Reply::error(RefusalKind::Internal, "the daemon is stopping")
}

#[derive(Deserialize)]
struct OneVm {
    vm: String,
}

#[derive(Deserialize)]
struct AnyVm {
    vm: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    id: String,
    file: String,
    #[serde(default)]
    offset: u64,
}

#[derive(Deserialize)]
struct Span {
    vm: Option<String>,
    seconds: Option<u64>,
}

/// A request's fields: those of its query, or of a POST's JSON body, whatever type that claims to have. No body is one
/// without fields.
struct Fields<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Fields<T> {
    type Rejection = Reply;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, Reply> {
        let refusal = |why: String| Reply::error(RefusalKind::BadRequest, why);
        if request.method() != Method::POST {
            let query = Query::try_from_uri(request.uri());
            return query.map(|Query(fields)| Self(fields)).map_err(|why| refusal(why.body_text()));
        }
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|why| refusal(why.body_text()))?;
        let fields = serde_json::from_slice(if body.is_empty() { b"{}" } else { &body });
        fields.map(Self).map_err(|why| refusal(format!("the request is not understood: {why}")))
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Ok(json) => response(StatusCode::OK, JSON, json),
            Self::Error(refusal) => {
                let status = match refusal.kind {
                    RefusalKind::NoSuchVm | RefusalKind::Nothing => StatusCode::NOT_FOUND,
                    RefusalKind::AmbiguousVm => StatusCode::CONFLICT,
                    RefusalKind::BadRequest => StatusCode::BAD_REQUEST,
                    RefusalKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
                    RefusalKind::Internal | RefusalKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
                };
                // A word and a text always have a JSON form.
                response(status, JSON, serde_json::to_vec(&refusal).unwrap_or_default().into())
            }
        }
    }
}
