//! CPU time and state of one QEMU's threads, by an iterator over that process alone (6.1), made of the program of the pinned one.
//!
//! Reading one costs a few microseconds, and less than opening the files that say the same; reading the pinned one costs as much
//! for each thread of the host as this for each of the QEMU's.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::{ThreadTimes, threads::read_all};

// Commands and types of include/uapi/linux/bpf.h (Linux 6.12).
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// A hundred threads at a time.
const BUFFER_BYTES: usize = 4096;

/// The parts of `union bpf_attr` of these commands.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct ProgById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    /// Keeps it a multiple of eight bytes.
    reserved: u32,
}

#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// The `task` member of `union bpf_iter_link_info`.
#[repr(C)]
struct TaskInfo {
    tid: u32,
    /// Of the process: the kernel's thread group id.
    pid: u32,
    pid_fd: u32,
}

/// Makes iterators over single processes.
#[derive(Debug)]
pub struct ProcessReader {
    program: OwnedFd,
}

/// An iterator over one process: all of its threads each time that it is read.
#[derive(Debug)]
pub struct ProcessThreads {
    link: OwnedFd,
}

impl ProcessReader {
    /// `pin` is where the iterator over all threads is pinned, whose program this uses.
    ///
    /// # Errors
    /// What the kernel said: before 6.1 it has none over one process.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let pathname = path.as_ptr().expose_provenance() as u64;
        let link = call(BPF_OBJ_GET, &ObjGet { pathname, bpf_fd: 0, file_flags: 0 })?;
        let prog_id = program_of(&link)?;
        let by_id = ProgById { prog_id, next_id: 0, open_flags: 0 };
        let reader = Self { program: call(BPF_PROG_GET_FD_BY_ID, &by_id)? };
        reader.of(std::process::id())?;
        Ok(reader)
    }

    /// An iterator over the process `pid`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn of(&self, pid: u32) -> io::Result<ProcessThreads> {
        let task = TaskInfo { tid: 0, pid, pid_fd: 0 };
        let create = LinkCreate {
            prog_fd: number(&self.program)?,
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: (&raw const task).expose_provenance() as u64,
            iter_info_len: u32::try_from(size_of::<TaskInfo>()).map_err(io::Error::other)?,
            reserved: 0,
        };
        Ok(ProcessThreads { link: call(BPF_LINK_CREATE, &create)? })
    }
}

impl ProcessThreads {
    /// Reads its threads; there are none where it is gone, or not counted.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn read(&self) -> io::Result<ThreadTimes> {
        let create = IterCreate { link_fd: number(&self.link)?, flags: 0 };
        let file = File::from(call(BPF_ITER_CREATE, &create)?);
        read_all(file, &mut [0; BUFFER_BYTES])
    }
}

/// The id of a link's program, by what the kernel says of the descriptor.
fn program_of(link: &OwnedFd) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
    let id = id.and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not tell the program of a link"))
}

fn number(fd: &OwnedFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// A call that only reads `attribute`, and makes a descriptor.
fn call<T>(command: libc::c_long, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is whole and of the size given; what it points to outlives the call, and is read only.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attribute, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: these commands return a new descriptor, which is this one's alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pinned_iterator_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(ProcessReader::open(file.path()).is_err());
        assert!(ProcessReader::open(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_descriptor_of_no_link_has_no_program() {
        let file = File::open("/proc/self/stat").unwrap();
        assert!(program_of(&file.into()).is_err());
    }
}
