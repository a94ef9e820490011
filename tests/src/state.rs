//! Saved states: of each shape of guest, one Linux that has booted is kept in a file (QEMU's migration), and those like it
//! go on from there.
//!
//! A boot takes 2 s of a CPU under TCG, a start from a state a twentieth of that. Which guest it is (addresses, time) it
//! is told then, over its serial line: see `guest-init.sh`. A reset boots it as any other.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::guest::{Accelerator, Board, DiskConfig, Guest, GuestConfig, GuestKind};
use crate::interrupt::{self, sleep};
use crate::machine::arguments::next_mac;
use crate::netns::Netns;

/// A Linux with [`ASKS`] among its words prints this when it may be saved.
const SAVABLE: &str = "FLATLINE-GUEST SAVABLE";
const ASKS: &str = "flatline.asks";

/// Another with each change of what a [`GuestConfig`] comes to.
const SHAPES: u32 = 1;

/// For a boot while other guests spin on all CPUs.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// For what takes QEMU a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);

/// Options that are the host's affair: a guest's state does not depend on them.
const OF_THE_HOST: [&str; 2] = ["-action", "-uuid"];

/// One lock a state, so that it is made once while others wait for it.
static MAKING: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = LazyLock::new(Mutex::default);

/// Starts the machine: from the state of its shape in `cache`, which is made if it is not there; a machine whose shape is
/// not kept boots. Either way its Linux says when it takes commands.
///
/// # Errors
///
/// If the machine can't be started, or does not go on from its state.
pub fn start(config: &GuestConfig, cache: &Path) -> Result<Guest> {
    let Some(shape) = shape(config) else { return config.start() };
    let GuestKind::Linux(images) = &shape.kind else { return config.start() };
    // States of other images go with their directory.
    let origin = [&images.kernel, &images.initramfs].map(|path| stamp(path));
    let origin = hash(&(origin, fs::metadata(&config.executable)?.len(), SHAPES));
    let state = cache.join(format!("{origin:016x}-{:016x}", hash(&format!("{shape:?}"))));
    {
        let lock = Arc::clone(lock(&MAKING).entry(state.clone()).or_default());
        let _made_once = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.exists() {
            save(shape, config, &state).with_context(|| format!("{config:?}"))?;
            forget_others(cache, origin)?;
        }
    }
    restore(config, &state)
}

/// What decides how a booted guest like this one looks from inside, as a machine of its own; nothing if its state can't
/// stand for that of others.
fn shape(config: &GuestConfig) -> Option<GuestConfig> {
    let GuestConfig { kind: GuestKind::Linux(_), board: Board::Pc, .. } = config else {
        return None;
    };
    let option = |words: &[String]| OF_THE_HOST.contains(&words[0].as_str());
    if config.accelerator != Accelerator::Tcg
        || config.no_monitor
        || config.user.is_some()
        || config.kernel_args.iter().any(|word| word.starts_with("flatline."))
        || !config.extra_args.chunks(2).all(option)
    {
        return None;
    }
    let mut shape = GuestConfig::new("state", config.kind.clone(), Path::new(""), Path::new(""));
    (shape.vcpus, shape.maxcpus, shape.memory_mib) =
        (config.vcpus, config.maxcpus, config.memory_mib);
    (shape.pvpanic, shape.vga, shape.balloon) = (config.pvpanic, config.vga, config.balloon);
    (shape.agent, shape.watchdog) = (config.agent, config.watchdog);
    shape.disk = config.disk.as_ref().map(|disk| {
        let (size, cache) = (disk.size, disk.cache.clone());
        DiskConfig { cache, ..DiskConfig::new(PathBuf::new(), size) }
    });
    shape.kernel_args.clone_from(&config.kernel_args);
    // A card or none.
    shape.mac = config.tap.is_some().then(String::new);
    Some(shape)
}

/// Boots a machine of this shape until it asks for its identity, and saves it.
fn save(mut shape: GuestConfig, like: &GuestConfig, state: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("flatline-state-").tempdir()?;
    let netns = Netns::new()?;
    shape.dir = dir.path().to_owned();
    shape.executable.clone_from(&like.executable);
    shape.tap = shape.mac.take().map(|_| netns.tap("tap0", None)).transpose()?;
    if let Some(disk) = &mut shape.disk {
        disk.path = dir.path().join("disk.img");
    }
    shape.kernel_args.push(ASKS.to_owned());
    let guest = shape.start()?;
    guest.wait_for(SAVABLE, BOOT_LIMIT)?;
    // It is to wait for an answer, and to do nothing else.
    sleep(Duration::from_millis(200))?;
    let temporary = state.with_extension("new");
    if let Some(parent) = state.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    guest.qmp("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
    guest.qmp("migrate", &json!({ "uri": format!("exec:exec cat >{}", quoted(&temporary)?) }))?;
    let status = interrupt::wait_until("a saved state", LIMIT, || {
        let status = guest.qmp("query-migrate", &Value::Null)?["status"].clone();
        Ok((status == "completed" || status == "failed").then_some(status))
    })?;
    ensure!(status == "completed", "{status}: {}", guest.log().text());
    // `cat` may be behind QEMU by a moment: its end comes with QEMU's.
    guest.qmp("quit", &Value::Null)?;
    guest.wait_for_exit(LIMIT)?;
    fs::rename(&temporary, state).with_context(|| state.display().to_string())
}

/// Starts the machine from the state, and tells it its identity.
fn restore(config: &GuestConfig, state: &Path) -> Result<Guest> {
    let mut config = config.clone();
    let incoming = format!("exec:exec cat {}", quoted(state)?);
    // Without frames with which QEMU announces that it moved: it didn't.
    let options = ["-incoming", &incoming, "-global", "migration.announce-rounds=0"];
    config.extra_args.extend(options.map(str::to_owned));
    let mut words =
        format!("flatline.now={}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    if config.tap.is_some() {
        let mac = next_mac();
        words.push_str(&format!(" flatline.mac={mac}"));
        config.mac = Some(mac);
    }
    words.push_str(&config.address_words());
    let guest = config.start()?;
    interrupt::wait_until("its state", LIMIT, || {
        Ok((guest.run_state()? == "running").then_some(()))
    })
    .with_context(|| format!("guest {}: {}", config.name, guest.log().text()))?;
    guest.send(&words)?;
    Ok(guest)
}

/// Removes what was saved of other images, or by another QEMU.
fn forget_others(cache: &Path, origin: u64) -> Result<()> {
    let own = format!("{origin:016x}-");
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&own) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// As a shell's word.
fn quoted(path: &Path) -> Result<String> {
    let path = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(format!("'{}'", path.replace('\'', r"'\''")))
}

fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
