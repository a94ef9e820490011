//! What the peer sent, read into room that is taken only while there is something in it.

use std::{io, os::fd::AsFd as _};

use bytes::BytesMut;
use rustix::net::{RecvFlags, recv};
use tokio::net::{UnixStream, unix::OwnedReadHalf};

/// What is read at a time.
const READ_BYTES: usize = 1 << 10;

/// Reads some once it is there: none at the end.
pub(super) async fn read(reader: &OwnedReadHalf, received: &mut BytesMut) -> io::Result<usize> {
    loop {
        reader.readable().await?;
        received.reserve(READ_BYTES);
        match reader.try_read_buf(received) {
            // What was said to be readable may be read already: the wait goes on without the room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => give_back(received),
            read => return read,
        }
    }
}

/// Reads some of what the kernel has, whether or not the runtime was told of it yet: none where there is none.
pub(super) fn read_left(socket: &UnixStream, received: &mut BytesMut) -> usize {
    let mut bytes = [0; READ_BYTES];
    let read = recv(socket.as_fd(), &mut bytes, RecvFlags::DONTWAIT).map_or(0, |(read, _)| read);
    received.extend_from_slice(bytes.get(..read).unwrap_or_default());
    read
}

/// Keeps no room for what has not come.
pub(super) fn give_back(received: &mut BytesMut) {
    if received.is_empty() {
        *received = BytesMut::new();
    }
}
