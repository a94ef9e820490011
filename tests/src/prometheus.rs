//! A real Prometheus that scrapes a real daemon, and a real Alertmanager behind it: both on this host's loopback, with
//! all that they keep in a test's directory.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::command;
use crate::console::Log;
use crate::daemon::free_address;
use crate::interrupt;

/// For a server to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(15);
/// For an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// From one scrape, and one look at the rules, to the next; the rules are written for 15 s.
const EVERY: Duration = Duration::from_millis(500);
/// In a test, time goes so much faster for the rules than for their operators.
const HASTE: u32 = 60;
/// No `for:` is longer than that.
const LONGEST_FOR: Duration = Duration::from_secs(2);

/// A running server; dropping it ends it.
#[derive(Debug)]
struct Server {
    child: Child,
    address: SocketAddr,
    log: Log,
}

/// A Prometheus with one target.
#[derive(Debug)]
pub struct Prometheus(Server);

/// An Alertmanager without receivers.
#[derive(Debug)]
pub struct Alertmanager(Server);

impl Server {
    /// Starts the program, which listens at `address`, and waits until it says that it is ready.
    fn start(command: &mut Command, address: SocketAddr) -> Result<Self> {
        // A process group of its own: Ctrl-C is for the harness.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let name = command.get_program().display().to_string();
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let log = Log::new();
        log.drain(child.stderr.take().context("the pipe was asked for")?);
        let mut server = Self { child, address, log };
        let ready = interrupt::wait_until(&format!("{name} to be ready"), START_LIMIT, || {
            if let Some(status) = server.child.try_wait()? {
                // The drain may be behind the end by a moment.
                std::thread::sleep(Duration::from_millis(50));
                bail!("it ended at once: {status}");
            }
            Ok(server.get("/-/ready").ok())
        });
        ready.with_context(|| format!("{name}: {}", server.log.text()))?;
        Ok(server)
    }

    /// The body of an answer that says 200.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        // The older version of HTTP knows no chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        let status = head.split(' ').nth(1);
        ensure!(status == Some("200"), "{path}: {}: {body}", head.lines().next().unwrap_or(""));
        Ok(body.to_owned())
    }

    fn json(&self, path: &str) -> Result<Value> {
        let body = self.get(path)?;
        serde_json::from_str(&body).with_context(|| format!("{path}: no JSON: {body}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it keeps goes with the test's directory.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("cannot end a server: {error}");
        }
    }
}

impl Prometheus {
    /// Starts `program`, which keeps everything in `dir`, scrapes `target` as the job `flatline`, judges these rules and
    /// tells `alertmanager`.
    ///
    /// # Errors
    ///
    /// If it can't be started, or doesn't like its configuration: with what it said.
    pub fn start(
        program: &Path,
        dir: &Path,
        target: SocketAddr,
        rules: &str,
        alertmanager: &Alertmanager,
    ) -> Result<Self> {
        let dir = dir.join("prometheus");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(dir.join("rules.yml"), rules)?;
        let every = format!("{}ms", EVERY.as_millis());
        let config = format!(
            "global:\n  scrape_interval: {every}\n  scrape_timeout: {every}\n  evaluation_interval: {every}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: flatline\n    static_configs:\n      - targets: [\"{target}\"]\n\
             alerting:\n  alertmanagers:\n    - static_configs:\n        - targets: [\"{}\"]\n",
            alertmanager.address()
        );
        fs::write(dir.join("prometheus.yml"), config)?;
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        Ok(Self(Server::start(&mut command, address)?))
    }

    /// The series that an expression comes to now.
    ///
    /// # Errors
    ///
    /// If Prometheus refuses the expression: with its words.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/query?query={}", percent_encoded(expression));
        let answer = self.0.json(&path).with_context(|| expression.to_owned())?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        let result = answer["data"]["result"].as_array();
        result.cloned().with_context(|| format!("{expression}: no result in {answer}"))
    }
}

impl Alertmanager {
    /// For tests that ask for the alerts themselves.
    pub const TELLS_NONE: &str = "route: {receiver: silent}\nreceivers: [{name: silent}]\n";

    /// Starts `program`, which keeps everything in `dir`, with this `alertmanager.yml`, such as [`Self::TELLS_NONE`].
    ///
    /// # Errors
    ///
    /// As [`Prometheus::start`]; root is needed.
    pub fn start(program: &Path, dir: &Path, config: &str) -> Result<Self> {
        let root = dir.join("alertmanager");
        root_of_its_own(program, &root)?;
        fs::write(root.join("alertmanager.yml"), config)?;
        let address = free_address()?;
        let mut command = Command::new("chroot");
        command
            .arg(&root)
            .args(["/alertmanager", "--config.file=/alertmanager.yml", "--storage.path=/data"])
            .arg(format!("--web.listen-address={address}"))
            // Empty: it looks for no others.
            .args(["--cluster.listen-address=", "--log.level=warn"]);
        Ok(Self(Server::start(&mut command, address)?))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The alerts that it has now, as its API tells them.
    ///
    /// # Errors
    ///
    /// If it doesn't answer with a list.
    pub fn alerts(&self) -> Result<Vec<Value>> {
        let answer = self.0.json("/api/v2/alerts")?;
        answer.as_array().cloned().with_context(|| format!("no list: {answer}"))
    }
}

/// Makes a root directory that has all that an Alertmanager needs: Debian's looks for its templates below `/usr/share`,
/// where they are only if it was installed.
fn root_of_its_own(program: &Path, root: &Path) -> Result<()> {
    let copy = |from: &Path, to: &str| -> Result<()> {
        let to = root.join(to.trim_start_matches('/'));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        // A link costs nothing, where that is possible.
        fs::hard_link(from, &to)
            .or_else(|_| fs::copy(from, &to).map(drop))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    copy(program, "alertmanager")?;
    // One that needs no libraries makes this fail.
    let libraries = command::run("ldd", [program]).unwrap_or_default();
    for library in String::from_utf8_lossy(&libraries).split_whitespace() {
        if library.starts_with('/') {
            copy(&Path::new(library).canonicalize()?, library)?;
        }
    }
    for template in ["default.tmpl", "email.tmpl"] {
        let path = format!("share/prometheus/alertmanager/{template}");
        let unpacked = program.ancestors().nth(2).map(|usr| usr.join(&path));
        if let Some(file) = unpacked.filter(|file| file.exists()) {
            copy(&file, &format!("usr/{path}"))?;
        }
    }
    Ok(())
}

/// The same rules for a test that has no minutes to wait: all ranges and offsets are 60 times shorter, and so is each `for:`, which
/// is two seconds at most. Nothing else of an expression changes.
///
/// # Errors
///
/// If there is a duration that can't be read.
pub fn hastened(rules: &str) -> Result<String> {
    let mut hasty = String::new();
    for line in rules.lines() {
        let text = line.trim_start();
        let indent = &line[..line.len() - text.len()];
        // Writing to a String cannot fail.
        let _ = if let Some(duration) = text.strip_prefix("for: ") {
            writeln!(hasty, "{indent}for: {}", milliseconds(faster(duration)?.min(LONGEST_FOR)))
        } else if text.starts_with("expr: ") {
            writeln!(hasty, "{indent}{}", faster_expression(text)?)
        } else {
            writeln!(hasty, "{line}")
        };
    }
    Ok(hasty)
}

fn faster(duration: &str) -> Result<Duration> {
    let duration = humantime::parse_duration(duration.trim());
    Ok(duration.with_context(|| "a duration in a rule")? / HASTE)
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// The expression with each range, which stands in brackets, and each offset made shorter.
fn faster_expression(expression: &str) -> Result<String> {
    let shorter = |duration: &str| faster(duration).map(milliseconds);
    let ranges = replaced(expression, "[", |c| c == ']', shorter)?;
    replaced(&ranges, " offset ", |c: char| !c.is_ascii_alphanumeric(), shorter)
}

/// The text with what stands between each `begin` and the next `end` replaced.
fn replaced(
    text: &str,
    begin: &str,
    end: impl Fn(char) -> bool,
    replace: impl Fn(&str) -> Result<String>,
) -> Result<String> {
    let mut parts = text.split(begin);
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let length = part.find(&end).unwrap_or(part.len());
        all += begin;
        all += &replace(&part[..length])?;
        all += &part[length..];
    }
    Ok(all)
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hastened_rules_are_the_same_but_for_their_times() {
        let rules = "  - alert: A\n    # [5m] or so\n    expr: rate(a{b=\"c\"}[15m]) / rate(d[1m]) > 0.1\n    for: 24h\n\
                     \x20 - alert: B\n    expr: e unless (e offset 2m)\n    for: 1m\n";
        let hasty = "  - alert: A\n    # [5m] or so\n    expr: rate(a{b=\"c\"}[15000ms]) / rate(d[1000ms]) > 0.1\n    \
                     for: 2000ms\n  - alert: B\n    expr: e unless (e offset 2000ms)\n    for: 1000ms\n";
        assert_eq!(hastened(rules).unwrap(), hasty);
        assert!(hastened("for: soon").is_err() && hastened("expr: a[soon]").is_err());
    }

    #[test]
    fn an_expression_travels_in_a_path() {
        assert_eq!(percent_encoded("a{b=\"c d\"}"), "a%7Bb%3D%22c%20d%22%7D");
    }
}
