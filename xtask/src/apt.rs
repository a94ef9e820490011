//! Installs Debian's packages, or only unpacks them: never at another package's cost, and without renewing apt's lists
//! unless it has to.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, ensure};
use flatline_tests::deb;

use crate::process::{capture, find_program, heading, run_quietly};

/// Debian 12, in which packages and the README's first steps are tried.
pub(crate) const RELEASE: &str = "bookworm";
/// The package of the guests' QEMU, and its tools, which break with a QEMU of another version: a newer
/// one from elsewhere is left alone where that's possible, and else brought to QEMU's own version.
pub(crate) const QEMU: &str = "qemu-system-x86";
pub(crate) const QEMU_UTILS: &str = "qemu-utils";

/// Installs packages; renews apt's lists only if it can't do without.
pub(crate) fn install(packages: &[&'static str]) -> Result<()> {
    let label = |arguments: &[String]| format!("installing {}", arguments.join(" "));
    if let Some(arguments) = installable(packages)
        && run_quietly(&label(&arguments), &mut apt_install(&arguments)).is_ok()
    {
        return Ok(());
    }
    renew_lists()?;
    let arguments = installable(packages).with_context(|| {
        format!("apt-get can't install {} without removing others", packages.join(" "))
    })?;
    run_quietly(&label(&arguments), &mut apt_install(&arguments))
}

/// What apt knows of may be gone from its mirrors.
pub(crate) fn renew_lists() -> Result<()> {
    run_quietly("renewing apt's lists", Command::new("apt-get").arg("update"))
}

fn apt_install(arguments: &[String]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["install", "--yes", "--no-install-recommends"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// What to ask apt for so that it installs the packages and removes nothing for it.
fn installable(packages: &[&str]) -> Option<Vec<String>> {
    ways(packages, candidate(QEMU).as_deref()).into_iter().find(|arguments| {
        let simulated = capture(apt_install(arguments).arg("--simulate").env("LC_ALL", "C"));
        simulated.is_some_and(|output| removes_nothing(&output))
    })
}

/// The ways to ask for the packages, the gentlest first: as they are, without qemu-utils, and with
/// qemu-utils of the version that QEMU will have, `qemu`, though a newer one be installed.
fn ways(packages: &[&str], qemu: Option<&str>) -> Vec<Vec<String>> {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let mut ways = vec![owned(packages)];
    if packages.contains(&QEMU_UTILS) {
        let mut others = owned(packages);
        others.retain(|name| name != QEMU_UTILS);
        ways.push(others.clone());
        if let Some(version) = qemu {
            others.extend(["--allow-downgrades".to_owned(), format!("{QEMU_UTILS}={version}")]);
            ways.push(others);
        }
    }
    ways
}

/// Judges what `apt-get --simulate` prints. The shared busybox may go: the static one replaces it.
fn removes_nothing(simulated: &str) -> bool {
    let mut removed = simulated.lines().filter_map(|line| line.strip_prefix("Remv "));
    removed.all(|rest| rest.split(' ').next() == Some("busybox"))
}

/// Whether apt has a version of each of these. A fresh machine's lists may be empty or old: where
/// `may_renew`, they are renewed before the answer is no, once.
pub(crate) fn offered(packages: &[&str], may_renew: bool) -> bool {
    static RENEWED: Once = Once::new();
    if !known(packages) && may_renew {
        RENEWED.call_once(|| {
            if let Err(error) = renew_lists() {
                eprintln!("{error:#}");
            }
        });
    }
    known(packages)
}

/// Downloads a package and unpacks it into `directory`, which is there as a whole afterwards or not at all.
/// Nothing is installed: none of the package's scripts run.
pub(crate) fn unpack(package: &str, directory: &Path) -> Result<()> {
    let parent = directory.parent().context("a package is unpacked below a directory")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let place = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(parent)?;
    let whole = place.path().join(package);
    heading(&format!("downloading {package}"));
    // Where there is no network, that shouldn't take minutes.
    let soon = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"];
    deb::unpack(package, &whole, &soon)?;
    if directory.exists() {
        std::fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    std::fs::rename(&whole, directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

/// Makes the smallest Debian 12 with these packages in `root`, from the mirror that this machine's apt has it from.
///
/// # Errors
///
/// Without debootstrap, or if it fails.
pub(crate) fn debootstrap(root: &Path, included: &str) -> Result<()> {
    ensure!(find_program("debootstrap").is_some(), "it is missing: apt-get install debootstrap");
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={included}"), RELEASE]).arg(root);
    // Without one, debootstrap takes its own.
    run_quietly("debootstrap", command.args(mirror(RELEASE)))
}

/// Where apt's lists of a suite come from, such as [`RELEASE`]; `None` where it has none.
pub(crate) fn mirror(suite: &str) -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]);
    let lists = capture(&mut command)?;
    lists.lines().find_map(|line| line.strip_prefix(&format!("{suite} main "))).map(str::to_owned)
}

fn known(packages: &[&str]) -> bool {
    packages.iter().all(|package| candidate(package).is_some())
}

/// The version that apt would install.
fn candidate(package: &str) -> Option<String> {
    let policy = capture(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_that_removes_a_package_is_refused() {
        assert!(removes_nothing("Inst cpio (2.13)\nConf cpio (2.13)\n"));
        assert!(removes_nothing("Remv busybox [1:1.35.0]\nInst busybox-static (1:1.35.0)\n"));
        assert!(!removes_nothing("Remv qemu-system-x86 [1:7.2]\nInst qemu-utils (1:10.0)\n"));
    }

    #[test]
    fn qemus_tools_are_downgraded_only_where_nothing_gentler_works() {
        let ways = ways(&[QEMU, QEMU_UTILS, "cpio"], Some("1:7.2"));
        assert_eq!(ways[0], [QEMU, QEMU_UTILS, "cpio"]);
        assert_eq!(ways[1], [QEMU, "cpio"]);
        assert_eq!(ways[2], [QEMU, "cpio", "--allow-downgrades", "qemu-utils=1:7.2"]);
        assert_eq!(super::ways(&["cpio"], Some("1:7.2")), [["cpio"]]);
    }
}
