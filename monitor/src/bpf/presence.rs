//! What may be a VM's: the bits that the block programs look at before they look anything up.

use aya::maps::{Array, Map, MapData, MapError};
use monitor_ebpf::{FileKey, Presence};

use super::{ProbeError, pins::Pins, slots::open};

/// The map `presence`, and what is in it.
pub(super) struct PresenceMap {
    map: Array<MapData, Presence>,
    present: Box<Presence>,
}

impl PresenceMap {
    /// Opens the pinned map; what an earlier daemon left in it stands until it is [replaced](Self::replace).
    pub(super) fn open(pins: &Pins) -> Result<Self, ProbeError> {
        let map: Array<MapData, Presence> = open(pins, "presence", Map::Array)?;
        let present = map.get(&0, 0);
        let present =
            present.map_err(|source| ProbeError::Map { map: "presence", source }).map(Box::new)?;
        Ok(Self { map, present })
    }

    /// A process is about to be a QEMU that is counted.
    ///
    /// # Errors
    /// If the map can't be written: the programs would not look for it.
    pub(super) fn add_process(&mut self, pid: u32) -> Result<(), MapError> {
        self.present.add_process(pid);
        self.write()
    }

    /// A file is about to be one whose written back pages are counted.
    ///
    /// # Errors
    /// As above.
    pub(super) fn add_file(&mut self, file: &FileKey) -> Result<(), MapError> {
        self.present.add_file(number_of(file));
        self.write()
    }

    /// Clears what nothing stands for any more: no bit of these is ever away meanwhile.
    ///
    /// # Errors
    /// If the map can't be written; then strangers go on being looked for.
    pub(super) fn replace<'a>(
        &mut self,
        pids: impl Iterator<Item = u32>,
        files: impl Iterator<Item = &'a FileKey>,
    ) -> Result<(), MapError> {
        *self.present = Presence::EMPTY;
        pids.for_each(|pid| self.present.add_process(pid));
        files.for_each(|file| self.present.add_file(number_of(file)));
        self.write()
    }

    fn write(&mut self) -> Result<(), MapError> {
        self.map.set(0, *self.present, 0)
    }
}

/// What a program looks for first: a block device has no inode's number.
fn number_of(file: &FileKey) -> u64 {
    if file.inode == 0 { file.device.into() } else { file.inode }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_may_be_a_vms_and_few_others_may() {
        let mut present = Presence::EMPTY;
        assert!(!present.may_have_process(0) && !present.may_have_file(2));
        for vm in 0..1024_u32 {
            present.add_process(4_000_000 - 37 * vm);
            present.add_file(u64::from(vm) + 1_000_000);
        }
        assert_eq!(present.open_files, 1024);
        let present = &present;
        assert!((0..1024_u32).all(|vm| present.may_have_process(4_000_000 - 37 * vm)));
        assert!((0..1024_u32).all(|vm| present.may_have_file(u64::from(vm) + 1_000_000)));
        let strangers = 0..100_000_u32;
        let processes = strangers.clone().filter(|pid| present.may_have_process(*pid)).count();
        let files = strangers.filter(|file| present.may_have_file(u64::from(*file))).count();
        assert!(processes < 4_000 && files < 4_000, "{processes} processes, {files} files");
    }

    #[test]
    fn a_file_goes_by_its_inode_and_a_block_device_by_its_own_number() {
        assert_eq!(number_of(&FileKey { inode: 7, device: 9, reserved: 0 }), 7);
        assert_eq!(number_of(&FileKey { inode: 0, device: 9, reserved: 0 }), 9);
    }
}
