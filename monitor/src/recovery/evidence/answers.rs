//! QEMU's answers about the machine: its vCPUs, its disks and their figures, its networks' filters, and what the
//! guest said when it panicked.
//!
//! Each is asked when the one before was answered: a QEMU has few places for commands that wait, and its main loop
//! answers one after the other anyhow.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ANSWER_LIMIT, Content, Found, Piece, piece, pretty};
use flatline_qemu::{
    qmp::{QmpError, QmpHandle},
    text::error_chain,
};

/// So many vCPUs are asked for what their guest said; the one that panicked told it.
const MOST_ASKED: usize = 64;
/// A vCPU's path in QEMU's object tree is below 40 characters.
const PATH_CHARS: usize = 256;

/// One question, and the file that its answer becomes.
#[derive(Clone, Copy)]
struct Question {
    file: &'static str,
    what: &'static str,
    command: &'static str,
    /// What is asked where that answer is more than is taken.
    instead: Option<Instead>,
}

#[derive(Clone, Copy)]
enum Instead {
    /// The nodes by themselves, none within another.
    Nodes,
    /// The figures as the human monitor prints them, which has no layers.
    Figures,
}

const fn question(
    file: &'static str,
    what: &'static str,
    command: &'static str,
    instead: Option<Instead>,
) -> Question {
    Question { file, what, command, instead }
}

/// In this order. Those of the disks nest a level for each overlay.
const QUESTIONS: [Question; 4] = [
    question("vcpus.json", "QEMU's account of the vCPUs", "query-cpus-fast", None),
    question("block.json", "QEMU's account of the disks", "query-block", Some(Instead::Nodes)),
    question(
        "blockstats.json",
        "what QEMU counted of the disks",
        "query-blockstats",
        Some(Instead::Figures),
    ),
    question("network.json", "QEMU's account of the networks' filters", "query-rx-filter", None),
];

/// The answer, or to what is asked instead; `remark` says then why.
async fn one(
    qmp: &QmpHandle,
    question: &Question,
    remark: &mut Option<String>,
) -> Result<Value, String> {
    let answer = qmp.execute(question.command, None, ANSWER_LIMIT).await;
    let (Err(error @ QmpError::Skipped { .. }), Some(instead)) = (&answer, question.instead) else {
        return answer.map_err(in_words);
    };
    let why = error_chain(error);
    let (command, answer) = match instead {
        Instead::Nodes => {
            let command = "query-named-block-nodes";
            (command, qmp.execute(command, Some(json!({ "flat": true })), ANSWER_LIMIT).await)
        }
        Instead::Figures => ("info blockstats", qmp.disk_figures().await.map(Value::from)),
    };
    let answer = answer
        .map_err(|error| format!("{why}; nor is there {command}: {}", error_chain(&error)))?;
    *remark = Some(format!("{command}: {why}"));
    Ok(answer)
}

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
    for question in QUESTIONS {
        let Question { file, what, command, .. } = question;
        let mut remark = None;
        let answer = async {
            if is_slow {
                return Err("not asked for: QEMU is too slow".to_owned());
            }
            let answer = one(qmp, &question, &mut remark).await?;
            let text = pretty(&answer);
            if command == "query-cpus-fast" {
                cpus = answer;
            }
            Ok(Content::Text(text))
        };
        let limit = left();
        let mut asked = piece(file, what, limit, answer).await;
        asked.remark = remark;
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
    error_chain(&error)
}
