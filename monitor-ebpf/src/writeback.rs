//! Owner of a page of the page cache that the host writes back, and of what a QEMU reads into it.
//!
//! A guest's write under `cache=writeback` ends in the host's page cache. A kernel worker submits it
//! later, so that the task says nothing; but the page belongs to an inode, and user space knows which
//! inodes a QEMU has open.

use monitor_ebpf::FileKey;

use crate::{
    kernel::{field, field_at, global, offsets},
    maps::FILES,
};

offsets! {
    BIO_IO_VEC_OFFSET
    BIO_VEC_PAGE_OFFSET
    PAGE_COMPOUND_HEAD_OFFSET
    PAGE_MAPPING_OFFSET
    MAPPING_HOST_OFFSET
    MAPPING_USERS_OFFSET
    INODE_NUMBER_OFFSET
    INODE_SUPER_BLOCK_OFFSET
    INODE_RDEV_OFFSET
    SUPER_BLOCK_DEVICE_OFFSET
    /// Not an offset: whether all of them are known on this kernel.
    WRITEBACK_KNOWN
}

/// Set in `page.compound_head` of all but the first page of a compound one.
const TAIL_PAGE: u64 = 1;
/// `PAGE_MAPPING_FLAGS`: the page belongs to no file (anonymous memory, as in direct I/O, or movable).
const NO_FILE: u64 = 3;

/// The slot of the VM that has the image which the bio's first page belongs to; a bio never mixes files.
#[inline(always)]
pub(crate) fn slot_of(bio: *const u8) -> Option<u32> {
    u32::try_from(slot_or_negative(bio)).ok()
}

/// A function of its own, as the next one is: what most requests go through stays together in the CPU's caches. Such a
/// function returns one number.
#[inline(never)]
fn slot_or_negative(bio: *const u8) -> i64 {
    let Some(key) = key_of(bio) else { return -1 };
    // SAFETY: the value is copied at once, and only user space removes it.
    unsafe { FILES.get(key) }.map_or(-1, |slot| i64::from(*slot))
}

#[inline(always)]
fn key_of(bio: *const u8) -> Option<FileKey> {
    let inode: u64 = field_at(mapping_of(bio)?, &MAPPING_HOST_OFFSET)?;
    let device: u32 = field_at(inode, &INODE_RDEV_OFFSET)?;
    if device != 0 {
        return Some(FileKey { inode: 0, device, reserved: 0 });
    }
    let number: u64 = field_at(inode, &INODE_NUMBER_OFFSET)?;
    let super_block: u64 = field_at(inode, &INODE_SUPER_BLOCK_OFFSET)?;
    let device: u32 = field_at(super_block, &SUPER_BLOCK_DEVICE_OFFSET)?;
    Some(FileKey { inode: number, device, reserved: 0 })
}

/// Whether the bio's first page belongs to a file that some process has mapped, which is how programs and
/// libraries are used, and no disk is: what QEMU reads then is itself.
#[inline(always)]
pub(crate) fn is_of_mapped_file(bio: *const u8) -> bool {
    users_of(bio) != 0
}

#[inline(never)]
fn users_of(bio: *const u8) -> u64 {
    let users = mapping_of(bio).and_then(|mapping| field_at(mapping, &MAPPING_USERS_OFFSET));
    users.unwrap_or_default()
}

/// The `address_space` of the file that the bio's first page belongs to.
#[inline(always)]
fn mapping_of(bio: *const u8) -> Option<u64> {
    if global(&WRITEBACK_KNOWN) == 0 {
        return None;
    }
    // SAFETY: `bio` is the tracepoint's own argument, and the vector is typed like the bio's field.
    let page = unsafe {
        let vector: *const u8 = field(bio, &BIO_IO_VEC_OFFSET);
        if vector.is_null() {
            return None;
        }
        field::<u64>(vector, &BIO_VEC_PAGE_OFFSET)
    };
    let head: u64 = field_at(page, &PAGE_COMPOUND_HEAD_OFFSET)?;
    let page = if head & TAIL_PAGE == 0 { page } else { head - TAIL_PAGE };
    let mapping: u64 = field_at(page, &PAGE_MAPPING_OFFSET)?;
    (mapping != 0 && mapping & NO_FILE == 0).then_some(mapping)
}
