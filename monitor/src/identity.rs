//! Identity of a VM beyond its QEMU's end: under what its holds, restarts and incidents are kept.
//!
//! A name and a UUID are what a command line claims; whose process it is, the kernel says. So a VM is known by the user
//! that its QEMU runs as *and* by what that claims: what another user's process claims is another VM. Where several
//! living QEMUs of one user claim the same, none of them is it more than the others: each stands for itself then, and its
//! process is part of its key.

use std::fmt;

use serde::{Deserialize, Serialize};

use flatline_qemu::discover::{Vm, VmId};

/// A process for as long as the host is up: pids come round again, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since the host's start.
    pub start_ticks: u64,
}

impl From<VmId> for ProcessId {
    fn from(VmId { pid, start_ticks }: VmId) -> Self {
        Self { pid, start_ticks }
    }
}

/// What a VM is known by. As text: `UID CLAIM`, or `UID/PID@START CLAIM` of one process; `-` for any user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Key {
    /// The real user id of its QEMU; `None`: of any, in what earlier versions wrote.
    pub uid: Option<u32>,
    /// Its UUID, or its name without one.
    pub claim: String,
    /// The only process that is meant, of several that claim the same.
    pub process: Option<ProcessId>,
}

impl Key {
    /// That of a VM whose claim no other living QEMU of its user makes.
    pub(crate) fn of(vm: &Vm) -> Self {
        Self::new(Some(vm.origin.uid), vm.uuid.as_deref(), &vm.name)
    }

    /// The same of what is known only by these.
    pub(crate) fn new(uid: Option<u32>, uuid: Option<&str>, name: &str) -> Self {
        Self { uid, claim: uuid.unwrap_or(name).to_owned(), process: None }
    }

    /// The same for this process alone, where there is one.
    #[must_use]
    pub(crate) fn of_process(self, process: Option<ProcessId>) -> Self {
        Self { process, ..self }
    }

    /// Whether both are of one user and claim, whichever processes they are of.
    pub(crate) fn claims_the_same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.claim == other.claim
    }

    /// Whether what was noted under this key counts for `vm`. What an earlier version noted is of any user; what was noted
    /// before a claim became one of several is of each of these.
    pub(crate) fn counts_for(&self, vm: &Self) -> bool {
        self.claim == vm.claim
            && (self.uid.is_none() || self.uid == vm.uid)
            && (self.process.is_none() || self.process == vm.process)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "{uid}")?,
            None => f.write_str("-")?,
        }
        if let Some(ProcessId { pid, start_ticks }) = self.process {
            write!(f, "/{pid}@{start_ticks}")?;
        }
        write!(f, " {}", self.claim)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse(&text).ok_or_else(|| format!("{text:?} is no VM's key"))
    }
}

fn parse(text: &str) -> Option<Key> {
    // A claim may have any character in it, and what stands before it has no space.
    let (whose, claim) = text.split_once(' ')?;
    let (uid, process) = match whose.split_once('/') {
        Some((uid, process)) => (uid, Some(process.split_once('@')?)),
        None => (whose, None),
    };
    let process = match process {
        Some((pid, start)) => {
            Some(ProcessId { pid: pid.parse().ok()?, start_ticks: start.parse().ok()? })
        }
        None => None,
    };
    let uid = if uid == "-" { None } else { Some(uid.parse().ok()?) };
    Some(Key { uid, claim: claim.to_owned(), process })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: ProcessId = ProcessId { pid: 4711, start_ticks: 99 };

    fn key(uid: u32) -> Key {
        Key::new(Some(uid), None, "web-1")
    }

    #[test]
    fn its_text_is_read_back_whatever_the_claim() {
        for claim in ["web-1", "", " ", "4711@99 web-1", "1000/1@1 x", "\u{fffd}\"\\", "7f3b6a10"] {
            for uid in [None, Some(0), Some(u32::MAX)] {
                for process in [None, Some(PROCESS)] {
                    let key = Key::new(uid, None, claim).of_process(process);
                    assert_eq!(Key::try_from(key.to_string()), Ok(key));
                }
            }
        }
        assert_eq!(key(1000).of_process(Some(PROCESS)).to_string(), "1000/4711@99 web-1");
        for none in ["", "web-1", "x web-1", "1000/ web-1", "1000/1 web-1", "1000/1@x web-1"] {
            assert!(Key::try_from(none.to_owned()).is_err(), "{none}");
        }
    }

    #[test]
    fn what_another_user_claims_counts_for_no_other() {
        assert!(key(1).counts_for(&key(1)) && !key(1).counts_for(&key(2)));
        assert!(key(1).claims_the_same(&key(1)) && !key(1).claims_the_same(&key(2)));
        let other = Key::new(Some(1), Some("7f3b6a10"), "web-1");
        assert!(!other.counts_for(&key(1)), "a UUID stands before a name");
        let of_any = Key::new(None, None, "web-1");
        assert!(of_any.counts_for(&key(1)) && of_any.counts_for(&key(2)));
    }

    #[test]
    fn one_of_several_has_what_was_noted_of_all_and_of_itself() {
        let [one, other] =
            [1, 2].map(|pid| key(1).of_process(Some(ProcessId { pid, start_ticks: 5 })));
        assert!(key(1).counts_for(&one) && one.counts_for(&one));
        assert!(!one.counts_for(&other) && !one.counts_for(&key(1)));
        assert!(one.claims_the_same(&other));
    }
}
