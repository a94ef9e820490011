//! HTTP responses: the headers that all of them have, and JSON bodies, compressed for those that take that.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::Response,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use tokio::{sync::OnceCell, task::spawn_blocking};

/// The content type of plain text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
/// The content type of JSON.
pub(crate) const JSON: &str = "application/json";

/// An answer in words.
pub(crate) fn text(status: StatusCode, words: impl Into<String>) -> Response {
    let mut words = words.into();
    words.push('\n');
    response(status, TEXT, Bytes::from(words))
}

/// Says that nothing but reading is possible.
pub(crate) fn only_reading() -> Response {
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    refusal
}

/// An answer of these bytes.
pub(crate) fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A body is compressed from this size on: what takes a millisecond for all VMs is not worth it for a screen of them.
const GZIP_FROM_BYTES: usize = 32 << 10;

/// The body of an answer in JSON, and compressed once that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    plain: Bytes,
    gzipped: Arc<OnceCell<Bytes>>,
}

impl Body {
    /// `value` as JSON.
    pub(crate) fn json(value: &impl Serialize) -> io::Result<Self> {
        Ok(Self::of(serde_json::to_vec(value)?))
    }

    /// This JSON.
    pub(crate) fn of(plain: Vec<u8>) -> Self {
        Self { plain: plain.into(), gzipped: Arc::default() }
    }

    /// The answer, in the form that a request with these headers takes. A thousand VMs are more than a megabyte, of which a
    /// twentieth is left compressed.
    pub(crate) async fn answer(self, headers: &HeaderMap) -> Response {
        let accepted = headers.get(ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
        let takes_gzip = accepted.is_some_and(|accepted| {
            accepted.split(',').any(|coding| matches!(coding.trim(), "gzip" | "*"))
        });
        let gzipped = if takes_gzip && self.plain.len() >= GZIP_FROM_BYTES {
            self.gzipped().await.ok()
        } else {
            None
        };
        let mut answer = match gzipped {
            Some(gzipped) => {
                let mut answer = response(StatusCode::OK, JSON, gzipped);
                answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                answer
            }
            None => response(StatusCode::OK, JSON, self.plain),
        };
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        answer
    }

    /// Compressed by one of those that ask for it, on a thread that may take its time.
    async fn gzipped(&self) -> io::Result<Bytes> {
        let plain = self.plain.clone();
        let compress = move || {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&plain)?;
            Ok(Bytes::from(encoder.finish()?))
        };
        let made = async { spawn_blocking(compress).await.map_err(io::Error::other).flatten() };
        self.gzipped.get_or_try_init(|| made).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use axum::body::to_bytes;
    use flate2::read::GzDecoder;

    use super::*;

    async fn answer(body: &Body, accepted: &'static str) -> (bool, Vec<u8>) {
        let headers = [(ACCEPT_ENCODING, HeaderValue::from_static(accepted))].into_iter().collect();
        let answer = body.clone().answer(&headers).await;
        assert_eq!(answer.headers()[VARY], "accept-encoding");
        let is_gzipped = answer.headers().contains_key(CONTENT_ENCODING);
        let bytes = to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
        (is_gzipped, bytes.to_vec())
    }

    #[tokio::test]
    async fn much_is_compressed_for_those_that_take_that_and_little_for_none() {
        let text = vec![b'7'; GZIP_FROM_BYTES];
        let (much, little) = (Body::of(text.clone()), Body::of(text[1..].to_vec()));
        for accepted in ["br, gzip", "*"] {
            let (is_gzipped, bytes) = answer(&much, accepted).await;
            assert!(is_gzipped, "{accepted}");
            let mut plain = Vec::new();
            GzDecoder::new(&bytes[..]).read_to_end(&mut plain).expect("compressed");
            assert_eq!(plain, text);
            assert!(!answer(&little, accepted).await.0, "{accepted}");
        }
        assert_eq!(answer(&much, "br").await, (false, text));
    }
}
