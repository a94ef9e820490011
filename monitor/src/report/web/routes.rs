//! What is asked for, and what is answered.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};

use crate::report::metrics::{Exposition, Format};

/// Where the figures are.
const METRICS: &str = "/metrics";

/// The answer to `request`, whose body nobody reads. hyper leaves the body of an answer to HEAD away.
pub(super) async fn answer<B>(
    request: &Request<B>,
    exposition: &Exposition,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != METRICS {
        return Ok(text(StatusCode::NOT_FOUND, "flatline's figures are at /metrics\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refusal);
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let Some(body) = exposition.text(format).await else {
        return Ok(text(StatusCode::SERVICE_UNAVAILABLE, "nothing was sampled so far\n"));
    };
    Ok(response(StatusCode::OK, format.content_type(), body))
}

fn text(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::from_static(words.as_bytes()))
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
