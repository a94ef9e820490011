//! Programs that single tests need, from packages that start services when they are installed, and what single scenarios
//! boot: these are unpacked below `target/tools`, once, where [`flatline_tests::tools`] and [`flatline_tests::media`] find
//! them.

use anyhow::{Result, bail};
use flatline_tests::media::Medium;
use flatline_tests::tools::{self, Tool};

use crate::apt;
use crate::process::{find_program, heading};

/// Packages of which a program is neither unpacked nor installed.
pub(crate) fn missing() -> Vec<&'static str> {
    missing_of(&tools::ALL, |tool| tool.find().is_some())
}

fn missing_of(all: &[Tool], there: impl Fn(Tool) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        all.iter().filter(|tool| !there(**tool)).map(|tool| tool.package).collect();
    packages.dedup();
    packages
}

/// Packages of which a medium is not unpacked.
pub(crate) fn missing_media(media: &[Medium]) -> Vec<&'static str> {
    let missing = media.iter().filter(|medium| medium.find().is_none());
    let mut packages: Vec<_> = missing.map(|medium| medium.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Fetches what is missing. What can't be had is said, and is no error: its tests say *ignored*.
pub(crate) fn fetch() {
    fetch_packages("programs that tests need, without installing them", &missing());
}

/// The same of media: scenarios that need what can't be had are not played.
pub(crate) fn fetch_media(media: &[Medium]) {
    fetch_packages("what guests boot, without installing it", &missing_media(media));
}

fn fetch_packages(what: &str, packages: &[&str]) {
    if packages.is_empty() {
        return;
    }
    heading(what);
    if let Err(error) = fetch_all(packages) {
        eprintln!("going on without {}: {error:#}", packages.join(" "));
    }
}

fn fetch_all(packages: &[&str]) -> Result<()> {
    for program in ["apt-get", "dpkg-deb"] {
        if find_program(program).is_none() {
            bail!("there is no {program}");
        }
    }
    // A fresh machine's lists are empty, and an old one's name packages that are gone.
    if apt::offered(packages, false) && unpack_all(packages).is_ok() {
        return Ok(());
    }
    apt::renew_lists()?;
    unpack_all(packages)
}

fn unpack_all(packages: &[&str]) -> Result<()> {
    packages.iter().try_for_each(|package| apt::unpack(package, &tools::directory().join(package)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_fetched_once_for_all_its_programs() {
        assert_eq!(missing_of(&tools::ALL, |_| true), [""; 0]);
        let packages =
            ["prometheus", "prometheus-alertmanager", "qemu-system-arm", "qemu-system-misc"];
        assert_eq!(missing_of(&tools::ALL, |_| false), packages);
    }
}
