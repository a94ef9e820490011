//! Notification of systemd (sd_notify(3)): that the daemon is ready, what it does, and that its loop still turns.
//!
//! Only the loop sends it, and the watchdog is fed by the tick itself: a loop that is stuck falls silent, and systemd
//! starts another daemon, whatever else of this one goes on. Sending never waits; what couldn't be sent is sent again at the
//! next tick. Without systemd, nothing happens.
//!
//! Not by the crate sd-notify (0.5): its sending waits where systemd's queue is full, which would stop the loop, and it
//! reaches no abstract address.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use super::event_loop::EventLoop;
use flatline_detector::{policy::Mode, verdict::State};

/// So many times within its time the watchdog is fed, where the ticks are as close together.
const FED_WITHIN: u32 = 4;
/// A watchdog that would not outlast so many ticks is told to: a single late one is no reason to end the daemon.
const TICKS_OUTLASTED: u32 = 3;

/// The connection to systemd, and what was sent last.
#[derive(Debug, Default)]
pub(super) struct Systemd {
    manager: Option<Manager>,
    is_ready: bool,
    is_reloading: bool,
    status: String,
}

/// Where systemd listens, and its watchdog.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// After so long without a word it was to kill the daemon; `None`: it doesn't.
    configured: Option<Duration>,
    /// After so long it does.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
}

impl Systemd {
    /// To the address in `NOTIFY_SOCKET`, with the watchdog of `WATCHDOG_USEC`, for ticks that are `tick` apart.
    pub(super) fn from_environment(tick: Duration) -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let text = |name| std::env::var(name).ok();
        let watchdog = watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"), std::process::id());
        let manager = Manager::new(name.as_bytes(), watchdog).inspect_err(|error| {
            warn!("systemd can't be told that flatline runs, at {}: {error}", name.display());
        });
        let mut notifier = Self { manager: manager.ok(), ..Self::default() };
        notifier.outlast(tick);
        notifier
    }

    /// Says what a tick brought: after the first one the daemon is ready, and each one feeds the watchdog.
    pub(super) fn ticked(&mut self, event_loop: &EventLoop) {
        if self.manager.is_some() {
            self.tell(&event_loop.in_words(), Instant::now());
        }
    }

    /// Says that the configuration is about to be read again.
    pub(super) fn reloading(&mut self) {
        if self.manager.is_some() {
            self.is_reloading = true;
            let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
        }
    }

    /// Says that the configuration was read, also where it was not taken: status and log say why.
    pub(super) fn reloaded(&mut self, event_loop: &EventLoop) {
        if self.is_reloading && !event_loop.reloading.is_reading {
            self.is_reloading = false;
            self.is_ready = self.send("READY=1");
        }
    }

    /// Says that the daemon ends in good order.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Stopping");
    }

    fn tell(&mut self, status: &str, now: Instant) {
        if !self.is_ready && !self.is_reloading {
            self.is_ready = self.send("READY=1");
        }
        if self.status != status && self.send(&format!("STATUS={status}")) {
            status.clone_into(&mut self.status);
        }
        if self.manager.as_ref().is_some_and(|manager| manager.is_hungry(now))
            && self.send("WATCHDOG=1")
            && let Some(manager) = &mut self.manager
        {
            manager.fed = Some(now);
        }
    }

    /// Has a watchdog that is too quick for such ticks wait longer.
    pub(super) fn outlast(&mut self, tick: Duration) {
        let Some(Manager { configured: Some(configured), watchdog, .. }) = &mut self.manager else {
            return;
        };
        let needed = (*configured).max(tick * TICKS_OUTLASTED);
        if watchdog.replace(needed) != Some(needed) {
            self.send(&format!("WATCHDOG_USEC={}", needed.as_micros()));
        }
    }

    /// Returns whether it was sent, or systemd is not there.
    fn send(&self, words: &str) -> bool {
        self.manager.as_ref().is_none_or(|Manager { socket, address, .. }| {
            socket.send_to_addr(words.as_bytes(), address).is_ok()
        })
    }
}

impl Manager {
    /// An abstract name is written with an `@` before it.
    fn new(name: &[u8], watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, configured: watchdog, watchdog, fed: None })
    }

    fn is_hungry(&self, now: Instant) -> bool {
        let due = |time: Duration| {
            self.fed.is_none_or(|fed| now.saturating_duration_since(fed) >= time / FED_WITHIN)
        };
        self.watchdog.is_some_and(due)
    }
}

/// The watchdog's time, where there is one and it is meant for this process (sd_watchdog_enabled(3)).
fn watchdog(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|time| *time != 0)?;
    Some(Duration::from_micros(microseconds))
}

impl EventLoop {
    /// What the daemon does, in a line for `systemctl status`.
    fn in_words(&self) -> String {
        let observes = self.config.mode == Mode::Observe;
        let doing = if observes { "Observing" } else { "Watching" };
        let vms = self.registry.vms.len();
        let mut words = format!("{doing} {vms} VM{}", if vms == 1 { "" } else { "s" });
        let mut states = std::collections::BTreeMap::new();
        let mut rest = vms;
        for watched in self.registry.awake() {
            *states.entry(watched.detector.watch.shown_state().0).or_insert(0_usize) += 1;
            rest = rest.saturating_sub(1);
        }
        if rest > 0 {
            *states.entry(State::Alive.name()).or_insert(0) += rest;
        }
        let states: Vec<_> =
            states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        if !states.is_empty() {
            words += &format!(": {}", states.join(", "));
        }
        if observes {
            words += "; no guest is touched";
        }
        if self.registry.storm.is_some() {
            words += "; many are silent together, which is the host's fault";
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd's end, and a notifier to it.
    fn notifier(name: &str, watchdog: Option<Duration>) -> (UnixDatagram, Systemd) {
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let manager = Manager::new(name.as_bytes(), watchdog).unwrap();
        (systemd, Systemd { manager: Some(manager), ..Systemd::default() })
    }

    fn heard(systemd: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 512];
        let next =
            || systemd.recv(&mut bytes).ok().map(|n| String::from_utf8_lossy(&bytes[..n]).into());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn ready_is_said_once_a_status_when_it_changes_and_the_watchdog_is_fed_in_time() {
        let watchdog = Duration::from_secs(8);
        let (systemd, mut notifier) = notifier("@flatline-notify-tells", Some(watchdog));
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        notifier.tell("a", begun);
        assert_eq!(heard(&systemd), ["READY=1", "STATUS=a", "WATCHDOG=1"]);
        notifier.tell("a", begun + second);
        assert_eq!(heard(&systemd), [""; 0]);
        notifier.tell("b", begun + 2 * second);
        assert_eq!(heard(&systemd), ["STATUS=b", "WATCHDOG=1"]);
        notifier.stopping();
        assert_eq!(heard(&systemd), ["STOPPING=1\nSTATUS=Stopping"]);
    }

    #[test]
    fn what_could_not_be_said_is_said_at_the_next_tick() {
        let (systemd, mut notifier) =
            notifier("@flatline-notify-late", Some(Duration::from_secs(8)));
        drop(systemd);
        notifier.tell("a", Instant::now());
        let address = SocketAddr::from_abstract_name("flatline-notify-late").unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        systemd.set_nonblocking(true).unwrap();
        notifier.tell("a", Instant::now());
        assert_eq!(heard(&systemd), ["READY=1", "STATUS=a", "WATCHDOG=1"]);
    }

    #[test]
    fn a_watchdog_that_is_quicker_than_the_ticks_is_made_to_wait() {
        let (systemd, mut notifier) =
            notifier("@flatline-notify-slow", Some(Duration::from_secs(30)));
        notifier.outlast(Duration::from_secs(10));
        assert_eq!(heard(&systemd), [""; 0]);
        notifier.outlast(Duration::from_secs(60));
        assert_eq!(heard(&systemd), ["WATCHDOG_USEC=180000000"]);
        notifier.outlast(Duration::from_secs(1));
        assert_eq!(heard(&systemd), ["WATCHDOG_USEC=30000000"]);
        let (systemd, mut notifier) = self::notifier("@flatline-notify-none", None);
        notifier.outlast(Duration::from_secs(60));
        notifier.tell("a", Instant::now());
        assert_eq!(heard(&systemd), ["READY=1", "STATUS=a"]);
    }

    #[test]
    fn a_watchdog_that_is_meant_for_another_process_is_not_ours() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(watchdog(text("5000000"), None, 7), Some(Duration::from_secs(5)));
        assert_eq!(watchdog(text("5000000"), text("7"), 7), Some(Duration::from_secs(5)));
        assert_eq!(watchdog(text("5000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("0"), text("7"), 7), None);
        assert_eq!(watchdog(text("soon"), text("7"), 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }

    #[test]
    fn without_systemd_nothing_happens() {
        let mut notifier = Systemd::default();
        notifier.outlast(Duration::from_secs(1));
        notifier.tell("a", Instant::now());
        notifier.stopping();
        assert!(Manager::new(&[b'x'; 200], None).is_err());
    }
}
