//! `cargo xtask setup`: finds what the build and the tests need, and installs what is missing.
//!
//! In three steps, so that the two that matter can be tested: [`Facts::gather`] looks at the machine,
//! [`missing`] and [`plan`] decide without touching anything, and [`bring`] carries the plan out.
//! A plan is either carried out or printed whole: a person who has to type some of it anyway should
//! see all of it. The machine's mounts, its kernel and its configuration are left alone.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use flatline_tests::media;

use crate::apt::{self, QEMU, QEMU_UTILS};
use crate::build_ebpf::Toolchain;
use crate::process::{self, capture, find_program, heading, run_quietly};
use crate::{lint, tools};

/// A program, the package that it comes in, and what it is for.
struct Program {
    name: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
    /// Without what is not required, some tests are skipped, and say so.
    required: bool,
}

/// Debian's names of packages. The newest backport of qemu-utils conflicts with qemu-system-x86, and
/// apt removes one for the other unless it is asked for both.
const PROGRAMS: &[Program] = &[
    Program {
        name: "qemu-system-x86_64",
        packages: &[QEMU, QEMU_UTILS],
        purpose: "runs the guests of the tests",
        required: true,
    },
    Program {
        name: "bpftool",
        packages: &["bpftool"],
        purpose: "shows the pinned maps",
        required: true,
    },
    Program {
        name: "busybox",
        packages: &["busybox-static"],
        purpose: "the guests' user space",
        required: true,
    },
    Program {
        name: "cpio",
        packages: &["cpio"],
        purpose: "packs the guests' initramfs",
        required: true,
    },
    Program {
        name: "make",
        packages: &["make"],
        purpose: "builds the guests' own kernel module",
        required: true,
    },
    Program {
        name: "gcc",
        packages: &["gcc", "libc6-dev"],
        purpose: "compiles it",
        required: true,
    },
    Program {
        name: "ip",
        packages: &["iproute2"],
        purpose: "makes the tests' taps and bridges",
        required: true,
    },
    Program {
        name: "nsenter",
        packages: &["util-linux"],
        purpose: "enters a network namespace",
        required: true,
    },
    Program {
        name: "mkfs.xfs",
        packages: &["xfsprogs"],
        purpose: "makes a test's disks; optional",
        required: false,
    },
    Program {
        name: "libvirtd",
        packages: &["libvirt-daemon", "libvirt-daemon-driver-qemu"],
        purpose: "runs a test's own domains; optional",
        required: false,
    },
    Program {
        name: "virsh",
        packages: &["libvirt-clients"],
        purpose: "speaks to it; optional",
        required: false,
    },
    Program {
        name: "tmux",
        packages: &["tmux"],
        purpose: "the terminal of a test; optional",
        required: false,
    },
    Program {
        name: "mkfs.btrfs",
        packages: &["btrfs-progs"],
        purpose: "makes a test's disks; optional",
        required: false,
    },
];

const BPF_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
const CLIPPY_PACKAGES: &[&str] = &["rust-web-clippy"];
const BPF_LINKER: &str = "0.10.0";
const INSTALL_LINKER: &str = "cargo install bpf-linker --version 0.10.0 --locked";
const INSTALL_NIGHTLY: &str = "rustup toolchain install nightly --component rust-src";

/// What there is on this machine.
#[derive(Clone, Debug)]
struct Facts {
    /// Names of [`PROGRAMS`] that weren't found; a busybox that isn't static counts as missing.
    absent: Vec<&'static str>,
    /// What `bpf-linker --version` says.
    linker: Option<String>,
    /// The chosen compiler, or what each one lacks.
    toolchain: Result<Toolchain, Vec<String>>,
    /// Whether clippy can judge the programs for their own target.
    bpf_clippy: bool,
    /// `FLATLINE_GUEST_KERNEL` names one, or apt and dpkg can fetch one.
    guest_kernel: bool,
}

/// What may be done about it.
#[derive(Clone, Copy, Debug)]
struct Means {
    apt: bool,
    root: bool,
}

/// One thing that is missing, and what would bring it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    what: String,
    cure: Cure,
    required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cure {
    Packages(&'static [&'static str]),
    /// Packages where apt has them, and rustup's nightly elsewhere.
    Compiler,
    Linker,
    Kernel,
}

/// What will be done, or what a person has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    packages: Vec<&'static str>,
    /// Asked for apart: their failure is no one's.
    optional_packages: Vec<&'static str>,
    linker: bool,
    /// Commands to type, in order; nothing is done by itself while there are any.
    by_hand: Vec<String>,
}

impl Facts {
    fn gather() -> Self {
        let there = |program: &Program| match (program.name, find_program(program.name)) {
            ("busybox", Some(path)) => is_static(&path),
            (_, path) => path.is_some(),
        };
        let absent = PROGRAMS.iter().filter(|program| !there(program)).map(|program| program.name);
        let linker = find_program("bpf-linker");
        let toolchain = Toolchain::find();
        let fetches = ["apt-get", "dpkg"].iter().all(|name| find_program(name).is_some());
        Self {
            absent: absent.collect(),
            linker: linker.and_then(|path| capture(Command::new(path).arg("--version"))),
            bpf_clippy: toolchain.as_ref().is_ok_and(|found| lint::bpf_clippy(found).is_ok()),
            toolchain,
            guest_kernel: fetches || std::env::var_os("FLATLINE_GUEST_KERNEL").is_some(),
        }
    }
}

fn missing(facts: &Facts) -> Vec<Missing> {
    let required = |what: String, cure| Missing { what, cure, required: true };
    let absent = PROGRAMS.iter().filter(|program| facts.absent.contains(&program.name));
    let mut missing: Vec<Missing> = absent
        .map(|program| {
            let what = format!("{} ({})", program.name, program.purpose);
            let cure = Cure::Packages(program.packages);
            Missing { what, cure, required: program.required }
        })
        .collect();
    match &facts.toolchain {
        Err(lacking) => {
            let what = format!("a compiler that can build for BPF ({})", lacking.join("; "));
            missing.push(required(what, Cure::Compiler));
        }
        Ok(found) if !facts.bpf_clippy && found.rustc == Path::new("/usr/bin/rustc") => {
            let what = "clippy for the BPF target (optional)".to_owned();
            let cure = Cure::Packages(CLIPPY_PACKAGES);
            missing.push(Missing { what, cure, required: false });
        }
        Ok(_) => {}
    }
    let series = BPF_LINKER.rsplit_once('.').map_or(BPF_LINKER, |(series, _)| series);
    let version = facts.linker.as_deref().and_then(|line| line.strip_prefix("bpf-linker "));
    if !version.is_some_and(|version| version.starts_with(&format!("{series}."))) {
        let found = facts.linker.as_deref().unwrap_or("none");
        missing.push(required(format!("bpf-linker {series}.x (found: {found})"), Cure::Linker));
    }
    if !facts.guest_kernel {
        let what = "a guest kernel (neither apt-get and dpkg nor FLATLINE_GUEST_KERNEL)";
        missing.push(required(what.to_owned(), Cure::Kernel));
    }
    missing
}

/// `offered` tells whether apt has all of these packages.
fn plan(missing: &[Missing], means: Means, offered: impl Fn(&[&str]) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut nightly = false;
    let mut kernel = false;
    for lack in missing {
        match lack.cure {
            Cure::Packages(names) if lack.required => plan.packages.extend(names),
            Cure::Packages(names) if means.apt && means.root && offered(names) => {
                plan.optional_packages.extend(names);
            }
            Cure::Packages(_) => {}
            Cure::Compiler if means.apt && offered(BPF_PACKAGES) => {
                plan.packages.extend(BPF_PACKAGES);
            }
            Cure::Compiler => nightly = true,
            Cure::Linker => plan.linker = true,
            Cure::Kernel => kernel = true,
        }
    }
    let can_install = plan.packages.is_empty() || (means.apt && means.root);
    if !can_install || nightly || kernel {
        if !plan.packages.is_empty() {
            let sudo = if means.root { "" } else { "sudo " };
            let note = if means.apt { "" } else { "   # or your distribution's packages of these" };
            plan.by_hand.push(format!(
                "{sudo}apt-get install --no-install-recommends {}{note}",
                plan.packages.join(" ")
            ));
        }
        if nightly {
            plan.by_hand.push(INSTALL_NIGHTLY.to_owned());
        }
        if plan.linker {
            plan.by_hand.push(INSTALL_LINKER.to_owned());
        }
        if kernel {
            plan.by_hand.push("export FLATLINE_GUEST_KERNEL=/path/to/a/kernel".to_owned());
        }
    }
    plan
}

/// Makes sure that all that is required is there.
///
/// Silent, and done within a fraction of a second, when nothing is missing.
pub(crate) fn ensure() -> Result<()> {
    let mut lacks = missing(&Facts::gather());
    lacks.retain(|lack| lack.required);
    bring(&lacks, false)
}

/// Like [`ensure`], and tries to bring what is optional too; its absence is no error.
pub(crate) fn ensure_with_optional() -> Result<()> {
    bring(&missing(&Facts::gather()), false)?;
    // Only a compiler that is there can lack its clippy.
    bring(&missing(&Facts::gather()), false)
}

/// `cargo xtask setup`: brings everything, or with `dry_run` only tells what it would do.
pub(crate) fn task(dry_run: bool) -> Result<()> {
    let facts = Facts::gather();
    let lacks = missing(&facts);
    let packages = [tools::missing(), tools::missing_media(&media::ALL)].concat();
    if lacks.is_empty() && packages.is_empty() {
        eprintln!("nothing is missing");
    }
    bring(&lacks, dry_run)?;
    if !dry_run {
        ensure_with_optional()?;
        tools::fetch();
        tools::fetch_media(&media::ALL);
    } else if !packages.is_empty() {
        eprintln!("would unpack without installing: {}", packages.join(" "));
    }
    if let Ok(toolchain) = facts.toolchain.or_else(|_| Toolchain::find()) {
        eprintln!("for BPF: {}", toolchain.describe());
    }
    Ok(())
}

fn bring(lacks: &[Missing], dry_run: bool) -> Result<()> {
    if lacks.is_empty() {
        return Ok(());
    }
    let means = Means {
        apt: find_program("apt-get").is_some(),
        // A process's directory belongs to its effective user (proc(5)).
        root: std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0),
    };
    heading("setting up");
    lacks.iter().for_each(|lack| eprintln!("missing: {}", lack.what));
    // What is merely optional is not worth the wait.
    let may_renew = |packages: &[&str]| means.root && !dry_run && packages == BPF_PACKAGES;
    let plan = plan(lacks, means, |packages| apt::offered(packages, may_renew(packages)));
    if !plan.by_hand.is_empty() {
        bail!("these commands would bring what is missing:\n  {}", plan.by_hand.join("\n  "));
    }
    if dry_run {
        for packages in [&plan.packages, &plan.optional_packages] {
            if !packages.is_empty() {
                eprintln!("would run: apt-get install {}", packages.join(" "));
            }
        }
        if plan.linker {
            eprintln!("would run: {INSTALL_LINKER}");
        }
        return Ok(());
    }
    carry_out(&plan)?;
    let left = missing(&Facts::gather()).into_iter().filter(|lack| lack.required);
    let left: Vec<String> = left.map(|lack| lack.what).collect();
    if !left.is_empty() {
        bail!("installed all that was asked for, and still missing: {}", left.join(", "));
    }
    Ok(())
}

fn carry_out(plan: &Plan) -> Result<()> {
    if !plan.packages.is_empty() {
        apt::install(&plan.packages)?;
    }
    if !plan.optional_packages.is_empty()
        && let Err(error) = apt::install(&plan.optional_packages)
    {
        eprintln!("going on without {}: {error:#}", plan.optional_packages.join(" "));
    }
    if plan.linker {
        let mut command = process::cargo_command(INSTALL_LINKER.split(' ').skip(1));
        // An older one may be in the way.
        command.arg("--force").env_remove("CARGO_TARGET_DIR");
        run_quietly("installing bpf-linker (some minutes)", &mut command)?;
    }
    Ok(())
}

/// Whether the file is a program without a dynamic loader: a guest has no libraries.
fn is_static(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| asks_for_no_loader(&bytes))
}

/// Looks for `PT_INTERP` in a 64-bit little-endian ELF file's program headers (elf(5)); anything
/// else is taken for not static.
fn asks_for_no_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let types = || {
        let start = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
        let (start, size) = (usize::try_from(start).ok()?, usize::from(half(54)?));
        (0..usize::from(half(56)?))
            .map(|n| {
                let at = start.checked_add(n * size)?;
                Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?))
            })
            .collect::<Option<Vec<u32>>>()
    };
    elf.starts_with(b"\x7fELF\x02\x01")
        && types().is_some_and(|types| !types.is_empty() && !types.contains(&PT_INTERP))
}

#[cfg(test)]
#[path = "setup_tests.rs"]
mod tests;
