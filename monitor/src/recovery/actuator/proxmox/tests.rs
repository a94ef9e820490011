//! Real files, in a folder that stands in for pmxcfs.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{super::is_power_cycle, *};
use crate::recovery::evidence::Wanted;
use flatline_qemu::discover::Ownership;

const CONFIG: &str = "#a description: [not]%0Alock: backup\nagent: 1\ncores: 2\nmemory: 2048\n";

/// A node's files, with the configuration of the VM 100 as this text.
fn node(config: &str) -> TempDir {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("qemu-server")).unwrap();
    fs::create_dir(root.path().join("ha")).unwrap();
    fs::write(config_of(&root), config).unwrap();
    root
}

fn config_of(root: &TempDir) -> PathBuf {
    root.path().join("qemu-server/100.conf")
}

#[tokio::test]
async fn a_vm_is_locked_by_what_stands_before_the_first_section() {
    let root = node(&format!("{CONFIG}lock: backup\n\n[before-update]\ncores: 1\n"));
    let said = read(root.path(), 100).await.unwrap().locked.unwrap();
    assert!(said.contains("locked (backup)") && said.contains("qm unlock 100"), "{said}");
    for sections in ["", "\n[PENDING]\nlock: x\n", "[special:fleecing]\n\n[a]\nlock: snapshot\n"] {
        let root = node(&format!("{CONFIG}{sections}"));
        assert_eq!(read(root.path(), 100).await, Ok(Standing::default()), "{sections}");
    }
}

#[test]
fn all_kinds_of_locks_are_locks_and_nothing_else_is() {
    for kind in [
        "backup",
        "clone",
        "create",
        "migrate",
        "rollback",
        "snapshot",
        "snapshot-delete",
        "suspending",
        "suspended",
        "a-later-kind",
    ] {
        assert_eq!(lock(&format!("cores: 1\nlock: {kind}\n")), Some(kind));
    }
    assert_eq!(lock("lock:migrate \r\ncores: 1"), Some("migrate"));
    for text in
        ["", "lock:\n", "#lock: backup\n", " lock: backup\n", "unlock: backup\n", "args: lock: x\n"]
    {
        assert_eq!(lock(text), None, "{text:?}");
    }
}

#[tokio::test]
async fn a_lock_that_cannot_be_read_is_not_none() {
    let root = node(CONFIG);
    let unread = |standing: Result<Standing, String>| {
        let why = standing.unwrap_err();
        assert!(why.starts_with("whether Proxmox VE has it locked can't be told: "), "{why}");
        why
    };
    let why = unread(read(root.path(), 101).await);
    assert!(why.contains("this node has no"), "{why}");
    fs::write(config_of(&root), "").unwrap();
    assert!(unread(read(root.path(), 100).await).contains("is empty"));
    let most = usize::try_from(MOST_BYTES).unwrap();
    fs::write(config_of(&root), "#".repeat(most + 1)).unwrap();
    unread(read(root.path(), 100).await);
    fs::remove_file(config_of(&root)).unwrap();
    fs::create_dir(config_of(&root)).unwrap();
    unread(read(root.path(), 100).await);
    // As below a mount point while pmxcfs is down.
    let empty = TempDir::new().unwrap();
    assert!(unread(read(empty.path(), 100).await).contains("is not mounted"));
    // Without even that, there is no Proxmox VE.
    assert_eq!(read(&empty.path().join("pve"), 100).await, Ok(Standing::default()));
}

#[tokio::test]
async fn a_file_that_hangs_is_waited_for_within_bounds() {
    let root = node(CONFIG);
    fs::remove_file(config_of(&root)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        config_of(&root),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let why = read(root.path(), 100).await.unwrap_err();
    assert!(why.contains("doesn't answer"), "{why}");
    // Lets the thread go.
    drop(fs::OpenOptions::new().write(true).open(config_of(&root)).unwrap());
}

#[test]
fn what_ha_manages_is_in_its_list_and_not_ignored() {
    let list = "# by hand\nct: 100\n\tstate started\n\nvm: 100\n\tcomment vm: 101\n\tstate started\n\n\
                vm: 102\n\n\nvm: 103\n\tmax_restart 2\n\tstate ignored\n\nvm: 1041\n";
    let managed = |vmid| is_ha_managed(list, vmid);
    assert!(managed(100) && managed(102) && managed(1041));
    assert!(!managed(101) && !managed(103) && !managed(104));
    assert!(!is_ha_managed("", 100) && !is_ha_managed("ct: 100\n", 100));
}

#[tokio::test]
async fn whether_ha_manages_a_vm_is_told_with_its_reason() {
    let root = node(CONFIG);
    let list = root.path().join("ha/resources.cfg");
    fs::write(&list, "vm: 100\n\tstate started\n").unwrap();
    let ha = read(root.path(), 100).await.unwrap().ha.unwrap();
    assert_eq!(ha, "it is managed by Proxmox VE's HA");
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    let ha = read(root.path(), 100).await.unwrap().ha.unwrap();
    assert!(ha.starts_with("it may be managed"), "{ha}");
}

/// The context of a restart of the VM 100, after one that brought no life.
fn context(is_certain: bool, actuator: Actuator) -> RestartContext {
    let ownership =
        Ownership { owner: Owner::Proxmox { vmid: 100 }, is_certain, ..Ownership::bare() };
    let vm = Arc::new(Vm::stand_in(ownership, &[]));
    RestartContext {
        evidence: Wanted::nothing(vm.clone(), String::new()),
        vm,
        actuation: ActuatorConfig { actuator, power_cycle_after: 1, ..ActuatorConfig::default() },
        monitor: Err(None),
        attempts: 1,
        hangs: false,
        was_locked: false,
        overtaken: crate::recovery::overtaken::Overtaken::default(),
        incident: (String::new(), String::new(), String::new()),
    }
}

#[test]
fn a_vm_that_ha_manages_is_neither_stopped_nor_started_by_qm() {
    let of_ha = Standing { ha: Some("it is managed".to_owned()), ..Standing::default() };
    let context = context(true, Actuator::Auto);
    let power_cycles = |standing: &Standing| {
        let RestartContext { vm, actuation, attempts, .. } = without_has(&context, standing);
        is_power_cycle(&vm, &actuation, attempts)
    };
    assert!(power_cycles(&Standing::default()) && !power_cycles(&of_ha));
    assert_eq!(is_ours_to_start(&context, &Standing::default()), Ok(()));
    let refusal = is_ours_to_start(&context, &of_ha).unwrap_err().to_string();
    assert_eq!(refusal, "it is managed, which starts it by itself");
}

#[test]
fn what_is_configured_instead_of_qm_is_the_operators() {
    let of_ha = Standing { ha: Some("it is managed".to_owned()), ..Standing::default() };
    let context = context(true, Actuator::Qmp);
    assert_eq!(without_has(&context, &of_ha).actuation.power_cycle_after, 1);
    assert_eq!(is_ours_to_start(&context, &of_ha), Ok(()));
}

#[tokio::test]
async fn only_a_number_that_is_certain_is_looked_up() {
    let unlocked = unlocked(&context(false, Actuator::Qmp).vm).await;
    assert_eq!(unlocked.unwrap(), Standing::default());
}
