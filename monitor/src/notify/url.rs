//! An address that is posted to.

use std::fmt;

use hyper::Uri;

/// An `http` or `https` URL.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether it is `https`.
    pub is_tls: bool,
    /// A name, or an IP address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query. They may be secret, and are never printed.
    pub path: String,
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/..", self.authority())
    }
}

impl Url {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.contains('#') {
            return Err("has a fragment (#), which is never sent".to_owned());
        }
        let is_tls = text.starts_with("https://");
        if !is_tls && !text.starts_with("http://") {
            return Err("must begin with https:// or http://".to_owned());
        }
        let uri: Uri = text.parse().map_err(|error| format!("is no URL: {error}"))?;
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("has a user or a password in it, which would not be sent".to_owned());
        }
        let host = authority.host();
        let port = authority.as_str().strip_prefix(host).unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("names no host".to_owned());
        }
        // The parser takes a port for none that is too large.
        let port = match (port.strip_prefix(':'), is_tls) {
            (None, true) => 443,
            (None, false) => 80,
            (Some(port), _) => match port.parse() {
                Ok(0) | Err(_) => return Err("has no port from 1 to 65535".to_owned()),
                Ok(port) => port,
            },
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { is_tls, host: host.to_owned(), port, path: path.to_owned() })
    }

    /// The same with `more` after its path.
    pub(crate) fn join(&self, more: &str) -> Self {
        Self { path: format!("{}{more}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// Host and port, as a request names them: without a port that goes without saying.
    pub(crate) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Url;

    #[test]
    fn an_address_is_taken_apart() {
        let url = Url::parse("https://example.org/hook/a?b=c").expect("a URL");
        assert!(url.is_tls && url.port == 443);
        assert_eq!((url.authority().as_str(), url.path.as_str()), ("example.org", "/hook/a?b=c"));
        let url = Url::parse("http://[::1]:9093").expect("a URL");
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("::1", 9093, "/"));
        assert_eq!(url.authority(), "[::1]:9093");
        assert_eq!(url.join("/api/v2/alerts").path, "/api/v2/alerts");
        let below = Url::parse("http://h/am/").expect("a URL").join("/api/v2/alerts");
        assert_eq!(below.path, "/am/api/v2/alerts");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, part) in [
            ("example.org/hook", "must begin with https://"),
            ("ftp://example.org/", "must begin with https://"),
            ("https://", "no URL"),
            ("https://a b/", "no URL"),
            ("https://user:word@example.org/", "a user or a password"),
            ("https://example.org/#a", "fragment"),
            ("https://example.org:0/", "no port"),
            ("https://example.org:/", "no port"),
            ("https://example.org:99999/", "no port"),
            ("", "must begin with https://"),
        ] {
            let why = Url::parse(text).expect_err(text);
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    #[test]
    fn its_path_is_not_shown_where_it_may_be_a_secret() {
        let url = Url::parse("https://example.org/token").expect("a URL");
        assert!(!format!("{url:?}").contains("token"));
    }
}
