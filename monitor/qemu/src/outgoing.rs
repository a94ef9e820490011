//! What is to be sent on a connection: bytes, and here and there a file descriptor for QEMU.
//!
//! A descriptor travels with the first byte of the command that it is for (`SCM_RIGHTS`), and the bytes before it
//! are sent by themselves. QEMU keeps the last one that came until a command (`add-fd`, `getfd`) asks for it, so
//! that a further one may not go before that command was read: it goes with its own command's first byte as well,
//! which QEMU reads after the one before.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use bytes::{Buf as _, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{io::Interest, net::UnixStream};

/// Bytes and descriptors in the order in which they go.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: BytesMut,
    /// Each with how many bytes go before it.
    descriptors: VecDeque<(usize, OwnedFd)>,
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Has `encode` append bytes, and `descriptor` go with the first of them.
    pub(crate) fn append<E>(
        &mut self,
        descriptor: Option<OwnedFd>,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.bytes.len();
        let encoded = encode(&mut self.bytes);
        if encoded.is_ok() {
            self.descriptors.extend(descriptor.map(|descriptor| (before, descriptor)));
        } else {
            self.bytes.truncate(before);
        }
        encoded
    }

    /// Sends some of it. Nothing is lost if this is dropped before it ends.
    pub(crate) async fn send(&mut self, socket: &UnixStream) -> io::Result<()> {
        let (length, descriptor) = match self.descriptors.front() {
            Some((0, descriptor)) => {
                let next = self.descriptors.get(1).map_or(self.bytes.len(), |(at, _)| *at);
                (next, Some(descriptor.as_fd()))
            }
            Some((at, _)) => (*at, None),
            None => (self.bytes.len(), None),
        };
        let part = self.bytes.get(..length).unwrap_or(&self.bytes);
        let sent = socket.async_io(Interest::WRITABLE, || send(socket.as_fd(), part, descriptor));
        let sent = sent.await?;
        if sent > 0 && matches!(self.descriptors.front(), Some((0, _))) {
            // The kernel holds it now; what is left of these bytes goes without it.
            self.descriptors.pop_front();
        }
        self.bytes.advance(sent);
        if self.bytes.is_empty() {
            // Its room is given back: there is one for each VM of the host.
            self.bytes = BytesMut::new();
        }
        for (at, _) in &mut self.descriptors {
            *at = at.saturating_sub(sent);
        }
        Ok(())
    }
}

fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        fs::File,
        io::{IoSliceMut, Read as _, Seek as _, Write as _},
    };

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    fn put(out: &mut Outgoing, bytes: &[u8], descriptor: Option<OwnedFd>) {
        let appended = out.append::<Infallible>(descriptor, |buffer| {
            buffer.extend_from_slice(bytes);
            Ok(())
        });
        appended.unwrap();
    }

    /// What one read brings: bytes, and the descriptors with them.
    fn receive(socket: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::empty()).unwrap();
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        (bytes[..received.bytes].to_vec(), descriptors)
    }

    #[tokio::test]
    async fn a_descriptor_comes_with_the_first_byte_of_its_own_command_and_never_earlier() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut out = Outgoing::default();
        let mut file = tempfile::tempfile().unwrap();
        put(&mut out, b"before", None);
        put(&mut out, b"with", Some(file.try_clone().unwrap().into()));
        put(&mut out, b"after", None);
        put(&mut out, b"last", Some(file.try_clone().unwrap().into()));
        while !out.is_empty() {
            out.send(&ours).await.unwrap();
        }
        theirs.readable().await.unwrap();
        let (mut bytes, mut came) = (Vec::new(), Vec::new());
        while bytes.len() < b"beforewithafterlast".len() {
            let (some, descriptors) = receive(&theirs);
            came.extend(descriptors.into_iter().map(|descriptor| (bytes.len(), descriptor)));
            bytes.extend(some);
        }
        assert_eq!(bytes, b"beforewithafterlast");
        // A read may begin before the byte that a descriptor goes with, and never behind it.
        let places: Vec<usize> = came.iter().map(|(at, _)| *at).collect();
        assert!(
            places.len() == 2 && places[0] <= 6 && (10..=15).contains(&places[1]),
            "{places:?}"
        );
        let (_, descriptor) = came.remove(0);
        File::from(descriptor).write_all(b"through it").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through it");
    }

    #[test]
    fn a_command_that_cannot_be_encoded_leaves_nothing_behind() {
        let mut out = Outgoing::default();
        let descriptor = tempfile::tempfile().unwrap().into();
        let failed = out.append(Some(descriptor), |buffer| {
            buffer.extend_from_slice(b"half");
            Err("too long")
        });
        assert_eq!(failed, Err("too long"));
        assert!(out.is_empty() && out.descriptors.is_empty());
    }
}
