//! What sees the web page: a browser that opened a link of `flatline web`, and no other client.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::daemon::{Daemon, free_address};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::rig::{Rig, trial};

/// For any answer.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_link_opens_the_page_once_and_without_it_there_are_figures_alone", links)]
}

/// What comes back for a GET with this cookie, with its head.
pub(crate) fn ask(address: SocketAddr, path: &str, cookie: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nCookie: {cookie}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A link as `flatline web` prints it.
pub(crate) fn link(daemon: &Daemon) -> Result<String> {
    let output = daemon.client(&["web"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("good for 5 minutes and one browser"), "{said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The cookie of a session that a new link opened, and the link's path.
pub(crate) fn session(daemon: &Daemon, address: SocketAddr) -> Result<(String, String)> {
    let link = link(daemon)?;
    let path = link.strip_prefix(&format!("http://{address}")).context("of another address")?;
    let answer = ask(address, path, "")?;
    ensure!(answer.starts_with("HTTP/1.1 303 ") && answer.contains("location: /\r\n"), "{answer}");
    let (_, cookie) = answer.split_once("set-cookie: ").context("no cookie")?;
    let (cookie, attributes) = cookie.split_once(';').context("no attributes")?;
    ensure!(attributes.starts_with(" Path=/; HttpOnly; SameSite=Strict; Max-Age="), "{attributes}");
    Ok((cookie.to_owned(), path.to_owned()))
}

fn links() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    let address = free_address()?;
    config.metrics = address.to_string();
    let mut daemon = rig.daemon(&config)?;
    let (cookie, path) = session(&daemon, address)?;
    for asked in ["/", "/api/list", "/api/status", "/api/incidents", "/page/main.js"] {
        let answer = ask(address, asked, &cookie)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{asked}: {answer}");
        for other in ["", &cookie[..cookie.len() - 1], "flatline-session=x"] {
            let answer = ask(address, asked, other)?;
            ensure!(answer.starts_with("HTTP/1.1 403 "), "{asked}: {answer}");
            ensure!(answer.contains("`flatline web`"), "{asked}: {answer}");
        }
    }
    for refused in [path.as_str(), "/login?token=wrong"] {
        let answer = ask(address, refused, "")?;
        ensure!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("set-cookie"), "{answer}");
    }
    ensure!(ask(address, "/metrics", "")?.starts_with("HTTP/1.1 200 "), "figures need no session");
    ensure!(ask(address, "/status", &cookie)?.starts_with("HTTP/1.1 404 "), "it asks the loop");
    ensure!(daemon.log().text().contains("a link to the page was handed out"), "it isn't logged");
    let json = daemon.client(&["web", "--json"])?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    ensure!(json["valid_seconds"] == 300 && json["expires_at"].is_string(), "{json}");

    daemon.terminate()?;
    daemon.start_again()?;
    let answer = ask(address, "/api/incidents", &cookie)?;
    ensure!(answer.starts_with("HTTP/1.1 403 "), "sessions end with the daemon: {answer}");
    Ok(())
}
