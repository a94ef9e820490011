//! The evidence of incidents over HTTP, to those whom it is for.
//!
//! What a console showed may be a secret, and a loopback address keeps out no process of this host, a QEMU that its
//! guest took over as little as another one. So unless configured otherwise it is handed to connections of root alone
//! (or of the user whom the daemon runs as), on a loopback address, by the kernel's account of whose they are.
//!
//! Files are those of a fixed list, of directories with plain names. Nothing but the picture is called anything else
//! than text, so that no browser takes what a guest wrote for something to run.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header::HeaderValue};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::debug;

use super::{
    Visitor, peer,
    reply::{TEXT, response, text},
};
use crate::{
    config::EvidenceReaders,
    storage::evidence::{self, ReadError},
};
use flatline_qemu::text::error_chain;

/// The console's picture, which is the daemon's own PNG.
const PICTURE: &str = "screen.png";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// What is text. Recordings are for `flatline replay`, and memory dumps for nobody here.
const TEXTS: [&str; 11] = [
    "actuator.txt",
    "block.json",
    "blockstats.json",
    "console.txt",
    "evidence.txt",
    "figures.json",
    "network.json",
    "panic.json",
    "registers.txt",
    "run-state.txt",
    "vcpus.json",
];
/// A file that is larger is left to `flatline incidents show ID --html FILE`.
const FILE_MAX_BYTES: usize = 4 << 20;
/// Files that are held in memory at the same time, until they are sent.
const FILES_AT_A_TIME: usize = 4;

/// What is served, and to whom.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    state_dir: PathBuf,
    readers: EvidenceReaders,
    places: Arc<Semaphore>,
}

/// Why somebody is served no evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withheld {
    /// Nobody is.
    Off,
    /// The address is open to others than this host.
    NotLoopback,
    /// It isn't root who asks, as far as can be told.
    NotRoot,
}

impl Withheld {
    fn words(self) -> &'static str {
        match self {
            Self::Off => "no evidence is served here: metrics.evidence is \"off\"",
            Self::NotLoopback => {
                "evidence is served on a loopback address only, unless metrics.evidence is \"all\""
            }
            Self::NotRoot => {
                "evidence is served to root's connections only, unless metrics.evidence is \"all\""
            }
        }
    }

    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.words())
    }
}

impl Evidence {
    pub(super) fn new(state_dir: PathBuf, readers: EvidenceReaders) -> Self {
        Self { state_dir, readers, places: Arc::new(Semaphore::new(FILES_AT_A_TIME)) }
    }

    /// Whether `visitor` may have it.
    pub(super) async fn is_for(&self, visitor: Visitor) -> Result<(), Withheld> {
        match self.readers {
            EvidenceReaders::Off => return Err(Withheld::Off),
            EvidenceReaders::All => return Ok(()),
            EvidenceReaders::Root => {}
        }
        let Visitor { peer, own } = visitor;
        if !own.ip().is_loopback() || !peer.ip().is_loopback() {
            return Err(Withheld::NotLoopback);
        }
        let found = spawn_blocking(move || peer::user(peer, own)).await;
        let user = match found {
            Ok(Ok(user)) => user,
            Ok(Err(error)) => {
                debug!("whose connection it is can't be read: {error}");
                None
            }
            Err(_) => None,
        };
        let ours = rustix::process::geteuid().as_raw();
        match user {
            Some(user) if user == 0 || user == ours => Ok(()),
            Some(_) | None => Err(Withheld::NotRoot),
        }
    }

    /// The answer to a request for `path`, an incident's id and a file's name.
    pub(super) async fn answer(&self, path: &str, visitor: Visitor) -> Response<Full<Bytes>> {
        if let Err(why) = self.is_for(visitor).await {
            return text(StatusCode::FORBIDDEN, why.words());
        }
        let nothing = || text(StatusCode::NOT_FOUND, "there is no such evidence, or no longer");
        let Some((id, file)) = path.split_once('/') else { return nothing() };
        if file != PICTURE && !TEXTS.contains(&file) {
            return nothing();
        }
        let Ok(place) = self.places.clone().acquire_owned().await else { return nothing() };
        let (state_dir, id, name) = (self.state_dir.clone(), id.to_owned(), file.to_owned());
        let read =
            spawn_blocking(move || evidence::read_part(&state_dir, &id, &name, 0, FILE_MAX_BYTES));
        let (length, content) = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(ReadError::Nothing { .. })) | Err(_) => return nothing(),
            Ok(Err(error @ ReadError::Io { .. })) => {
                debug!("{}", error_chain(&error));
                return text(StatusCode::INTERNAL_SERVER_ERROR, "the evidence can't be read");
            }
        };
        if length > FILE_MAX_BYTES as u64 {
            let advice =
                "it is too large for here; `flatline incidents show ID --html FILE` has it";
            return text(StatusCode::PAYLOAD_TOO_LARGE, advice);
        }
        let content_type = match file {
            PICTURE if content.starts_with(PNG) => "image/png",
            PICTURE => return nothing(),
            _ => TEXT,
        };
        // The place is free again when the bytes are sent, or given up.
        response(StatusCode::OK, content_type, Bytes::from_owner(Held { content, _place: place }))
    }
}

/// Bytes in memory, and their place there.
struct Held {
    content: Vec<u8>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_else_is_served_evidence_unless_that_is_configured() {
        let visitor = |peer: &str, own: &str| Visitor {
            peer: peer.parse().expect("an address"),
            own: own.parse().expect("an address"),
        };
        let outside = visitor("192.0.2.1:5", "192.0.2.2:9477");
        let itself = visitor("192.0.2.2:5", "192.0.2.2:9477");
        // Nobody is connected so.
        let nobody = visitor("127.0.0.1:1", "127.0.0.1:2");
        let evidence = |readers| Evidence::new(PathBuf::from("/nonexistent"), readers);
        let root = evidence(EvidenceReaders::Root);
        assert_eq!(root.is_for(outside).await, Err(Withheld::NotLoopback));
        assert_eq!(root.is_for(itself).await, Err(Withheld::NotLoopback));
        assert_eq!(root.is_for(nobody).await, Err(Withheld::NotRoot));
        for visitor in [outside, itself, nobody] {
            assert_eq!(evidence(EvidenceReaders::Off).is_for(visitor).await, Err(Withheld::Off));
            assert_eq!(evidence(EvidenceReaders::All).is_for(visitor).await, Ok(()));
        }
    }
}
