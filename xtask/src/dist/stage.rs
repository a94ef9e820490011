//! Puts a package's files where its table says, as they will be installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::afresh;
use super::table::{Asset, Package};
use crate::process;

/// What stands before the program in a table: cargo-deb puts the real directory in its place, and so is it done here.
const BUILT: &str = "target/release/";

/// Makes `root` the tree of the package's files; `program` is the one that its table has in `target/release`, and `strip`
/// what strips it.
pub(super) fn stage(package: &Package, program: &Path, root: &Path, strip: &Path) -> Result<()> {
    afresh(root)?;
    for Asset(source, destination, mode) in &package.deb().assets {
        let mode = u32::from_str_radix(mode, 8).with_context(|| format!("{source}: {mode:?}"))?;
        let is_built = source.starts_with(BUILT);
        let sources = match source.strip_prefix(BUILT) {
            Some(name) => {
                ensure!(
                    program.file_name().is_some_and(|file| file == name),
                    "nothing builds {name}"
                );
                vec![program.to_owned()]
            }
            None => matching(&package.directory().join(source))?,
        };
        for source in sources {
            let target = place(root, destination, &source)?;
            put(&source, &target, mode, is_built.then_some(strip))?;
        }
    }
    let changelog = package.directory().join(&package.deb().changelog);
    let place = root.join("usr/share/doc").join(&package.name).join("changelog.Debian");
    put(&changelog, &place, 0o644, None)
}

/// The file, or all files of its directory that match the one `*` in its name, in order.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>> {
    let name = pattern.file_name().and_then(|name| name.to_str()).context("a nameless file")?;
    let Some((begin, end)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let directory = pattern.parent().context("a file without a directory")?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("no {}", directory.display()))? {
        let path = entry?.path();
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let rest = file.strip_prefix(begin);
        if path.is_file() && rest.is_some_and(|rest| rest.ends_with(end)) {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("nothing matches {}", pattern.display());
    }
    found.sort();
    Ok(found)
}

/// Where a file goes: into a destination that ends with a slash, or else to that name.
fn place(root: &Path, destination: &str, source: &Path) -> Result<PathBuf> {
    let target = root.join(destination);
    if !destination.ends_with('/') {
        return Ok(target);
    }
    Ok(target.join(source.file_name().context("a nameless file")?))
}

fn put(source: &Path, target: &Path, mode: u32, strip: Option<&Path>) -> Result<()> {
    let parent = target.parent().context("a file without a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::copy(source, target)
        .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))?;
    if let Some(strip) = strip {
        process::run(Command::new(strip).arg("--strip-unneeded").arg(target))?;
    }
    fs::set_permissions(target, fs::Permissions::from_mode(mode))?;
    if is_compressed(target) {
        // Without name and time, so that the same files make the same package.
        process::run(Command::new("gzip").args(["-9", "-n", "-f"]).arg(target))?;
    }
    Ok(())
}

/// What Debian wants compressed (Policy 12.1 and 12.7), and cargo-deb compresses.
fn is_compressed(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/usr/share/man/")
        || (text.contains("/usr/share/doc/")
            && ["/changelog", "/changelog.Debian"].iter().any(|name| text.ends_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_all_files_of_its_directory_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.md", "a.md", "c.html"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let names = |pattern| {
            let found = matching(&directory.path().join(pattern))?;
            anyhow::Ok(
                found.iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(names("*.md").unwrap(), ["a.md", "b.md"]);
        assert_eq!(names("c.html").unwrap(), ["c.html"]);
        assert!(names("*.css").is_err());
    }

    #[test]
    fn a_destination_with_a_slash_keeps_the_name() {
        let place = |destination| place(Path::new("/r"), destination, Path::new("/s/x")).unwrap();
        assert_eq!(place("usr/bin/"), Path::new("/r/usr/bin/x"));
        assert_eq!(place("usr/bin/y"), Path::new("/r/usr/bin/y"));
    }
}
