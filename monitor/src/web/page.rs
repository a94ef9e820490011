//! The page's files, which stand in this program, and what a browser is told to let them do.
//!
//! Nothing is fetched from elsewhere, nothing stands inline, and no other page may frame it: names and reasons come from
//! guests and their QEMUs, and the page shows them as text alone.

use axum::{
    http::{
        HeaderName, HeaderValue, StatusCode, Uri,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
    response::Response,
};
use bytes::Bytes;

use crate::api::response::{response, text};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Where each file is, what it is, and what stands in it.
const FILES: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/page/style.css", CSS, include_str!("page/style.css")),
    ("/page/icon.svg", SVG, include_str!("page/icon.svg")),
    ("/page/main.js", SCRIPT, include_str!("page/main.js")),
    ("/page/list.js", SCRIPT, include_str!("page/list.js")),
    ("/page/vm.js", SCRIPT, include_str!("page/vm.js")),
    ("/page/vms.js", SCRIPT, include_str!("page/vms.js")),
    ("/page/incidents.js", SCRIPT, include_str!("page/incidents.js")),
    ("/page/lines.js", SCRIPT, include_str!("page/lines.js")),
    ("/page/words.js", SCRIPT, include_str!("page/words.js")),
];

/// The file that is asked for; what no other route has comes here as well.
pub(super) async fn file(uri: Uri) -> Response {
    match FILES.iter().find(|(name, _, _)| *name == uri.path()) {
        Some((_, content_type, content)) => {
            response(StatusCode::OK, content_type, Bytes::from_static(content.as_bytes()))
        }
        None => nothing(),
    }
}

/// Says that there is no such thing.
pub(super) fn nothing() -> Response {
    text(StatusCode::NOT_FOUND, "flatline's page is at /, and its figures are at /metrics")
}

/// Tells a browser what it may do with this answer, whatever it is.
pub(super) fn confine(answer: &mut Response) {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_no_file_that_is_not_served_and_nothing_elsewhere() {
        let has = |path: &str| FILES.iter().any(|(name, _, _)| *name == path);
        for (name, kind, content) in FILES {
            let content =
                content.replace("http://www.w3.org/2000/svg", "the namespace of drawings");
            assert!(!content.contains("://"), "{name} names a place elsewhere");
            for quote in ["\"", "'"] {
                for named in content.split(quote).filter(|text| text.starts_with("/page/")) {
                    assert!(has(named), "{name} names {named}");
                }
                let modules = content.split(quote).filter(|text| text.starts_with("./"));
                for named in modules.filter(|_| kind == SCRIPT) {
                    assert!(has(&named.replace("./", "/page/")), "{name} names {named}");
                }
            }
            assert!(!content.contains(" style=") && !content.contains(" onclick="), "{name}");
            for markup in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"]
            {
                assert!(!content.contains(markup), "{name} makes markup of text: {markup}");
            }
        }
    }
}
