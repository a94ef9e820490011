//! The bounds of a session: what it waits for how long, and how much it takes.

use std::time::Duration;

/// The bounds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For connecting, and for the greeting after it. QEMU sends it at once: 2 s.
    pub greeting: Duration,
    /// For `qmp_capabilities` and the session's own `query-status`: 5 s.
    pub handshake: Duration,
    /// For a message that was begun to be complete: 30 s. QEMU writes it at once, unless it is stopped meanwhile.
    pub message: Duration,
    /// From one look at the sockets to the next while none greets: 10 s. A connection that waits is greeted at once.
    pub busy_pause: Duration,
    /// From one look at a QEMU that has no vCPUs yet to the next: 500 ms.
    pub launch_pause: Duration,
    /// From Refused to the next attempt: 60 s.
    pub refused_pause: Duration,
    /// From the first Closed to the next attempt: 250 ms; doubled each time.
    pub closed_pause_min: Duration,
    /// The longest such pause: 15 s. To look for a socket takes a look at each descriptor of its process.
    pub closed_pause_max: Duration,
    /// How long a notice may wait for the receiver: 1 s.
    pub notice: Duration,
    /// Commands that were sent and are not answered, timed out or not: 16.
    pub unanswered: usize,
    /// Messages in one second before the connection is refused: 2,000. A guest in a boot loop
    /// causes some 40.
    pub messages_per_second: u32,
    /// Bytes in one second before the connection is refused: 32 MiB.
    pub bytes_per_second: usize,
    /// The same of messages that answer no command: 1 MiB. So many events as are passed on take a tenth of that.
    pub unasked_bytes_per_second: usize,
    /// Events passed on in one second: 200. Beyond half of them, block errors, the guest's own resets and events
    /// that are not known are left out; any other beyond all is a flood.
    pub events_per_second: u32,
    /// Events on one connection that are skipped, since they are more than is taken, before it is refused: 16. No event of
    /// a QEMU's in good health is.
    pub skipped_events: u32,
    /// Of a session that keeps no connection: from one question for the run state to the next: 10 s.
    pub brief_poll: Duration,
    /// The same of one through libvirt, which hears of events, and where a question is a program's start: 30 s.
    pub libvirt_poll: Duration,
    /// How long such a connection is kept after its last answer, for a caller's next command: 100 ms.
    pub brief_linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(2),
            handshake: Duration::from_secs(5),
            message: Duration::from_secs(30),
            busy_pause: Duration::from_secs(10),
            launch_pause: Duration::from_millis(500),
            refused_pause: Duration::from_secs(60),
            closed_pause_min: Duration::from_millis(250),
            closed_pause_max: Duration::from_secs(15),
            notice: Duration::from_secs(1),
            unanswered: 16,
            messages_per_second: 2_000,
            bytes_per_second: 32 << 20,
            unasked_bytes_per_second: 1 << 20,
            events_per_second: 200,
            skipped_events: 16,
            brief_poll: Duration::from_secs(10),
            libvirt_poll: Duration::from_secs(30),
            brief_linger: Duration::from_millis(100),
        }
    }
}
