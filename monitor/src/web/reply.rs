//! Answers: what stands in all of their heads, and bodies that are made once for however many ask.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use serde::Serialize;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// An answer in words.
pub(super) fn text(status: StatusCode, words: impl Into<String>) -> Response<Full<Bytes>> {
    let mut words = words.into();
    words.push('\n');
    response(status, TEXT, Bytes::from(words))
}

/// Says that nothing but reading is possible.
pub(super) fn only_reading() -> Response<Full<Bytes>> {
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refusal
}

/// An answer of these bytes.
pub(super) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The body of an answer, as it is and compressed.
#[derive(Clone, Debug)]
pub(super) struct Body {
    plain: Bytes,
    gzipped: Bytes,
}

impl Body {
    /// `value` as JSON. A thousand VMs are more than a megabyte, of which a twentieth is left compressed.
    pub(super) fn json(value: &impl Serialize) -> io::Result<Self> {
        let plain = serde_json::to_vec(value)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain)?;
        Ok(Self { gzipped: encoder.finish()?.into(), plain: plain.into() })
    }

    /// The answer, in the form that `request` takes.
    pub(super) fn answer<B>(self, request: &Request<B>) -> Response<Full<Bytes>> {
        let accepted = request.headers().get(ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
        let takes_gzip = accepted.is_some_and(|accepted| {
            accepted.split(',').any(|coding| matches!(coding.trim(), "gzip" | "*"))
        });
        let mut answer = if takes_gzip {
            let mut answer = response(StatusCode::OK, JSON, self.gzipped);
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer
        } else {
            response(StatusCode::OK, JSON, self.plain)
        };
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        answer
    }
}
