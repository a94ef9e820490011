//! Sweeps: all processes are gone through for VMs.

use std::collections::{HashMap, HashSet};

use glob::Pattern;

use super::{DiscoverError, Scope, Vm, common::Common, executable_in_scope, proc, read_vm_of};

/// In every so manieth sweep all are looked at: a process may execute something else, and the kernel's word of that be lost.
const ALL_EVERY: u32 = 6;

/// Processes that earlier sweeps found to run nothing that may be a QEMU: most of a host's.
#[derive(Debug, Default)]
pub struct Passed {
    sweeps: u32,
    /// What was looked for.
    executables: Vec<Pattern>,
    /// Pid, and the inode of its directory below `/proc`.
    processes: HashSet<(u32, u64)>,
    /// Those that run a QEMU and are no VM so far, with the sweeps that found them so: one that goes into the background, say,
    /// becomes one without a word of the kernel's.
    not_yet: HashMap<(u32, u64), u32>,
}

impl Passed {
    /// The fewest sweeps in which a process ran a QEMU and was no VM; `None`: there is no such process.
    pub fn fewest_in_vain(&self) -> Option<u32> {
        self.not_yet.values().copied().min()
    }
}

/// Hands each VM there is now on as it is found, but those with a pid in `known`, and an error for each process that may be one
/// but cannot be read. A process that ended meanwhile is simply not there, and those that are `passed` are not looked at in most
/// sweeps.
pub fn sweep(
    scope: &Scope,
    known: &HashSet<u32>,
    passed: &mut Passed,
    found: &mut dyn FnMut(Result<Vm, DiscoverError>),
) {
    let processes = match proc::processes() {
        Ok(processes) => processes,
        Err(error) => return found(Err(error)),
    };
    if passed.sweeps.is_multiple_of(ALL_EVERY) || passed.executables != scope.executables {
        passed.processes.clear();
        passed.executables.clone_from(&scope.executables);
    }
    passed.sweeps = passed.sweeps.wrapping_add(1);
    let mut common = Common::new();
    let mut passes = HashSet::with_capacity(passed.processes.len());
    let mut not_yet = HashMap::new();
    for (pid, inode) in processes.into_iter().filter(|(pid, _)| !known.contains(pid)) {
        if passed.processes.contains(&(pid, inode)) {
            passes.insert((pid, inode));
            continue;
        }
        let vm = match executable_in_scope(pid, scope) {
            Ok(None) => {
                passes.insert((pid, inode));
                continue;
            }
            Ok(Some(executable)) => read_vm_of(pid, executable, scope, &mut common),
            Err(error) => Err(error),
        };
        match vm {
            Ok(None) => {
                let sweeps = passed.not_yet.get(&(pid, inode)).copied().unwrap_or_default();
                not_yet.insert((pid, inode), sweeps.saturating_add(1));
            }
            Err(DiscoverError::Gone { .. }) => {}
            Ok(Some(vm)) => found(Ok(vm)),
            Err(error) => found(Err(error)),
        }
    }
    passed.processes = passes;
    passed.not_yet = not_yet;
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_was_passed_is_another_one_under_another_inode() {
        let scope = Scope { executables: vec![Pattern::new("/no/such").unwrap()], users: vec![] };
        let mut passed = Passed::default();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let is_passed =
            |passed: &Passed| passed.processes.iter().any(|(pid, _)| *pid == child.id());
        let none = &mut |vm: Result<Vm, _>| panic!("{vm:?}");
        sweep(&scope, &HashSet::new(), &mut passed, none);
        assert!(is_passed(&passed));
        let before = passed.processes.clone();
        sweep(&scope, &HashSet::new(), &mut passed, &mut |_| {});
        let own = |processes: &HashSet<(u32, u64)>| {
            processes.iter().find(|(pid, _)| *pid == std::process::id()).copied()
        };
        assert_eq!(own(&passed.processes), own(&before), "the inode stays the same");
        sweep(&scope, &HashSet::from([child.id()]), &mut passed, &mut |_| {});
        assert!(!is_passed(&passed), "what is known is no concern of it");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_pattern_and_every_sixth_sweep_look_at_all() {
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        // What this process executes is looked for, but not of its user: it is no VM, and may be one at any time.
        let scope = |executable: &str| Scope {
            executables: vec![Pattern::new(&Pattern::escape(executable)).unwrap()],
            users: vec![u32::MAX],
        };
        let is_own = |(pid, _): &(u32, u64)| *pid == std::process::id();
        let is_passed = |passed: &Passed| passed.processes.iter().any(is_own);
        let in_vain = |passed: &Passed| {
            passed.not_yet.iter().find(|(process, _)| is_own(process)).map(|(_, sweeps)| *sweeps)
        };
        let mut passed = Passed::default();
        let (other, this) = (scope("/no/such"), scope(own.to_str().unwrap()));
        let look = |scope: &Scope, passed: &mut Passed| {
            sweep(scope, &HashSet::new(), passed, &mut |vm| panic!("{vm:?}"));
        };
        look(&other, &mut passed);
        assert!(is_passed(&passed));
        look(&this, &mut passed);
        assert!(!is_passed(&passed));
        assert_eq!(in_vain(&passed), Some(1));
        look(&this, &mut passed);
        assert_eq!(in_vain(&passed), Some(2));
        look(&other, &mut passed);
        assert_eq!(in_vain(&passed), None);
        let stale = (u32::MAX, 1);
        passed.processes.insert((std::process::id(), 1));
        passed.processes.insert(stale);
        look(&other, &mut passed);
        assert!(!passed.processes.contains(&stale), "it ended");
        passed.sweeps = ALL_EVERY;
        passed.executables.clone_from(&this.executables);
        look(&this, &mut passed);
        assert!(!is_passed(&passed), "all are looked at");
    }

    #[test]
    fn the_fewest_sweeps_in_vain_are_told() {
        let mut passed = Passed::default();
        assert_eq!(passed.fewest_in_vain(), None);
        passed.not_yet = HashMap::from([((1, 1), 3), ((2, 1), 2)]);
        assert_eq!(passed.fewest_in_vain(), Some(2));
    }
}
