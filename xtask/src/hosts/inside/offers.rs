//! What a host offers the daemon: by its own check, and by what it reports when it runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flatline_tests::interrupt;
use flatline_tests::scenario::Stage;
use serde_json::Value;

use super::end_of;
use crate::hosts::cell::Cell;

/// What `check` calls that a program needs, and what `run` calls the program: both must say of each that it is lost.
const PROGRAMS: [(&str, &str); 7] = [
    ("pages written back", "writeback"),
    ("threads' times", "threads"),
    ("tracepoint block_bio_queue", "block_submitted"),
    ("tracepoint block_rq_complete", "block_request_completed"),
    ("tracepoint block_bio_complete", "block_bio_completed"),
    ("tracepoint sched_process_exec", "process_started"),
    ("tracepoint sched_process_exit", "process_ended"),
];
/// What `check` names beside, and `run` does no program without.
const PARTS: [&str; 2] = ["executables' inodes", "KVM tracepoints"];
/// For the first tap to be attached.
const WITHIN: Duration = Duration::from_secs(60);

/// Asks the check, and where it refuses the host, whether the daemon refuses it too. Whether it is fit.
pub(super) fn check(daemon: &Path, tell: &mut impl FnMut(&Cell)) -> Result<bool> {
    let output = Command::new(daemon).args(["check", "--json"]).output()?;
    let code = output.status.code().unwrap_or(-1);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("check --json printed no JSON: {}", String::from_utf8_lossy(&output.stderr))
    })?;
    let gaps = gaps(&report, true);
    let text = Command::new(daemon).arg("check").output()?.stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The harness mounts the file system that it looks for.
    let refusals: Vec<&(String, String)> =
        gaps.iter().filter(|(name, _)| name != "bpffs").collect();
    if refusals.is_empty() {
        tell(&Cell::played("check", format!("fit, exit {code}"), true).with_detail(text));
        return Ok(true);
    }
    let words: Vec<String> = refusals.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    let run = Command::new("timeout").arg("20").arg(daemon).arg("run").output()?;
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let refuses = run.status.code().is_some_and(|code| code != 0 && code != 124);
    let is_due = code != 0 && refuses;
    let run = run.status.code().unwrap_or(-1);
    let cell = format!("refused, exit {code}; `run` exits {run}: {}", words.join("; "));
    tell(&Cell::played("check", cell, is_due).with_detail(format!("{text}\n{}", end_of(&said))));
    Ok(false)
}

/// The gaps among what is `required`, or not, each with its detail.
fn gaps(report: &Value, required: bool) -> Vec<(String, String)> {
    let items = report["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let missing = |item: &&Value| item["verdict"] == "gap" && item["required"] == required;
    let text = |item: &Value, field: &str| item[field].as_str().unwrap_or_default().to_owned();
    items.iter().filter(missing).map(|item| (text(item, "name"), text(item, "detail"))).collect()
}

/// The hook of a guest's tap, and whether the programs that are lost are those that the check names, from a daemon that runs.
///
/// # Errors
///
/// If it or its check says nothing that can be read.
pub(super) fn programs(stage: &Stage) -> Result<[Cell; 2]> {
    let hook = interrupt::wait_until("the tap to be attached", WITHIN, || {
        let shown = stage.daemon.show("guest")?;
        Ok(shown["taps"][0]["hook"].as_str().filter(|hook| !hook.is_empty()).map(str::to_owned))
    });
    let hook = match hook {
        Ok(hook) => Cell::played("hook", hook, true),
        Err(error) => Cell::played("hook", format!("none: {error:#}"), false),
    };
    let status = stage.daemon.status()?;
    let output = stage.daemon.client(&["check", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout).context("no JSON")?;
    let named = hook_named(&report).unwrap_or_default();
    let hook = match hook.as_due {
        Some(true) if hook.text != named => {
            Cell::played("hook", format!("{}; check names {named}", hook.text), false)
        }
        _ => hook,
    };
    let programs = compare(&status, &report)?.with_detail(stage.daemon.log_tail(60));
    Ok([hook, programs])
}

/// The hook that the check names.
fn hook_named(report: &Value) -> Option<&str> {
    let item = report["items"].as_array()?.iter().find(|item| item["name"] == "tap hook")?;
    // What it can't be stands before it.
    item["detail"].as_str()?.rsplit("; ").next()
}

/// The programs that failed beside what the check says is lost: each must be told by both, and by what is said to be degraded.
fn compare(status: &Value, report: &Value) -> Result<Cell> {
    let Some(probes) = status["host"]["probes"].as_array().filter(|all| !all.is_empty()) else {
        bail!("status names no probes: {status}");
    };
    let text = |probe: &Value, field: &str| probe[field].as_str().unwrap_or_default().to_owned();
    let failed: Vec<(String, String)> = probes
        .iter()
        .filter(|probe| probe["state"] != "attached")
        .map(|probe| (text(probe, "name"), text(probe, "detail")))
        .collect();
    let gaps = [gaps(report, true), gaps(report, false)].concat();
    let degraded = status["host"]["degraded"].as_str().unwrap_or_default();
    let mut disagreements = Vec::new();
    for (item, program) in PROGRAMS {
        let is_gap = gaps.iter().any(|(name, _)| name == item);
        match failed.iter().find(|(name, _)| name == program) {
            Some(_) if !is_gap => disagreements.push(format!("check does not name {program}")),
            Some(_) if !degraded.contains(program) => {
                disagreements.push(format!("{program} is lost, and nothing is degraded"));
            }
            None if is_gap => disagreements.push(format!("check names {item}, and {program} runs")),
            _ => {}
        }
    }
    let unpaired = |name: &String| !PROGRAMS.iter().any(|(_, program)| program == name);
    let unpaired = failed.iter().map(|(name, _)| name).filter(|name| unpaired(name));
    disagreements.extend(unpaired.map(|name| format!("check knows nothing of {name}")));
    let mut words = match failed.len() {
        0 => vec![format!("all {}", probes.len())],
        lost => vec![format!("{} of {}", probes.len() - lost, probes.len())],
    };
    words.extend(failed.iter().map(|(name, why)| format!("{name} is lost, as check says ({why})")));
    let parts = gaps.iter().filter(|(name, _)| PARTS.contains(&name.as_str()));
    words.extend(parts.map(|(name, why)| format!("without {name} ({why})")));
    if failed.is_empty() && !degraded.is_empty() {
        disagreements.push(format!("degraded: {degraded}"));
    }
    let is_due = disagreements.is_empty();
    words.extend(disagreements);
    Ok(Cell::played("programs", words.join("; "), is_due))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probe(name: &str, state: &str) -> Value {
        json!({ "name": name, "required": false, "state": state, "detail": "why" })
    }

    fn gap(name: &str) -> Value {
        json!({ "name": name, "required": false, "verdict": "gap", "detail": "none" })
    }

    /// The cell of a host where `threads` is in `state`, and that is `degraded` for that.
    fn cell(state: &str, degraded: &Value, gaps: &[&str]) -> Cell {
        let probes = [probe("writeback", "attached"), probe("threads", state)];
        let status = json!({ "host": { "probes": probes, "degraded": degraded } });
        let items: Vec<Value> = gaps.iter().map(|name| gap(name)).collect();
        compare(&status, &json!({ "items": items })).unwrap()
    }

    #[test]
    fn a_program_that_is_lost_must_be_named_by_the_check_and_by_status() {
        let lost = json!("not attached: threads");
        let whole = cell("attached", &Value::Null, &["QEMU elsewhere"]);
        assert_eq!((whole.text.as_str(), whole.as_due), ("all 2", Some(true)));
        let agreed = cell("failed", &lost, &["threads' times"]);
        assert_eq!(agreed.text, "1 of 2; threads is lost, as check says (why)");
        assert_eq!(agreed.as_due, Some(true));
        for (state, degraded, gaps) in [
            ("failed", &lost, &[] as &[&str]),
            ("failed", &lost, &["pages written back"]),
            ("failed", &Value::Null, &["threads' times"]),
            ("attached", &Value::Null, &["threads' times"]),
            ("attached", &lost, &[]),
        ] {
            assert_eq!(cell(state, degraded, gaps).as_due, Some(false), "{state} {gaps:?}");
        }
        assert!(compare(&json!({}), &json!({})).is_err());
    }

    #[test]
    fn a_part_that_no_program_stands_for_is_told() {
        let cell = cell("attached", &Value::Null, &["KVM tracepoints"]);
        assert_eq!(cell.text, "all 2; without KVM tracepoints (none)");
        assert_eq!(cell.as_due, Some(true));
    }

    #[test]
    fn the_hook_that_the_check_names_is_its_detail() {
        let report = |detail| {
            let item = json!({ "name": "tap hook", "verdict": "ok", "detail": detail });
            json!({ "items": [gap("KVM"), item] })
        };
        assert_eq!(hook_named(&report("tcx")), Some("tcx"));
        assert_eq!(hook_named(&report("no tcx; clsact")), Some("clsact"));
        assert_eq!(hook_named(&json!({})), None);
    }
}
