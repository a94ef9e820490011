//! The commands that are asked often, with typed answers.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{QmpError, QmpHandle, RunState, stats::VcpuStats};
use crate::text::MAX_TEXT_CHARS;

/// How long a helper of this module waits. A healthy QEMU answers in 0.1 ms, one whose main loop is
/// busy with its disks in some 100 ms.
const LIMIT: Duration = Duration::from_secs(5);

/// The most vCPUs that are taken: QEMU's own maximum (q35 since 9.0) is 4,096.
pub(super) const MAX_VCPUS: usize = 4_096;

/// A vCPU and the host thread that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub struct QmpCpu {
    /// QEMU's number of the vCPU, from 0.
    #[serde(rename = "cpu-index")]
    pub index: u32,
    /// The host thread, in QEMU's PID namespace. All vCPUs share one under TCG with `thread=single`.
    #[serde(rename = "thread-id")]
    pub thread_id: u32,
}

/// The run state in a reply of `query-status`.
pub(super) fn run_state(reply: &Value) -> Option<RunState> {
    reply.get("status").and_then(Value::as_str).map(RunState::parse)
}

fn cpus(reply: &Value) -> Option<Vec<QmpCpu>> {
    Vec::deserialize(reply).ok().filter(|cpus: &Vec<_>| cpus.len() <= MAX_VCPUS)
}

/// The requests that all of a VM's disks completed, in a reply of `query-blockstats`. Of an empty drive, or
/// one whose figures another version calls otherwise, what is there counts.
fn requests(reply: &Value) -> Option<u64> {
    let completed = |device: &Value| {
        let names = ["rd_operations", "wr_operations", "flush_operations", "unmap_operations"];
        let figures = names.iter().filter_map(|name| device.get("stats")?.get(name)?.as_u64());
        figures.fold(0, u64::saturating_add)
    };
    Some(reply.as_array()?.iter().map(completed).fold(0, u64::saturating_add))
}

/// The figures of each disk in what the human monitor prints for `info blockstats`: a line a disk, `disk0: rd_bytes=0
/// wr_bytes=0 rd_operations=0 ...` (block/monitor/block-hmp-cmds.c). What is no such line is left out.
fn figures(text: &str) -> Map<String, Value> {
    let disk = |line: &str| {
        // A name may have a colon in it, and a figure has none.
        let (name, figures) = line.rsplit_once(':')?;
        let figure = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse::<i64>().ok()?.into()))
        };
        let figures: Option<Map<_, _>> = figures.split_whitespace().map(figure).collect();
        Some((name.to_owned(), figures.filter(|figures| !figures.is_empty())?.into()))
    };
    text.lines().filter_map(disk).collect()
}

/// Fuzzing entry: reads a value as every reply.
pub(crate) fn fuzz(reply: &Value) {
    if let Some(RunState::Other(name)) = run_state(reply) {
        assert!(name.len() <= MAX_TEXT_CHARS);
    }
    if let Value::String(text) = reply {
        figures(text);
    }
    assert!(cpus(reply).is_none_or(|cpus| cpus.len() <= MAX_VCPUS));
    requests(reply);
    assert!(VcpuStats::of_reply(reply).is_none_or(|vcpus| vcpus.len() <= MAX_VCPUS));
}

fn malformed(command: &str) -> QmpError {
    QmpError::Malformed { command: command.to_owned() }
}

impl QmpHandle {
    /// The VM's run state (`query-status`), within 5 s.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], and [`QmpError::Malformed`].
    pub async fn query_status(&self) -> Result<RunState, QmpError> {
        let command = "query-status";
        let reply = self.execute(command, None, LIMIT).await?;
        run_state(&reply).ok_or_else(|| malformed(command))
    }

    /// The VM's vCPUs (`query-cpus-fast`), within 5 s.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], and [`QmpError::Malformed`]: a field is missing, or there are more
    /// than 4,096 vCPUs.
    pub async fn query_cpus(&self) -> Result<Vec<QmpCpu>, QmpError> {
        let command = "query-cpus-fast";
        let reply = self.execute(command, None, LIMIT).await?;
        cpus(&reply).ok_or_else(|| malformed(command))
    }

    /// The requests that all of the VM's disks completed since QEMU's start (`query-blockstats`), within 5 s.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], and [`QmpError::Malformed`].
    pub async fn query_requests(&self) -> Result<u64, QmpError> {
        let command = "query-blockstats";
        let reply = match self.execute(command, None, LIMIT).await {
            // It nests a level for each overlay of a disk; what the disks themselves completed is also told flat.
            Err(QmpError::Skipped { .. }) => {
                let disks = self.disk_figures().await?;
                disks.into_iter().map(|(_, figures)| json!({ "stats": figures })).collect()
            }
            reply => reply?,
        };
        requests(&reply).ok_or_else(|| malformed(command))
    }

    /// What QEMU counted of each disk, by its name, as the human monitor tells it (`info blockstats`), within 5 s.
    ///
    /// # Errors
    /// As [`QmpHandle::human`].
    pub async fn disk_figures(&self) -> Result<Map<String, Value>, QmpError> {
        Ok(figures(&self.human("info blockstats").await?))
    }

    /// The reply to a command that is asked by one witness alone, within 5 s.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`].
    pub async fn reply(&self, command: &str, arguments: Option<Value>) -> Result<Value, QmpError> {
        self.execute(command, arguments, LIMIT).await
    }

    /// What the human monitor prints for `command_line`, within 5 s; line ends are `\r\n`. Its
    /// errors are text like any other answer.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], and [`QmpError::Malformed`].
    pub async fn human(&self, command_line: &str) -> Result<String, QmpError> {
        let command = "human-monitor-command";
        let arguments = json!({ "command-line": command_line });
        match self.execute(command, Some(arguments), LIMIT).await? {
            Value::String(text) => Ok(text),
            _ => Err(malformed(command)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{MAX_VCPUS, QmpCpu, cpus, figures, requests, run_state};
    use crate::qmp::RunState;

    #[test]
    fn the_reply_of_qemu_7_2_to_query_cpus_fast_is_understood() {
        let reply = json!([
            {"thread-id": 6310, "props": {"core-id": 0, "thread-id": 0, "socket-id": 0},
             "qom-path": "/machine/unattached/device[0]", "cpu-index": 0, "target": "x86_64"},
            {"thread-id": 6311, "props": {"core-id": 1, "thread-id": 0, "socket-id": 0},
             "qom-path": "/machine/unattached/device[2]", "cpu-index": 1, "target": "x86_64"}
        ]);
        let expected = [QmpCpu { index: 0, thread_id: 6310 }, QmpCpu { index: 1, thread_id: 6311 }];
        assert_eq!(cpus(&reply).unwrap(), expected);
    }

    #[test]
    fn a_vcpu_without_a_thread_and_too_many_vcpus_are_not_an_answer() {
        assert_eq!(cpus(&json!([{"cpu-index": 0}])), None);
        assert_eq!(cpus(&json!([{"cpu-index": 0, "thread-id": -1}])), None);
        assert_eq!(cpus(&json!({})), None);
        let vcpu = json!({"cpu-index": 0, "thread-id": 1});
        assert!(cpus(&vec![vcpu.clone(); MAX_VCPUS].into()).is_some());
        assert!(cpus(&vec![vcpu; MAX_VCPUS + 1].into()).is_none());
    }

    #[test]
    fn the_requests_of_all_disks_count_whatever_else_is_there_or_not() {
        let disk = json!({"device": "d", "stats": {"rd_operations": 5, "wr_operations": 7,
            "flush_operations": 2, "unmap_operations": 1, "rd_bytes": 4096, "new": {}}});
        let old = json!({"stats": {"rd_operations": 3}});
        assert_eq!(requests(&json!([disk, old, {"device": "empty"}])), Some(18));
        assert_eq!(requests(&json!([])), Some(0));
        assert_eq!(requests(&json!({})), None);
        let most = json!({"stats": {"rd_operations": u64::MAX}});
        assert_eq!(requests(&json!([most, most])), Some(u64::MAX));
    }

    #[test]
    fn the_figures_of_disks_are_read_of_what_the_human_monitor_prints() {
        let text = "disk0: rd_bytes=512 wr_bytes=0 rd_operations=1 wr_operations=0 flush_operations=0 \
                    wr_total_time_ns=0 rd_total_time_ns=9 flush_total_time_ns=0 rd_merged=0 wr_merged=0 \
                    idle_time_ns=5\r\n: rd_operations=7\r\na:b: wr_operations=-1\r\n";
        let disks = figures(text);
        assert_eq!(disks.len(), 3);
        assert_eq!(disks["disk0"]["rd_bytes"], 512);
        assert_eq!(
            (&disks[""]["rd_operations"], &disks["a:b"]["wr_operations"]),
            (&json!(7), &json!(-1))
        );
        for text in ["", "unknown command: 'info blockstats'\r\n", "disk0:", "disk0: a=b", "x"] {
            assert!(figures(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn the_run_state_is_found_with_and_without_the_fields_of_other_versions() {
        let old = json!({"status": "running", "singlestep": false, "running": true});
        assert_eq!(run_state(&old), Some(RunState::Running));
        assert_eq!(run_state(&json!({"status": "io-error"})), Some(RunState::IoError));
        assert_eq!(run_state(&json!({"running": true})), None);
    }
}
