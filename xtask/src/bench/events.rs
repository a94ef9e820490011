//! What each packet and each request pays, and what must not be hooked at all.

use anyhow::{Context, Result, ensure};
use flatline_tests::daemon::Daemon;
use flatline_tests::interrupt;
use flatline_tests::netns::Netns;

use super::figures::{Figures, Rounds};
use super::prices::Price;
use super::report::{Report, Target};
use super::stage::{Settings, Stage, StandIn, wait_for};
use crate::process::heading;

/// Short rounds, many of them: what disturbs one is seen by no other.
const PACKET_ROUNDS: &str = "101";
const REPEAT: &str = "50000";
const FRAMES: &str = "2000";
const STORAGE_ROUNDS: &str = "7";
const STORAGE_MILLISECONDS: &str = "700";
/// Called as the stand-in that has it.
const TAP: &str = "tapped-0";
/// Of the requests that the programs saw under a VM's load, as many were that VM's; the others belong to
/// another program on this machine, and cost less.
const OWN_SHARE: f64 = 0.9;

const PACKET_TARGET: Target = Target::at_most(8.0);
const DEEP_TARGET: Target = Target::at_most(40.0);
const READ_TARGET: Target = Target::at_most(60.0);
const STRANGER_TARGET: Target = Target::at_most(15.0);

/// Measures on a daemon that watches one tap.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    let netns = Netns::new()?;
    let mut vm = stage.start(
        "tapped",
        1,
        StandIn { netns: Some(&netns), has_queues: true, ..StandIn::default() },
    )?;
    let daemon = stage.daemon(Settings::default())?;
    wait_for(&daemon, "the tap's programs", 1, |vm| !vm["network"].is_null())?;
    vm.check()?;
    packets(stage, &netns, report)?;
    storage(stage, report)?;
    hooks(stage, &daemon, report)
}

fn packets(stage: &Stage<'_>, netns: &Netns, report: &mut Report) -> Result<()> {
    heading("packets");
    let object = stage.programs.empty.display().to_string();
    let path = netns.path().display().to_string();
    let figures = stage.measure(
        "packets",
        &[
            &["--object", &object, "--netns", &path, "--tap", TAP][..],
            &["--rounds", PACKET_ROUNDS, "--repeat", REPEAT, "--frames", FRAMES],
        ]
        .concat(),
    )?;
    let empty = figures.rounds("packet/empty")?;
    report.prices.set(Price::Packet, &figures.rounds("packet/from_guest")?.minus(&empty)?);
    let section = report.section("A packet", "ns", PACKETS);
    section.floor("empty classifier", &empty);
    for (name, what, target) in [
        ("from_guest", "from a guest (`tap_from_guest`)", Some(PACKET_TARGET)),
        ("to_guest", "to a guest (`tap_to_guest`)", Some(PACKET_TARGET)),
        ("from_guest_arp", "ARP frame from a guest", None),
        ("from_guest_answer", "a guest's answer to an ARP probe", None),
        ("from_guest_ipv6", "IPv6 packet from a guest", None),
        ("from_guest_ndp", "NDP frame from a guest", None),
        ("from_guest_ndp_answer", "a guest's answer to an NDP probe", None),
        ("from_guest_heartbeat", "a guest's heartbeat", None),
        ("from_guest_malformed_heartbeat", "a malformed heartbeat", None),
        ("unknown_tap", "on a tap that isn't a VM's (any more)", None),
    ] {
        let rounds = figures.rounds(&format!("packet/{name}"))?;
        section.over(what, &rounds, &empty, target, PACKET_REMEDY)?;
    }
    let floor = figures.rounds("passing/empty")?;
    section.floor("all the way in, empty classifier", &floor);
    let none = figures.rounds("passing/none")?;
    section.over("all the way in, no program", &none, &floor, None, "")?;
    let ours = figures.rounds("passing/flatline")?;
    section.over("all the way in, `tap_from_guest`", &ours, &floor, None, "")
}

fn storage(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    for (load, stranger, what, target, price) in [
        ("deep", false, "a VM's direct reads, 32 at a time", DEEP_TARGET, Some(Price::DeepRead)),
        ("read", false, "a VM's direct reads, one by one", READ_TARGET, Some(Price::Read)),
        (
            "deep",
            true,
            "another process' direct reads, 32 at a time",
            STRANGER_TARGET,
            Some(Price::OthersRead),
        ),
        ("write", true, "another process' direct writes, one by one", STRANGER_TARGET, None),
        ("writeback", true, "another process' pages, written back", STRANGER_TARGET, None),
    ] {
        heading(&format!("block I/O: {what}"));
        let kind = StandIn { load: Some(load), stranger, ..StandIn::default() };
        let mut fleet = stage.start("load", 1, kind)?;
        // Until it runs, and the daemon has found it.
        interrupt::sleep(std::time::Duration::from_millis(1500))?;
        fleet.check()?;
        let figures = under_load(stage)?;
        fleet.check()?;
        if !stranger {
            let share =
                figures.rounds("load/counted")?.median() / figures.rounds("load/events")?.median();
            ensure!(share > OWN_SHARE, "only {share:.2} of the requests were the VM's: {what}");
        }
        let (ours, floor) = both_ways(&figures)?;
        if let Some(price) = price {
            report.prices.set(price, &ours.minus(&floor)?);
        }
        let section = report.section("A block I/O, submission and completion", "ns", STORAGE);
        section.floor(&format!("{what}: two empty programs"), &floor);
        section.over(what, &ours, &floor, Some(target), REMEDY)?;
    }
    Ok(())
}

fn under_load(stage: &Stage<'_>) -> Result<Figures> {
    let object = stage.programs.empty.display().to_string();
    let arguments = ["--object", &object, "--label", "load", "--rounds", STORAGE_ROUNDS];
    stage.measure("storage", &[&arguments[..], &["--milliseconds", STORAGE_MILLISECONDS]].concat())
}

/// Submission and completion together: flatline's programs, and the empty ones.
fn both_ways(figures: &Figures) -> Result<(Rounds, Rounds)> {
    // The kernel shows each completion in one of two ways.
    let by_request = figures.rounds("load/block_request_completed").is_ok();
    let (ours, empty) = if by_request {
        ("block_request_completed", "empty_request")
    } else {
        ("block_bio_completed", "empty_bio")
    };
    let rounds = |name: &str| figures.rounds(&format!("load/{name}"));
    Ok((
        rounds("block_submitted")?.plus(&rounds(ours)?)?,
        rounds("empty_submitted")?.plus(&rounds(empty)?)?,
    ))
}

fn hooks(stage: &Stage<'_>, daemon: &Daemon, report: &mut Report) -> Result<()> {
    heading("hooks");
    let pid = daemon.pid().context("the daemon has ended")?.to_string();
    let hooks = stage.measure("hooks", &["--pid", &pid])?.names("hooks")?;
    ensure!(!hooks.is_empty(), "the kernel tells of no tracepoint that the daemon is hooked to");
    let on_switch = hooks.iter().any(|hook| hook == "sched_switch");
    ensure!(!on_switch, "the daemon is hooked to sched_switch");
    report.note(format!(
        "Nothing is hooked to `sched_switch`: by the kernel's own list of links, the tracepoints are {}.",
        hooks.iter().map(|hook| format!("`{hook}`")).collect::<Vec<_>>().join(", ")
    ));
    Ok(())
}

const PACKETS: &str = "The kernel runs each program by itself (`BPF_PROG_TEST_RUN`) on a frame of 60 bytes, with \
    the maps as the daemon fills them. *All the way in* is a frame written to a tap and dropped by the host, \
    whose own noise is far above the difference.";

const STORAGE: &str = "The kernel's own statistics of each program, beside empty ones on the same hooks, while a \
    stand-in reads or writes a file with direct I/O. Taking them costs about as much as an empty program, in \
    both alike. One by one, the CPU sleeps between two requests, and finds its caches cold.";

const PACKET_REMEDY: &str =
    "Little is left to leave out: two look-ups by index, two counters, and the kernel's tick.";

const REMEDY: &str = "The least that a program can do, which is to ask for the task and to read one number of it and one of the \
    bio, takes some 10 ns, and some 25 where caches are cold; two loads tell that it is no VM's. What the programs know of the \
    kernel and of the maps stands in their instructions. Of a VM's own, half goes into its counters and into noting it as in \
    flight, and a quarter into finding it again; most of it is memory that no cache holds. Whose a request is by its bio's \
    cgroup, with no table, was tried: a VM's takes 12 to 15 ns less, and each of other processes 12 to 15 ns more, whose bio has \
    then to be read at its completion. It would also take away what tells a store that is stalled from a guest that is dead.";
