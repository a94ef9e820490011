//! A standard library and a C compiler out of Debian's packages, unpacked below a directory; nothing is installed.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt;
use crate::architecture::Architecture;
use crate::packages::Packages;
use crate::process::{capture, heading};

/// Debian's compiler that is recent enough, and its standard library.
const RUSTC: &str = "rustc-web";
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";
/// Where both are installed.
const RUSTLIB: &str = "usr/lib/rustlib";
/// Debian 12's GCC, which its packages have in their names.
const GCC: &str = "gcc-12";
/// What GCC and its assembler and linker are linked to; the rest each Debian has.
const LIBRARIES: [&str; 7] = [
    "libbinutils",
    "binutils-common",
    "libisl23",
    "libmpfr6",
    "libmpc3",
    "libgmp10",
    "libjansson4",
];
/// What is needed of them.
const TOOLS: [&str; 5] = ["gcc", "ar", "ld", "strip", "readelf"];

/// The installed compiler with that architecture's standard library, fetched once into `dir`: returns what runs it so.
///
/// # Errors
///
/// If the compiler is not installed, or Debian has that library in another version only.
pub(super) fn compiler(architecture: Architecture, dir: &Path) -> Result<PathBuf> {
    let version = capture(Command::new("dpkg-query").args(["-W", "-f", "${Version}", RUSTC]));
    let version = version.with_context(|| format!("{RUSTC} is not installed"))?;
    let place = dir.join(format!("{}-std-{version}", architecture.name()));
    let rustc = place.join("rustc");
    if rustc.exists() {
        return Ok(rustc);
    }
    // A library of another version is none for this compiler.
    let package = format!("{STANDARD_LIBRARY}:{}={version}", architecture.debian());
    heading(&format!("downloading {package}"));
    packages(architecture, dir)?.unpack(&package, &place).with_context(|| {
        format!("{RUSTC} is installed as {version}: an older one is upgraded by apt-get")
    })?;
    let others = std::fs::read_dir(Path::new("/").join(RUSTLIB)).context("no rustlib")?;
    for other in others {
        let name = other?.file_name();
        let link = place.join(RUSTLIB).join(&name);
        if !link.exists() {
            symlink(Path::new("/").join(RUSTLIB).join(&name), link)?;
        }
    }
    let sysroot = place.join("usr");
    let script =
        format!("#!/bin/sh\nexec /usr/bin/rustc --sysroot '{}' \"$@\"\n", sysroot.display());
    // Last, as what says that all is there.
    put_script(&rustc, &script)?;
    Ok(rustc)
}

/// GCC with what it needs to compile and to link, fetched once into `dir`: returns the directory of programs that run it.
///
/// # Errors
///
/// If the packages can't be had, or do nothing here.
pub(super) fn binutils(architecture: Architecture, dir: &Path) -> Result<PathBuf> {
    let root = dir.join(format!("{}-gcc", architecture.name()));
    let programs = root.join("programs");
    if programs.exists() {
        return Ok(programs);
    }
    heading(&format!("downloading GCC for {}", architecture.name()));
    let packages = packages(architecture, dir)?;
    let place = tempfile::Builder::new().prefix(".gcc-").tempdir_in(dir)?;
    let names = needed(architecture);
    packages.unpack_each(&names, place.path())?;
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    std::fs::rename(place.keep(), &root)?;
    let made = root.join("new");
    std::fs::create_dir(&made)?;
    for tool in TOOLS {
        let name = format!("{}-linux-gnu-{tool}", architecture.name());
        put_script(&made.join(&name), &script(&root, architecture, &name, tool))?;
    }
    let gcc = made.join(format!("{}-linux-gnu-gcc", architecture.name()));
    ensure!(capture(Command::new(gcc).arg("--version")).is_some(), "the fetched GCC does not run");
    std::fs::rename(&made, &programs)?;
    Ok(programs)
}

/// The packages, by the architecture that each runs on: this machine's.
fn needed(architecture: Architecture) -> Vec<String> {
    let (name, debian) = (architecture.name(), architecture.debian());
    let mut names = vec![
        format!("{GCC}-{name}-linux-gnu"),
        format!("{}-{name}-linux-gnu", GCC.replace("gcc", "cpp")),
        format!("binutils-{name}-linux-gnu"),
        format!("libc6-{debian}-cross"),
        format!("libc6-dev-{debian}-cross"),
        format!("libgcc-s1-{debian}-cross"),
        format!("lib{GCC}-dev-{debian}-cross"),
        format!("linux-libc-dev-{debian}-cross"),
    ];
    names.extend(LIBRARIES.map(str::to_owned));
    names
}

/// What runs a tool from where it is unpacked. Without it, GCC would take this machine's own headers, assembler and linker.
fn script(root: &Path, architecture: Architecture, name: &str, tool: &str) -> String {
    let (root, own) = (root.display(), Architecture::OWN.name());
    let arguments = match tool {
        "gcc" => {
            format!("-12 --sysroot='{root}' -B'{root}/usr/{}-linux-gnu/bin'", architecture.name())
        }
        _ => String::new(),
    };
    format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH='{root}/usr/lib/{own}-linux-gnu'\n\
         exec '{root}/usr/bin/{name}'{arguments} \"$@\"\n"
    )
}

fn put_script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Debian 12's packages of this machine's architecture and of the other, with those that were mended since.
fn packages(architecture: Architecture, dir: &Path) -> Result<Packages> {
    let security = format!("{}-security", apt::RELEASE);
    let suites: Vec<&str> = [apt::RELEASE, &security]
        .into_iter()
        .filter(|suite| apt::mirror(suite).is_some())
        .collect();
    Packages::new(&dir.join("apt"), &suites, &[Architecture::OWN, architecture])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_of_a_cross_compiler_are_named_after_both_architectures_names() {
        let names = needed(Architecture::Aarch64);
        for name in
            ["gcc-12-aarch64-linux-gnu", "libgcc-12-dev-arm64-cross", "libc6-dev-arm64-cross"]
        {
            assert!(names.iter().any(|each| each == name), "{name}: {names:?}");
        }
        let script = script(Path::new("/r"), Architecture::Aarch64, "aarch64-linux-gnu-gcc", "gcc");
        assert!(
            script.contains("'/r/usr/bin/aarch64-linux-gnu-gcc'-12 --sysroot='/r'"),
            "{script}"
        );
    }
}
