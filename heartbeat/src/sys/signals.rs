//! The one wait of all: for a signal, or for time to pass.

use core::{ffi::c_int, mem::MaybeUninit, ptr};

use super::SECOND_MS;

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Somebody wants this process to end.
    Told,
    /// A child ended.
    ChildEnded,
    /// Nothing happened.
    Long,
}

/// Signals that are waited for, and interrupt nothing.
pub struct Signals(libc::sigset_t);

const END: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

impl Signals {
    /// Keeps them from interrupting anything; `None` if the kernel refuses.
    pub fn block() -> Option<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` fills the set in, which the rest then only reads and adds to.
        let (set, blocked) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in END.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(&raw mut set, signal);
            }
            (set, libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))
        };
        (blocked == 0).then_some(Self(set))
    }

    /// Lets a child that was forked just now be interrupted as any process may.
    pub(super) fn unblock_all() {
        let mut none = MaybeUninit::uninit();
        // SAFETY: as above.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        }
    }

    /// Waits for one of them, for so long at most.
    pub fn wait(&self, limit_ms: u64) -> Waited {
        let part = |number: u64| libc::time_t::try_from(number).unwrap_or(libc::time_t::MAX);
        let limit = libc::timespec {
            tv_sec: part(limit_ms / SECOND_MS),
            tv_nsec: part(limit_ms % SECOND_MS * 1_000_000),
        };
        // SAFETY: the set and the limit live as long as the call, and nobody wants to know more.
        match unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), &raw const limit) } {
            signal if END.contains(&signal) => Waited::Told,
            libc::SIGCHLD => Waited::ChildEnded,
            _ => Waited::Long,
        }
    }
}
