//! Owner of a page of the page cache that the host writes back, and of what a QEMU reads into it.
//!
//! A guest's write under `cache=writeback` ends in the host's page cache. A kernel worker submits it
//! later, so that the task says nothing; but the page belongs to an inode, and user space knows which
//! inodes a QEMU has open.

use monitor_ebpf::{FileKey, TAIL_PAGE, first_page};

use crate::{
    kernel::{field, field_at, global, globals, low_half},
    maps::{FILES, PRESENCE},
};

globals! {
    BIO_IO_VEC_OFFSET
    BIO_VEC_PAGE_OFFSET
    PAGE_COMPOUND_OFFSET
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

/// `PAGE_MAPPING_FLAGS`: the page belongs to no file (anonymous memory, as in direct I/O, or movable).
const NO_FILE: u32 = 3;

/// The slot of the VM that has the image which the bio's first page belongs to; a bio never mixes files.
#[inline(always)]
pub(crate) fn slot_of(bio: *const u8) -> Option<u32> {
    u32::try_from(slot_or_negative(bio)).ok()
}

#[inline(always)]
fn slot_or_negative(bio: *const u8) -> i64 {
    let Some(presence) = PRESENCE.get(0) else { return -1 };
    if presence.open_files == 0 {
        return -1;
    }
    let Some(page) = page_of(bio) else { return -1 };
    if is_tail(page) {
        return slot_by_tail(bio);
    }
    let Some(mapping) = mapping_of(page) else { return -1 };
    // SAFETY: the mapping is typed like the page's field, and each of the others like the field that it was read from.
    unsafe {
        let inode: *const u8 = field(mapping, &MAPPING_HOST_OFFSET);
        let device: u32 = field(inode, &INODE_RDEV_OFFSET);
        if device != 0 {
            let may_be = presence.may_have_file(device.into());
            return if may_be { slot_with(FileKey { inode: 0, device, reserved: 0 }) } else { -1 };
        }
        let number: u64 = field(inode, &INODE_NUMBER_OFFSET);
        if !presence.may_have_file(number) {
            return -1;
        }
        let super_block: *const u8 = field(inode, &INODE_SUPER_BLOCK_OFFSET);
        let device = field(super_block, &SUPER_BLOCK_DEVICE_OFFSET);
        slot_with(FileKey { inode: number, device, reserved: 0 })
    }
}

#[inline(always)]
fn slot_with(key: FileKey) -> i64 {
    // SAFETY: the value is copied at once, and only user space removes it.
    unsafe { FILES.get(key) }.map_or(-1, |slot| i64::from(*slot))
}

/// The same where the bio's first page is not the first of a compound one, which few are: the verifier does not know the
/// type of what is at a computed address, and a helper reads each field. A function of its own, as the next one is: what most
/// requests go through stays together in the CPU's caches. Such a function returns one number.
#[inline(never)]
fn slot_by_tail(bio: *const u8) -> i64 {
    key_by_tail(bio).map_or(-1, slot_with)
}

#[inline(always)]
fn key_by_tail(bio: *const u8) -> Option<FileKey> {
    let inode: u64 = field_at(mapping_by_tail(bio)?, &MAPPING_HOST_OFFSET)?;
    let device: u32 = field_at(inode, &INODE_RDEV_OFFSET)?;
    if device != 0 {
        return Some(FileKey { inode: 0, device, reserved: 0 });
    }
    let number: u64 = field_at(inode, &INODE_NUMBER_OFFSET)?;
    if !PRESENCE.get(0)?.may_have_file(number) {
        return None;
    }
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
    let users = mapping_by_tail(bio).and_then(|mapping| field_at(mapping, &MAPPING_USERS_OFFSET));
    users.unwrap_or_default()
}

/// The first page that the bio carries.
#[inline(always)]
fn page_of(bio: *const u8) -> Option<*const u8> {
    let vector = vector_of(bio)?;
    // SAFETY: the vector is typed like the bio's field.
    Some(unsafe { field(vector, &BIO_VEC_PAGE_OFFSET) })
}

/// What names the pages that the bio carries.
#[inline(always)]
fn vector_of(bio: *const u8) -> Option<*const u8> {
    if global(&WRITEBACK_KNOWN) == 0 {
        return None;
    }
    // SAFETY: `bio` is the tracepoint's own argument.
    let vector: *const u8 = unsafe { field(bio, &BIO_IO_VEC_OFFSET) };
    (!vector.is_null()).then_some(vector)
}

#[inline(always)]
fn is_tail(page: *const u8) -> bool {
    low_half(compound_of(page)) & TAIL_PAGE != 0
}

/// What a page has of the compound one that it belongs to: its mark as another page than the first, and the way to that.
#[inline(always)]
fn compound_of(page: *const u8) -> *const u8 {
    // SAFETY: the page is typed like the vector's field.
    unsafe { field(page, &PAGE_COMPOUND_OFFSET) }
}

/// The `address_space` of the file that a page belongs to.
#[inline(always)]
fn mapping_of(page: *const u8) -> Option<*const u8> {
    // SAFETY: the page is typed like the vector's field.
    let mapping: *const u8 = unsafe { field(page, &PAGE_MAPPING_OFFSET) };
    (!mapping.is_null() && low_half(mapping) & NO_FILE == 0).then_some(mapping)
}

/// The same of a page that may be any of a compound one, at its address. A helper reads that and what else is computed with:
/// the verifier lets nothing be computed with what it knows to be pointers.
#[inline(always)]
fn mapping_by_tail(bio: *const u8) -> Option<u64> {
    let page: u64 = field_at(vector_of(bio)? as u64, &BIO_VEC_PAGE_OFFSET)?;
    let page = first_page(page, field_at(page, &PAGE_COMPOUND_OFFSET)?);
    let mapping: u64 = field_at(page, &PAGE_MAPPING_OFFSET)?;
    (mapping != 0 && mapping & u64::from(NO_FILE) == 0).then_some(mapping)
}
