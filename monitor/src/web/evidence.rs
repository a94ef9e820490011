//! The evidence of incidents over HTTP.
//!
//! Files are those of a fixed list, of directories with plain names. Nothing but the picture is called anything else
//! than text, so that no browser takes what a guest wrote for something to run.

use std::{path::PathBuf, sync::Arc};

use axum::{http::StatusCode, response::Response};
use bytes::Bytes;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::debug;

use crate::{
    api::response::{TEXT, response, text},
    storage::evidence::{self, ReadError},
};
use flatline_qemu::text::error_chain;

/// The console's picture, which is the daemon's own PNG.
const PICTURE: &str = "screen.png";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// What is text. Recordings are for `flatline replay`, and memory dumps are not served.
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

/// The files, and how many of them are in memory.
#[derive(Clone, Debug)]
pub(super) struct EvidenceFiles {
    state_dir: PathBuf,
    places: Arc<Semaphore>,
}

impl EvidenceFiles {
    /// Those of incidents in this state directory.
    pub(super) fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, places: Arc::new(Semaphore::new(FILES_AT_A_TIME)) }
    }

    /// The answer to a request for `path`, an incident's id and a file's name.
    pub(super) async fn answer(&self, path: &str) -> Response {
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
