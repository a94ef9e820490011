//! What is asked for, and what is answered.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, header::ACCEPT};

use super::{
    Site, Visitor, hosts, page,
    reply::{only_reading, response, text},
};
use crate::metrics::{Exposition, Format};

/// Where the figures are.
const METRICS: &str = "/metrics";
/// Where all that the page asks for is.
const API: &str = "/api/";

/// The answer to `request`, whose body nobody reads. hyper leaves the body of an answer to HEAD away.
pub(super) async fn answer<B>(
    request: &Request<B>,
    site: &Site,
    visitor: Visitor,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    if path == METRICS {
        return Ok(if is_reading {
            metrics(request, &site.exposition).await
        } else {
            only_reading()
        });
    }
    let Some(pages) = &site.pages else {
        return Ok(text(StatusCode::NOT_FOUND, "flatline's figures are at /metrics"));
    };
    let mut answer = if !is_reading {
        only_reading()
    } else if !hosts::is_ours(request, &pages.hosts) {
        let advice =
            "ask for this host's address or for localhost; names of its own go into metrics.hosts";
        text(StatusCode::MISDIRECTED_REQUEST, advice)
    } else {
        let found = match path.strip_prefix(API) {
            Some(path) => pages.api.answer(path, request, visitor).await,
            None => page::file(path),
        };
        let nothing = "flatline's page is at /, and its figures are at /metrics";
        found.unwrap_or_else(|| text(StatusCode::NOT_FOUND, nothing))
    };
    page::confine(&mut answer);
    Ok(answer)
}

async fn metrics<B>(request: &Request<B>, exposition: &Exposition) -> Response<Full<Bytes>> {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    match exposition.text(format).await {
        Some(body) => response(StatusCode::OK, format.content_type(), body),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "nothing was sampled so far"),
    }
}
