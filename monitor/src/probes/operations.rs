//! Operations on the VM that are under way, so that its silence is not its guest's fault.
//!
//! - A **live migration**: its last phase stops the guest, after post-copy it waits for pages from another
//!   host, and a reset in the midst of it may lose the guest on both. Every state but none, completed, cancelled
//!   and failed excuses, and so does one that a later QEMU may add.
//! - A **snapshot job** (`snapshot-save`, `-load`, `-delete`): it stops the guest and starts it again, and a
//!   reset in between would spoil what it saves.
//! - **Other jobs** (mirror, backup, commit, stream) leave the guest running, for hours, and their last phases
//!   can last as long as a management tool likes (`ready`, `pending`): to be excused by them would be to be
//!   unwatched during each backup. Where they drain a disk, as when a mirror pivots, vCPUs run on with interrupts
//!   on, so that the registers don't convict, and its kernel answers without its disk; if QEMU's main loop waits
//!   for the drain, its monitor doesn't answer either, which holds the verdict by itself. So they are named, and
//!   no more. `query-block-jobs` tells the same jobs once more, and is not asked.
//! - A **debugger** that traces QEMU (`TracerPid`) may stop any of its threads, vCPUs among them, while the
//!   process looks well. One at QEMU's own gdb stub stops the guest with the run state `debug`, which the
//!   verdict knows; `singlestep` in `query-status` is a way of emulating and no debugger.
//!
//! Two calls of QMP a round, each well below a millisecond, and one read below `/proc`.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;
use tokio::join;

use super::{Note, ProbeContext, Witness, host::read, of_suspects};
use flatline_detector::verdict::Answer;
use flatline_qemu::blocking::{UnderWay, within};
use flatline_qemu::qmp::QmpError;
use flatline_samples::{MAX_TEXT_CHARS, printable};

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "operations",
    looks_for: "a migration, a snapshot or a debugger",
    asked_in: of_suspects,
    only_excuses: true,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// States of a migration in which nothing is under way.
const MIGRATION_OVER: [&str; 4] = ["none", "completed", "cancelled", "failed"];
/// States of a job that did not begin, or has ended.
const JOB_IDLE: [&str; 4] = ["undefined", "created", "concluded", "null"];
/// The most jobs that are looked at: one a disk is much.
const MOST_JOBS: usize = 1024;
/// The most jobs that are named.
const MOST_NAMED: usize = 4;
/// How long a round waits for `/proc`. Not measured: nothing there waits.
const READ_WITHIN: Duration = Duration::from_millis(300);

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    let mut under_way: UnderWay<Option<String>> = note.take().flatten();
    let status = PathBuf::from(format!("/proc/{}/status", context.vm.id.pid));
    let status = within(READ_WITHIN, &mut under_way, move || read(&status));
    let (told, status) = join!(told(context), status);
    note.put(under_way);
    judge(told, status.flatten().and_then(|status| tracer(&status)))
}

/// What QEMU says of a migration and of its jobs, or why it says nothing.
type Told = Result<(Option<Value>, Option<Value>), String>;

/// Asks QEMU for both. A QEMU that doesn't know a command has nothing of the kind.
async fn told(context: &ProbeContext) -> Told {
    let qmp = context.qmp()?;
    let (migration, jobs) = join!(qmp.reply("query-migrate", None), qmp.reply("query-jobs", None));
    let known = |reply: Result<Value, QmpError>| match reply {
        Ok(reply) => Ok(Some(reply)),
        Err(QmpError::Command { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    Ok((known(migration)?, known(jobs)?))
}

fn judge(told: Told, tracer: Option<u32>) -> Result<Answer, String> {
    if let Some(tracer) = tracer {
        return Ok(Answer::Excuse(format!("a debugger is attached to QEMU (process {tracer})")));
    }
    let (migration, jobs) = told?;
    if let Some(status) = migration.as_ref().and_then(migrating) {
        return Ok(Answer::Excuse(format!("a live migration is under way ({status})")));
    }
    let jobs = jobs.as_ref().map(running_jobs).unwrap_or_default();
    if let Some(job) = jobs.iter().find(|job| job.kind.starts_with("snapshot-")) {
        return Ok(Answer::Excuse(format!("a {} job is {}", job.kind, job.status)));
    }
    let named = jobs.iter().take(MOST_NAMED).map(|job| format!("{} ({})", job.kind, job.status));
    let named: Vec<String> = named.collect();
    Ok(Answer::Nothing(if named.is_empty() {
        "no operation is under way".to_owned()
    } else {
        format!("block jobs, which leave it running: {}", named.join(", "))
    }))
}

/// The state of a migration that is under way, in a reply of `query-migrate`.
fn migrating(reply: &Value) -> Option<String> {
    // Without one so far, the reply is empty.
    let status = reply.get("status")?.as_str()?;
    (!MIGRATION_OVER.contains(&status)).then(|| printable(status, MAX_TEXT_CHARS))
}

/// A job, in QEMU's words.
struct Job {
    kind: String,
    status: String,
}

/// The jobs that have begun and not ended, in a reply of `query-jobs`.
fn running_jobs(reply: &Value) -> Vec<Job> {
    let text =
        |job: &Value, field: &str| Some(printable(job.get(field)?.as_str()?, MAX_TEXT_CHARS));
    let job = |job: &Value| Some(Job { kind: text(job, "type")?, status: text(job, "status")? });
    let jobs = reply.as_array().into_iter().flatten().take(MOST_JOBS).filter_map(job);
    jobs.filter(|job| !JOB_IDLE.contains(&job.status.as_str())).collect()
}

/// The process that traces another one, by the `status` of that. The kernel escapes newlines in a name, so none can pose as this line.
fn tracer(status: &str) -> Option<u32> {
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(migration: Value, jobs: Value) -> Answer {
        judge(Ok((Some(migration), Some(jobs))), None).unwrap()
    }

    fn job(kind: &str, status: &str) -> Value {
        json!({"id": "j0", "type": kind, "status": status, "current-progress": 0, "total-progress": 1})
    }

    #[test]
    fn a_migration_excuses_in_every_state_but_those_in_which_it_is_over() {
        for status in ["setup", "active", "pre-switchover", "device", "postcopy-active", "of 2031"]
        {
            let answer = judged(json!({"status": status, "total-time": 5}), json!([]));
            assert!(matches!(&answer, Answer::Excuse(why) if why.contains(status)), "{answer:?}");
        }
        for status in MIGRATION_OVER {
            let answer = judged(json!({ "status": status }), json!([]));
            assert!(matches!(answer, Answer::Nothing(_)), "{status}: {answer:?}");
        }
        assert!(matches!(judged(json!({}), json!([])), Answer::Nothing(_)));
    }

    #[test]
    fn a_snapshot_that_is_at_work_excuses_and_a_backup_is_only_named() {
        let saving =
            judged(json!({}), json!([job("mirror", "ready"), job("snapshot-save", "running")]));
        assert!(matches!(saving, Answer::Excuse(_)), "{saving:?}");
        let saved = judged(json!({}), json!([job("snapshot-save", "concluded")]));
        assert!(matches!(saved, Answer::Nothing(_)), "{saved:?}");
        let copied = judged(json!({}), json!([job("backup", "running"), job("mirror", "ready")]));
        assert!(
            matches!(&copied, Answer::Nothing(what) if what.contains("backup (running), mirror (ready)")),
            "{copied:?}"
        );
    }

    #[test]
    fn an_old_qemu_and_a_hostile_one_are_no_excuse() {
        assert!(matches!(judge(Ok((None, None)), None), Ok(Answer::Nothing(_))));
        let odd =
            judged(json!({"status": 7}), json!([7, {}, {"type": []}, {"type": "snapshot-x"}]));
        assert!(matches!(odd, Answer::Nothing(_)), "{odd:?}");
        let flood = judged(json!([]), Value::from(vec![job("x", "running"); 5000]));
        assert!(flood.text().len() < 200, "{flood:?}");
        assert!(judge(Err("busy".to_owned()), None).is_err());
    }

    #[test]
    fn a_tracer_excuses_even_where_qemu_tells_nothing() {
        let status =
            "Name:\tqemu\\nTracerPid:\t1\nState:\tS (sleeping)\nTracerPid:\t4711\nUid:\t0\n";
        assert_eq!(tracer(status), Some(4711));
        assert_eq!(tracer("Name:\tqemu\nTracerPid:\t0\n"), None);
        assert_eq!(tracer(""), None);
        assert!(matches!(judge(Err("busy".to_owned()), Some(4711)), Ok(Answer::Excuse(_))));
    }
}
