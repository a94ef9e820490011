//! What `/proc/PID/fdinfo/FD` says of a descriptor: how the file is open, and which one it is. The file itself isn't asked.

use rustix::fs::OFlags;

use super::{DiscoverError, proc};

/// A descriptor by its `fdinfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FdInfo {
    /// Whether it is open for reading, for writing, or for both.
    pub(super) access: OFlags,
    /// The id of the mount that the file is in.
    pub(super) mount: u64,
    /// Kernels before 5.14 don't tell it.
    pub(super) inode: Option<u64>,
}

impl FdInfo {
    /// That of the descriptor `fd` of `pid`; `None` if it was closed meanwhile.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(pid: u32, fd: u32) -> Result<Option<Self>, DiscoverError> {
        Ok(proc::descriptor_info(pid, fd)?.as_deref().and_then(Self::parse))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let flags = u32::from_str_radix(field("flags:")?, 8).ok()?;
        let inode = field("ino:").map(str::parse).transpose().ok()?;
        let access = OFlags::from_bits_retain(flags) & OFlags::RWMODE;
        Some(Self { access, mount: field("mnt_id:")?.parse().ok()?, inode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_read_from_the_flags_and_an_old_kernel_tells_no_inode() {
        let info = |flags: &str| {
            FdInfo::parse(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\nino:\t7\n")).unwrap()
        };
        assert_eq!(info("0100000").access, OFlags::RDONLY);
        assert_eq!(info("02102001").access, OFlags::WRONLY);
        assert_eq!(info("0100002").access, OFlags::RDWR);
        assert_eq!(info("02140002").access, OFlags::RDWR);
        assert_eq!((info("01").mount, info("01").inode), (29, Some(7)));
        assert_eq!(FdInfo::parse("flags:\t01\nmnt_id:\t29\n").unwrap().inode, None);
        for torn in ["", "flags:\t09\nmnt_id:\t1\n", "flags:\t01\n", "flags:\t1\nmnt_id:\tx\n"] {
            assert_eq!(FdInfo::parse(torn), None, "{torn}");
        }
    }
}
