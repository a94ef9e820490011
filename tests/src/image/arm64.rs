//! The Linux guest of 64-bit Arm: Debian's kernel and busybox of that architecture, which nothing of this machine runs.
//!
//! They are fetched through lists of apt's that are this cache's own: the system's stay of its own architecture.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{AGENT, INIT, Images, MODULES, initramfs, kernel, locked};
use crate::{command, deb};

/// Bump it where what is built changes.
const RECIPE: &str = "1";
/// The device of the serial console, which is another one on a PC.
const CONSOLES: (&str, &str) = ("ttyS0", "ttyAMA0");

/// Builds the images in `cache_dir`, or finds them there. Other builds of the same time wait.
///
/// # Errors
///
/// If Debian's packages can't be downloaded, or `cache_dir` cannot be written.
pub fn build(cache_dir: &Path) -> Result<Images> {
    let (cache_dir, _lock) = locked(cache_dir)?;
    let images = Images {
        kernel: cache_dir.join("kernel"),
        initramfs: cache_dir.join("initramfs"),
        hypervisor: None,
    };
    let stamp = cache_dir.join("stamp");
    let init = init();
    let recipe = format!("{RECIPE}\n{init}");
    if std::fs::read_to_string(&stamp).is_ok_and(|built| built == recipe) {
        return Ok(images);
    }
    let place = tempfile::Builder::new().prefix(".building-").tempdir_in(&cache_dir)?;
    let apt = Apt::new(place.path())?;
    let unpacked = place.path().join("unpacked");
    let package = apt.newest_kernel()?;
    for package in [package.as_str(), "busybox-static"] {
        apt.unpack(package, &unpacked)?;
    }
    let version = package.trim_start_matches("linux-image-");
    let parts = Parts {
        kernel: &unpacked.join("boot").join(format!("vmlinuz-{version}")),
        modules: &unpacked.join("lib/modules").join(version),
        busybox: &unpacked.join("bin/busybox"),
        agent: None,
    };
    parts.write(&images)?;
    // Last, so that an interrupted build is taken up again.
    std::fs::write(&stamp, recipe).context("cannot write the stamp")?;
    Ok(images)
}

/// What the guest runs as its first process.
pub fn init() -> String {
    INIT.replace(CONSOLES.0, CONSOLES.1)
}

/// What images are made of, unpacked.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The kernel; Debian's is not compressed.
    pub kernel: &'a Path,
    /// The directory of its modules.
    pub modules: &'a Path,
    /// A static one of that architecture.
    pub busybox: &'a Path,
    /// flatline's agent, of that architecture; without it, guests have none.
    pub agent: Option<&'a Path>,
}

impl Parts<'_> {
    /// Makes images of them in a directory, which is made.
    ///
    /// # Errors
    ///
    /// If a part is missing, or the directory can't be written.
    pub fn build(self, directory: &Path) -> Result<Images> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let [kernel, initramfs] = ["kernel", "initramfs"].map(|name| directory.join(name));
        let images = Images { kernel, initramfs, hypervisor: None };
        self.write(&images)?;
        Ok(images)
    }

    fn write(self, images: &Images) -> Result<()> {
        let init = init();
        // Since Linux 6.9, the network card's stands on it.
        let modules = ["dim"].iter().chain(&MODULES).copied().collect::<Vec<_>>();
        let mut archive = initramfs(&init, self.busybox, self.modules, &modules, None)?;
        if let Some(agent) = self.agent {
            let agent = std::fs::read(agent).context("cannot read the agent")?;
            archive.file(&format!("bin/{AGENT}"), 0o755, &agent);
        }
        std::fs::copy(self.kernel, &images.kernel).context("cannot write the kernel")?;
        std::fs::write(&images.initramfs, archive.finish()).context("cannot write the initramfs")
    }
}

/// An apt with lists of its own, of this architecture alone.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(place: &Path) -> Result<Self> {
        let folder = |name: &str| -> Result<PathBuf> {
            let folder = place.join(name);
            std::fs::create_dir_all(folder.join("lists/partial"))?;
            std::fs::create_dir_all(folder.join("archives/partial"))?;
            Ok(folder)
        };
        let options = [
            "APT::Architecture=arm64".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
            format!("Dir::State={}", folder("state")?.display()),
            format!("Dir::Cache={}", folder("cache")?.display()),
            // Nothing is installed.
            "Dir::State::status=/dev/null".to_owned(),
            // The user that apt downloads as otherwise can't write here.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let apt = Self { options };
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<Vec<u8>> {
        command::run(program, self.words().into_iter().chain(words.iter().copied()))
    }

    fn words(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }

    fn newest_kernel(&self) -> Result<String> {
        let pattern = r"^linux-image-6\.1\.0-[0-9]+-arm64$";
        let names = self.run("apt-cache", &["search", "--names-only", pattern])?;
        let names = String::from_utf8_lossy(&names).into_owned();
        kernel::newest(&names).context("apt knows no linux-image-6.1.0-*-arm64")
    }

    fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        deb::unpack(package, directory, &self.words())
    }
}
