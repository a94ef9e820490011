//! What docs/heartbeat.md gives to guests in which nothing can be installed.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{capture::Capture, interrupt::wait_until, netns::Netns};
use libtest_mimic::Trial;
use monitor_ebpf::heartbeat::{
    CHECK_NAME_BYTES, HEARTBEAT_MAGIC, HEARTBEAT_VERSION, Heartbeat, frame,
};

use super::COMMAND_LIMIT;
use crate::rig::{trial, trial_that_may_skip};

const DOCUMENT: &str = include_str!("../../../../docs/heartbeat.md");
const GUEST_INIT: &str = include_str!("../../../src/guest-init.sh");

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("the_documented_line_of_shell_is_what_the_guests_run", shell),
        trial_that_may_skip("the_documented_lines_of_python_send_the_agents_frame", python),
    ]
}

/// The first block of code in that language.
fn documented(language: &str) -> Result<&'static str> {
    let rest = DOCUMENT.split_once(&format!("```{language}\n"));
    let block = rest.and_then(|(_, rest)| rest.split_once("```")).map(|(block, _)| block);
    block.with_context(|| format!("no {language} is documented"))
}

/// It is run by `an_agent_is_heard_through_a_port_and_so_is_a_line_of_shell`.
fn shell() -> Result<()> {
    let (line, _) = documented("sh")?.split_once(" >").context("it writes nowhere")?;
    ensure!(GUEST_INIT.contains(line), "{line}");
    Ok(())
}

fn python() -> Result<Option<String>> {
    let works = Command::new("python3").arg("-V").stdout(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        return Ok(Some("there is no python3".to_owned()));
    }
    let netns = Netns::new()?;
    netns.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "tap0"])?;
    netns.ip(&["link", "set", "eth0", "address", "52:54:00:01:02:03"])?;
    for name in ["eth0", "tap0"] {
        netns.ip(&["link", "set", name, "up"])?;
    }
    let capture = Capture::start(&netns.interface("tap0"))?;
    let [nsenter, option] = netns.enter_prefix();
    let mut script = Command::new(nsenter)
        .arg(option)
        .args(["python3", "-c", documented("python")?])
        .stdin(Stdio::null())
        .spawn()
        .context("python3 can't be started")?;
    let mut frames = Vec::new();
    let heard = wait_until("two beats", COMMAND_LIMIT, || {
        let is_beat = |frame: &Vec<u8>| frame.get(12..18) == Some(b"\x88\xb5FLHB");
        frames.extend(capture.frames()?.into_iter().filter(is_beat));
        Ok((frames.len() >= 2).then_some(()))
    });
    script.kill().context("it ended by itself")?;
    script.wait()?;
    heard?;
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.replace('-', "");
    let boot = u64::from_str_radix(id.get(..16).context("a short id")?, 16)?;
    for (frame_heard, sequence) in frames.iter().zip(1_u64..) {
        let expected = Heartbeat {
            magic: HEARTBEAT_MAGIC,
            version: HEARTBEAT_VERSION,
            flags: 0,
            reserved: [0; 2],
            interval_ms: 1000_u32.to_be_bytes(),
            boot: boot.to_be_bytes(),
            sequence: sequence.to_be_bytes(),
            check: [0; CHECK_NAME_BYTES],
        };
        let expected = frame([0x52, 0x54, 0, 1, 2, 3], &expected);
        ensure!(frame_heard[..] == expected, "{frame_heard:02x?} is not {expected:02x?}");
    }
    Ok(None)
}
