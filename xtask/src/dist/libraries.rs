//! Which packages of Debian's a program of another architecture depends on, by what its file says that it is linked to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::capture;

/// Libraries, their packages, and what stands before a version of their symbols.
const KNOWN: [(&str, &str, &str); 4] = [
    ("libc.so.6", "libc6", "GLIBC_"),
    ("libm.so.6", "libc6", "GLIBC_"),
    ("ld-linux-aarch64.so.1", "libc6", "GLIBC_"),
    ("libgcc_s.so.1", "libgcc-s1", "GCC_"),
];

/// The packages in the form of `Depends`, each with the version from which it has all symbols that are asked for.
///
/// # Errors
///
/// If a program needs a library that is none of glibc's or GCC's, or `readelf` fails.
pub(super) fn packages<'a>(
    programs: impl Iterator<Item = &'a PathBuf>,
    readelf: &Path,
) -> Result<String> {
    let mut all = BTreeMap::new();
    for program in programs {
        let mut command = Command::new(readelf);
        let text = capture(command.args(["--wide", "--dynamic", "--version-info"]).arg(program));
        let text = text.with_context(|| format!("readelf can't read {}", program.display()))?;
        add(&text, &mut all).with_context(|| program.display().to_string())?;
    }
    let of = |(package, version): (&&str, &Vec<u32>)| {
        let version: Vec<String> = version.iter().map(u32::to_string).collect();
        match version.join(".") {
            none if none.is_empty() => (*package).to_owned(),
            version => format!("{package} (>= {version})"),
        }
    };
    Ok(all.iter().map(of).collect::<Vec<_>>().join(", "))
}

/// Adds what `readelf` printed of a program: `(NEEDED) Shared library: [libc.so.6]`, and for each library
/// `Version: 1  File: libc.so.6  Cnt: 3` with lines `Name: GLIBC_2.34  Flags: none`.
fn add(text: &str, all: &mut BTreeMap<&'static str, Vec<u32>>) -> Result<()> {
    let known = |library: &str| KNOWN.iter().find(|(name, ..)| *name == library);
    for line in text.lines().filter(|line| line.contains("(NEEDED)")) {
        let library = line.split(['[', ']']).nth(1).context("a library without a name")?;
        let Some((_, package, _)) = known(library) else {
            bail!("it needs {library}, and which package has that is not known");
        };
        all.entry(package).or_default();
    }
    let after = |line: &str, word: &str| {
        let rest = line.split_once(word)?.1;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let mut current = None;
    for line in text.lines() {
        if let Some(library) = after(line, " File: ") {
            current = known(&library);
        }
        let (Some((_, package, before)), Some(name)) = (current, after(line, " Name: ")) else {
            continue;
        };
        let numbers = name.strip_prefix(before).unwrap_or_default().split('.');
        let version: Vec<u32> = numbers.filter_map(|number| number.parse().ok()).collect();
        let newest = all.entry(package).or_default();
        if version > *newest {
            *newest = version;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = " 0x0000000000000001 (NEEDED)  Shared library: [libgcc_s.so.1]\n \
        0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]\n\n\
        Version needs section '.gnu.version_r' contains 2 entries:\n \
        000000: Version: 1  File: libgcc_s.so.1  Cnt: 2\n  \
        0x0010:   Name: GCC_3.3  Flags: none  Version: 5\n  \
        0x0020:   Name: GCC_4.2.0  Flags: none  Version: 4\n  \
        0x0030: Version: 1  File: libc.so.6  Cnt: 2\n  \
        0x0040:   Name: GLIBC_2.17  Flags: none  Version: 3\n  \
        0x0050:   Name: GLIBC_2.34  Flags: none  Version: 2\n";

    #[test]
    fn a_program_depends_on_the_newest_symbols_that_it_asks_for() {
        let mut all = BTreeMap::new();
        add(PRINTED, &mut all).unwrap();
        assert_eq!(all["libc6"], [2, 34]);
        assert_eq!(all["libgcc-s1"], [4, 2, 0]);
        // 2.9 is older than 2.34.
        add(&PRINTED.replace("2.34", "2.9"), &mut all).unwrap();
        assert_eq!(all["libc6"], [2, 34]);
        let other = PRINTED.replace("libc.so.6]", "libssl.so.3]");
        assert!(add(&other, &mut BTreeMap::new()).is_err());
    }
}
