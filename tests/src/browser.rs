//! A real Chromium without a window, driven over a pipe by its DevTools protocol: what a page shows, does and fetches.
//!
//! Commands and events are JSON with a NUL after each (`--remote-debugging-pipe`: file descriptors 3 and 4), so that no
//! port is opened. No name is resolved in it: what it fetches from elsewhere than an address fails, and is noted.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{console::Log, interrupt};

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// For an answer; the browser's start is the longest on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often a page is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the browser with its pipes where it looks for them: what is our end of its standard input and output.
const WITH_PIPES: &str = "exec \"$@\" 3<&0 4>&1 </dev/null 1>&2";

const ARGUMENTS: [&str; 17] = [
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// A running browser with one page; dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    events: VecDeque<Value>,
    session: Option<String>,
    number: u64,
    log: Log,
    _profile: TempDir,
}

/// The program, if one is installed.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let named = |name: &&str| {
        env::split_paths(&path).map(|folder| folder.join(name)).find(|it| it.is_file())
    };
    NAMES.iter().find_map(named)
}

impl Browser {
    /// Starts it with an empty profile, in a directory of its own.
    ///
    /// # Errors
    ///
    /// If it can't be started, or does not answer: with what it said.
    pub fn start(program: &Path) -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("flatline-browser-").tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", WITH_PIPES, "sh"]).arg(program).args(ARGUMENTS);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // It starts many processes, which are to end with it.
        command.process_group(0).env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(commands), Some(stdout), Some(stderr)) = pipes else {
            bail!("the pipes were asked for");
        };
        let log = Log::new();
        log.drain(stderr);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let messages = BufReader::new(stdout).split(0).map_while(Result::ok);
            for message in messages.filter_map(|message| serde_json::from_slice(&message).ok()) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let events = VecDeque::new();
        let mut browser = Self {
            child,
            commands,
            answers,
            events,
            session: None,
            number: 0,
            log,
            _profile: profile,
        };
        browser.attach().with_context(|| format!("the browser said: {}", browser.log.text()))?;
        Ok(browser)
    }

    fn attach(&mut self) -> Result<()> {
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", &attach)?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(())
    }

    /// Carries out a command of the protocol.
    ///
    /// # Errors
    ///
    /// If the browser refuses it, is gone, or does not answer.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.commands.write_all(&bytes).with_context(|| format!("{method}: it is gone"))?;
        let begun = Instant::now();
        loop {
            interrupt::check()?;
            match self.answers.recv_timeout(LOOK_EVERY) {
                Ok(answer) if answer["id"] == self.number => {
                    ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                    return Ok(answer["result"].clone());
                }
                Ok(event) => self.events.push_back(event),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < ANSWER_LIMIT => {}
                Err(error) => bail!("{method}: {error}"),
            }
        }
    }

    /// Goes to an address.
    ///
    /// # Errors
    ///
    /// If nothing is there.
    pub fn open(&mut self, address: &str) -> Result<()> {
        let went = self.call("Page.navigate", &json!({"url": address}))?;
        ensure!(went["errorText"].is_null(), "{address}: {went}");
        Ok(())
    }

    /// What an expression is worth in the page.
    ///
    /// # Errors
    ///
    /// If it throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &asked)?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is worth something that is true; returns that.
    ///
    /// # Errors
    ///
    /// After `limit`: with the page's text.
    pub fn wait_for(&mut self, expression: &str, limit: Duration) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let value = self.value(expression)?;
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return Ok(value);
            }
            if begun.elapsed() > limit {
                let text = self.value("document.body.innerText")?;
                bail!("after {limit:?} still not: {expression}\n{text}\n{:?}", self.complaints());
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
    }

    /// Makes the window of this size, that of a phone or not.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub fn resize(&mut self, width: u32, height: u32, is_phone: bool) -> Result<()> {
        let scale = if is_phone { 2 } else { 1 };
        let size = json!({"width": width, "height": height, "deviceScaleFactor": scale,
            "mobile": is_phone});
        self.call("Emulation.setDeviceMetricsOverride", &size).map(drop)
    }

    /// Lets the page know which of `light` and `dark` its user prefers.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features).map(drop)
    }

    /// Presses a key, by its name: `Tab`, `Enter`, `ArrowDown`, or what it writes.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub fn press(&mut self, key: &str) -> Result<()> {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowUp" => 38,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = if key == "Enter" {
            "\r"
        } else if code == 0 {
            key
        } else {
            ""
        };
        let mut event = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", &event)?;
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", &event).map(drop)
    }

    /// What is seen, as a PNG.
    ///
    /// # Errors
    ///
    /// As [`Self::call`].
    pub fn screenshot(&mut self) -> Result<Vec<u8>> {
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}))?;
        Ok(STANDARD.decode(picture["data"].as_str().context("no picture")?)?)
    }

    /// What the page complained of so far: errors and warnings on its console, exceptions, what was refused or failed.
    pub fn complaints(&self) -> Vec<String> {
        let is_bad = |kind: &Value| matches!(kind.as_str(), Some("error" | "warning" | "assert"));
        let complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.consoleAPICalled") => is_bad(&event["params"]["type"]),
            Some("Log.entryAdded") => is_bad(&event["params"]["entry"]["level"]),
            Some("Runtime.exceptionThrown") => true,
            _ => false,
        };
        self.events.iter().filter(complaint).map(|event| event["params"].to_string()).collect()
    }

    /// The addresses of all that it asked for so far.
    pub fn fetched(&self) -> Vec<String> {
        let asked = |event: &&Value| event["method"] == "Network.requestWillBeSent";
        let address = |event: &Value| event["params"]["request"]["url"].as_str().map(str::to_owned);
        self.events.iter().filter(asked).filter_map(address).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        let closed = self.call("Browser.close", &json!({}));
        let begun = Instant::now();
        while closed.is_ok() && begun.elapsed() < END_LIMIT {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whatever of it is left has its group still.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
