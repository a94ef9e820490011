//! An apt root of its own, with suites and architectures beside this machine's own: kernels, QEMUs and cross compilers come
//! from there, and nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatline_tests::{command, deb, image::kernel};

use crate::apt;
use crate::architecture::Architecture;
use crate::process::{capture, run_quietly};

/// How old apt's lists may be: a mirror keeps what they name for longer than a day.
const FRESH: Duration = Duration::from_secs(24 * 3600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// That root.
#[derive(Debug)]
pub(crate) struct Packages {
    /// What apt is told, its lists, and what it downloads.
    dir: PathBuf,
    configuration: PathBuf,
    /// Of packages that are named without one.
    architecture: Architecture,
}

/// A kernel of the suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) version: String,
    /// The packages that it is in.
    pub(crate) packages: Vec<String>,
}

impl Packages {
    /// Makes it in `dir`, or finds it there, and renews its lists if they are old. It has packages of these architectures,
    /// of which the first is that of packages which are named without one.
    ///
    /// # Errors
    ///
    /// If `dir` can't be written, or the mirror not be reached and there are no lists from before.
    pub(crate) fn new(dir: &Path, suites: &[&str], architectures: &[Architecture]) -> Result<Self> {
        let architecture = *architectures.first().context("packages are of an architecture")?;
        for name in ["etc/sources.list.d", "state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(name))
                .with_context(|| format!("cannot make {}", dir.join(name).display()))?;
        }
        std::fs::write(dir.join("etc/sources.list"), sources(suites, architectures)?)?;
        std::fs::write(dir.join("status"), "")?;
        let configuration = dir.join("apt.conf");
        std::fs::write(&configuration, self::configuration(dir, architectures))?;
        let packages = Self { dir: dir.to_owned(), configuration, architecture };
        let renewed = dir.join("renewed");
        let age = std::fs::metadata(&renewed).and_then(|meta| meta.modified()).ok();
        if age.and_then(|at| at.elapsed().ok()).is_none_or(|age| age > FRESH) {
            let mut update = packages.command("apt-get");
            run_quietly("lists of Debian's suites", update.arg("update"))?;
            std::fs::write(renewed, "")?;
        }
        Ok(packages)
    }

    /// The newest kernel whose version begins so.
    ///
    /// # Errors
    ///
    /// If the suites hold none that is whole.
    pub(crate) fn kernel(&self, version: &str) -> Result<Kernel> {
        let mut search = self.command("apt-cache");
        let names =
            capture(search.args(["search", "--names-only", "^linux-(image|binary|modules)-"]));
        choose(&names.context("apt-cache failed")?, version, self.architecture)
            .with_context(|| format!("Debian's suites hold no Linux {version}x with its modules"))
    }

    /// Unpacks a package into a directory, beside what is there.
    ///
    /// # Errors
    ///
    /// If it can't be had.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let option = format!("-c={}", self.configuration.display());
        deb::unpack(package, into, &[&option])
    }

    /// Downloads packages and unpacks them into a directory; what they depend on is the caller's to name.
    ///
    /// # Errors
    ///
    /// If one can't be had.
    pub(crate) fn unpack_each(&self, names: &[String], into: &Path) -> Result<()> {
        let place = tempfile::Builder::new().prefix(".packages-").tempdir_in(&self.dir)?;
        let mut download = self.command("apt-get");
        download.arg("download").args(names).current_dir(place.path());
        run_quietly(&format!("downloading {} packages", names.len()), &mut download)?;
        for entry in std::fs::read_dir(place.path())? {
            let package = entry?.path();
            command::run(
                "dpkg-deb",
                ["--extract".as_ref(), package.as_os_str(), into.as_os_str()],
            )?;
        }
        Ok(())
    }

    /// Unpacks packages of a suite and all that they depend on into a root, which is made.
    ///
    /// # Errors
    ///
    /// If they can't be had.
    pub(crate) fn unpack_with_all(
        &self,
        suite: &str,
        packages: &[&str],
        root: &Path,
    ) -> Result<()> {
        let first = packages.first().context("a root is made of packages")?;
        let archives = self.dir.join("cache").join(suite);
        std::fs::create_dir_all(archives.join("partial"))?;
        let mut install = self.command("apt-get");
        install.args(["install", "--yes", "--download-only", "--no-install-recommends"]);
        install
            .args(["-t", suite, "-o"])
            .arg(format!("Dir::Cache::archives={}", archives.display()));
        run_quietly(&format!("downloading {first} of {suite}"), install.args(packages))?;
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::fs::create_dir_all(root.join("usr").join(name))?;
            let link = root.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(Path::new("usr").join(name), link)?;
            }
        }
        let script = "for each in \"$1\"/*.deb; do \
                      dpkg-deb --fsys-tarfile \"$each\" | tar -x -C \"$2\" --keep-directory-symlink || exit; done";
        let mut extract = Command::new("sh");
        extract.args(["-c", script, "sh"]).arg(&archives).arg(root);
        run_quietly(&format!("unpacking {first} of {suite}"), &mut extract)?;
        std::fs::remove_dir_all(&archives)?;
        ensure!(root.join("usr/bin").is_dir(), "{first} holds no programs");
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(format!("-c={}", self.configuration.display())).env("LC_ALL", "C");
        command
    }
}

/// Each suite of the mirror that this machine's apt has it from, or else that of Debian 12.
fn sources(suites: &[&str], architectures: &[Architecture]) -> Result<String> {
    let usual = apt::mirror(apt::RELEASE);
    let names: Vec<&str> = architectures.iter().map(|each| each.debian()).collect();
    let names = names.join(",");
    let line = |suite: &&str| {
        let mirror = apt::mirror(suite).or_else(|| usual.clone());
        let mirror = mirror.context("this machine's apt knows no mirror of Debian 12")?;
        Ok(format!("deb [signed-by={KEYRING} arch={names}] {mirror} {suite} main\n"))
    };
    suites.iter().map(line).collect()
}

fn configuration(dir: &Path, architectures: &[Architecture]) -> String {
    let dir = dir.display();
    let names: Vec<String> =
        architectures.iter().map(|each| format!("\"{}\";", each.debian())).collect();
    let (first, all) = (names.first().cloned().unwrap_or_default(), names.join(" "));
    format!(
        "Dir::Etc \"{dir}/etc\";\nDir::State \"{dir}/state\";\nDir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\nDir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n\
         Acquire::Languages \"none\";\nAcquire::GzipIndexes \"true\";\nAPT::Architecture {first}\n\
         APT::Architectures {{ {all} }};\nAPT::Sandbox::User \"root\";\n"
    )
}

/// The newest whole kernel among what `apt-cache search` printed. Since 6.19 it is in two packages, one with its modules,
/// and the one that is called as before is empty.
fn choose(names: &str, version: &str, architecture: Architecture) -> Option<Kernel> {
    let suffix = format!("-{}", architecture.debian());
    let names: Vec<&str> =
        names.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let of_kind = |kind: &str, version: &str| {
        let name = format!("linux-{kind}-{version}");
        names.contains(&name.as_str()).then_some(name)
    };
    let packages = |version: &str| match of_kind("binary", version) {
        Some(binary) => Some(vec![binary, of_kind("modules", version)?]),
        None => Some(vec![of_kind("image", version)?]),
    };
    let versions = names.iter().filter_map(|name| {
        let (_, version) = name.strip_prefix("linux-")?.split_once('-')?;
        let number = version.strip_suffix(&suffix)?;
        // Not those that are named for clouds or real time.
        let is_plain = number.ends_with(|last: char| last.is_ascii_digit());
        is_plain.then_some(version)
    });
    let whole: Vec<&str> =
        versions.filter(|name| name.starts_with(version) && packages(name).is_some()).collect();
    let newest = kernel::newest(&whole.join("\n"))?;
    Some(Kernel { packages: packages(&newest)?, version: newest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-6.1.0-9-amd64 - Linux 6.1\n\
        linux-image-6.1.0-10-amd64 - Linux 6.1\nlinux-image-6.1.0-10-cloud-amd64 - Linux 6.1\n\
        linux-image-6.12.95+deb12-amd64 - Linux\nlinux-image-6.12.117+deb13-amd64 - Linux\n\
        linux-image-6.12.118+deb13-rt-amd64 - Linux\nlinux-image-6.12.119+deb13-amd64-dbg - Linux\n\
        linux-binary-6.19.14+deb13-amd64 - Linux\nlinux-image-6.19.14+deb13-amd64 - Linux\n\
        linux-binary-7.3.4+deb13-amd64 - x\nlinux-modules-7.3.4+deb13-amd64 - x\n\
        linux-image-7.3.4+deb13-amd64 - x\nlinux-image-6.12.120+deb13-arm64 - Linux\n";
    const X86_64: Architecture = Architecture::X86_64;

    #[test]
    fn the_newest_kernel_that_is_whole_is_taken() {
        let version = |prefix| choose(NAMES, prefix, X86_64).map(|kernel| kernel.version);
        assert_eq!(version("6.1.").as_deref(), Some("6.1.0-10-amd64"));
        assert_eq!(version("6.12.").as_deref(), Some("6.12.117+deb13-amd64"));
        assert_eq!(version("6.").as_deref(), Some("6.12.117+deb13-amd64"));
        let of_arm = choose(NAMES, "6.", Architecture::Aarch64).map(|kernel| kernel.version);
        assert_eq!(of_arm.as_deref(), Some("6.12.120+deb13-arm64"));
        assert_eq!(version("6.19."), None);
        assert_eq!(version("5.10."), None);
    }

    #[test]
    fn a_kernel_of_two_packages_is_both_of_them() {
        let kernel = choose(NAMES, "7.", X86_64).unwrap();
        assert_eq!(
            kernel.packages,
            ["linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"]
        );
    }
}
