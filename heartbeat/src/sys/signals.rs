//! The one wait of all: for a signal, or for time to pass.

use linux_raw_sys::general::{
    __NR_rt_sigprocmask, __NR_rt_sigtimedwait, SIG_BLOCK, SIG_SETMASK, SIGCHLD, SIGHUP, SIGINT,
    SIGPIPE, SIGTERM,
};

use super::{
    SECOND_MS, TimeSpec,
    call::{NOWHERE, address, call},
};

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// This process is asked to end.
    Told,
    /// A child ended.
    ChildEnded,
    /// Nothing happened.
    Long,
}

/// Signals that are waited for, and interrupt nothing.
pub struct Signals(());

const END: [u32; 3] = [SIGTERM, SIGINT, SIGHUP];
/// Of the kernel's own set of signals, one bit each.
const WAITED_FOR: u64 = bit(SIGTERM) | bit(SIGINT) | bit(SIGHUP) | bit(SIGCHLD);
/// A port without a reader is no reason to end.
const BLOCKED: u64 = WAITED_FOR | bit(SIGPIPE);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

impl Signals {
    /// Keeps them from interrupting anything; `None` if the kernel refuses.
    pub fn block() -> Option<Self> {
        set_mask(SIG_BLOCK, BLOCKED).then_some(Self(()))
    }

    /// Lets a child that was forked just now be interrupted as any process may.
    pub(super) fn unblock_all() {
        set_mask(SIG_SETMASK, 0);
    }

    /// Waits for one of them, for so long at most.
    pub fn wait(&self, limit_ms: u64) -> Waited {
        let part = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let limit = TimeSpec {
            seconds: part(limit_ms / SECOND_MS),
            nanoseconds: part(limit_ms % SECOND_MS * 1_000_000),
        };
        let set = WAITED_FOR;
        let arguments =
            [address(&raw const set), NOWHERE, address(&raw const limit), size_of_val(&set)];
        // SAFETY: the set and the limit live as long as the call, which reads them; no old action is asked for.
        let signal = unsafe { call(__NR_rt_sigtimedwait, arguments) };
        match signal.ok().and_then(|signal| u32::try_from(signal).ok()) {
            Some(signal) if END.contains(&signal) => Waited::Told,
            Some(SIGCHLD) => Waited::ChildEnded,
            _ => Waited::Long,
        }
    }
}

fn set_mask(how: u32, set: u64) -> bool {
    let arguments = [how as usize, address(&raw const set), NOWHERE, size_of_val(&set)];
    // SAFETY: the set lives as long as the call, which reads it; the set before is not asked for.
    unsafe { call(__NR_rt_sigprocmask, arguments) }.is_ok()
}
