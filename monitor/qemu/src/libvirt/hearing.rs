//! Events on their way from the one connection to those that listen for a domain's.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::message::DomainEvent;
use crate::qmp::QmpEvent;

/// Events of a domain that wait for its listener.
const WAITING: usize = 64;

type Uuid = [u8; 16];

/// Which domains are listened for.
#[derive(Clone, Debug, Default)]
pub(super) struct Listeners(Arc<Mutex<HashMap<Uuid, Vec<Listener>>>>);

#[derive(Debug)]
struct Listener {
    events: mpsc::Sender<QmpEvent>,
    lost: Arc<AtomicBool>,
}

/// The events of one domain, until it is dropped.
#[derive(Debug)]
pub struct Hearing {
    events: mpsc::Receiver<QmpEvent>,
    lost: Arc<AtomicBool>,
}

impl Hearing {
    /// The next event. Nothing is lost if it is not waited for to the end. Never ends, but with the connection's task.
    pub async fn next(&mut self) -> Option<QmpEvent> {
        self.events.recv().await
    }

    /// Whether events were left out since this was asked last, since more came than were taken.
    pub fn were_lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }
}

impl Listeners {
    pub(super) fn add(&self, uuid: Uuid) -> Hearing {
        let (sender, events) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicBool::new(false));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, listeners| {
            listeners.retain(|listener| !listener.events.is_closed());
            !listeners.is_empty()
        });
        all.entry(uuid).or_default().push(Listener { events: sender, lost: lost.clone() });
        Hearing { events, lost }
    }

    /// Passes an event on to those that listen for its domain.
    pub(super) fn tell(&self, told: &DomainEvent) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listeners) = all.get_mut(&told.uuid) else { return };
        listeners.retain(|listener| match listener.events.try_send(told.event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                listener.lost.store(true, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_hears_of_its_own_domain_and_is_told_of_what_it_missed() {
        let listeners = Listeners::default();
        let (mut one, mut other) = (listeners.add([1; 16]), listeners.add([2; 16]));
        let told = DomainEvent { uuid: [1; 16], event: QmpEvent::Stop };
        for _ in 0..=WAITING {
            listeners.tell(&told);
        }
        listeners.tell(&DomainEvent { uuid: [3; 16], event: QmpEvent::Stop });
        assert!(one.were_lost() && !one.were_lost() && !other.were_lost());
        for _ in 0..WAITING {
            assert_eq!(one.next().await, Some(QmpEvent::Stop));
        }
        assert!(one.events.try_recv().is_err() && other.events.try_recv().is_err());
        drop(one);
        listeners.tell(&told);
        assert!(listeners.0.lock().unwrap()[&[1; 16]].is_empty());
    }
}
