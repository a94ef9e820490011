//! The requests that QEMU's own block layer completed, where the host's sees none: images on FUSE, NFS, Ceph.
//!
//! One call of `query-blockstats` a round, well below a millisecond.

use std::time::Duration;

use tokio::time::Instant;

use super::{Note, ProbeContext, Witness, of_suspects};
use flatline_detector::verdict::Answer;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "QEMU's block layer",
    looks_for: "completed requests, where the host sees none",
    asked_in: of_suspects,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// An older count says nothing of this silence.
const RECENT: Duration = Duration::from_secs(10);

/// When QEMU was asked, and what it had completed by then.
struct Count {
    at: Instant,
    completed: u64,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    let before = note.take::<Count>();
    if !context.unseen_storage {
        return Err("the host sees its requests".to_owned());
    }
    let completed = context.qmp()?.query_requests().await.map_err(|error| error.to_string())?;
    let now = Count { at: Instant::now(), completed };
    let answer = compare(before.as_ref(), &now);
    note.put(now);
    Ok(answer)
}

fn compare(before: Option<&Count>, now: &Count) -> Answer {
    match before {
        Some(before) if now.at.saturating_duration_since(before.at) <= RECENT => {
            match now.completed.saturating_sub(before.completed) {
                0 => Answer::Nothing("none completed since the last round".to_owned()),
                completed => Answer::Lives(format!("{completed} requests completed")),
            }
        }
        _ => Answer::NotAsked("asked for the first time in this silence".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_recent_count_is_compared_with() {
        let at = Instant::now();
        let count = |seconds, completed| Count { at: at + Duration::from_secs(seconds), completed };
        let old = count(0, 5);
        assert_eq!(compare(Some(&old), &count(1, 7)), Answer::Lives("2 requests completed".into()));
        assert!(matches!(compare(Some(&old), &count(1, 5)), Answer::Nothing(_)));
        assert!(matches!(compare(Some(&old), &count(11, 9)), Answer::NotAsked(_)));
        assert!(matches!(compare(None, &count(11, 9)), Answer::NotAsked(_)));
    }
}
