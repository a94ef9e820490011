//! Trim: gives memory back that was needed once, as to load the programs, and to read a QEMU that was found.

use std::fs;

use rustix::mm::{Advice, madvise};
use tracing::debug;

/// Gives back what the allocator holds, and lets go of code that has run.
pub(super) fn trim() {
    // SAFETY: a plain call, which only gives free memory back: to read a QEMU that was found takes several times what is kept
    // of it, and so do its sessions' and readings' first answers.
    unsafe { libc::malloc_trim(0) };
    if let Err(error) = let_go_of_code() {
        debug!("the code that has run is kept: {error}");
    }
}

/// Code counts as this process' memory once it has run. What runs again is there again, from the page cache.
fn let_go_of_code() -> std::io::Result<()> {
    for (begin, end) in fs::read_to_string("/proc/self/maps")?.lines().filter_map(code) {
        // SAFETY: the range is a mapping of this process, of a file, which nothing in this process unmaps or writes to: what
        // is let go of is read from the file again when it is needed, with what it held.
        unsafe { madvise(begin as *mut _, end - begin, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// The range of the code of a file, if a line of `/proc/self/maps` (proc(5)) is of such.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (begin, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    is_code.then_some((address(begin)?, address(end)?)).filter(|(begin, end)| begin < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go_of_and_runs_on() {
        let line = "55d0a000-55d0c000 r-xp 00002000 08:01 123    /usr/bin/flat line";
        assert_eq!(code(line), Some((0x55d0_a000, 0x55d0_c000)));
        for other in [
            "55d0a000-55d0c000 rw-p 00002000 08:01 123    /usr/bin/flatline",
            "55d0a000-55d0c000 r--p 00002000 08:01 123    /usr/bin/flatline",
            "55d0a000-55d0c000 rwxp 00002000 08:01 123    /usr/bin/flatline",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0      [vdso]",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0",
            "7ffd1000 r-xp",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
        for _ in 0..3 {
            let_go_of_code().unwrap();
        }
    }
}
