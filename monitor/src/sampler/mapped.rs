//! Arrays of the programs whose memory this process maps: a row is read without a system call, whatever the number of CPUs.

use std::{
    io,
    marker::PhantomData,
    mem::{align_of, size_of},
    num::NonZeroUsize,
    path::Path,
    ptr::NonNull,
};

use aya::{
    Pod,
    maps::{Array, Map, MapData, MapError},
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A pinned array that was made with `BPF_F_MMAPABLE` (5.5), which is mapped when it is to be read.
#[derive(Debug)]
pub(crate) struct MappableArray<T> {
    map: MapData,
    rows: u32,
    row: PhantomData<fn() -> T>,
}

impl<T: Pod> MappableArray<T> {
    /// Opens the array that is pinned at `path`.
    ///
    /// # Errors
    /// If there is none, or its rows are of another size.
    pub(crate) fn open(path: &Path) -> Result<Self, MapError> {
        // The kernel gives each row a multiple of eight bytes (`round_up` in kernel/bpf/arraymap.c).
        const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0) };
        let array: Array<MapData, T> = Array::try_from(Map::Array(MapData::from_pin(path)?))?;
        Ok(Self { rows: array.len(), map: MapData::from_pin(path)?, row: PhantomData })
    }

    /// Maps its memory, which counts as this process' from then on.
    ///
    /// # Errors
    /// If the kernel refuses that.
    pub(crate) fn map(&self) -> Result<MappedArray<T>, MapError> {
        let bytes = NonZeroUsize::new(self.rows as usize * size_of::<T>())
            .ok_or_else(|| MapError::IoError(io::Error::other("the array has no rows")))?;
        let (read, shared, map) = (ProtFlags::READ, MapFlags::SHARED, self.map.fd());
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let memory = unsafe { mmap(std::ptr::null_mut(), bytes.get(), read, shared, map, 0) };
        let memory = memory.map_err(|error| MapError::IoError(error.into()))?;
        let memory = NonNull::new(memory.cast())
            .ok_or_else(|| MapError::IoError(io::Error::other("it was mapped at no address")))?;
        Ok(MappedArray { memory, rows: self.rows, bytes, row: PhantomData })
    }
}

/// The rows of such an array.
///
/// The programs write while it is read: each of a row's counters is whole, but two of them may be of different moments.
#[derive(Debug)]
pub(crate) struct MappedArray<T> {
    memory: NonNull<T>,
    rows: u32,
    bytes: NonZeroUsize,
    row: PhantomData<T>,
}

// SAFETY: the memory is only read, from any thread, and lives until it is unmapped on drop.
unsafe impl<T: Pod + Send> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps the array that is pinned at `path`.
    ///
    /// # Errors
    /// If there is none, its rows are of another size, or the kernel refuses to map it.
    pub(crate) fn open(path: &Path) -> Result<Self, MapError> {
        MappableArray::open(path)?.map()
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> u32 {
        self.rows
    }

    /// The row at `index`; `None` beyond the last.
    pub(crate) fn get(&self, index: u32) -> Option<T> {
        if index >= self.rows {
            return None;
        }
        // SAFETY: the row lies within the mapping, which starts at a page; the map's row size was compared with that of
        // `T`, of which any bits are a value. What the programs write meanwhile is read as it is: volatile.
        Some(unsafe { self.memory.add(index as usize).read_volatile() })
    }

    /// What lies `offset` bytes into the row at `index`; `None` beyond the last.
    ///
    /// # Panics
    /// If there is no `P` in a row.
    pub(crate) fn part<P: Pod>(&self, index: u32, offset: usize) -> Option<P> {
        const { assert!(align_of::<P>() <= align_of::<T>()) };
        assert!(
            offset + size_of::<P>() <= size_of::<T>() && offset.is_multiple_of(align_of::<P>())
        );
        if index >= self.rows {
            return None;
        }
        // SAFETY: as in `get`; the part lies within the row, and is aligned as it is.
        let part = unsafe { self.memory.add(index as usize).byte_add(offset) }.cast::<P>();
        // SAFETY: as above.
        Some(unsafe { part.read_volatile() })
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: this was mapped by `MappableArray::map`, and no reference into it is ever handed out.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.bytes.get()) };
    }
}
