//! Clients' requests that wait for the loop, and when they have their turn.
//!
//! While five hundred suspects are judged, or what their QEMUs say is taken, a client has a turn every so often between two pieces of
//! that. What clients take of the loop is a tenth of its time then, however many ask.

use std::time::{Duration, Instant};

use tokio::sync::{
    mpsc::{self, Receiver, Sender},
    oneshot,
};

use crate::api::{ControlRequest, Reply, Request};

/// Requests that may wait.
const REQUESTS: usize = 64;
/// The time from one turn to the next; to carry out a request takes about a millisecond of a thousand VMs.
const TURN_EVERY: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Clients {
    requests: Receiver<ControlRequest>,
    /// One that can't be carried out within a tick.
    put_off: Option<ControlRequest>,
    /// When one was carried out last.
    turn: Instant,
}

impl Clients {
    /// Those that send requests to the other end.
    pub(super) fn new() -> (Sender<ControlRequest>, Self) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        (sender, Self { requests, put_off: None, turn: Instant::now() })
    }

    /// The next request, whenever it comes.
    pub(super) async fn next(&mut self) -> Option<ControlRequest> {
        let next = match self.put_off.take() {
            Some(request) => Some(request),
            None => self.requests.recv().await,
        };
        self.turn = Instant::now();
        next
    }

    /// The next request, where one waits and it is a client's turn.
    pub(super) fn in_turn(&mut self) -> Option<ControlRequest> {
        let next = self.waiting()?;
        self.turn = Instant::now();
        Some(next)
    }

    /// The same within a tick, where the next one is for a status: that changes nothing.
    pub(super) fn status_in_turn(&mut self) -> Option<oneshot::Sender<Reply>> {
        let ControlRequest { request, reply } = self.waiting()?;
        if request == Request::Status {
            self.turn = Instant::now();
            return Some(reply);
        }
        self.put_off = Some(ControlRequest { request, reply });
        None
    }

    fn waiting(&mut self) -> Option<ControlRequest> {
        if self.turn.elapsed() < TURN_EVERY {
            return None;
        }
        self.put_off.take().or_else(|| self.requests.try_recv().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(sender: &Sender<ControlRequest>, request: Request) {
        let (reply, _) = oneshot::channel();
        sender.try_send(ControlRequest { request, reply }).expect("there is room");
    }

    fn end_of_turn(clients: &mut Clients) {
        clients.turn -= TURN_EVERY;
    }

    #[tokio::test]
    async fn one_has_its_turn_every_so_often_and_within_a_tick_only_for_a_status() {
        let (sender, mut clients) = Clients::new();
        let show = || Request::Show { vm: "web".to_owned() };
        for request in [Request::Status, show(), Request::Status, Request::Status] {
            send(&sender, request);
        }
        assert!(clients.status_in_turn().is_none(), "it is no turn yet");
        end_of_turn(&mut clients);
        assert!(clients.status_in_turn().is_some());
        assert!(clients.in_turn().is_none(), "there was one just now");
        end_of_turn(&mut clients);
        assert!(clients.status_in_turn().is_none(), "another question is next");
        assert_eq!(clients.in_turn().map(|it| it.request), Some(show()));
        assert_eq!(clients.next().await.map(|it| it.request), Some(Request::Status));
        end_of_turn(&mut clients);
        assert!(clients.status_in_turn().is_some());
        end_of_turn(&mut clients);
        assert!(clients.in_turn().is_none(), "none waits");
        drop(sender);
        assert!(clients.next().await.is_none());
    }

    #[tokio::test]
    async fn one_that_was_put_off_is_the_next() {
        let (sender, mut clients) = Clients::new();
        send(&sender, Request::Lines { vm: None });
        send(&sender, Request::Status);
        end_of_turn(&mut clients);
        assert!(clients.status_in_turn().is_none());
        assert!(matches!(clients.next().await, Some(it) if it.request != Request::Status));
        assert!(matches!(clients.next().await, Some(it) if it.request == Request::Status));
    }
}
