//! What a VM names is read as its own user could: whatever takes the place of a console, the incident has nothing
//! that is root's, and it has the console wherever the file that QEMU writes can still be told.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flatline_tests::{
    boot_sector::BootSector,
    daemon::Daemon,
    guest::{Accelerator, Guest, GuestConfig},
    libvirt::MODULES,
    qmp::Qmp,
};
use libtest_mimic::Trial;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    io::{FdFlags, fcntl_setfd},
};
use serde_json::{Value, json};

use crate::{
    owners::{Ends, small_machine},
    rig::{Rig, trial, wait_for_incident, wait_for_vm},
};

/// The user whose VMs they are: no other has this id.
const USER: u32 = 64_998;
/// For a guest of a few bytes to boot, panic, and be reset.
const WITHIN: Duration = Duration::from_secs(60);
/// What is root's: in files, and in the daemon's environment.
const SECRET: &str = "flatline-test-secret";
/// The firmware's first words on its debug port.
const WORDS: &str = "SeaBIOS (version";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("what_takes_a_consoles_place_is_never_read_as_root", replaced),
        trial("the_console_of_a_qemu_that_left_its_directory_is_kept", left),
    ]
}

/// A place of the user's, and a file of root's.
struct Scene {
    rig: Rig,
    home: PathBuf,
    secret: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        fs::set_permissions(rig.dir(), Permissions::from_mode(0o755))?;
        let home = rig.dir().join("home");
        fs::create_dir(&home)?;
        chown(&home, Some(USER), Some(USER))?;
        let secret = rig.dir().join("secret");
        fs::write(&secret, format!("{SECRET}\n"))?;
        fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
        Ok(Self { rig, home, secret })
    }

    fn console(&self, name: &str) -> PathBuf {
        self.home.join(format!("{name}.log"))
    }

    /// A guest that panics as soon as it runs, its firmware's words in [`Self::console`].
    fn guest(&self, name: &str) -> GuestConfig {
        let mut config = self.rig.boot_sector(name, BootSector::Pvpanic, Accelerator::Tcg);
        config.dir.clone_from(&self.home);
        (config.user, config.pvpanic) = (Some(USER), true);
        let console = format!("file:{}", self.console(name).display());
        config.extra_args = debug_port(&console);
        config
    }

    fn daemon(&self) -> Result<Daemon> {
        let mut config = self.rig.daemon_config()?;
        config.prefix = vec!["env".to_owned(), format!("FLATLINE_TEST={SECRET}")];
        config.extra_toml = "[recovery]\nmax_restarts = 1".to_owned();
        self.rig.daemon(&config)
    }

    /// What the incident has of the VM's console, once all of it was kept; its list if there is none. Each file that has
    /// what is root's is `leaked`.
    fn kept(&self, daemon: &Daemon, name: &str, leaked: &mut Vec<PathBuf>) -> Result<String> {
        let incident = wait_for_incident(daemon, name, "its evidence", WITHIN, |incident| {
            incident["evidence"].as_array().is_some_and(|all| !all.is_empty())
        })?;
        let id = incident["id"].as_str().context("no id")?;
        let directory = self.rig.dir().join("state/incidents").join(id);
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if String::from_utf8_lossy(&fs::read(&path)?).contains(SECRET) {
                leaked.push(path);
            }
        }
        let console = directory.join("console.txt");
        let kept = if console.exists() { console } else { directory.join("evidence.txt") };
        let text = fs::read_to_string(kept)?;
        let line = text.lines().find(|line| line.contains("console.txt"));
        println!("{name}: {}", line.or(text.lines().next()).unwrap_or_default());
        Ok(text)
    }

    /// Puts something else where the consoles' paths lead, `log` for one of them.
    fn replace_consoles(&self, log: &Path) -> Result<()> {
        let Self { home, secret, .. } = self;
        let swap = |name: &str, target: &Path| -> Result<()> {
            fs::remove_file(self.console(name))?;
            Ok(symlink(target, self.console(name))?)
        };
        swap("linked", secret)?;
        swap("environ", Path::new("/proc/self/environ"))?;
        fs::remove_file(self.console("hard"))?;
        fs::hard_link(secret, self.console("hard"))?;
        fs::remove_file(self.console("pipe"))?;
        mknodat(CWD, self.console("pipe"), FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
        // These can't be told by their names any more, so that their paths are followed.
        for (name, target) in [("moved", secret.as_path()), ("held", secret), ("handed", log)] {
            fs::rename(self.console(name), home.join(format!("{name}.elsewhere")))?;
            symlink(target, self.console(name))?;
        }
        Ok(())
    }
}

/// The port that the firmware writes to as it boots, which counts as a console.
fn debug_port(backend: &str) -> Vec<String> {
    let words = ["-debugcon", backend, "-global", "isa-debugcon.iobase=0x402", "-S"];
    [&words[..], &["-action", "panic=pause"]].concat().into_iter().map(str::to_owned).collect()
}

/// Once the daemon speaks to its QEMU, which waits.
fn is_known(daemon: &Daemon, name: &str) -> Result<Value> {
    wait_for_vm(daemon, name, "its monitor", WITHIN, |row| row["run_state"] == "prelaunch")
}

fn replaced() -> Result<()> {
    let scene = Scene::new()?;

    // A file of root's that QEMU has open for reading, and one that it has open for writing.
    let read_only = File::open(&scene.secret)?;
    let log = scene.rig.dir().join("log");
    let written = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
    fs::write(&log, format!("{SECRET}\n"))?;
    for file in [&read_only, &written] {
        fcntl_setfd(file, FdFlags::empty())?;
    }
    let names = ["honest", "linked", "environ", "hard", "pipe", "moved"];
    let mut configs: Vec<GuestConfig> = names.iter().map(|name| scene.guest(name)).collect();
    for name in ["held", "handed"] {
        let mut config = scene.guest(name);
        for (set, file) in [(1, &read_only), (2, &written)] {
            let add = format!("fd={},set={set}", file.as_raw_fd());
            config.extra_args.extend(["-add-fd".to_owned(), add]);
        }
        let drive = "driver=raw,file.driver=file,file.filename=/dev/fdset/1,file.locking=off,if=none,read-only=on";
        let log = "file,id=log,path=/dev/fdset/2,append=on";
        config.extra_args.extend(["-drive", drive, "-chardev", log].map(str::to_owned));
        configs.push(config);
    }
    // One is written to what is no file from the start.
    let pipe = scene.console("fifo");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
    chown(&pipe, Some(USER), Some(USER))?;
    let _reads = OpenOptions::new().read(true).write(true).open(&pipe)?;
    configs.push(scene.guest("fifo"));
    let guests: Vec<Guest> = configs.iter().map(GuestConfig::start).collect::<Result<_>>()?;
    for file in [&read_only, &written] {
        fcntl_setfd(file, FdFlags::CLOEXEC)?;
    }
    ensure!(owner(&guests[0])? == USER, "not the user's");

    let daemon = scene.daemon()?;
    for guest in &guests {
        is_known(&daemon, guest.name())?;
    }
    scene.replace_consoles(&log)?;
    for guest in &guests {
        guest.qmp("cont", &Value::Null)?;
    }

    let mut leaked = Vec::new();
    let (mut kept, names) = (Vec::new(), guests.iter().map(Guest::name));
    for name in names {
        kept.push(scene.kept(&daemon, name, &mut leaked)?);
    }
    ensure!(leaked.is_empty(), "what is root's is in {leaked:?}");
    let kept = |wanted: &str| guests.iter().zip(&kept).find(|(guest, _)| guest.name() == wanted);
    for name in ["honest", "linked", "environ", "hard", "pipe"] {
        let (_, text) = kept(name).context("no such guest")?;
        ensure!(text.contains(WORDS), "{name}: {text}");
    }
    for (name, why) in [
        ("moved", "no such file open for writing"),
        ("held", "no such file open for writing"),
        ("handed", "not open to the user that QEMU runs as"),
        ("fifo", "not a regular file"),
    ] {
        let (_, list) = kept(name).context("no such guest")?;
        ensure!(list.contains("missing  console.txt") && list.contains(why), "{name}: {list}");
    }
    let log = daemon.log().text();
    ensure!(!log.contains(SECRET), "{log}");
    Ok(())
}

/// The user of a guest's QEMU.
fn owner(guest: &Guest) -> Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(format!("/proc/{}", guest.pid()))?.uid())
}

/// In the background, with a path that was meant in the directory that it began in, and in a root of its own.
fn left() -> Result<()> {
    let scene = Scene::new()?;
    let Scene { home, rig, .. } = &scene;
    fs::create_dir(home.join("logs"))?;
    let mut running = Vec::new();
    for (name, is_rooted) in [("background", false), ("rooted", true)] {
        let file = |end: &str| home.join(format!("{name}.{end}")).display().to_string();
        let mut command = Command::new(&rig.qemu);
        command.current_dir(home).args(small_machine(home, name, BootSector::Pvpanic)?);
        command.args(debug_port(&format!("file:logs/{name}.log"))).args(["-device", "pvpanic"]);
        command.args(["-daemonize", "-qmp", &format!("unix:{},server=on,wait=off", file("test"))]);
        if is_rooted {
            command.args(["-chroot".as_ref(), home.as_os_str()]);
        }
        if let Some(modules) = MODULES.into_iter().find(|folder| Path::new(folder).is_dir()) {
            command.env("QEMU_MODULE_DIR", modules);
        }
        let output = command.output().context("cannot start QEMU")?;
        ensure!(output.status.success(), "{name}: {output:?}");
        running.push(Ends(fs::read_to_string(file("pid"))?.trim().parse()?));
        if is_rooted {
            // In that root, its monitor is still where it says.
            let inside = home.join(home.strip_prefix("/")?);
            fs::create_dir_all(&inside)?;
            fs::hard_link(file("qmp"), inside.join("rooted.qmp"))?;
        }
    }
    let daemon = scene.daemon()?;
    for name in ["background", "rooted"] {
        is_known(&daemon, name)?;
        let monitor = UnixStream::connect(home.join(format!("{name}.test")))?;
        Qmp::new(monitor)?.execute("cont", &json!({}))?;
    }
    for name in ["background", "rooted"] {
        let text = scene.kept(&daemon, name, &mut Vec::new())?;
        ensure!(text.contains(WORDS), "{name}: {text}");
    }
    Ok(())
}
