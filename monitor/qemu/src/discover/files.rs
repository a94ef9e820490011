//! Which files and block devices a QEMU has open for its guest to write to, named as the kernel names the
//! pages that it writes back for them.
//!
//! QEMU opens an image that its guest may write to for reading and writing; its logs and consoles it only
//! writes, and what it only reads needs no writing back. The file's device is not asked of `stat`, which
//! could hang on the very storage whose stalling is to be noticed and, on some file systems, tells
//! another device than the kernel's own; `fdinfo` and `mountinfo` tell that one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use monitor_ebpf::FileKey;
use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::{DiscoverError, display_text, fdinfo::FdInfo, proc};

/// Most files of one VM; QEMU itself takes some hundred disks.
const FILES: usize = 1024;
/// Most descriptors of one VM that may be images, and are asked how they are open: some hundred disks, each with the images that
/// it stands on.
const ASKED: usize = 4096;
/// File systems on which device files are made; other ones may have them in a directory of that name.
const OF_DEVICES: [&str; 3] = ["devtmpfs", "tmpfs", "ramfs"];
/// Character devices that every QEMU has open, below `/dev`.
const NO_DISKS: [&str; 7] = ["net/", "kvm", "vhost", "null", "pts/", "ptmx", "vfio/"];
/// File systems below which no block layer is, or none of this host's: their kinds begin so.
const WITHOUT_BLOCKS: [&str; 10] =
    ["fuse", "nfs", "cifs", "smb3", "ceph", "9p", "tmpfs", "ramfs", "virtiofs", "gfs"];

/// What of a VM's storage can be told to be its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// Files and block devices of which the pages that are written back are the VM's.
    #[serde(with = "super::remembered::file_keys")]
    pub keys: Vec<FileKey>,
    /// Those of which the requests never reach this host's block layer, or bear another file's name there.
    pub unseen: Vec<String>,
}

/// A line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// As the kernel numbers devices: `major << 20 | minor`.
    pub(super) device: u32,
    kind: String,
}

/// The files of `pid` among `descriptors`.
///
/// # Errors
/// If `fdinfo` or `mountinfo` cannot be read, which is never the same as having no files.
pub(super) fn files_among(
    pid: u32,
    descriptors: &[(u32, PathBuf)],
) -> Result<OpenFiles, DiscoverError> {
    let mut keys = BTreeSet::new();
    let mut unseen = BTreeSet::new();
    let mut mounts = None;
    let mut asked = 0;
    for (fd, target) in descriptors {
        if !target.is_absolute() {
            continue;
        }
        if keys.len() >= FILES || asked >= ASKED {
            unseen.insert(format!(
                "files beyond the first {FILES}, or the first {ASKED} that are open"
            ));
            break;
        }
        asked += 1;
        if let Ok(device) = target.strip_prefix("/dev")
            && !device.starts_with("shm")
        {
            keys.extend(below_dev(pid, *fd, device));
            continue;
        }
        let Some(FdInfo { access: OFlags::RDWR, mount, inode: Some(inode) }) =
            FdInfo::read(pid, *fd)?
        else {
            continue;
        };
        let mounts = match &mut mounts {
            Some(mounts) => mounts,
            none => none.insert(parse_mountinfo(&proc::mountinfo(pid)?)),
        };
        let Some(Mount { device, kind }) = mounts.get(&mount) else { continue };
        if may_be_device(target, kind)
            && let Some(found) = Device::at(pid, *fd)
        {
            keys.extend(found.key());
        } else if kind == "overlay" {
            let path = display_text(&target.to_string_lossy());
            unseen.insert(format!("what is written back to {path} (overlay)"));
        } else if WITHOUT_BLOCKS.iter().any(|prefix| kind.starts_with(prefix)) {
            let path = display_text(&target.to_string_lossy());
            unseen.insert(format!("{path} ({})", display_text(kind)));
        } else {
            keys.insert(FileKey { inode, device: *device, reserved: 0 });
        }
    }
    Ok(OpenFiles { keys: keys.into_iter().collect(), unseen: unseen.into_iter().collect() })
}

/// A device that is open.
enum Device {
    /// A disk, or another of which pages are written back.
    Block(FileKey),
    /// One of which none are: KVM, a tap.
    Character,
}

impl Device {
    /// The device at a descriptor; `None` if it is another kind of file. Something else may stand there in a mount namespace
    /// of QEMU's own: it is not asked, and what the kernel knows of it is taken.
    fn at(pid: u32, fd: u32) -> Option<Self> {
        let flags = AtFlags::STATX_DONT_SYNC;
        let found = statx(CWD, format!("/proc/{pid}/fd/{fd}"), flags, StatxFlags::TYPE).ok()?;
        match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::BlockDevice => {
                let device = found.stx_rdev_major << 20 | found.stx_rdev_minor;
                Some(Self::Block(FileKey { inode: 0, device, reserved: 0 }))
            }
            FileType::CharacterDevice => Some(Self::Character),
            _ => None,
        }
    }

    fn key(self) -> Option<FileKey> {
        match self {
            Self::Block(key) => Some(key),
            Self::Character => None,
        }
    }
}

/// To `stat` a file of the device file system waits for no disk.
fn below_dev(pid: u32, fd: u32, below_dev: &Path) -> Option<FileKey> {
    let name = below_dev.to_string_lossy();
    if NO_DISKS.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    Device::at(pid, fd)?.key()
}

/// Whether a file that isn't below our `/dev` may be a device all the same: a QEMU in a root of its own has another `/dev`, of which
/// the way may be seen from its root or from ours.
fn may_be_device(target: &Path, file_system: &str) -> bool {
    OF_DEVICES.contains(&file_system) || target.components().any(|part| part.as_os_str() == "dev")
}

/// By mount id; lines that are malformed are left out.
pub(super) fn parse_mountinfo(text: &str) -> BTreeMap<u64, Mount> {
    let mount = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
        let kind = file_system.split(' ').next()?.to_owned();
        Some((id, Mount { device, kind }))
    };
    text.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{ASKED, Mount, OpenFiles, files_among, may_be_device, parse_mountinfo};

    #[test]
    fn a_mount_is_known_by_its_id_with_the_kernels_number_of_its_device() {
        let text = "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            41 29 0:38 / /mnt/a\\040b rw - fuse.sshfs x:/ rw,user_id=0\ntorn 1 2\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[&29], Mount { device: 254 << 20, kind: "ext4".to_owned() });
        assert_eq!(mounts[&41], Mount { device: 38, kind: "fuse.sshfs".to_owned() });
    }

    #[test]
    fn a_file_of_our_own_is_found_by_its_inode() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.expect("a file");
        let fd = u32::try_from(file.as_raw_fd()).expect("a descriptor");
        let descriptors = [(fd, path), (fd, PathBuf::from("socket:[1]"))];
        let found = files_among(std::process::id(), &descriptors).expect("our own files");
        if found.unseen.is_empty() {
            let inode = file.metadata().expect("its inode").ino();
            assert_eq!(found.keys.iter().map(|key| key.inode).collect::<Vec<_>>(), [inode]);
        } else {
            assert_eq!(found.keys, [], "a temporary directory without blocks");
        }
        assert_eq!(files_among(std::process::id(), &[]).expect("none"), OpenFiles::default());
    }

    #[test]
    fn a_device_below_another_dev_is_no_file_that_all_share() {
        let directory = tempfile::tempdir().expect("a directory");
        let dev = directory.path().join("dev/net");
        std::fs::create_dir_all(&dev).expect("a directory");
        let path = dev.join("tun");
        let number = rustix::fs::makedev(10, 200);
        let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
        if let Err(error) = mknodat(CWD, &path, kind, mode, number) {
            return println!("skipped: no device can be made: {error}");
        }
        let device = match File::options().read(true).write(true).open(&path) {
            Ok(device) => device,
            Err(error) => return println!("skipped: no device can be opened there: {error}"),
        };
        let fd = u32::try_from(device.as_raw_fd()).expect("a descriptor");
        let found = files_among(std::process::id(), &[(fd, path)]).expect("our own files");
        assert_eq!(found, OpenFiles::default());
    }

    #[test]
    fn what_may_be_a_device_is_told_by_where_it_is() {
        let may_be = |path: &str, kind| may_be_device(path.as_ref(), kind);
        assert!(may_be("/srv/qemu/dev/kvm", "ext4") && may_be("/net/tun", "devtmpfs"));
        assert!(may_be("/kvm", "tmpfs"));
        assert!(!may_be("/srv/device/disk.img", "ext4"));
    }

    #[test]
    fn files_beyond_the_most_that_are_looked_at_are_unseen_and_not_absent() {
        // None of these is open.
        let many: Vec<_> = (1_000_000..).map(|fd| (fd, PathBuf::from("/a"))).take(ASKED).collect();
        let found = files_among(std::process::id(), &many).expect("none");
        assert_eq!(found, OpenFiles::default());
        let more = [many, vec![(1, PathBuf::from("/b"))]].concat();
        let found = files_among(std::process::id(), &more).expect("none");
        assert!(found.unseen[0].starts_with("files beyond the first"), "{found:?}");
    }
}
