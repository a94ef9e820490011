//! What QEMU answers about the machine: its vCPUs, its disks and their figures, its networks' filters, and what the
//! guest said when it panicked.
//!
//! Each is asked when the one before was answered: a QEMU has few places for commands that wait, and its main loop
//! answers one after the other anyhow.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ANSWER_LIMIT, Content, Found, Piece, piece, pretty};
use crate::{
    error_text::in_full,
    qmp::{QmpError, QmpHandle},
};

/// So many vCPUs are asked for what their guest said; the one that panicked told it.
const MOST_ASKED: usize = 64;
/// A vCPU's path in QEMU's object tree is below 40 characters.
const PATH_CHARS: usize = 256;

/// Asks for all of it until `deadline`; each answer may take `limit`.
pub(super) async fn ask(
    qmp: &QmpHandle,
    announced: bool,
    limit: Duration,
    deadline: Instant,
) -> Vec<Piece> {
    let left = || limit.min(deadline.saturating_duration_since(Instant::now()));
    let mut pieces = Vec::new();
    let mut cpus = Value::Null;
    let mut is_slow = false;
    for (file, what, command) in [
        ("vcpus.json", "QEMU's account of the vCPUs", "query-cpus-fast"),
        ("block.json", "QEMU's account of the disks", "query-block"),
        ("blockstats.json", "what QEMU counted of the disks", "query-blockstats"),
        ("network.json", "QEMU's account of the networks' filters", "query-rx-filter"),
    ] {
        let answer = async {
            if is_slow {
                return Err("not asked for: QEMU is too slow".to_owned());
            }
            let answer = qmp.execute(command, None, ANSWER_LIMIT).await.map_err(in_words)?;
            let text = pretty(&answer);
            if command == "query-cpus-fast" {
                cpus = answer;
            }
            Ok(Content::Text(text))
        };
        let limit = left();
        let asked = piece(file, what, limit, answer).await;
        // Whatever comes after it in QEMU's queue would be late as well.
        is_slow |= asked.took >= limit;
        pieces.push(asked);
    }
    if announced && !is_slow {
        let what = "what the guest said of its panic";
        pieces.push(piece("panic.json", what, left(), panic(qmp, &cpus)).await);
    }
    pieces
}

/// What a Hyper-V guest, or one on s390, said of its crash: QEMU keeps it with the vCPU.
async fn panic(qmp: &QmpHandle, cpus: &Value) -> Found {
    let paths =
        cpus.as_array().into_iter().flatten().filter_map(|cpu| cpu.get("qom-path")?.as_str());
    for path in paths.filter(|path| path.len() <= PATH_CHARS).take(MOST_ASKED) {
        let arguments = json!({ "path": path, "property": "crash-information" });
        match qmp.execute("qom-get", Some(arguments), ANSWER_LIMIT).await {
            Ok(said) => return Ok(Content::Text(pretty(&said))),
            // This vCPU said nothing, or its kind never does.
            Err(QmpError::Command { .. }) => {}
            Err(error) => return Err(in_words(error)),
        }
    }
    Err("it said no more than that it did (as Linux does through pvpanic)".to_owned())
}

fn in_words(error: QmpError) -> String {
    in_full(&error)
}
