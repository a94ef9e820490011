//! When each VM last showed a sign of life, from memory that the programs share: one load tells that a VM lives.

use std::path::Path;

use aya::maps::MapError;

use super::mapped::MappedArray;

/// Reads the map `life`.
#[derive(Debug)]
pub(crate) struct LifeReader(MappedArray<u64>);

impl LifeReader {
    /// Opens the map that was pinned below `bpffs_dir`.
    ///
    /// # Errors
    /// If there is none, or it has another form.
    pub(crate) fn open(bpffs_dir: &Path) -> Result<Self, MapError> {
        MappedArray::open(&bpffs_dir.join("life")).map(Self)
    }

    /// When the VM in `slot` last showed a sign of life that the programs saw, in the kernel's ticks; 0: never so far.
    /// `None` for a slot beyond the map's end.
    pub(crate) fn of(&self, slot: u32) -> Option<u64> {
        self.0.get(slot)
    }
}
