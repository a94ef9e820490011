//! The file that a console is written to, found by what QEMU has open and read with no more than QEMU's own rights.
//!
//! A QEMU may name anything on its command line, and a process that may write to the directory can put anything there
//! afterwards: a link to a file of root's, or to one of the kernel's that says something else to each reader. So
//! what the path leads to is never opened. A console is a file that
//!
//! - this QEMU has open for writing now, and that is the one which the command line means: it stands where that says,
//!   or the path leads to it, looked up with QEMU's rights, or, where neither is so any more (`-daemonize` and `-chroot`
//!   left the directory that the path was meant in, a link was put in its place), it alone has the path's last name;
//! - is a regular file, and none of a file system whose files are the kernel's own words;
//! - QEMU's user may read, with QEMU's groups and without any capability. A log that root opened and handed on, or that
//!   QEMU opened before it became another user (`-runas`), can be read only where its mode says so.
//!
//! It is opened through QEMU's descriptor, so that nothing can be exchanged in between.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstatfs, openat};

use flatline_qemu::{
    discover::{Descriptor, Inode, Rights, Vm, Written, descriptors},
    peer,
    text::error_chain,
};

/// So much of a log's end is read. A panic with its registers and traces takes some 5 KiB.
const TAIL_BYTES: u64 = 64 << 10;
/// File systems whose files the kernel makes up as they are read, or that are memory of a process: what
/// include/uapi/linux/magic.h has of them.
const OF_THE_KERNEL: [(u32, &str); 25] = [
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x0000_1cd1, "devpts"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x5a3c_69f0, "apparmorfs"),
    (0xcafe_4a11, "bpf"),
    (0x6265_6570, "configfs"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x0765_5821, "resctrl"),
    (0x9584_58f6, "hugetlbfs"),
    (0x1980_0202, "mqueue"),
    (0x6e73_6673, "nsfs"),
    (0x6573_5543, "fusectl"),
    (0x6759_6969, "rpc_pipefs"),
    (0x6e66_7364, "nfsd"),
    (0xabba_1974, "xenfs"),
    (0x5345_434d, "secretmem"),
];

/// The end of a log, and when it was written.
#[derive(Debug)]
pub(super) struct Tail {
    /// The log, as the command line has it.
    pub(super) path: PathBuf,
    pub(super) end: End,
    pub(super) bytes: Vec<u8>,
    pub(super) written: SystemTime,
}

/// How far a log went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Device and inode number.
    pub(super) file: (u64, u64),
    pub(super) length: u64,
}

/// The end of the console that `told` means on the command line of `vm`. Blocks for as long as the file system
/// likes.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn read(vm: &Vm, told: &Path) -> Result<Tail, String> {
    let failed = |error: &dyn std::error::Error| format!("{told:?}: {}", error_chain(error));
    let written = find(vm, told)?.ok_or_else(|| {
        format!("{told:?}: QEMU has no such file open for writing, or it can't be told which one")
    })?;
    if written.kind != FileType::RegularFile {
        return Err(format!("{told:?}: not a regular file"));
    }
    let kind = fstatfs(&written.file).map_err(|error| failed(&io::Error::from(error)))?.f_type;
    // The field's type differs between architectures; no magic has more than 32 bits.
    if let Some(name) = u32::try_from(kind).ok().and_then(kernels_own) {
        return Err(format!("{told:?}: in the file system {name}, where no console can be"));
    }
    let rights = Rights::of(vm).map_err(|error| failed(&error))?;
    let link = format!("/proc/self/fd/{}", written.file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rights.lend(|| openat(CWD, link, flags, Mode::empty()));
    let file = opened
        .map_err(|error| failed(&error))?
        .map_err(|error| format!("{told:?}: not open to the user that QEMU runs as: {error}"))?;
    tail(told, &File::from(file)).map_err(|error| failed(&error))
}

fn kernels_own(magic: u32) -> Option<&'static str> {
    OF_THE_KERNEL.iter().find(|(own, _)| *own == magic).map(|(_, name)| *name)
}

/// The file that `told` means, of those that QEMU writes.
fn find(vm: &Vm, told: &Path) -> Result<Option<Written>, String> {
    let failed = |error: &dyn std::error::Error| format!("{told:?}: {}", error_chain(error));
    let all = descriptors(vm.id.pid).map_err(|error| failed(&error))?;
    let written = |descriptor: &Descriptor| descriptor.written().map_err(|error| failed(&error));
    for descriptor in all.iter().filter(|one| one.paths().contains(&told)) {
        if let Some(found) = written(descriptor)? {
            return Ok(Some(found));
        }
    }
    if let Some(inode) = look_up(vm, told) {
        for descriptor in &all {
            if descriptor.may_write(inode).map_err(|error| failed(&error))?
                && let Some(found) = written(descriptor)?.filter(|found| found.inode == inode)
            {
                return Ok(Some(found));
            }
        }
    }
    let mut only: Option<Written> = None;
    for descriptor in like(told, &all, |one| one.paths()) {
        match written(descriptor)?.filter(|found| !found.is_read_too) {
            Some(found) if only.as_ref().is_some_and(|only| only.inode != found.inode) => {
                return Ok(None);
            }
            Some(found) => only = Some(found),
            None => {}
        }
    }
    Ok(only)
}

/// What `told` leads to by now, looked up with QEMU's rights, and not opened; `None` where that can't be told.
fn look_up(vm: &Vm, told: &Path) -> Option<Inode> {
    let base = peer::base(vm.id.pid, told).ok()?;
    // After the base was opened, which is the process' own only as long as it has these rights.
    let rights = Rights::of(vm).ok()?;
    let found = rights.lend(|| peer::below(base, vm.id.pid, told)).ok()?.ok()?;
    Inode::of(found).ok()
}

/// Those of `all` that have the most last parts of their paths in common with `told`, and one at least.
fn like<'a, T, const N: usize>(
    told: &Path,
    all: &'a [T],
    paths: impl Fn(&'a T) -> [&'a Path; N],
) -> Vec<&'a T> {
    let common = |path: &Path| {
        let pairs = told.iter().rev().zip(path.iter().rev());
        pairs.take_while(|(one, other)| one == other && *one != "..").count()
    };
    let common = |one: &'a T| paths(one).into_iter().map(common).max().unwrap_or_default();
    let most = all.iter().map(common).max().filter(|most| *most > 0);
    all.iter().filter(|one| Some(common(one)) == most).collect()
}

/// The end of a file, as long as it says to be: one that says nothing has nothing.
fn tail(path: &Path, file: &File) -> io::Result<Tail> {
    let written = file.metadata()?;
    let from = written.len().saturating_sub(TAIL_BYTES);
    let most = written.len().min(TAIL_BYTES);
    let mut bytes = vec![0; usize::try_from(most).map_err(io::Error::other)?];
    let mut length = 0;
    while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
        match file.read_at(space, from + u64::try_from(length).map_err(io::Error::other)?)? {
            0 => break,
            read => length += read,
        }
    }
    bytes.truncate(length);
    if from > 0 {
        // A line that was cut is none.
        let whole = bytes.iter().position(|byte| *byte == b'\n').map_or(length, |end| end + 1);
        bytes.drain(..whole);
    }
    // It may have been cut since its length was asked for.
    let length = from + u64::try_from(length).map_err(io::Error::other)?;
    let end = End { file: (written.dev(), written.ino()), length };
    Ok(Tail { path: path.to_owned(), end, bytes, written: written.modified()? })
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs,
        io::Write as _,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };

    use super::*;

    /// A VM that is this very process.
    pub(crate) fn own() -> Vm {
        let mut vm = Vm::stand_in(flatline_qemu::discover::Ownership::bare(), &[]);
        let pid = std::process::id();
        let start_ticks = flatline_qemu::discover::start_ticks(pid).unwrap();
        vm.id = flatline_qemu::discover::VmId { pid, start_ticks };
        vm.executable = std::env::current_exe().unwrap().canonicalize().unwrap();
        // root's may be any user's by now.
        vm.origin.uid = 0;
        vm
    }

    fn console(path: &Path, text: &str) -> File {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn text(told: &Path) -> Result<String, String> {
        read(&own(), told).map(|tail| String::from_utf8(tail.bytes).unwrap())
    }

    #[test]
    fn only_a_file_that_is_open_for_writing_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("only-written.log");
        let file = console(&path, "words\n");
        assert_eq!(text(&path).unwrap(), "words\n");
        drop(file);
        let _reads = File::open(&path).unwrap();
        assert!(text(&path).unwrap_err().contains("has no such file open for writing"));
    }

    #[test]
    fn what_comes_in_its_place_is_not_read_and_the_console_still_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replaced.log");
        let secret = directory.path().join("secret");
        fs::write(&secret, "secret\n").unwrap();
        let _file = console(&path, "words\n");
        fs::remove_file(&path).unwrap();
        for target in [secret.as_path(), Path::new("/proc/self/environ")] {
            symlink(target, &path).unwrap();
            assert_eq!(text(&path).unwrap(), "words\n", "{target:?}");
            fs::remove_file(&path).unwrap();
        }
        fs::hard_link(&secret, &path).unwrap();
        assert_eq!(text(&path).unwrap(), "words\n");
    }

    #[test]
    fn a_console_behind_links_or_in_a_directory_that_was_left_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::create_dir(&real).unwrap();
        let _file = console(&real.join("linked-17.log"), "words\n");
        symlink(&real, directory.path().join("link")).unwrap();
        symlink(real.join("linked-17.log"), directory.path().join("other-name")).unwrap();
        for told in ["link/linked-17.log", "other-name", "link/../real/linked-17.log"] {
            assert_eq!(text(&directory.path().join(told)).unwrap(), "words\n", "{told}");
        }
        for told in ["linked-17.log", "./linked-17.log", "../elsewhere/linked-17.log"] {
            assert_eq!(text(Path::new(told)).unwrap(), "words\n", "{told}");
        }
        assert!(text(Path::new("linked-1.log")).is_err());
    }

    #[test]
    fn of_two_that_are_called_so_neither_is_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let path = |name: &str| directory.path().join(name).join("twice-17.log");
        let _files = [console(&path("a"), "of a\n"), console(&path("b"), "of b\n")];
        assert!(text(Path::new("twice-17.log")).is_err());
        assert_eq!(text(Path::new("a/twice-17.log")).unwrap(), "of a\n");
        assert_eq!(text(Path::new("b/twice-17.log")).unwrap(), "of b\n");
        // An image is open for reading as well.
        let image = directory.path().join("image-17");
        let image = File::options().create(true).truncate(true).read(true).write(true).open(image);
        image.unwrap().write_all(b"x").unwrap();
        assert!(text(Path::new("image-17")).is_err());
    }

    #[test]
    fn a_file_of_the_kernels_is_not_read() {
        let path = format!("/proc/{}/comm", std::process::id());
        let _file = File::options().write(true).open(&path).unwrap();
        let why = text(Path::new(&path)).unwrap_err();
        assert!(why.contains("in the file system proc"), "{why}");
    }

    #[test]
    fn a_path_is_like_another_by_its_last_parts() {
        let all: Vec<PathBuf> =
            ["/a/b/c", "/x/b/c", "/c/d", "/"].into_iter().map(PathBuf::from).collect();
        let found = |told: &str| -> Vec<usize> {
            let found = like(Path::new(told), &all, |path| [path.as_path()]);
            found.iter().filter_map(|one| all.iter().position(|path| path == *one)).collect()
        };
        assert_eq!(found("b/c"), [0, 1]);
        assert_eq!(found("x/b/c"), [1]);
        assert_eq!(found("/z/c"), [0, 1]);
        assert_eq!(found("../d"), [2]);
        for none in ["", "e", "..", "/c/d/.."] {
            assert!(found(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read_and_no_line_in_part() {
        let mut file = tempfile::tempfile().unwrap();
        let line = format!("{}\n", "y".repeat(99));
        file.write_all(line.repeat(1000).as_bytes()).unwrap();
        let tail = tail(Path::new("log"), &file).unwrap();
        assert_eq!(tail.end.length, 100_000);
        assert_eq!(tail.bytes.len(), 65_500);
        assert!(tail.bytes.starts_with(line.as_bytes()));
    }
}
