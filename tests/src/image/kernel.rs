//! The guest's kernel: found or fetched, with the headers that modules of our own are built against.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{command, deb};

/// A kernel to boot instead of Debian's; its modules are looked for in `/lib/modules`.
pub(super) const KERNEL_VARIABLE: &str = "FLATLINE_GUEST_KERNEL";

/// Where packages are unpacked, below the cache directory.
pub(super) const UNPACKED: &str = "unpacked";

/// A kernel on this machine, not yet prepared.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` prints it.
    pub(super) version: String,
    /// Its bzImage.
    pub(super) image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
    /// What `make -C` takes to build a module for it, if there is that.
    pub(super) headers: Option<PathBuf>,
}

/// Finds a kernel: the one that the environment names, else Debian's newest, else the newest installed.
///
/// # Errors
///
/// If there is none.
pub(super) fn find(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    if let Some(path) = std::env::var_os(KERNEL_VARIABLE) {
        return installed_kernel(Path::new(&path));
    }
    match download(cache_dir, progress) {
        Ok(kernel) => Ok(kernel),
        Err(error) => {
            let newest = std::fs::read_dir("/boot")
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter_map(|path| installed_kernel(&path).ok())
                .max_by_key(|kernel| numbers(&kernel.version));
            newest.ok_or(error)
        }
    }
}

/// A kernel image called `vmlinuz-VERSION`, with its modules where they are installed.
fn installed_kernel(image: &Path) -> Result<Kernel> {
    let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let version = name
        .strip_prefix("vmlinuz-")
        .ok_or_else(|| anyhow!("{} is not called vmlinuz-VERSION", image.display()))?;
    let modules = Path::new("/lib/modules").join(version);
    if !modules.is_dir() {
        bail!("no {}", modules.display());
    }
    let headers = Some(modules.join("build")).filter(|build| build.is_dir());
    Ok(Kernel { version: version.to_owned(), image: image.to_owned(), modules, headers })
}

fn download(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    try_to_download(cache_dir, progress).or_else(|_| {
        // A fresh machine's lists are empty, and an old one's name packages that are gone.
        progress("renewing apt's lists");
        command::run("apt-get", ["update"])?;
        try_to_download(cache_dir, progress)
    })
}

fn try_to_download(cache_dir: &Path, progress: &mut impl FnMut(&str)) -> Result<Kernel> {
    let names = command::run(
        "apt-cache",
        ["search", "--names-only", r"^linux-image-6\.1\.0-[0-9]+-amd64$"],
    )?;
    let package = newest(&String::from_utf8_lossy(&names))
        .context("apt knows no linux-image-6.1.0-*-amd64")?;
    let version = package.trim_start_matches("linux-image-").to_owned();
    let unpacked = cache_dir.join(UNPACKED);
    let mut fetch = |package: &str| {
        progress(&format!("downloading {package}"));
        deb::unpack(package, &unpacked, &[])
    };
    fetch(&package)?;
    let headers = ["amd64", "common"]
        .map(|kind| format!("linux-headers-{}-{kind}", version.trim_end_matches("-amd64")));
    let needed = headers.iter().map(String::as_str).chain(["linux-kbuild-6.1"]);
    // A kernel boots without them, too.
    let fetched = needed.map(fetch).collect::<Result<Vec<()>>>();
    let headers = fetched.and_then(|_| relocate(&unpacked.join("usr/src"), &version));
    Ok(Kernel {
        image: unpacked.join("boot").join(format!("vmlinuz-{version}")),
        modules: unpacked.join("lib/modules").join(&version),
        headers: headers.map_err(|error| progress(&format!("no headers: {error:#}"))).ok(),
        version,
    })
}

/// Makes the unpacked headers usable where they are, below `sources`. All of their links are relative, and
/// one Makefile names the other by the path that it would be installed at.
fn relocate(sources: &Path, version: &str) -> Result<PathBuf> {
    let headers = sources.join(format!("linux-headers-{version}"));
    let makefile = headers.join("Makefile");
    let text = std::fs::read_to_string(&makefile).context("the headers have no Makefile")?;
    let sources = sources.to_str().context("the cache directory's path is no UTF-8")?;
    std::fs::write(&makefile, text.replace("include /usr/src/", &format!("include {sources}/")))?;
    Ok(headers)
}

/// The newest kernel's package in what `apt-cache search` printed; `None` if that is nothing.
pub fn newest(names: &str) -> Option<String> {
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a name, so that 6.1.0-10 comes after 6.1.0-9.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The ELF file inside a bzImage, by its boot protocol header (Documentation/arch/x86/boot.rst).
///
/// # Errors
///
/// If it is none, is cut short, or its packer fails.
pub fn unpack_image(image: &[u8]) -> Result<Vec<u8>> {
    let field = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let header = || {
        let sectors = usize::from(*image.get(0x1f1)?);
        let start = (sectors + 1) * 512 + field(0x248)?;
        // The payload's last four bytes are its unpacked size, which is none of the packer's.
        image.get(start..start + field(0x24c)?.checked_sub(4)?)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let payload = header().ok_or_else(|| anyhow!("the bzImage is cut short"))?;
    let vmlinux = unpack(payload)?;
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("the bzImage holds no ELF file");
    }
    Ok(vmlinux)
}

/// Unpacks what a known packer packed; anything else is returned as it is.
///
/// # Errors
///
/// If the packer is not there, or fails.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let program = match packed {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(packed.to_owned()),
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("the pipe was asked for")?;
    let output = std::thread::scope(|scope| {
        // It ends with an error if the packer does first; the packer's status then tells why.
        scope.spawn(move || stdin.write_all(packed));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{program}: {}", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_kernel_is_newer_than_the_ninth() {
        assert!(numbers("linux-image-6.1.0-10-amd64") > numbers("linux-image-6.1.0-9-amd64"));
    }

    #[test]
    fn what_no_packer_packed_stays_as_it_is() {
        assert_eq!(unpack(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn a_bzimage_that_is_cut_short_is_refused() {
        let mut image = vec![0; 0x250];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 200;
        assert!(unpack_image(&image).is_err());
    }

    #[test]
    fn unpacked_headers_include_each_other_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let headers = dir.path().join("linux-headers-1-amd64");
        std::fs::create_dir(&headers).unwrap();
        let makefile = headers.join("Makefile");
        std::fs::write(&makefile, "include /usr/src/linux-headers-1-common/Makefile\n").unwrap();
        assert_eq!(relocate(dir.path(), "1-amd64").unwrap(), headers);
        let wanted = format!("include {}/linux-headers-1-common/Makefile\n", dir.path().display());
        assert_eq!(std::fs::read_to_string(makefile).unwrap(), wanted);
    }
}
