//! One connection to libvirt's socket: messages in and out, and what has to be said before anything can be asked.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::{
    endpoint::Endpoint,
    message::{
        self, AUTH_LIST, CONNECT_OPEN, HEADER_BYTES, Header, Kind, MONITOR_EVENT_REGISTER,
        Procedure, Refusal,
    },
    xdr::Reader,
};
use crate::{outgoing::Outgoing, qmp::codec::MAX_MESSAGE_BYTES, text::error_chain};

/// The longest body that is kept: a reply of QEMU's, and what is around it.
const MAX_BODY_BYTES: usize = MAX_MESSAGE_BYTES + 64;
/// The longest message that libvirt sends (`VIR_NET_MESSAGE_MAX` and its length).
const MAX_MESSAGE: usize = (32 << 20) + 4;
/// For libvirt to take a connection, and to answer one of the first calls.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Messages that were read and not looked at yet.
const READ_AHEAD: usize = 16;
/// `REMOTE_AUTH_NONE`.
const NO_AUTHENTICATION: u32 = 0;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoWire {
    /// It may be had later.
    Down(String),
    /// libvirt asks for what is not spoken here.
    Unfit(String),
}

/// A message that came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: Header,
    /// `None` of one that is longer than is taken.
    pub(super) body: Option<Vec<u8>>,
}

/// A connection. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Wire {
    write: OwnedWriteHalf,
    reader: JoinHandle<()>,
    frames: mpsc::Receiver<Result<Frame, String>>,
    pub(super) out: Outgoing,
    serial: u32,
    /// The user of the process behind it.
    pub(super) peer_uid: u32,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Wire {
    /// Connects to the first socket that is there, and has libvirt tell of all events.
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self, NoWire> {
        let mut why = NoWire::Down("it has no socket".to_owned());
        for path in &endpoint.sockets {
            match timeout(HANDSHAKE, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => return Self::begin(stream, endpoint, path).await,
                Ok(Err(error)) => why = NoWire::Down(said(path, &error_chain(&error))),
                Err(_) => why = NoWire::Down(said(path, "it takes no connection")),
            }
        }
        Err(why)
    }

    async fn begin(stream: UnixStream, endpoint: &Endpoint, path: &Path) -> Result<Self, NoWire> {
        let down = |why: String| NoWire::Down(said(path, &why));
        let peer = stream.peer_cred().map_err(|error| down(error_chain(&error)))?;
        if endpoint.is_system && peer.uid() != 0 {
            let why = format!("a process of user {} is behind it, and not root's", peer.uid());
            return Err(NoWire::Unfit(said(path, &why)));
        }
        let (read, write) = stream.into_split();
        let (sender, frames) = mpsc::channel(READ_AHEAD);
        let reader = tokio::spawn(read_all(BufReader::new(read), sender));
        let out = Outgoing::default();
        let mut wire = Self { write, reader, frames, out, serial: 0, peer_uid: peer.uid() };
        let listed = wire.ask(AUTH_LIST, &[]).await.map_err(down)?;
        let mut listed = Reader::new(&listed);
        let ways = listed.word().unwrap_or_default();
        let mut ways = (0..ways).map_while(|_| listed.word());
        if !ways.any(|way| way == NO_AUTHENTICATION) {
            return Err(NoWire::Unfit(said(path, "it asks for authentication")));
        }
        wire.ask(CONNECT_OPEN, &message::open(endpoint.name)).await.map_err(down)?;
        wire.ask(MONITOR_EVENT_REGISTER, &message::register()).await.map_err(down)?;
        Ok(wire)
    }

    /// The number of the next call.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// Makes a call, and waits for its answer alone.
    async fn ask(&mut self, procedure: Procedure, body: &[u8]) -> Result<Vec<u8>, String> {
        let serial = self.next_serial();
        self.put(&message::call(procedure, serial, body));
        let answer = async {
            loop {
                let frame = self.next().await?;
                let kind = frame.header.kind();
                if kind == Kind::Ping {
                    self.put(&message::pong());
                }
                if frame.header.serial == serial && matches!(kind, Kind::Reply | Kind::Refusal) {
                    let body = frame.body.unwrap_or_default();
                    return if kind == Kind::Reply {
                        Ok(body)
                    } else {
                        Err(Refusal::read(&body).text)
                    };
                }
            }
        };
        timeout(HANDSHAKE, answer).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
    }

    /// Has bytes sent.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.append(bytes, None);
    }

    /// Has bytes sent, and behind them a byte of its own with a descriptor, as libvirt takes it.
    pub(super) fn append(&mut self, bytes: &[u8], file: Option<std::os::fd::OwnedFd>) {
        let mut add = |bytes: &[u8], file| {
            let appended = self.out.append::<std::convert::Infallible>(file, |buffer| {
                buffer.extend_from_slice(bytes);
                Ok(())
            });
            match appended {
                Ok(()) => {}
            }
        };
        add(bytes, None);
        if let Some(file) = file {
            add(&[0], Some(file));
        }
    }

    /// The next message; meanwhile sends what is to be sent. Nothing is lost if it is not waited for to the end.
    pub(super) async fn next(&mut self) -> Result<Frame, String> {
        loop {
            tokio::select! {
                frame = self.frames.recv() => {
                    return frame.unwrap_or_else(|| Err("it ended the connection".to_owned()));
                }
                sent = self.out.send(self.write.as_ref()), if !self.out.is_empty() => {
                    sent.map_err(|error| error_chain(&error))?;
                }
            }
        }
    }
}

fn said(path: &Path, why: &str) -> String {
    format!("{}: {why}", path.display())
}

/// Reads messages until there are no more, and says why.
async fn read_all(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Result<Frame, String>>) {
    loop {
        let frame = match read(&mut from).await {
            Ok(frame) => Ok(frame),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err("it ended the connection".to_owned())
            }
            Err(error) => Err(error_chain(&error)),
        };
        let is_last = frame.is_err();
        if to.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if !(HEADER_BYTES..=MAX_MESSAGE).contains(&length) {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut header = [0; HEADER_BYTES - 4];
    from.read_exact(&mut header).await?;
    let header = Header::read(&header).ok_or(io::ErrorKind::InvalidData)?;
    let length = length - HEADER_BYTES;
    // As it comes: the length is a promise.
    let mut rest = from.take(length as u64);
    let mut body = Vec::new();
    let read = if length > MAX_BODY_BYTES {
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?
    } else {
        rest.read_to_end(&mut body).await? as u64
    };
    if read < length as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { header, body: (length <= MAX_BODY_BYTES).then_some(body) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_read_whole_and_one_that_is_too_long_is_passed_over() {
        let first = message::call(AUTH_LIST, 1, b"1234");
        let mut long = message::call(CONNECT_OPEN, 2, &vec![7; MAX_BODY_BYTES + 1]);
        long.extend(message::call(AUTH_LIST, 3, b""));
        let bytes = [first, long].concat();
        let mut from = &bytes[..];
        let frame = read(&mut from).await.unwrap();
        assert_eq!((frame.header.serial, frame.body.as_deref()), (1, Some(&b"1234"[..])));
        let frame = read(&mut from).await.unwrap();
        assert_eq!((frame.header.serial, frame.body), (2, None));
        assert_eq!(read(&mut from).await.unwrap().header.serial, 3);
        assert_eq!(read(&mut from).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_length_that_is_none_ends_the_connection() {
        for length in [0, 27, u32::MAX] {
            let bytes = [&length.to_be_bytes()[..], &[0; 64]].concat();
            assert!(read(&mut &bytes[..]).await.unwrap_err().to_string().contains("bytes"));
        }
        let cut = message::call(AUTH_LIST, 1, b"1234");
        assert!(read(&mut &cut[..cut.len() - 1]).await.is_err());
    }
}
