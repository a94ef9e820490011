//! What Proxmox VE says of a VM in its own files: whether it has the VM locked, and whether its HA manages it.
//!
//! Its programs write `lock: backup` and the like into a VM's configuration for as long as they work on it, and all of them
//! refuse to touch a VM that another one has locked (`check_lock` in PVE/AbstractConfig.pm of pve-guest-common, which `vm_reset`,
//! `vm_resume` and `vm_start` of qemu-server call). `qm reset` would fail, after it had been counted; a reset by QMP
//! would come into the middle of a rollback. So such a guest is left alone by every means. What can't be read is no
//! lock that is known, and nothing is done either: `qm` reads the same file, and fails without it.
//!
//! HA keeps a state that it wants of each VM that it manages (`ha/resources.cfg`). `qm stop` of such a VM only asks for
//! *stopped* there (`vm_stop` in PVE/API2/Qemu.pm, `next_state_started` in PVE/HA/Manager.pm), some seconds before that is
//! carried out: a `qm start` right after it has no effect, and the VM stays down.
//!
//! The files are root's, on a file system of Proxmox VE's own in user space (pmxcfs), which may not be there, or hang.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{RestartContext, chosen};
use crate::{
    config::{Actuator, ActuatorConfig},
    recovery::{Refusal, RestartError},
};
use flatline_qemu::discover::{Owner, Vm};
use flatline_samples::{MAX_TEXT_CHARS, printable};

/// Where pmxcfs is mounted.
const ROOT: &str = "/etc/pve";
/// The most that a file there may have (`MEMDB_MAX_FILE_SIZE` of pve-cluster).
const MOST_BYTES: u64 = 1 << 20;
/// pmxcfs answers from memory, within a millisecond.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Threads that may wait for it at the same time: a hung file system is not to have them all.
static READERS: Semaphore = Semaphore::const_new(4);

/// What is said of one VM.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    /// Why it is left alone now.
    locked: Option<String>,
    /// Why its HA may start and stop it by itself.
    ha: Option<String>,
}

/// What may be done to a crashed guest, as far as Proxmox VE has a word in it: the context as it is, or without what is HA's.
///
/// # Errors
/// [`RestartError::Locked`], and [`RestartError::Unlocked`] where that is over since the last try.
pub(super) async fn cleared(context: &RestartContext) -> Result<RestartContext, RestartError> {
    let standing = unlocked(&context.vm).await?;
    if context.was_locked {
        return Err(RestartError::Unlocked);
    }
    Ok(without_has(context, &standing))
}

/// That a VM without a QEMU may be started by `qm`, or by what is configured instead.
///
/// # Errors
/// [`RestartError::Locked`], and [`RestartError::Refused`] where HA starts it.
pub(super) async fn may_start(context: &RestartContext) -> Result<(), RestartError> {
    let standing = unlocked(&context.vm).await?;
    is_ours_to_start(context, &standing).map_err(RestartError::Refused)
}

/// The context without the power cycle by `qm stop` and `qm start`, where HA manages the VM: it is reset again instead.
fn without_has(context: &RestartContext, standing: &Standing) -> RestartContext {
    let mut left = context.clone();
    if standing.ha.is_some() && is_by_qm(&left.vm, &left.actuation) {
        left.actuation.power_cycle_after = 0;
    }
    left
}

fn is_ours_to_start(context: &RestartContext, standing: &Standing) -> Result<(), Refusal> {
    match &standing.ha {
        Some(why) if is_by_qm(&context.vm, &context.actuation) => {
            Err(Refusal(format!("{why}, which starts it by itself")))
        }
        _ => Ok(()),
    }
}

/// That it is still not locked, just before it is touched.
///
/// # Errors
/// [`RestartError::Locked`].
pub(super) async fn still_unlocked(vm: &Vm) -> Result<(), RestartError> {
    unlocked(vm).await.map(drop)
}

fn is_by_qm(vm: &Vm, actuation: &ActuatorConfig) -> bool {
    matches!(chosen(vm, actuation), Ok(Actuator::Proxmox))
}

async fn unlocked(vm: &Vm) -> Result<Standing, RestartError> {
    let Owner::Proxmox { vmid } = vm.ownership.owner else { return Ok(Standing::default()) };
    // The number that a QEMU gave itself may be another VM's.
    if !vm.ownership.is_certain {
        return Ok(Standing::default());
    }
    let standing = read(Path::new(ROOT), vmid).await;
    match standing.map_err(RestartError::Locked)? {
        Standing { locked: Some(why), .. } => Err(RestartError::Locked(why)),
        standing => Ok(standing),
    }
}

/// Reads what is said of the VM below `root`, beside the runtime, and within a bounded time.
async fn read(root: &Path, vmid: u32) -> Result<Standing, String> {
    let hangs = || unknown(format!("{} doesn't answer", root.display()));
    let readers = timeout(READ_LIMIT, READERS.acquire()).await;
    // It goes back when the thread is done, however long that takes.
    let reader = readers.ok().and_then(Result::ok).ok_or_else(hangs)?;
    let folder: Arc<Path> = root.into();
    let reading = spawn_blocking(move || {
        let _reader = reader;
        standing(&folder, vmid)
    });
    match timeout(READ_LIMIT, reading).await {
        Ok(Ok(standing)) => standing,
        Ok(Err(_)) | Err(_) => Err(hangs()),
    }
}

fn unknown(why: String) -> String {
    format!("whether Proxmox VE has it locked can't be told: {why}")
}

/// What the files below `root` say of the VM.
///
/// # Errors
/// Why its lock is not known.
fn standing(root: &Path, vmid: u32) -> Result<Standing, String> {
    let path = root.join(format!("qemu-server/{vmid}.conf"));
    let config = match text(&path) {
        Ok(config) => config,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if matches!(root.try_exists(), Ok(false)) {
                // A mount point without its file system would be there: this host has no Proxmox VE.
                Ok(Standing::default())
            } else if matches!(root.join("qemu-server").try_exists(), Ok(true)) {
                Err(unknown(format!("this node has no {}", path.display())))
            } else {
                Err(unknown(format!("{} is not mounted", root.display())))
            };
        }
        Err(error) => return Err(unknown(format!("{}: {error}", path.display()))),
    };
    if config.trim().is_empty() {
        return Err(unknown(format!("{} is empty", path.display())));
    }
    let locked = lock(&config).map(|lock| {
        let lock = printable(lock, MAX_TEXT_CHARS);
        format!(
            "Proxmox VE has it locked ({lock}), and it is left alone until that is over (`qm unlock {vmid}`, if nothing of \
             it is under way)"
        )
    });
    let resources = root.join("ha/resources.cfg");
    let ha = match text(&resources) {
        Ok(resources) if !is_ha_managed(&resources, vmid) => None,
        Ok(_) => Some("it is managed by Proxmox VE's HA".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            Some(format!("it may be managed by Proxmox VE's HA ({}: {error})", resources.display()))
        }
    };
    Ok(Standing { locked, ha })
}

/// The text of a file, whole.
fn text(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let wrong = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MOST_BYTES {
        return wrong("it is no file of Proxmox VE's");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).ok() != Some(meta.len()) {
        return wrong("it changed while it was read");
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lock in a VM's configuration, if there is one. What stands after the first line in brackets is about snapshots,
/// or pending (`parse_vm_config` in PVE/QemuServer.pm). A kind that is not known is a lock as well.
fn lock(config: &str) -> Option<&str> {
    let is_section = |line: &&str| line.starts_with('[') && line.trim_end().ends_with(']');
    let head = config.lines().take_while(|line| !is_section(line));
    let locks = head.filter_map(|line| line.strip_prefix("lock:")).map(str::trim);
    locks.filter(|lock| !lock.is_empty()).last()
}

/// Whether HA manages the VM by its list of resources: `vm: NUMBER`, then indented properties until an empty line
/// (PVE/SectionConfig.pm of pve-common). One whose `state` is `ignored` is treated as if it were not there
/// (`$service_check_ha_state` in PVE/HA/Config.pm).
fn is_ha_managed(resources: &str, vmid: u32) -> bool {
    let vmid = vmid.to_string();
    let (mut is_its, mut is_managed) = (false, false);
    for line in resources.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            is_its = false;
        } else if !line.starts_with([' ', '\t']) {
            let header = line.split_once(':');
            is_its = header
                .is_some_and(|(kind, name)| kind.eq_ignore_ascii_case("vm") && name.trim() == vmid);
            is_managed |= is_its;
        } else if is_its && line.split_whitespace().eq(["state", "ignored"]) {
            return false;
        }
    }
    is_managed
}

#[cfg(test)]
mod tests;
