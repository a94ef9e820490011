//! Each receiver of notifications is told of a crash, and one that can't be told holds up nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::{Daemon, free_address},
    guest::Guest,
    interrupt::wait_until,
    prometheus::Alertmanager,
    tools,
};
use libtest_mimic::Trial;
use ring::hmac;
use serde_json::Value;

use crate::{
    metrics::{figure, scrape},
    rig::{
        Rig, boot_all, incidents_of, trial, trial_that_may_skip, wait_for_incident, wait_for_vm,
    },
};

/// For what comes within a second or two on a machine that has nothing else to do.
const SOON: Duration = Duration::from_secs(20);
/// A guest that announces its panic is reset within this, whatever is told of it.
const RESET_WITHIN: Duration = Duration::from_secs(1);
/// What the daemon takes to end at most: 3 s to tell what waits, and what it takes without that.
const END_WITHIN: Duration = Duration::from_secs(8);
/// So many ticks, which are a second apart, come within this time.
const TICKS: (f64, Duration) = (5.0, Duration::from_secs(7));
const NAME: &str = "told-of";
const KEY: &[u8] = b"the key of the tests, of 32 byte";
pub(crate) const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_crash_is_told_and_a_receiver_that_cannot_be_told_holds_up_nothing", told),
        trial_that_may_skip("an_alertmanager_is_told_of_a_crash_and_of_its_end", alertmanager),
    ]
}

/// A POST: its head in lower case, its body, and when it came.
#[derive(Clone, Debug)]
struct Post {
    head: String,
    body: String,
    at: SystemTime,
}

impl Post {
    fn header(&self, name: &str) -> Result<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.map(str::trim).with_context(|| format!("no {name}: {}", self.head))
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }
}

/// A receiver of notifications by HTTP; it ends with the tests.
pub(crate) struct Receiver {
    address: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    /// Takes posts at `address`, and answers each with `answer`.
    pub(crate) fn start(address: SocketAddr, answer: &'static str) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let (address, posts) = (listener.local_addr()?, Arc::default());
        let kept: Arc<Mutex<Vec<Post>>> = Arc::clone(&posts);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // One that is cut off is no post.
                let Ok(post) = read(&stream) else { continue };
                let _ = stream.write_all(answer.as_bytes());
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(post);
            }
        });
        Ok(Self { address, posts })
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it was told of, in that order.
    fn events(&self) -> Result<Vec<String>> {
        let name = |post: &Post| Ok(post.json()?["event"].as_str().context("no event")?.to_owned());
        self.posts().iter().map(name).collect()
    }

    /// Waits until it was told of all these one after the other.
    pub(crate) fn wait_for(&self, events: &[&str]) -> Result<()> {
        wait_until(&format!("{events:?}"), SOON, || {
            let told = self.events()?;
            let mut told = told.iter();
            Ok(events.iter().all(|event| told.any(|other| other == event)).then_some(()))
        })
        .with_context(|| format!("told: {:?}", self.events()))
    }

    fn post_of(&self, event: &str) -> Result<Post> {
        let posts = self.posts();
        let post = posts.iter().find(|post| post.json().is_ok_and(|body| body["event"] == event));
        post.cloned().with_context(|| format!("nothing of {event}"))
    }
}

fn read(stream: &TcpStream) -> Result<Post> {
    stream.set_read_timeout(Some(SOON))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "cut off");
    }
    let mut post = Post { head: String::new(), body: String::new(), at: SystemTime::now() };
    for line in head.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        post.head.push_str(&format!("{}: {}\n", name.to_ascii_lowercase(), value.trim()));
    }
    let mut body = vec![0; post.header("content-length")?.parse()?];
    reader.read_exact(&mut body)?;
    post.body = String::from_utf8(body)?;
    Ok(post)
}

/// The signature as Standard Webhooks describe it, worked out here.
fn check_signature(post: &Post) -> Result<()> {
    let (id, timestamp) = (post.header("webhook-id")?, post.header("webhook-timestamp")?);
    let signed = format!("{id}.{timestamp}.{}", post.body);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), signed.as_bytes());
    let right = format!("v1,{}", STANDARD.encode(tag));
    ensure!(post.header("webhook-signature")? == right, "{} is not {right}", post.head);
    let sent = SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.parse()?);
    let age = post.at.duration_since(sent).unwrap_or_default();
    ensure!(age < SOON, "sent {age:?} before it came");
    ensure!(post.json()?["id"] == id, "{}", post.body);
    Ok(())
}

/// A guest that announces a panic on command, and comes back within a second or two.
fn guest(rig: &Rig) -> Result<Vec<Guest>> {
    let mut config = rig.boot_sector_on_disk(NAME, BootSector::OnCommand)?;
    config.pvpanic = true;
    config.traces_commands = true;
    config.extra_args.extend(["-action".to_owned(), "panic=pause".to_owned()]);
    boot_all(&[config])
}

fn secret(dir: &Path) -> Result<String> {
    let path = dir.join("secret");
    fs::write(&path, format!("whsec_{}\n", STANDARD.encode(KEY)))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

/// A table for each of them, and a command that appends to `lines`.
fn targets(
    rig: &Rig,
    [good, refusing]: [&Receiver; 2],
    slow: SocketAddr,
    late: SocketAddr,
    lines: &Path,
) -> Result<String> {
    let script = rig.dir().join("tell");
    let line = "\"$1 $FLATLINE_EVENT $FLATLINE_VM $FLATLINE_CAUSE $FLATLINE_ATTEMPT\"";
    fs::write(&script, format!("echo {line} >> {}\n", lines.display()))?;
    let webhook = |name: &str, address: SocketAddr, events: &str, more: &str| {
        format!(
            "[[notify]]\nname = \"{name}\"\nwebhook = \"http://{address}/{name}\"\nevents = {events}\n{more}\n"
        )
    };
    let signed = format!("secret_file = \"{}\"", secret(rig.dir())?);
    let few = "[\"crashed\", \"recovered\"]";
    let tables = [
        webhook("slow", slow, "\"all\"", "limit = \"2s\""),
        webhook("late", late, "\"all\"", "queue = 3"),
        webhook("refusing", refusing.address, few, ""),
        format!(
            "[[notify]]\nname = \"program\"\nevents = {few}\nmatch = \"told-*\"\n\
             command = [\"/bin/sh\", \"{}\", \"--now\"]\n",
            script.display()
        ),
        webhook("good", good.address, "\"all\"", &signed),
    ];
    Ok(tables.concat())
}

fn told() -> Result<()> {
    let rig = Rig::new()?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let good = Receiver::start(any, NO_CONTENT)?;
    let refusing = Receiver::start(any, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")?;
    // It takes connections, and never says anything.
    let slow = TcpListener::bind(any)?;
    let late = free_address()?;
    let (lines, metrics) = (rig.dir().join("lines"), free_address()?);
    let mut config = rig.daemon_config()?;
    config.metrics = metrics.to_string();
    config.extra_toml = targets(&rig, [&good, &refusing], slow.local_addr()?, late, &lines)?;
    let guests = guest(&rig)?;
    let mut daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, NAME, "alive", SOON, |row| row["state"] == "alive")?;
    let count = |name: &str, labels: &[(&str, &str)]| -> Result<f64> {
        let name = format!("flatline_{name}");
        figure(&scrape(metrics)?, &name, labels)?.with_context(|| format!("no {name} {labels:?}"))
    };
    let (ticks, begun) = (count("ticks_total", &[])?, Instant::now());

    guests[0].send("p")?;
    good.wait_for(&["daemon-started", "crashed", "restarted", "recovered"])?;
    let took = guests[0].reset_after("GUEST_PANICKED", &guests[0].events()?)?;
    let took = took.context("QEMU tells no announcement, or no reset after it")?;
    println!("told to reset {took:.3?} after the announcement");
    ensure!(took < RESET_WITHIN, "told to reset only {took:?} after the announcement");
    check_what_was_told(&daemon, &good)?;
    let told_to_program = "--now crashed told-of panicked 0\n--now recovered told-of panicked 1\n";
    wait_until("the command", SOON, || {
        Ok((fs::read_to_string(&lines).unwrap_or_default() == told_to_program).then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", fs::read_to_string(&lines), daemon.log().text()))?;

    // Of four events, the one that comes late has room for three.
    let late = Receiver::start(late, NO_CONTENT)?;
    late.wait_for(&["restarted", "recovered"])?;
    ensure!(late.posts().len() == 3, "{:?}", late.events());
    ensure!(late.posts()[0].json()?["dropped"] == 1, "{:?}", late.posts());
    wait_until("what the one that refuses was told", SOON, || {
        Ok((refusing.events()? == ["crashed", "recovered"]).then_some(()))
    })?;
    let degraded = daemon.status()?["host"]["degraded"].as_str().unwrap_or_default().to_owned();
    ensure!(degraded.contains("slow is not told (4 wait): "), "{degraded}");
    ensure!(degraded.contains("refusing") && degraded.contains("403 Forbidden"), "{degraded}");
    ensure!(!degraded.contains("late") && !degraded.contains("good"), "{degraded}");
    let notifications =
        |target, outcome| count("notifications_total", &[("target", target), ("outcome", outcome)]);
    ensure!(notifications("good", "delivered")? >= 4.0 && notifications("good", "failed")? == 0.0);
    ensure!(
        notifications("late", "dropped")? == 1.0 && notifications("refusing", "refused")? == 2.0
    );
    ensure!(count("notifications_waiting", &[("target", "slow")])? == 4.0);
    // While the slow one is being told, there is a tick a second as ever.
    wait_until("ticks", TICKS.1.saturating_sub(begun.elapsed()), || {
        Ok((count("ticks_total", &[])? >= ticks + TICKS.0).then_some(()))
    })?;
    let late = count("ticks_late_total", &[])?;
    ensure!(late <= 1.0, "{late} ticks were late\n{}", daemon.log().text());
    check_end(&mut daemon, &good, &slow)
}

/// What the good one has of the crash is signed, and what `incidents` says.
fn check_what_was_told(daemon: &Daemon, good: &Receiver) -> Result<()> {
    good.posts().iter().try_for_each(check_signature)?;
    let incident = wait_for_incident(daemon, NAME, "recovered", SOON, |incident| {
        incident["outcome"] == "recovered"
    })?;
    let recovered = good.post_of("recovered")?.json()?;
    ensure!(recovered["incident"] == incident, "{recovered}\n{incident}");
    let crashed = good.post_of("crashed")?.json()?;
    for (name, value) in [("vm", NAME), ("cause", "panicked"), ("severity", "warning")] {
        ensure!(crashed[name] == value, "{name}: {crashed}");
    }
    ensure!(crashed["dropped"] == 0 && crashed["incident"]["outcome"].is_null(), "{crashed}");
    ensure!(good.post_of("restarted")?.json()?["attempt"] == 1);
    ensure!(incidents_of(daemon, NAME)?.len() == 1);
    let line = daemon.log().text();
    let line = line.lines().find(|line| line.contains("event=\"crashed\""));
    let line = line.context("no line of the crash")?;
    for part in
        [" WARN ", "crashed: the guest", "vm=\"told-of\"", "cause=\"panicked\"", "incident=\""]
    {
        ensure!(line.contains(part), "{line}");
    }
    Ok(())
}

/// The daemon ends in time though one can't be told, tells the others, and the next daemon tells the rest.
fn check_end(daemon: &mut Daemon, good: &Receiver, slow: &TcpListener) -> Result<()> {
    let (before, begun) = (good.posts().len(), Instant::now());
    ensure!(daemon.terminate()?.success(), "{}", daemon.log().text());
    println!("ended within {:.1?}", begun.elapsed());
    ensure!(begun.elapsed() < END_WITHIN, "{:?}", begun.elapsed());
    ensure!(good.events()?[before..] == ["daemon-stopped"], "{:?}", good.events());
    let left = daemon.config_path().with_file_name("state/telling.json");
    let left = fs::read_to_string(&left).context("nothing is kept")?;
    ensure!(left.matches("\"incident\":{").count() == 3, "{left}");

    daemon.start_again()?;
    slow.set_nonblocking(true)?;
    let post = wait_until("what the slow one was not told", SOON, || {
        let Ok((mut stream, _)) = slow.accept() else { return Ok(None) };
        stream.set_nonblocking(false)?;
        let post = read(&stream).ok();
        let _ = stream.write_all(NO_CONTENT.as_bytes());
        // Those that earlier attempts left behind have been cut off.
        Ok(post.filter(|post| post.json().is_ok_and(|body| body["event"] == "crashed")))
    })?;
    ensure!(post.json()?["id"] == good.post_of("crashed")?.json()?["id"], "the same event");
    Ok(())
}

fn alertmanager() -> Result<Option<String>> {
    let program = match tools::ALERTMANAGER.needed() {
        Ok(program) => program,
        Err(why) => return Ok(Some(why)),
    };
    let rig = Rig::new()?;
    // What Alertmanager makes of it goes to a receiver, as it would to a pager.
    let pager = Receiver::start(([127, 0, 0, 1], 0).into(), NO_CONTENT)?;
    let route = "{receiver: pager, group_by: ['...'], group_wait: 100ms, group_interval: 1s}";
    let hook = format!("{{url: 'http://{}/', send_resolved: true}}", pager.address);
    let receiver = format!("{{name: pager, webhook_configs: [{hook}]}}");
    let config = format!("route: {route}\nreceivers: [{receiver}]\n");
    let alertmanager = Alertmanager::start(&program, rig.dir(), &config)?;
    let address = alertmanager.address();
    let guests = guest(&rig)?;
    let mut config = rig.daemon_config()?;
    config.extra_toml = format!(
        "[[notify]]\nevents = [\"crashed\", \"observed\"]\nalertmanager = \"http://{address}\"\n"
    );
    let daemon = rig.daemon(&config)?;
    wait_for_vm(&daemon, NAME, "alive", SOON, |row| row["state"] == "alive")?;
    let said = |arguments: &[&str]| -> Result<()> {
        let output = daemon.client(arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(())
    };
    // On hold, it stays down until it is seen to be.
    said(&["hold", NAME])?;
    guests[0].send("p")?;
    let firing = || alertmanager.alerts();
    let alert = wait_until("an alert", SOON, || Ok(firing()?.pop()))
        .with_context(|| format!("{:?}\n{}", daemon.status(), daemon.log().text()))?;
    let labels = &alert["labels"];
    for (name, value) in
        [("alertname", "FlatlineGuestCrashed"), ("vm", NAME), ("cause", "panicked")]
    {
        ensure!(labels[name] == value, "{name}: {alert}");
    }
    ensure!(alert["status"]["state"] == "active", "{alert}");
    let ends = humantime::parse_rfc3339_weak(alert["endsAt"].as_str().context("no end")?)?;
    let fires_for = ends.duration_since(SystemTime::now()).unwrap_or_default();
    ensure!(fires_for > Duration::from_secs(120), "it ends by itself in {fires_for:?}: {alert}");
    let paged = |status: &str| {
        wait_until(&format!("the pager: {status}"), SOON, || {
            let posts = pager.posts();
            let is_it = |post: &Post| post.json().is_ok_and(|body| body["status"] == status);
            Ok(posts.iter().any(is_it).then_some(()))
        })
    };
    paged("firing")?;
    said(&["release", NAME])?;
    wait_until("its end", SOON, || Ok(firing()?.is_empty().then_some(())))
        .with_context(|| format!("{:?}\n{}", firing(), daemon.log().text()))?;
    paged("resolved")?;
    Ok(None)
}
