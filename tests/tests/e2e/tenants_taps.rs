//! A tap is the one that a descriptor is of, and counts for the VM that had it first: another user's QEMU with a tap of
//! its name, or with a queue of the very same one, neither takes a victim's row nor keeps its crash from being found.
//!
//! The other user makes its own tap in a user namespace, and moves it to where its QEMU is not; or it opens the victim's, which
//! has several queues and belongs to no user.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Guest, GuestConfig, GuestKind},
    interrupt::{sleep, wait_until},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    hubs::{hub, hub_arguments, tap_of, wait_until_attached},
    rig::{Crash, OFTEN, Rig, check_restart, incidents_of, outer_resets, trial, vm, wait_for_vm},
    taps::{TO_HUB, check_counted},
};

/// The user whose QEMU wants what is another's: no other has this id.
const THIEF: u32 = 64_991;
/// For what the daemon looks at every ten ticks.
const WITHIN: Duration = Duration::from_secs(20);
/// More than ten of the daemon's ticks.
const A_WHILE: Duration = Duration::from_secs(4);
/// Lets the user `$1` open taps, which on most hosts each may, and become the program that follows.
const WITH_TUN: &str = r#"
set -e
mount -t tmpfs -o mode=755 none /dev/net
mknod -m 666 /dev/net/tun c 10 200
user=$1
shift
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"#;
/// Makes a tap in a namespace of its own, becomes the QEMU `$@`, and moves the tap on once that has opened it.
const IN_USER_NAMESPACE: &str = r#"
set -e
ip link set lo up
ip tuntap add dev tap1 mode tap
ip link set tap1 up
unshare --net sleep 60 &
elsewhere=$!
(sleep 1; ip link set tap1 netns $elsewhere) &
exec "$@"
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_tap_of_a_victims_name_in_a_user_namespace_takes_nothing", || named(None)),
        trial("such_a_tap_takes_nothing_where_no_descriptor_can_be_asked", || {
            named(Some(libc::SYS_pidfd_getfd))
        }),
        trial("a_tap_that_two_vms_hold_counts_for_the_first_and_the_second_is_told", shared),
    ]
}

/// A guest that lives by its disk, dies on command, and sends what comes to its hub.
fn victim(rig: &Rig, tap: &str) -> Result<GuestConfig> {
    let mut config = rig.boot_sector_on_disk("victim", BootSector::OnCommand)?;
    config.executable = hub(rig, "victim", "")?.executable;
    config.extra_args.extend(hub_arguments(1, tap, TO_HUB));
    Ok(config)
}

/// The other user's QEMU, in the namespace of the rig's taps, or wherever the script `inner` leads it from there.
fn thief(rig: &Rig, inner: Option<&str>) -> Result<GuestConfig> {
    // Its sockets are made here.
    fs::set_permissions(rig.dir(), Permissions::from_mode(0o777))?;
    rig.netns.ip(&["link", "set", "lo", "up"])?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = rig.dir().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(path.display().to_string())
    };
    let with_tun = write("with-tun", WITH_TUN)?;
    let inner = match inner {
        Some(script) => {
            let script = write("inner", script)?;
            format!("unshare --user --map-root-user --net sh {script}")
        }
        None => String::new(),
    };
    let [program, option] = rig.netns.enter_prefix().map(|word| word.display().to_string());
    let outer = format!(
        "#!/bin/sh\nexec {program} {option} -- unshare --mount --propagation private \
         sh {with_tun} {THIEF} {inner} {} \"$@\"\n",
        rig.qemu.display()
    );
    let executable = write("thief-inside", &outer)?;
    // Without a disk: it could not open one that the tests made.
    Ok(GuestConfig::new("thief", GuestKind::Nothing, executable.as_ref(), rig.dir()))
}

/// A daemon that is where the victim's tap is, as a host's is.
fn daemon(rig: &Rig, refused_call: Option<libc::c_long>) -> Result<Daemon> {
    let mut config = rig.daemon_config()?;
    let enter = rig.netns.enter_prefix().map(|word| word.display().to_string());
    config.prefix = enter.into_iter().chain(["--".to_owned()]).collect();
    config.sample_interval = OFTEN;
    config.refused_call = refused_call;
    rig.daemon(&config)
}

/// The victim dies, and is restarted as if it were alone.
fn check_crash(daemon: &Daemon, victim: &Guest, thief: &Guest) -> Result<()> {
    wait_for_vm(daemon, "victim", "alive", WITHIN, |row| row["state"] == "alive")?;
    thief.events()?;
    let crash = Crash::now(daemon, victim)?;
    victim.send("x")?;
    check_restart(daemon, victim, &crash)?;
    ensure!(incidents_of(daemon, "thief")?.is_empty(), "{}", daemon.log().text());
    ensure!(outer_resets(thief)?.is_empty(), "the other one was reset: {}", daemon.log().text());
    Ok(())
}

fn ensure_its_own(thief: &Guest) -> Result<()> {
    let owner = fs::metadata(format!("/proc/{}", thief.pid()))?.uid();
    ensure!(owner == THIEF, "the other user's QEMU is {owner}'s");
    Ok(())
}

fn named(refused_call: Option<libc::c_long>) -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.tap("tap1", None)?;
    let mut config = thief(&rig, Some(IN_USER_NAMESPACE))?;
    config.extra_args.extend(hub_arguments(2, &tap_of(2, &tap), TO_HUB + 1));
    let thief = config.start()?;
    ensure_its_own(&thief)?;
    // It has moved its tap by then.
    sleep(Duration::from_secs(2))?;
    let daemon = daemon(&rig, refused_call)?;
    // Before the victim, so that it would be the first.
    wait_for_vm(&daemon, "thief", "found", WITHIN, |_| true)?;
    sleep(A_WHILE)?;
    let victim = victim(&rig, &tap_of(1, &tap))?.start()?;
    wait_until_attached(&daemon, "victim", &["tap1"])
        .with_context(|| format!("{:?}", daemon.show("thief")))?;
    let own = fs::metadata(rig.netns.path())?.ino().to_string();
    let shown = daemon.show("thief")?;
    let taps = shown["taps"].as_array().context("no taps")?;
    ensure!(taps.iter().all(|tap| tap["netns"] != own), "the victim's tap is its: {shown}");
    if refused_call.is_none() {
        // The control: its own is found, and counted.
        ensure!(taps.len() == 1 && taps[0]["attached"] == true, "{shown}");
    } else {
        let unseen = shown["unseen_networks"].as_str().unwrap_or_default();
        ensure!(unseen.contains("tap tap1 (in a namespace that is not known)"), "{shown}");
    }
    check_counted(&rig, &daemon, "victim")?;
    check_crash(&daemon, &victim, &thief)
}

/// The second VM's tap is shown as not counted, with the first one's name.
fn wait_until_told(daemon: &Daemon) -> Result<()> {
    wait_until("the second to be told", WITHIN, || {
        let tap = daemon.show("thief").unwrap_or_default()["taps"][0].clone();
        let detail = tap["detail"].as_str().unwrap_or_default().to_owned();
        Ok((tap["attached"] == false && detail.contains("VM victim")).then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", daemon.show("thief"), daemon.log().text()))
}

/// All that passes the tap is the first VM's, and nothing is known of the second's.
fn check_shares(rig: &Rig, daemon: &Daemon) -> Result<()> {
    wait_until_told(daemon)?;
    let row = vm(daemon, "thief")?;
    ensure!(row["network"] == Value::Null, "missing is not zero: {row}");
    wait_until_attached(daemon, "victim", &["tap1"])?;
    check_counted(rig, daemon, "victim")
}

fn shared() -> Result<()> {
    let rig = Rig::new()?;
    let tap = rig.netns.multi_queue_tap("tap1", "10.7.1.1/24")?;
    // It has the lower process id, so that each sweep comes to it first.
    let thief = thief(&rig, None)?.start()?;
    ensure_its_own(&thief)?;
    let victim = victim(&rig, &format!("{},queues=2", tap_of(1, &tap)))?.start()?;
    let mut daemon = daemon(&rig, None)?;
    wait_until_attached(&daemon, "victim", &["tap1"])?;
    let plug = json!({"type": "tap", "id": "t2", "ifname": "tap1", "script": "no",
        "downscript": "no", "queues": 2});
    thief.qmp("netdev_add", &plug)?;
    // QEMU says nothing as a network is added, and the tap was another's already: a daemon looks once a minute. The next
    // one looks at once, and goes on from what this one left.
    daemon.kill()?;
    daemon.start_again()?;
    wait_until_told(&daemon)?;
    sleep(A_WHILE)?;
    check_shares(&rig, &daemon)?;
    let said = daemon.status()?["host"]["degraded"].as_str().unwrap_or_default().to_owned();
    ensure!(said.contains("thief: tap tap1 is not counted: VM victim"), "{said}");
    check_crash(&daemon, &victim, &thief)?;

    // The control: it gets a tap that the first has left.
    drop(victim);
    wait_until_attached(&daemon, "thief", &["tap1"])
}
