//! What the hostile user does: each attack is a loop of its own until the time is up.

use std::{fs, process::Command, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};

use super::ground::Ground;
use crate::tenants::{Claim, Tenant, as_user};

/// One kind of attack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    /// Goes on until the attack is over; how many rounds it made.
    pub(super) run: fn(&Ground<'_>) -> Result<u32>,
}

/// All of them, for one user to do at once.
pub(super) const ALL: [Attack; 11] = [
    Attack {
        name: "victims' names and UUIDs, whose guests reset themselves and panic",
        run: claims,
    },
    Attack { name: "names that are victims' process ids, or NAME@USER", run: names },
    Attack { name: "taps of victims' names in a user namespace, remade", run: taps },
    Attack { name: "VMs that fall silent together", run: storm },
    Attack { name: "QEMUs that crash", run: crashes },
    Attack { name: "processes that look like QEMUs", run: slots },
    Attack { name: "memory dumps, slow and one after the other", run: dumps },
    Attack { name: "monitors that flood, hoard, babble and cost", run: monitors },
    Attack { name: "thousands of open files, and of threads", run: masses },
    Attack { name: "connections that say nothing", run: silences },
    Attack { name: "command lines that name others' sockets, consoles and files", run: paths },
];

/// Lets the user open taps, which on most hosts each may, makes a user and a network namespace of its own, and becomes the
/// program that follows.
const WITH_TAPS: &str = r#"
set -e
mount -t tmpfs -o mode=755 none /dev/net
mknod -m 666 /dev/net/tun c 10 200
user=$1
shift
exec setpriv --reuid "$user" --regid "$user" --clear-groups unshare --user --map-root-user --net "$@"
"#;

fn claims(ground: &Ground<'_>) -> Result<u32> {
    let mut rounds = 0;
    loop {
        let mut fakes = Vec::new();
        for victim in &ground.victims {
            for manner in ["resets", "lies"] {
                let claim = Claim::new(&victim.name, manner);
                fakes.push(ground.fake(&Claim { uuid: Some(victim.uuid.clone()), ..claim })?);
            }
        }
        rounds += 1;
        if !ground.goes_on(Duration::from_secs(20)) {
            return Ok(rounds);
        }
    }
}

fn names(ground: &Ground<'_>) -> Result<u32> {
    let mut fakes = Vec::new();
    for victim in &ground.victims {
        for name in [victim.pid.to_string(), format!("{}@{}", victim.name, victim.user)] {
            fakes.push(ground.fake(&Claim::new(name, "bytewise"))?);
        }
    }
    while ground.goes_on(Duration::from_secs(1)) {}
    Ok(1)
}

fn taps(ground: &Ground<'_>) -> Result<u32> {
    let script = ground.homes.of(ground.user)?.join("with-taps");
    fs::write(&script, WITH_TAPS)?;
    let prefix = ["unshare", "--mount", "--propagation", "private", "sh"].map(str::to_owned);
    let words = [script.display().to_string(), ground.user.to_string()];
    let prefix: Vec<String> = prefix.into_iter().chain(words).collect();
    let claim = Claim::new("taps", "lives").with(&["-taps", &ground.scale.taps.to_string()]);
    let _fake = ground.homes.fake_behind(&prefix, ground.user, &claim)?;
    while ground.goes_on(Duration::from_secs(1)) {}
    Ok(1)
}

/// Their agents answered before, and they stop at one moment, again and again.
fn storm(ground: &Ground<'_>) -> Result<u32> {
    let crowd: Vec<Tenant> = (0..ground.scale.storm)
        .map(|n| ground.homes.tenant(ground.user, &format!("storm-{n}")))
        .collect::<Result<_>>()?;
    let mut rounds = 0;
    loop {
        for (word, lasts) in [("busy", 15), ("silent", 30)] {
            crowd.iter().try_for_each(|tenant| tenant.tell(word))?;
            rounds += u32::from(word == "silent");
            if !ground.goes_on(Duration::from_secs(lasts)) {
                return Ok(rounds);
            }
        }
    }
}

/// Each round is of new processes, so that none has used up its restarts.
fn crashes(ground: &Ground<'_>) -> Result<u32> {
    let mut rounds = 0;
    loop {
        let _abort = ground.crowd(&format!("aborts{rounds}"), "aborts", ground.scale.crashes)?;
        let _panic = ground.crowd(&format!("panics{rounds}"), "lies", ground.scale.crashes)?;
        rounds += 1;
        if !ground.goes_on(Duration::from_secs(8)) {
            return Ok(rounds);
        }
    }
}

fn slots(ground: &Ground<'_>) -> Result<u32> {
    let mut rounds = 0;
    loop {
        let _crowd = ground.crowd("slots", "silent", ground.scale.processes)?;
        rounds += 1;
        if !ground.goes_on(Duration::from_secs(120)) {
            return Ok(rounds);
        }
    }
}

fn dumps(ground: &Ground<'_>) -> Result<u32> {
    let mut rounds = 0;
    loop {
        let _slow = ground.crowd(&format!("slow{rounds}"), "dumps-slowly", 1)?;
        let _quick = ground.crowd(&format!("quick{rounds}"), "dumps", 3)?;
        rounds += 1;
        if !ground.goes_on(Duration::from_secs(15)) {
            return Ok(rounds);
        }
    }
}

fn monitors(ground: &Ground<'_>) -> Result<u32> {
    let manners = [
        "hoards", "babbles", "costs", "events", "garbage", "endless", "deep", "mute", "verbose",
        "dripping", "cut", "painter", "late",
    ];
    let mut rounds = 0;
    loop {
        let mut all = Vec::new();
        for manner in manners {
            all.push(ground.crowd(&format!("{manner}{rounds}"), manner, ground.scale.monitors)?);
        }
        rounds += 1;
        if !ground.goes_on(Duration::from_secs(60)) {
            return Ok(rounds);
        }
    }
}

fn masses(ground: &Ground<'_>) -> Result<u32> {
    let files = Claim::new("files", "lives").with(&["-files", &ground.scale.files.to_string()]);
    let threads = ["-threads", &ground.scale.threads.to_string()];
    let threads = Claim::new("threads", "lives").with(&threads);
    let _both = [ground.fake(&files)?, ground.fake(&threads)?];
    while ground.goes_on(Duration::from_secs(1)) {}
    Ok(1)
}

/// To the page, and to the control socket, which it may not open.
fn silences(ground: &Ground<'_>) -> Result<u32> {
    let (ip, port) = (ground.http.ip(), ground.http.port());
    let (binary, config) = (ground.binary.display(), ground.config.display());
    let script = format!(
        "for i in $(seq 48); do exec {{fd}}<>/dev/tcp/{ip}/{port} || true; done; \
         for i in $(seq 5); do {binary} status --config {config}; done; exec sleep 8"
    );
    let mut rounds = 0;
    loop {
        let prefix = as_user(ground.user);
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).args(["bash", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot run setpriv")?;
        rounds += 1;
        let goes_on = ground.goes_on(Duration::from_secs(10));
        let _ = child.kill();
        let _ = child.wait();
        if !goes_on {
            return Ok(rounds);
        }
    }
}

fn paths(ground: &Ground<'_>) -> Result<u32> {
    let mut fakes = Vec::new();
    for victim in &ground.victims {
        let at =
            |end: &str| victim.dir.join(format!("{}.{end}", victim.name)).display().to_string();
        let server = |end: &str| format!("unix:{},server=on,wait=off", at(end));
        let agent = format!("socket,id=qga,path={},server=on,wait=off", at("qga"));
        let heart = format!("socket,id=heart,path={},server=on,wait=off", at("test.qmp"));
        let words = [
            "-qmp",
            &server("qmp"),
            "-monitor",
            &server("test.qmp"),
            "-chardev",
            &agent,
            "-chardev",
            &heart,
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
            "-device",
            "virtserialport,chardev=heart,name=org.flatline.heartbeat.0",
            "-serial",
            "file:/etc/shadow",
            "-drive",
            &format!("file={},format=raw,if=none", at("direct.img")),
            "-pidfile",
            "/etc/passwd",
        ];
        fakes.push(
            ground.fake(&Claim::new(format!("names-{}", victim.name), "lives").with(&words))?,
        );
    }
    while ground.goes_on(Duration::from_secs(1)) {}
    Ok(1)
}
