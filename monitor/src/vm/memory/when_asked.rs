//! Memory of a QEMU whose guest has no balloon to be asked through: all that it would tell while it lives is a figure for people, so it
//! is read when it is asked for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{MemoryRead, MemoryTold, NO_BALLOON, Unread, missing};
use crate::{sampler::memory::MemoryReader, vm::WatchedVm};
use flatline_qemu::discover::Vm;
use flatline_samples::Memory;

/// One that was found just now is read after this, or sooner where it is read more often: many are found together.
const FIRST_AFTER: Duration = Duration::from_secs(3);

impl WatchedVm {
    /// Whether its memory is read when a client asks for it, and while its guest is silent, and not by itself.
    pub(crate) fn is_read_when_asked(&self) -> bool {
        !self.vm.has_balloon
    }

    /// Whether its guest has been silent for long enough that its memory is to be known.
    pub(crate) fn is_read_for_silence(&self, now: Duration) -> bool {
        self.is_read_when_asked()
            && self.silence(now) >= self.detector.detection.policy.flat_for / 2
            && self.memory.due().is_some_and(|due| due <= now)
    }
}

impl MemoryTold {
    /// Reads that of `vm`'s QEMU, where that is due at `now` and is done when it is asked for: it is told from here on. Returns what
    /// the VM is to take in.
    pub(crate) fn read_if_due(
        &mut self,
        vm: &Vm,
        reader: &MemoryReader,
        now: Duration,
    ) -> Option<MemoryRead> {
        let after =
            if self.latest.is_none() { FIRST_AFTER.min(self.every) } else { Duration::ZERO };
        if vm.has_balloon || self.every.is_zero() || now < self.due + after {
            return None;
        }
        let qemu = reader.read(vm.id.pid, &vm.pidfd);
        let memory = Memory { guest: missing(NO_BALLOON), strain: None, qemu: qemu.clone() };
        self.latest = Some((SystemTime::now(), Arc::new(memory)));
        let guest = Err(Unread::Untold(NO_BALLOON.to_owned()));
        Some(MemoryRead { boot_began: Duration::ZERO, balloon: None, guest, qemu })
    }
}
