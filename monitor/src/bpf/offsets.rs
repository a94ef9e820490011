//! What the programs must know of the running kernel: offsets of its structures, from its BTF.
//!
//! They are [put into the programs](super::numbers), since aya emits no CO-RE relocations for Rust.

use super::kernel_types::{KernelTypes, KernelTypesError};

/// A number of the programs, and the path of the kernel's member that it is the offset of.
type Offset = (&'static str, &'static [&'static str]);

/// What every kernel has that flatline runs on.
const REQUIRED: [Offset; 10] = [
    ("BIO_OPF_OFFSET", &["bio", "bi_opf"]),
    ("BIO_SIZE_OFFSET", &["bio", "bi_iter", "bi_size"]),
    ("BIO_STATUS_OFFSET", &["bio", "bi_status"]),
    ("BIO_NEXT_OFFSET", &["bio", "bi_next"]),
    ("REQUEST_SIZE_OFFSET", &["request", "__data_len"]),
    ("REQUEST_BIO_OFFSET", &["request", "bio"]),
    ("REQUEST_LAST_BIO_OFFSET", &["request", "biotail"]),
    ("TASK_TGID_OFFSET", &["task_struct", "tgid"]),
    ("TASK_BIO_LIST_OFFSET", &["task_struct", "bio_list"]),
    ("TASK_EXIT_CODE_OFFSET", &["task_struct", "exit_code"]),
];

/// The way from a bio to the file whose page it reads or writes back.
const WRITEBACK: [Offset; 10] = [
    ("BIO_IO_VEC_OFFSET", &["bio", "bi_io_vec"]),
    ("BIO_VEC_PAGE_OFFSET", &["bio_vec", "bv_page"]),
    ("PAGE_COMPOUND_OFFSET", &["page", "compound_head"]),
    ("PAGE_MAPPING_OFFSET", &["page", "mapping"]),
    ("MAPPING_HOST_OFFSET", &["address_space", "host"]),
    ("MAPPING_USERS_OFFSET", &["address_space", "i_mmap", "rb_root", "rb_node"]),
    ("INODE_NUMBER_OFFSET", &["inode", "i_ino"]),
    ("INODE_SUPER_BLOCK_OFFSET", &["inode", "i_sb"]),
    ("INODE_RDEV_OFFSET", &["inode", "i_rdev"]),
    ("SUPER_BLOCK_DEVICE_OFFSET", &["super_block", "s_dev"]),
];

/// A thread's times and state.
const THREADS: [Offset; 4] = [
    ("TASK_PID_OFFSET", &["task_struct", "pid"]),
    ("TASK_STATE_OFFSET", &["task_struct", "__state"]),
    ("TASK_RUN_OFFSET", &["task_struct", "se", "sum_exec_runtime"]),
    ("TASK_WAIT_OFFSET", &["task_struct", "sched_info", "run_delay"]),
];

/// The way from a program that a process executes to its file's inode.
const EXECUTABLE: [Offset; 3] = [
    ("BINPRM_FILE_OFFSET", &["linux_binprm", "file"]),
    ("FILE_INODE_OFFSET", &["file", "f_inode"]),
    ("INODE_NUMBER_OFFSET", &["inode", "i_ino"]),
];

/// Members that newer kernels call otherwise: since Linux 7.1.
const RENAMED: [(&str, &str); 1] = [("compound_head", "compound_info")];

/// The flags of a request: their bits differ between kernels.
const FLAGS: [(&str, &str); 3] = [
    ("REQUEST_META_FLAG", "__REQ_META"),
    ("REQUEST_AHEAD_FLAG", "__REQ_RAHEAD"),
    ("REQUEST_IDLE_FLAG", "__REQ_IDLE"),
];
/// Whether the programs can go the ways that not every kernel shows.
const WRITEBACK_KNOWN: &str = "WRITEBACK_KNOWN";
const EXECUTABLE_KNOWN: &str = "EXECUTABLE_KNOWN";

/// The numbers, and what is lost where some can't be had.
#[derive(Debug)]
pub(crate) struct Offsets {
    pub(super) globals: Vec<(&'static str, u32)>,
    /// Whether written back pages can be told to be a VM's.
    pub(crate) writeback: Result<(), KernelTypesError>,
    /// Whether threads' times can be read by a program.
    pub(crate) threads: Result<(), KernelTypesError>,
    /// Whether a program that is no QEMU can be passed over when a process executes it.
    pub(crate) executable: Result<(), KernelTypesError>,
}

impl Offsets {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// If that can't be read, or lacks what nothing works without.
    pub(crate) fn of_running_kernel() -> Result<Self, KernelTypesError> {
        let types = KernelTypes::of_running_kernel()?;
        let resolve = |(global, path): &Offset| Ok((*global, offset_of(&types, path)?));
        let mut globals = REQUIRED.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        // A kernel that does not mark them writes nothing that could be taken for a guest's.
        let flag = |bit: &str| types.enumerator(bit).ok().and_then(|bit| 1_u32.checked_shl(bit));
        globals.extend(FLAGS.map(|(global, bit)| (global, flag(bit).unwrap_or_default())));
        // What is not known here is not asked for by any program.
        let optional = WRITEBACK.iter().chain(&THREADS).chain(&EXECUTABLE);
        globals.extend(optional.map(|(global, _)| (*global, 0)));
        let mut all = |offsets: &[Offset]| {
            globals.extend(offsets.iter().map(resolve).collect::<Result<Vec<_>, _>>()?);
            Ok(())
        };
        let writeback = all(&WRITEBACK);
        let threads = all(&THREADS);
        let executable = all(&EXECUTABLE);
        globals.push((WRITEBACK_KNOWN, u32::from(writeback.is_ok())));
        globals.push((EXECUTABLE_KNOWN, u32::from(executable.is_ok())));
        Ok(Self { globals, writeback, threads, executable })
    }
}

/// The offset of a member by the name that it has on most kernels.
fn offset_of(types: &KernelTypes, path: &[&str]) -> Result<u32, KernelTypesError> {
    types.offset_of(path).or_else(|error| {
        let renamed = path.split_last().and_then(|(member, before)| {
            let (_, now) = RENAMED.iter().find(|(then, _)| then == member)?;
            types.offset_of(&[before, &[*now]].concat()).ok()
        });
        renamed.ok_or(error)
    })
}

/// The names of all numbers that are the kernel's.
#[cfg(test)]
pub(super) fn names() -> Vec<&'static str> {
    let offsets = REQUIRED.iter().chain(&WRITEBACK).chain(&THREADS).chain(&EXECUTABLE);
    let names = offsets.map(|(name, _)| *name).chain(FLAGS.map(|(name, _)| name));
    names.chain([WRITEBACK_KNOWN, EXECUTABLE_KNOWN]).collect()
}
