//! What a host offers the daemon: by its own check, and by what it reports when it runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flatline_tests::guest::GuestConfig;
use flatline_tests::interrupt;
use flatline_tests::scenario::{Expected, Programs, Scenario, Stage};
use serde_json::Value;

use super::end_of;
use crate::hosts::cell::Cell;

/// What `check` calls programs that this kernel may have no place for, all of which `run` reports as probes.
const PROGRAMS: [&str; 4] =
    ["pages written back", "threads' times", "executables' inodes", "KVM tracepoints"];
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

/// Starts a daemon and a guest, and tells the hook of its tap, and whether the programs that are lost are those that the
/// check named.
pub(super) fn programs(programs: &Programs, tell: &mut impl FnMut(&Cell)) {
    match look(programs) {
        Ok(cells) => cells.iter().for_each(tell),
        Err(error) => ["hook", "programs"]
            .iter()
            .for_each(|name| tell(&Cell::empty(name, format!("not played: {error:#}")))),
    }
}

fn look(programs: &Programs) -> Result<[Cell; 2]> {
    let scenario = Scenario {
        name: "offers",
        what: "",
        guests: |place| Ok(vec![GuestConfig { vcpus: 2, ..place.linux("guest")? }]),
        boots: true,
        pins: 0,
        fault: |stage| Ok(stage.started),
        expected: Expected::LeftAlone { states: &["alive"] },
    };
    let stage = Stage::set_up(&scenario, programs)?;
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
    let programs = compare(&status, &report)?.with_detail(stage.daemon.log_tail(60));
    Ok([hook, programs])
}

/// The probes that failed beside the programs that the check says are lost. They go by other names: it counts whether both
/// lose any.
fn compare(status: &Value, report: &Value) -> Result<Cell> {
    let Some(probes) = status["host"]["probes"].as_array().filter(|all| !all.is_empty()) else {
        bail!("status names no probes: {status}");
    };
    let text = |probe: &Value, field: &str| probe[field].as_str().unwrap_or_default().to_owned();
    let failed = probes.iter().filter(|probe| probe["state"] != "attached");
    let failed: Vec<String> = failed
        .map(|probe| format!("{} ({})", text(probe, "name"), text(probe, "detail")))
        .collect();
    let named: Vec<String> = gaps(report, false)
        .into_iter()
        .filter(|(name, _)| PROGRAMS.contains(&name.as_str()))
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    let all = probes.len();
    let degraded = status["host"]["degraded"].as_str().map(|why| format!("; degraded: {why}"));
    let degraded = degraded.unwrap_or_default();
    Ok(match (failed.len(), named.len()) {
        (0, 0) => Cell::played("programs", format!("all {all}{degraded}"), degraded.is_empty()),
        (lost, gaps) => Cell::played(
            "programs",
            format!(
                "{} of {all}; lost: {}; check names: {}{degraded}",
                all - lost,
                failed.join(", "),
                named.join(", ")
            ),
            (lost > 0) == (gaps > 0),
        ),
    })
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

    #[test]
    fn a_program_that_is_lost_must_be_named_by_the_check() {
        let status =
            |state| json!({ "host": { "probes": [probe("a", "attached"), probe("b", state)] } });
        let cell = |state, report: Value| compare(&status(state), &report).unwrap();
        let whole = cell("attached", json!({ "items": [gap("QEMU elsewhere")] }));
        assert_eq!((whole.text.as_str(), whole.as_due), ("all 2", Some(true)));
        assert_eq!(cell("failed", json!({ "items": [] })).as_due, Some(false));
        let agreed = cell("failed", json!({ "items": [gap("pages written back")] }));
        assert_eq!(agreed.as_due, Some(true));
        assert!(agreed.text.starts_with("1 of 2; lost: b (why)"), "{}", agreed.text);
        assert_eq!(
            cell("attached", json!({ "items": [gap("KVM tracepoints")] })).as_due,
            Some(false)
        );
        assert!(compare(&json!({}), &json!({})).is_err());
    }
}
