//! A link to a libvirt made up here, for what a real one does not do when it is wanted. Real ones answer the end-to-end tests.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{
    CallError, Domain, Link, LinkState, Links,
    message::{HEADER_BYTES, Header, Procedure},
    xdr::Writer,
};
use crate::qmp::QmpEvent;

const SECONDS: Duration = Duration::from_secs(20);

/// A made-up libvirt's end of a connection.
struct Served(UnixStream);

impl Served {
    /// The next message's header and body.
    async fn take(&mut self) -> (Header, Vec<u8>) {
        let length = self.0.read_u32().await.unwrap() as usize;
        let mut header = [0; HEADER_BYTES - 4];
        self.0.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; length - HEADER_BYTES];
        self.0.read_exact(&mut body).await.unwrap();
        (Header::read(&header).unwrap(), body)
    }

    /// Sends a message of this kind and status.
    async fn say(&mut self, procedure: Procedure, words: [i32; 3], body: &[u8]) {
        let [kind, serial, status] = words;
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let header = Writer::default().word(length).word(procedure.0).word(1).number(procedure.1);
        let header = header.number(kind).number(serial).number(status).finish();
        self.0.write_all(&[header.as_slice(), body].concat()).await.unwrap();
    }

    async fn answer(&mut self, to: &Header, body: &[u8]) {
        self.say(to.procedure, [1, to.serial.cast_signed(), 0], body).await;
    }

    /// Takes what stands before all else, with these ways of authentication.
    async fn greet(&mut self, ways: &[u32]) {
        let listed = ways.iter().fold(Writer::default().word(1), |writer, way| writer.word(*way));
        for body in [listed.finish(), Vec::new(), Writer::default().number(0).finish()] {
            let (header, _) = self.take().await;
            self.answer(&header, &body).await;
            if ways != [0] {
                return;
            }
        }
    }
}

async fn served(listener: &UnixListener) -> Served {
    let mut served = Served(listener.accept().await.unwrap().0);
    served.greet(&[0]).await;
    served
}

fn link_to(path: &Path) -> (UnixListener, Link) {
    let listener = UnixListener::bind(path).unwrap();
    let uri = format!("qemu+unix:///session?socket={}", path.display());
    (listener, Links::default().to(&uri).unwrap())
}

async fn up(link: &Link) -> u64 {
    loop {
        match link.state() {
            LinkState::Up { number, .. } => return number,
            state => timeout(SECONDS, link.changed_from(&state)).await.expect("a connection"),
        }
    }
}

fn domain(number: u8) -> Domain {
    Domain { name: format!("d{number}"), uuid: [number; 16] }
}

fn asks(
    link: &Link,
    number: u8,
    limit: Duration,
) -> impl Future<Output = Result<Vec<u8>, CallError>> + use<> {
    let link = link.clone();
    async move { link.execute(&domain(number), "{}".to_owned(), None, limit).await }
}

#[tokio::test]
async fn commands_are_answered_pings_too_and_events_go_to_their_domain() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, link) = link_to(&dir.path().join("sock"));
    let mut server = served(&listener).await;
    up(&link).await;
    let mut hearing = link.hear(&domain(1));
    server.say(Procedure(0x6b65_6570, 1), [2, 0, 0], &[]).await;
    let (pong, _) = server.take().await;
    assert_eq!(pong.procedure, Procedure(0x6b65_6570, 2));

    let answered = tokio::spawn(asks(&link, 1, SECONDS));
    let (call, body) = server.take().await;
    assert!(body.windows(2).any(|word| word == b"d1"), "{body:?}");
    let event = Writer::default().number(0).string("d1").fixed(&[1; 16]).number(3).string("STOP");
    let event = event.fixed(&[0; 8]).word(0).word(0).finish();
    server.say(Procedure(0x2000_8087, 6), [2, 0, 0], &event).await;
    server.answer(&call, &Writer::default().string("{\"return\":{}}").finish()).await;
    assert_eq!(answered.await.unwrap(), Ok(b"{\"return\":{}}".to_vec()));
    assert_eq!(timeout(SECONDS, hearing.next()).await.unwrap(), Some(QmpEvent::Stop));

    let refused = tokio::spawn(asks(&link, 1, SECONDS));
    let (call, _) = server.take().await;
    let error = Writer::default().number(42).number(10).word(1).string("Domain not found").finish();
    server.say(call.procedure, [1, call.serial.cast_signed(), 1], &error).await;
    assert_eq!(refused.await.unwrap(), Err(CallError::Gone("Domain not found".to_owned())));
}

#[tokio::test]
async fn a_descriptor_goes_behind_its_call_with_a_byte_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, link) = link_to(&dir.path().join("sock"));
    let mut server = served(&listener).await;
    up(&link).await;
    let file = tempfile::tempfile().unwrap().into();
    let sent = link.clone();
    let sent = tokio::spawn(async move {
        sent.execute(&domain(1), "{}".to_owned(), Some(file), SECONDS).await
    });
    let (call, body) = server.take().await;
    assert_eq!((call.procedure, &body[..4]), (Procedure(0x2000_8087, 7), &[0, 0, 0, 1][..]));
    // Which the descriptor came with: `outgoing` has a test of that.
    assert_eq!(server.0.read_u8().await.unwrap(), 0);
    server.answer(&call, &Writer::default().string("{}").finish()).await;
    assert_eq!(sent.await.unwrap(), Ok(b"{}".to_vec()));
}

#[tokio::test]
async fn a_connection_that_ends_is_made_anew_and_its_calls_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, link) = link_to(&dir.path().join("sock"));
    let mut server = served(&listener).await;
    assert_eq!(up(&link).await, 1);
    let first = link.state();
    let lost = tokio::spawn(asks(&link, 1, SECONDS));
    server.take().await;
    drop(server);
    assert_eq!(lost.await.unwrap(), Err(CallError::Disconnected));
    timeout(SECONDS, link.changed_from(&first)).await.unwrap();
    let refused = asks(&link, 1, SECONDS).await;
    assert!(matches!(refused, Err(CallError::NotConnected(_))), "{refused:?}");
    let _server = served(&listener).await;
    assert_eq!(up(&link).await, 2);
}

#[tokio::test]
async fn domains_that_never_answer_cost_the_others_a_connection_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, link) = link_to(&dir.path().join("sock"));
    let mut server = served(&listener).await;
    up(&link).await;
    let hang: Vec<_> = (1..=4)
        .map(|number| tokio::spawn(asks(&link, number, Duration::from_millis(100))))
        .collect();
    for _ in 1..=4 {
        server.take().await;
    }
    for hung in hang {
        assert_eq!(hung.await.unwrap(), Err(CallError::Timeout));
    }
    let fifth = asks(&link, 5, SECONDS).await;
    assert_eq!(fifth, Err(CallError::Disconnected), "the connection is given up");
    let mut server = served(&listener).await;
    assert_eq!(up(&link).await, 2);
    let answered = tokio::spawn(asks(&link, 5, SECONDS));
    let (call, _) = server.take().await;
    server.answer(&call, &Writer::default().string("{}").finish()).await;
    assert_eq!(answered.await.unwrap(), Ok(b"{}".to_vec()));
}

#[tokio::test]
async fn a_libvirt_that_asks_for_authentication_is_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, link) = link_to(&dir.path().join("sock"));
    Served(listener.accept().await.unwrap().0).greet(&[2]).await;
    timeout(SECONDS, link.changed_from(&LinkState::Connecting)).await.unwrap();
    assert!(matches!(link.state(), LinkState::Unfit(why) if why.contains("authentication")));
}

#[tokio::test]
async fn a_libvirt_has_one_connection_whoever_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let uri = format!("qemu+unix:///session?socket={}", path.display());
    let links = Links::default();
    let (one, other) = (links.to(&uri).unwrap(), links.to(&uri).unwrap());
    assert!(one == other && links.to("qemu+ssh://host/system").is_none());
    let mut server = served(&listener).await;
    up(&one).await;
    drop((one, other));
    assert_eq!(timeout(SECONDS, server.0.read(&mut [0; 1])).await.unwrap().unwrap(), 0, "it ended");
}
