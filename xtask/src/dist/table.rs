//! What a package has in it: the table `[package.metadata.deb]` of its `Cargo.toml`, in cargo-deb's words.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{capture, cargo_command};

/// A package of the workspace that is packaged for Debian.
#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) description: String,
    manifest_path: PathBuf,
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    deb: Deb,
}

/// Those of cargo-deb's keys that are in use here; another one is a mistake, since it would do nothing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Deb {
    pub(super) maintainer: String,
    /// For cargo-deb, which insists on it; the file `copyright` says it here.
    #[serde(rename = "copyright")]
    _copyright: String,
    pub(super) section: String,
    pub(super) priority: String,
    /// Of the package, beside the program's version.
    pub(super) revision: String,
    pub(super) changelog: PathBuf,
    /// `$auto` stands for the libraries that the programs need.
    #[serde(default)]
    pub(super) depends: String,
    pub(super) recommends: Option<String>,
    pub(super) suggests: Option<String>,
    pub(super) extended_description: String,
    maintainer_scripts: Option<PathBuf>,
    pub(super) assets: Vec<Asset>,
}

/// A file or, with a `*` in its name, several: where they are, where they go, and their mode in octal.
#[derive(Debug, Deserialize)]
pub(super) struct Asset(pub(super) String, pub(super) String, pub(super) String);

impl Package {
    /// The package of that name.
    pub(super) fn read(name: &str) -> Result<Self> {
        let mut command = cargo_command(["metadata", "--no-deps", "--format-version=1"]);
        let metadata = capture(&mut command).context("cargo metadata failed")?;
        let mut metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("cargo metadata is no JSON")?;
        let packages = metadata["packages"].as_array_mut().context("cargo named no packages")?;
        let package = packages.iter_mut().find(|package| package["name"] == name);
        let package = package.with_context(|| format!("there is no package {name}"))?.take();
        serde_json::from_value(package)
            .with_context(|| format!("[package.metadata.deb] of {name} is not understood"))
    }

    pub(super) fn deb(&self) -> &Deb {
        &self.metadata.deb
    }

    /// The program's version with the package's own revision.
    pub(super) fn full_version(&self) -> String {
        format!("{}-{}", self.version, self.deb().revision)
    }

    /// What the table's paths are relative to.
    pub(super) fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }

    /// The scripts that run when it is installed and removed.
    pub(super) fn scripts(&self) -> Option<PathBuf> {
        Some(self.directory().join(self.deb().maintainer_scripts.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::Package;

    #[test]
    fn both_packages_have_a_table_that_is_understood() {
        for name in ["flatline", "flatline-heartbeat"] {
            let package = Package::read(name).expect("a table");
            assert!(!package.deb().assets.is_empty());
            let changelog = package.directory().join(&package.deb().changelog);
            let changelog = std::fs::read_to_string(changelog).expect("a changelog");
            let first = format!("{name} ({}) ", package.full_version());
            assert!(changelog.starts_with(&first), "{first}: {changelog}");
            // Policy has a line of at most 80 characters.
            assert!(package.description.len() < 80, "{}", package.description);
            for line in package.deb().extended_description.lines() {
                assert!(!line.is_empty() && line.len() < 80, "{line:?}");
            }
        }
    }
}
