//! What a QEMU has open, descriptor by descriptor, and which files of these it writes.
//!
//! A path on a command line says what a file was called once. The descriptor that QEMU has says which file it is,
//! whatever has become of the path since: renamed or deleted, replaced by a link, or meant in a directory or root
//! that QEMU has left.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, openat, statx};

use super::{DiscoverError, fdinfo::FdInfo, proc};

/// A descriptor of a process by its link alone: nothing was asked of the file that it leads to.
#[derive(Debug)]
pub struct Descriptor {
    pid: u32,
    number: u32,
    path: PathBuf,
    without_deleted: PathBuf,
}

/// Names a file for as long as the host is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Major and minor number, as `stat` tells them.
    device: (u32, u32),
    number: u64,
}

/// A file that a process has open for writing.
#[derive(Debug)]
pub struct Written {
    /// The file (`O_PATH`): whatever its paths lead to by now.
    pub file: OwnedFd,
    /// Which one it is.
    pub inode: Inode,
    /// Of what kind.
    pub kind: FileType,
    /// Whether it is open for reading as well, as images are and QEMU's logs and consoles aren't.
    pub is_read_too: bool,
}

/// The descriptors of `pid` that lead to something with a path.
///
/// # Errors
/// If they can't be listed.
pub fn descriptors(pid: u32) -> Result<Vec<Descriptor>, DiscoverError> {
    let all = proc::descriptors(pid)?.each.into_iter().filter(|(_, path)| path.is_absolute());
    let descriptor = |(number, path): (u32, PathBuf)| {
        let without_deleted = proc::without_deleted(path.clone());
        Descriptor { pid, number, path, without_deleted }
    };
    Ok(all.map(descriptor).collect())
}

impl Descriptor {
    /// Where the file is, by the kernel's account; of one that was deleted also without the ` (deleted)` that it
    /// bears then.
    pub fn paths(&self) -> [&Path; 2] {
        [&self.path, &self.without_deleted]
    }

    /// Whether the file may be `inode`, and is open for writing. Nothing is asked of the file.
    ///
    /// # Errors
    /// If `fdinfo` can't be read.
    pub fn may_write(&self, inode: Inode) -> Result<bool, DiscoverError> {
        let info = FdInfo::read(self.pid, self.number)?;
        let same = |info: FdInfo| info.inode.is_none_or(|number| number == inode.number);
        Ok(info
            .is_some_and(|info| matches!(info.access, OFlags::WRONLY | OFlags::RDWR) && same(info)))
    }

    /// The file, if the process has it open for writing still. Blocks for as long as its file system likes.
    ///
    /// # Errors
    /// If it can't be told.
    pub fn written(&self) -> Result<Option<Written>, DiscoverError> {
        let Self { pid, number, .. } = *self;
        let link = format!("/proc/{pid}/fd/{number}");
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let asked = openat(CWD, link, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| Ok((status(&file)?, file)));
        let ((inode, kind, mount), file) = match asked {
            Ok(found) => found,
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DiscoverError::read(pid, &format!("fd/{number}"), source)),
        };
        // After it was opened: the number may lead to another file by now, which is open in another way.
        let Some(info) = FdInfo::read(pid, number)? else { return Ok(None) };
        let is_same = info.inode.is_none_or(|number| number == inode.number)
            && mount.is_none_or(|mount| mount == info.mount);
        let is_read_too = match info.access {
            OFlags::WRONLY => false,
            OFlags::RDWR => true,
            _ => return Ok(None),
        };
        Ok(is_same.then_some(Written { file, inode, kind, is_read_too }))
    }
}

impl Inode {
    /// That of an open file, be it open as a path only.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        status(file).map(|(inode, ..)| inode)
    }
}

/// Which file it is, of which kind, and in which mount, where the kernel (5.8) tells that.
fn status(file: impl AsFd) -> io::Result<(Inode, FileType, Option<u64>)> {
    let wanted = StatxFlags::INO | StatxFlags::TYPE | StatxFlags::MNT_ID;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(file, "", flags, wanted)?;
    let inode = Inode { device: (found.stx_dev_major, found.stx_dev_minor), number: found.stx_ino };
    let tells_mount = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    Ok((inode, kind, tells_mount.then_some(found.stx_mnt_id)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::fd::AsRawFd as _,
    };

    use super::*;

    fn own(file: &File) -> Descriptor {
        let number = u32::try_from(file.as_raw_fd()).unwrap();
        let all = descriptors(std::process::id()).unwrap();
        all.into_iter().find(|descriptor| descriptor.number == number).unwrap()
    }

    #[test]
    fn a_file_counts_while_it_is_open_for_writing_whatever_its_path_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("log"), directory.path().join("other"));
        let writes = File::options().create(true).append(true).open(&path).unwrap();
        let reads = File::open(&path).unwrap();
        assert!(own(&reads).written().unwrap().is_none());
        let found = own(&writes).written().unwrap().unwrap();
        assert_eq!(found.inode, Inode::of(&writes).unwrap());
        assert!(found.kind == FileType::RegularFile && !found.is_read_too);
        let both = File::options().read(true).write(true).open(&path).unwrap();
        assert!(own(&both).written().unwrap().unwrap().is_read_too);

        fs::write(&other, "another").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let gone = own(&writes);
        assert!(gone.paths().contains(&path.as_path()), "{gone:?}");
        assert_eq!(gone.written().unwrap().unwrap().inode, found.inode);
        let another = Inode::of(File::open(&other).unwrap()).unwrap();
        assert!(gone.may_write(found.inode).unwrap() && !gone.may_write(another).unwrap());
        drop(writes);
        assert!(gone.written().unwrap().is_none() && !gone.may_write(found.inode).unwrap());
    }
}
