//! What the block programs ask first: whether a process, or a file, may be a VM's at all.

/// Bits for processes, and as many for files. With a thousand VMs, three in a hundred strangers are taken for one that may be
/// a VM's, and looked for in the map that has them.
const BITS: u32 = 1 << 15;
const WORDS: usize = (BITS / 64) as usize;

/// The only row of `presence`: a bit is set for each QEMU, and for each file that one has open. A stranger whose bit is not
/// set is known to be none by one load, from so little memory that the CPU's caches hold it.
///
/// User space alone writes it, and clears no bit that something stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Files that are in `files`, or may be: without any, nothing that is written back is a VM's.
    pub open_files: u64,
    /// By the last bits of a QEMU's pid.
    pub pids: [u64; WORDS],
    /// By a digest of the inode's number, or of the number of the block device.
    pub files: [u64; WORDS],
}

impl Presence {
    /// Nothing is a VM's.
    pub const EMPTY: Self = Self { open_files: 0, pids: [0; WORDS], files: [0; WORDS] };

    /// Whether the process with this pid may be a QEMU that is counted.
    #[inline(always)]
    pub const fn may_have_process(&self, pid: u32) -> bool {
        is_set(&self.pids, pid)
    }

    /// Whether a file may be a VM's, by the number of its inode; a block device, by its own.
    #[inline(always)]
    pub const fn may_have_file(&self, number: u64) -> bool {
        is_set(&self.files, digest(number))
    }

    /// From now on the process may be one.
    pub const fn add_process(&mut self, pid: u32) {
        set(&mut self.pids, pid);
    }

    /// From now on the file, or the block device, may be one's.
    pub const fn add_file(&mut self, number: u64) {
        self.open_files += 1;
        set(&mut self.files, digest(number));
    }
}

/// Inodes are numbered in a row, and so are devices, from the same beginning.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a digest")]
const fn digest(number: u64) -> u32 {
    (number as u32).wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS.trailing_zeros())
}

#[inline(always)]
const fn is_set(words: &[u64; WORDS], bit: u32) -> bool {
    words[word(bit)] >> (bit & 63) & 1 != 0
}

const fn set(words: &mut [u64; WORDS], bit: u32) {
    words[word(bit)] |= 1 << (bit & 63);
}

#[inline(always)]
const fn word(bit: u32) -> usize {
    (bit >> 6) as usize & (WORDS - 1)
}

const _: () = assert!(size_of::<Presence>() == 8 + 2 * BITS as usize / 8);
