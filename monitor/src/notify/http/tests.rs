use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::{Client, PostError, Url, may_succeed_later, retry_after, words};

/// A certificate of `localhost` that is signed by itself, until 2120.
const CERTIFICATE: &str = "MIIBXjCCAQSgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEy\
    MDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBdX+LE/Y9dtOKS0\
    e1lOLAk/IhRBwsD3+DFZCtomT/K+tAlXtcYON7jq1yNNYfETrYh8aMM68GmEKV+ln6rH6+yjRTBDMAwGA1UdEwEB/wQCMAAw\
    FAYDVR0RBA0wC4IJbG9jYWxob3N0MB0GA1UdDgQWBBSUR09bmnUlWDEyfTc3ff5CeSVxzDAKBggqhkjOPQQDAgNIADBFAiBa\
    AlZw5t1WQnwzBChB3YsRf128OgKuQedjlMvHMJaaVAIhAN7QZSBVtFo5LhgDeBQv4qX0uVXnlDrZx1xKR8fjuXkU";
/// Its key, which guards nothing.
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgO6mAnaftVhJfq5nQwbYZGBTlgO1aqiXa/LAaBNDe0NihRANC\
    AAQXV/ixP2PXbTiktHtZTiwJPyIUQcLA9/gxWQraJk/yvrQJV7XGDje46tcjTWHxE62IfGjDOvBphClfpZ+qx+vs";

const LIMIT: Duration = Duration::from_secs(10);

fn der(text: &str) -> Vec<u8> {
    STANDARD.decode(text).expect("Base64")
}

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from(der(CERTIFICATE))
}

/// Answers every request over TLS; returns its port.
async fn server() -> u16 {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der(KEY)));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate()], key)
        .expect("a key for it");
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await);
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    port
}

async fn post(client: &mut Client, url: &str) -> Result<(), PostError> {
    let url = Url::parse(url).expect("a URL");
    client.post(&url, &[], "{}".to_owned(), LIMIT).await
}

/// One that trusts that certificate.
fn trusting() -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client { tls: Some(Arc::new(config)), ..Client::default() }
}

#[tokio::test]
async fn a_certificate_that_is_trusted_and_is_of_that_name_is_taken_and_no_other() {
    let port = server().await;
    post(&mut trusting(), &format!("https://localhost:{port}/")).await.expect("it is trusted");
    let other = post(&mut trusting(), &format!("https://127.0.0.1:{port}/")).await;
    let text = words(&other.expect_err("another name"));
    assert!(text.contains("not valid for name"), "{text}");
    let stranger = post(&mut Client::default(), &format!("https://localhost:{port}/")).await;
    let text = words(&stranger.expect_err("it is not signed"));
    assert!(
        text.contains("invalid peer certificate") && text.contains("update-ca-certificates"),
        "{text}"
    );
}

#[tokio::test]
async fn what_speaks_no_tls_is_said_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = post(&mut trusting(), &format!("https://localhost:{port}/")).await;
    let text = words(&error.expect_err("no TLS"));
    assert!(text.starts_with(&format!("no TLS with localhost:{port}")), "{text}");
}

#[tokio::test]
async fn a_name_without_an_address_is_said() {
    // Longer than any name may be: no server is asked for it.
    let name = "x".repeat(300);
    let error = post(&mut Client::default(), &format!("http://{name}/")).await;
    let text = words(&error.expect_err("no such name"));
    assert!(text.starts_with("no address is known of xxx") && text.contains("DNS"), "{text}");
}

#[test]
fn a_pause_may_be_asked_for_in_seconds_or_as_a_date() {
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
    assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
    let date = "Sun, 06 Nov 1994 08:50:37 GMT";
    assert_eq!(retry_after(date, now), Some(Duration::from_secs(60)));
    assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(Duration::ZERO));
    for unfit in ["", "-1", "soon", "1.5"] {
        assert_eq!(retry_after(unfit, now), None, "{unfit}");
    }
}

#[test]
fn a_refusal_is_final_unless_it_is_for_now() {
    let later = |code| may_succeed_later(StatusCode::from_u16(code).expect("a code"));
    for code in [408, 425, 429, 500, 502, 503, 504] {
        assert!(later(code), "{code}");
    }
    for code in [400, 401, 403, 404, 405, 410, 413, 422] {
        assert!(!later(code), "{code}");
    }
}
