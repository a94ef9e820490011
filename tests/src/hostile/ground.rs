//! What attacks stand on: whom they are against, and how long they last.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Scale;
use crate::tenants::{Claim, Fake, Homes};

/// How often one that waits looks whether the attack is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What an attacker knows of a victim: any local user does.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) pid: u32,
    pub(super) user: u32,
    /// Where its sockets are.
    pub(super) dir: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) homes: &'a Homes,
    /// The user that attacks.
    pub(super) user: u32,
    pub(super) victims: Vec<Known>,
    /// The daemon's program and configuration, and where it serves HTTP.
    pub(super) binary: PathBuf,
    pub(super) config: PathBuf,
    pub(super) http: SocketAddr,
    pub(super) scale: Scale,
    pub(super) is_over: AtomicBool,
}

impl Ground<'_> {
    /// Starts one process of the attacker's.
    pub(super) fn fake(&self, claim: &Claim) -> Result<Fake> {
        self.homes.fake(self.user, claim)
    }

    /// Starts so many, called after their manner.
    pub(super) fn crowd(&self, name: &str, manner: &str, count: usize) -> Result<Vec<Fake>> {
        let claim = |n: usize| Claim::new(format!("{name}-{n}"), manner);
        (0..count)
            .take_while(|_| !self.is_over.load(Relaxed))
            .map(|n| self.fake(&claim(n)))
            .collect()
    }

    /// Waits; `false` once the attack is over.
    pub(super) fn goes_on(&self, after: Duration) -> bool {
        let until = Instant::now() + after;
        while Instant::now() < until && !self.is_over.load(Relaxed) {
            thread::sleep(LOOK_EVERY);
        }
        !self.is_over.load(Relaxed)
    }
}

/// Ends the attack when it is dropped, whatever the reason.
pub(super) struct Until<'a>(pub(super) &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
