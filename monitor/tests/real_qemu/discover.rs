//! What is found of QEMUs that really run: paused, without a guest, each ended with its test.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getuid, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use flatline_qemu::discover::{
    Accelerator, DiscoverError, ListeningSocket, OpenDevices, Passed, ResetAction, Scope,
    VcpuThreads, Vm, in_netns, inspect, plugged, process_state, start_ticks, sweep, vcpu_threads,
};

use crate::{Outcome, qemu};

/// QEMU takes 0.3 s; a machine that runs all tests at once, longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Options of every QEMU here: paused before its first instruction.
const PAUSED: &[&str] = &["-S", "-display", "none", "-nodefaults", "-m", "16"];

/// A process that ends with its test, passed or failed.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Started {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().expect("starting a program"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its VM, once there is one and `ready` says so; `None` if it ended before.
    fn vm_when(&mut self, scope: &Scope, ready: impl Fn(&Vm) -> bool) -> Option<Vm> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.0.try_wait().expect("its status").is_some() {
                return None;
            }
            if let Some(vm) = inspect(self.pid(), scope).expect("reading our own child")
                && ready(&vm)
            {
                return Some(vm);
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("no VM within {PATIENCE:?}");
    }
}

/// The QEMU to be tried, and a scope of just that.
fn qemu_in_scope() -> Result<(PathBuf, Scope), String> {
    let path = qemu()?;
    let scope = scope_of(&path);
    Ok((path, scope))
}

fn scope_of(path: &Path) -> Scope {
    let escaped = glob::Pattern::escape(path.to_str().expect("a UTF-8 path"));
    Scope { executables: vec![glob::Pattern::new(&escaped).expect("a pattern")], users: Vec::new() }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

pub(crate) fn a_running_qemu_is_found_with_what_it_was_told() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let folder = folder();
    let socket = folder.path().join("qmp.sock");
    let disk = folder.path().join("disk.img");
    File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("an image");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let drive = format!("file={},if=none,id=d,format=raw", disk.display());
    let mut arguments = PAUSED.to_vec();
    arguments.extend(["-accel", "tcg", "-smp", "2", "-machine", "q35", "-no-reboot"]);
    arguments.extend(["-name", "found,, with a space", "-qmp", &qmp, "-drive", &drive]);
    arguments.extend(["-device", "virtio-blk-pci,drive=d", "-device", "virtio-balloon-pci"]);
    arguments.extend(["-uuid", "0B9F6C1E-4A2D-4B7B-8C55-2F1E6D3A9B10"]);
    let mut qemu = Started::start(&path, &arguments);
    let vm = qemu.vm_when(&scope, |_| socket.exists()).expect("a VM");

    assert_eq!(vm.id.pid, qemu.pid());
    assert_eq!(vm.id.start_ticks, start_ticks(qemu.pid()).expect("its start"));
    assert_eq!(vm.name, "found, with a space");
    assert_eq!(vm.uuid.as_deref(), Some("0b9f6c1e-4a2d-4b7b-8c55-2f1e6d3a9b10"));
    assert_eq!(vm.accelerator, Accelerator::Tcg);
    assert_eq!(vm.executable, path);
    assert_eq!(vm.origin.uid, getuid().as_raw());
    let own = fs::metadata("/proc/self/ns/net").expect("our own namespace").ino();
    assert_eq!(u64::from(vm.netns), own);
    assert_eq!(vm.qmp_sockets, [ListeningSocket::at_path(socket)]);
    assert!(vm.plugged.taps.is_empty() && vm.unseen_networks.is_empty());
    assert_eq!(vm.disks.len(), 1);
    assert_eq!((Path::new(&vm.disks[0].path), vm.disks[0].backend.as_str()), (&*disk, "file"));
    // QEMU opens its images after its monitors.
    let opened = |vm: &Vm| !vm.plugged.files.keys.is_empty() || !vm.plugged.files.unseen.is_empty();
    let files = qemu.vm_when(&scope, opened).expect("a VM").plugged.files;
    let inode = fs::metadata(&disk).expect("the image").ino();
    assert!(
        files.keys.iter().any(|key| key.inode == inode) || !files.unseen.is_empty(),
        "{files:?}"
    );
    assert_eq!((vm.vcpus, vm.machine.as_deref()), (2, Some("q35")));
    assert_eq!(vm.reboot_action, ResetAction::Shutdown);
    assert!(vm.has_balloon && !vm.has_agent_channel);
    assert!(matches!(process_state(qemu.pid()).expect("its state"), 'S' | 'R' | 'D'));
    Ok(())
}

pub(crate) fn only_the_users_in_scope_are_found_and_nothing_of_one_that_ended() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let mut qemu = Started::start(&path, PAUSED);
    let vm = qemu.vm_when(&scope, |_| true).expect("a VM");
    assert_eq!(vm.name, format!("qemu-{}", qemu.pid()));

    let with_users = |uid| Scope { users: vec![uid], ..scope.clone() };
    let found = |scope: &Scope| inspect(qemu.pid(), scope).expect("reading our child").is_some();
    assert!(found(&with_users(vm.origin.uid)));
    assert!(!found(&with_users(vm.origin.uid + 1)));
    assert!(all(&scope).iter().any(|found| found.id == vm.id));

    let pid = qemu.pid();
    qemu.0.kill().expect("ending our child");
    // A zombie until it is waited for.
    let deadline = Instant::now() + PATIENCE;
    while process_state(pid).expect("not yet waited for") != 'Z' {
        assert!(Instant::now() < deadline, "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(inspect(pid, &scope).expect("a zombie").is_none());
    drop(qemu);
    assert!(inspect(pid, &scope).expect("nothing").is_none());
    assert!(matches!(vcpu_threads(pid), Err(DiscoverError::Gone { .. })));
    assert!(!all(&scope).iter().any(|found| found.id == vm.id));
    Ok(())
}

pub(crate) fn vcpu_threads_are_told_by_name_where_they_have_one() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let threads = |accelerator: &str, name: &str| {
        let folder = folder();
        let socket = folder.path().join("qmp.sock");
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let mut arguments = PAUSED.to_vec();
        arguments.extend(["-accel", accelerator, "-name", name, "-smp", "2", "-qmp", &qmp]);
        let mut qemu = Started::start(&path, &arguments);
        qemu.vm_when(&scope, |_| socket.exists()).expect("a VM");
        // The threads name themselves a little after QEMU listens.
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let threads = vcpu_threads(qemu.pid()).expect("its threads");
            let is_named = match &threads {
                VcpuThreads::Each(each) => each.len() == 2,
                VcpuThreads::OneForAll(_) => true,
                VcpuThreads::Unnamed => false,
            };
            if is_named || Instant::now() > deadline {
                return (qemu.pid(), threads);
            }
            thread::sleep(Duration::from_millis(20));
        }
    };
    let (pid, named) = threads("tcg,thread=multi", "n,debug-threads=on");
    let VcpuThreads::Each(each) = named else { panic!("not a thread each: {named:?}") };
    assert_eq!(each.iter().map(|thread| thread.index).collect::<Vec<_>>(), [0, 1]);
    assert!(each[0].tid != each[1].tid && each.iter().all(|thread| thread.tid != pid));

    let (pid, single) = threads("tcg,thread=single", "n,debug-threads=on");
    assert!(matches!(single, VcpuThreads::OneForAll(tid) if tid != pid), "{single:?}");

    let (_, unnamed) = threads("tcg,thread=multi", "n,debug-threads=off");
    assert_eq!(unnamed, VcpuThreads::Unnamed);
    Ok(())
}

pub(crate) fn a_kvm_guest_is_told_by_its_descriptor() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Err("/dev/kvm cannot be opened".to_owned());
    }
    let mut arguments = PAUSED.to_vec();
    // Offered last, so that only the descriptor can tell.
    arguments.extend(["-accel", "xen", "-accel", "kvm"]);
    let mut qemu = Started::start(&path, &arguments);
    let kvm = |vm: &Vm| vm.accelerator == Accelerator::Kvm;
    if qemu.vm_when(&scope, kvm).is_none() {
        return Err("QEMU cannot use KVM here".to_owned());
    }
    Ok(())
}

/// All VMs that one sweep finds.
fn all(scope: &Scope) -> Vec<Vm> {
    let mut vms = Vec::new();
    let found = &mut |found: Result<Vm, _>| vms.extend(found);
    sweep(scope, &HashSet::new(), &mut Passed::default(), found);
    vms
}

/// Starts a `-daemonize`d QEMU through `prefix`, and sweeps until it alone was found for a while.
fn daemonized(prefix: &[&str]) -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let folder = folder();
    let pidfile = folder.path().join("pid");
    let name = format!("daemonized-{}-{}", prefix.len(), std::process::id());
    let mut words: Vec<&str> = prefix.to_vec();
    words.push(path.to_str().expect("a UTF-8 path"));
    words.extend(PAUSED);
    let pidfile_argument = pidfile.to_str().expect("a UTF-8 path");
    words.extend(["-daemonize", "-name", &name, "-pidfile", pidfile_argument]);
    let _launcher = Started::start(Path::new(words[0]), &words[1..]);
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    let mut since_ready = None;
    while since_ready.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(300)) {
        assert!(Instant::now() < deadline, "the grandchild does not start");
        let found = all(&scope).into_iter().filter(|vm| vm.name == name);
        seen.extend(found.map(|vm| vm.id.pid));
        if fs::read_to_string(&pidfile).is_ok_and(|written| written.ends_with('\n')) {
            since_ready.get_or_insert_with(Instant::now);
        }
    }
    // Ended before anything is asserted of it, so that no failure leaves it behind.
    let written = fs::read_to_string(&pidfile).expect("a pid file");
    let grandchild = Pid::from_raw(written.trim().parse().expect("a pid")).expect("a pid");
    let pidfd = pidfd_open(grandchild, PidfdFlags::empty()).expect("our grandchild");
    pidfd_send_signal(&pidfd, Signal::KILL).expect("ending our grandchild");
    let seen: Vec<String> = seen.iter().map(u32::to_string).collect();
    assert_eq!(seen, [written.trim()], "others were taken for a VM, or it was not found");
    Ok(())
}

pub(crate) fn a_daemonized_qemu_is_found_once_and_its_launcher_never() -> Outcome {
    daemonized(&[])
}

pub(crate) fn the_launcher_of_a_daemonized_qemu_is_no_vm_in_a_session_without_a_leader_either()
-> Outcome {
    let detached = r#"("$@"; true) & exit 0"#;
    daemonized(&["setsid", "--fork", "sh", "-c", detached, "sh"])
}

pub(crate) fn a_qemu_whose_executable_was_replaced_is_still_found() -> Outcome {
    let path = qemu()?;
    let folder = folder();
    let prefix = folder.path().canonicalize().expect("its path");
    let copy = prefix.join("bin").join("qemu-system-x86_64");
    fs::create_dir(prefix.join("bin")).expect("a folder");
    fs::copy(&path, &copy).expect("a copy of QEMU");
    // QEMU looks for its modules and firmware beside the folder that it was started from.
    for beside in ["lib", "share"] {
        let original = path.with_file_name("..").join(beside);
        symlink(original, prefix.join(beside)).expect("a link");
    }
    let socket = prefix.join("qmp.sock");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let mut arguments = PAUSED.to_vec();
    arguments.extend(["-accel", "tcg", "-qmp", &qmp]);
    let mut qemu = Started::start(&copy, &arguments);
    let scope = scope_of(&copy);
    let before = qemu.vm_when(&scope, |_| socket.exists()).expect("a VM");
    fs::remove_file(&copy).expect("removing the copy");
    let after = inspect(qemu.pid(), &scope).expect("reading our child").expect("still a VM");
    assert_eq!((after.id, after.executable), (before.id, copy));
    Ok(())
}

pub(crate) fn a_qemu_that_only_answers_questions_is_no_vm() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let folder = folder();
    let socket = folder.path().join("qmp.sock");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let mut arguments = PAUSED.to_vec();
    arguments.extend(["-machine", "none,accel=tcg", "-qmp", &qmp]);
    let qemu = Started::start(&path, &arguments);
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "it does not start");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(inspect(qemu.pid(), &scope).expect("reading our child").is_none());
    Ok(())
}

/// A network namespace that ends with its test, passed or failed.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

impl Namespace {
    fn new(label: &str) -> Result<Self, String> {
        let name = format!("flatline-{label}-{}", std::process::id());
        if !getuid().is_root() {
            return Err("not root".to_owned());
        }
        if !run("ip", &["netns", "add", &name]) {
            return Err("no network namespace can be made".to_owned());
        }
        Ok(Self(name))
    }

    fn file(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).expect("the namespace")
    }
}

/// A QEMU in `namespace` with two queues of `tap7`, which is made there.
fn qemu_with_tap(
    namespace: &Namespace,
    path: &Path,
    scope: &Scope,
) -> Result<(Started, Vm), String> {
    let tuntap = ["-n", &namespace.0, "tuntap", "add", "tap7", "mode", "tap", "multi_queue"];
    if !run("ip", &tuntap) {
        return Err("no tap can be made".to_owned());
    }
    let enter = format!("--net=/run/netns/{}", namespace.0);
    let mut arguments = vec![enter.as_str(), path.to_str().expect("a UTF-8 path")];
    arguments.extend(PAUSED);
    let netdev = "tap,id=n,ifname=tap7,script=no,downscript=no,queues=2,vhost=off";
    arguments.extend(["-netdev", netdev, "-device", "virtio-net-pci,netdev=n,mq=on"]);
    let mut qemu = Started::start(Path::new("nsenter"), &arguments);
    let vm = qemu.vm_when(scope, |vm| !vm.plugged.taps.is_empty()).expect("a VM");
    Ok((qemu, vm))
}

pub(crate) fn a_tap_with_two_queues_is_found_once_in_the_namespace_of_its_qemu() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let namespace = Namespace::new("tap")?;
    let (qemu, vm) = qemu_with_tap(&namespace, &path, &scope)?;

    let inode = namespace.file().metadata().expect("its inode").ino();
    assert_eq!(u64::from(vm.netns), inode);
    let listed = Command::new("ip")
        .args(["-n", &namespace.0, "-j", "link", "show", "tap7"])
        .output()
        .expect("a listing");
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let taps = &vm.plugged.taps;
    assert_eq!(taps.len(), 1);
    assert_eq!((taps[0].name.as_str(), taps[0].netns), ("tap7", vm.netns));
    assert_eq!(listed[0]["ifindex"].as_u64(), Some(u64::from(taps[0].ifindex)));
    assert_eq!(vm.unseen_networks, [""; 0]);
    assert_eq!(plugged(qemu.pid()).expect("its taps"), vm.plugged);
    Ok(())
}

pub(crate) fn a_tap_that_moved_is_found_in_whatever_namespace_it_is() -> Outcome {
    let (path, scope) = qemu_in_scope()?;
    let namespace = Namespace::new("from")?;
    let other = Namespace::new("to")?;
    let (qemu, _) = qemu_with_tap(&namespace, &path, &scope)?;
    assert!(run("ip", &["-n", &namespace.0, "link", "set", "tap7", "netns", &other.0]));

    let inode = other.file().metadata().expect("its inode").ino();
    let inside = in_netns(&other.file(), || plugged(qemu.pid())).expect("entering the namespace");
    for found in [plugged(qemu.pid()), inside] {
        let OpenDevices { taps, unseen_taps, .. } = found.expect("its taps");
        assert_eq!(taps.iter().map(|tap| u64::from(tap.netns)).collect::<Vec<_>>(), [inode]);
        assert_eq!(unseen_taps, [""; 0]);
    }
    Ok(())
}

pub(crate) fn code_inside_a_namespace_sees_that_one_and_code_outside_does_not() -> Outcome {
    let namespace = Namespace::new("enter")?;
    let here = || fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino();
    let outside = here();
    let inside = in_netns(&namespace.file(), here).expect("entering it");
    assert_eq!(inside, namespace.file().metadata().expect("its inode").ino());
    assert_ne!(inside, outside);
    assert_eq!(here(), outside);
    Ok(())
}
