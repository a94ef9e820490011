//! Witnesses beyond the network: the guest agent, the balloon's statistics, the console's log.

use std::time::Duration;

use anyhow::{Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, BANNER, Guest},
    interrupt,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::rig::{BOOT_LIMIT, Load, Rig, boot_all, trial_with, wait_for_incident};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            Load::Spins(1),
            "an_agent_and_a_balloon_answer_for_a_guest_and_no_longer_once_it_is_dead",
            answer,
        ),
        trial_with(
            Load::Spins(1),
            "a_kernels_last_words_in_a_console_log_are_heard_in_the_boot_that_they_end",
            last_words,
        ),
    ]
}

/// Each witness is heard of a guest that lives and of one that is dead, and says why it can't be.
fn answer() -> Result<()> {
    let rig = Rig::new()?;
    let mut config = rig.daemon_config()?;
    config.mode = "observe".to_owned();
    let mut with_both = rig.linux("with-both", 1)?;
    (with_both.agent, with_both.balloon) = (true, true);
    let mut without = rig.boot_sector("without-agent", BootSector::StiHlt, Accelerator::Tcg);
    without.agent = true;
    let mut held = rig.linux("agent-held", 3)?;
    held.agent = true;
    let held_socket = held.agent_socket();
    let guests = boot_all(&[with_both, without, held])?;
    let _other_client = std::os::unix::net::UnixStream::connect(held_socket)?;
    let daemon = rig.daemon(&config)?;

    wait_for_witness(&daemon, "with-both", "guest agent", "lives", "answers")?;
    wait_for_witness(&daemon, "with-both", "balloon statistics", "lives", "renewed")?;
    wait_for_witness(&daemon, "agent-held", "guest agent", "not asked", "another client")?;
    wait_for_witness(&daemon, "without-agent", "guest agent", "not asked", "no agent has opened")?;
    wait_for_witness(&daemon, "without-agent", "balloon statistics", "not asked", "no balloon")?;
    check_polling_is_off(&guests[0])?;

    guests[0].send("panic")?;
    wait_for_witness(&daemon, "with-both", "guest agent", "silent", "did not answer")?;
    wait_for_witness(&daemon, "with-both", "balloon statistics", "silent", "overdue")?;
    wait_for_incident(&daemon, "with-both", "observed", Duration::from_secs(40), |incident| {
        incident["outcome"] == "observed"
    })?;
    check_polling_is_off(&guests[0])
}

/// The log belongs to a second console, of virtio; the guest's kernel says everything on both. (Of serial ports,
/// it takes one as a console.)
fn last_words() -> Result<()> {
    let rig = Rig::new()?;
    let mut guest = rig.linux("with-log", 1)?;
    let log = rig.dir().join("console.log");
    let log = log.to_str().unwrap_or_default();
    guest.extra_args.extend(["-chardev".into(), format!("file,id=log,path={log}")]);
    guest.extra_args.extend(["-device", "virtio-serial-pci", "-device"].map(Into::into));
    guest.extra_args.push("virtconsole,chardev=log".into());
    guest.kernel_args.push("console=hvc0".into());
    let guests = boot_all(&[guest])?;
    let mut config = rig.daemon_config()?;
    config.extra_toml = "[recovery]\npause = \"1s\"".to_owned();
    let daemon = rig.daemon(&config)?;
    let mark = guests[0].mark();
    guests[0].send("panic")?;
    // Which of the two comes first is decided by when its vCPU was first seen to be pinned.
    let panicked = convicted(&daemon, &["panicked", "spinning"])?;
    let reason = panicked["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("console log: its console says: ---[ end Kernel panic"), "{reason}");
    guests[0].wait_for_after(mark, BANNER, BOOT_LIMIT)?;
    wait_for_incident(&daemon, "with-log", "recovered", BOOT_LIMIT, |incident| {
        incident["outcome"] == "recovered"
    })?;
    // The words stand in the log still, and one line is added to them.
    guests[0].send("halt")?;
    let halted = convicted(&daemon, &["halted"])?;
    let reason = halted["reason"].as_str().unwrap_or_default();
    ensure!(!reason.contains("Kernel panic"), "{reason}");
    Ok(())
}

fn convicted(daemon: &Daemon, causes: &[&str]) -> Result<Value> {
    let is_one = |cause: &Value| causes.iter().any(|one| cause == one);
    let restarted =
        |incident: &Value| !incident["action_at"].is_null() && is_one(&incident["cause"]);
    wait_for_incident(daemon, "with-log", causes[0], BOOT_LIMIT, restarted)
}

/// The witness has left QEMU as it was.
fn check_polling_is_off(guest: &Guest) -> Result<()> {
    let question = json!({
        "path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval"
    });
    interrupt::wait_until("polling off", Duration::from_secs(5), || {
        Ok((guest.qmp("qom-get", &question)? == 0).then_some(()))
    })
}

/// Waits until `show` has this of a witness.
fn wait_for_witness(daemon: &Daemon, vm: &str, name: &str, said: &str, text: &str) -> Result<()> {
    let mut last = Value::Null;
    let found = interrupt::wait_until(&format!("{vm}: {name} {said}"), BOOT_LIMIT, || {
        // It may not have been found yet.
        let Ok(shown) = daemon.show(vm) else { return Ok(None) };
        let rows = shown["signals"].as_array().cloned().unwrap_or_default();
        last = rows.into_iter().find(|row| row["name"] == name).unwrap_or(Value::Null);
        let value = last["value"].as_str().unwrap_or_default();
        Ok((last["verdict"] == said && value.contains(text)).then_some(()))
    });
    found.map_err(|error| error.context(format!("last: {last}")))
}
