//! Events: what recovery says at the moment when it happens, so that no listener has to find it out by comparing records.

use std::{fmt, sync::Arc};

use crate::storage::incident::{Incident, Outcome};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// A crash was found. Said once of each crash, before anything is done about it.
    Detected,
    /// An earlier daemon left this incident open, and this one goes on with it: all of it was said before.
    TakenUp,
    /// A restart begins: it is written down, and QEMU was not told yet.
    RestartBegun,
    /// QEMU was told to reset the guest, or a program of its owner's was run for that.
    Restarted,
    /// Nothing more is done for now, and this came of it. Said again where another try comes to the same.
    Closed(Outcome),
    /// A convicted guest that was not restarted shows life.
    AliveAgain,
    /// Something is wrong inside of a guest, which is left alone all the same: its agent is silent, or complains.
    AgentLost,
    /// The agent of such a guest is back.
    AgentBack,
    /// The record is written down as it is now. Said with each change, whatever else is said of it.
    Recorded,
    /// Many VMs are silent together: one incident of the whole host.
    Storm,
}

/// What happened, and the incident as it stands with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Event<'a> {
    /// What happened.
    pub(crate) kind: EventKind,
    /// Its record; the number of its attempts is the number of the restart that an event is about.
    pub(crate) incident: &'a Incident,
}

/// Listener to events, called where they happen: it must not wait. A clone calls the same listener.
#[derive(Clone)]
pub(crate) struct EventSink(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl EventSink {
    /// Calls `listener` with each event.
    pub(crate) fn new(listener: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// Says that this happened.
    pub(crate) fn emit(&self, kind: EventKind, incident: &Incident) {
        (self.0)(Event { kind, incident });
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
