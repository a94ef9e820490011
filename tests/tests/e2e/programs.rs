//! Which eBPF programs hang on a tap, and which belong to a daemon: asked of the kernel itself.
//!
//! Several daemons may run at a time, all with programs of the same names. A daemon's own are told
//! by the maps that they use: those that it pinned.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use flatline_tests::{command, interrupt, netns::Tap};
use serde_json::Value;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const TCX: [u32; 2] = [46, 47];
/// Programs asked for at each hook; ours is one.
const MOST_PROGRAMS: usize = 16;

/// The `query` member of `union bpf_attr`, up to the last field that a query of tcx takes.
#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// What a daemon has in the kernel, by the kernel's ids.
#[derive(Debug)]
pub(crate) struct Holdings {
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
}

/// Ids of the programs at a tap, in both directions, whether through tcx or clsact.
pub(crate) fn on_tap(tap: &Tap) -> Result<Vec<u64>> {
    let name = tap.name().to_owned();
    tap.inside(move || {
        let interface = CString::new(name.clone())?;
        // SAFETY: `interface` is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
        ensure!(index != 0, "{name}: {}", std::io::Error::last_os_error());
        let mut ids = Vec::new();
        for direction in TCX {
            ids.extend(through_tcx(index, direction)?.into_iter().flatten());
        }
        // bpftool knows nothing of tcx before 7.3, hence the question above; of clsact it does.
        let output = command::run("bpftool", ["-j", "net", "show", "dev", name.as_str()])?;
        let network: Value = serde_json::from_slice(&output).context("bpftool printed no JSON")?;
        let filters = network.pointer("/0/tc").and_then(Value::as_array);
        let clsact = filters.into_iter().flatten().filter(|filter| {
            filter["kind"].as_str().is_some_and(|kind| kind.starts_with("clsact"))
        });
        ids.extend(clsact.filter_map(|filter| filter["id"].as_u64()));
        Ok(ids)
    })?
}

/// Why taps can't be counted through tcx here; `None`: they can.
pub(crate) fn why_no_tcx() -> Result<Option<String>> {
    // The loopback interface of every network namespace.
    const LOOPBACK: u32 = 1;
    let why = || "no tcx in this kernel (Linux 6.6)".to_owned();
    Ok(through_tcx(LOOPBACK, TCX[0])?.is_none().then(why))
}

/// Ids of the programs there; `None`: this kernel knows no tcx.
fn through_tcx(index: u32, direction: u32) -> Result<Option<Vec<u64>>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut query = ProgramQuery {
        target_ifindex: index,
        attach_type: direction,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(MOST_PROGRAMS)?,
        ..ProgramQuery::default()
    };
    // SAFETY: `query` is a whole attribute of the size given; `prog_ids` points to `count` ids, which
    // outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            std::mem::size_of::<ProgramQuery>(),
        )
    };
    if answer != 0 {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINVAL) => Ok(None),
            _ => Err(error).context("BPF_PROG_QUERY"),
        };
    }
    Ok(Some(ids.iter().take(query.count as usize).map(|id| u64::from(*id)).collect()))
}

impl Holdings {
    /// What the daemon whose maps are pinned below `bpffs_dir` holds; `taps` are attached to it alone.
    pub(crate) fn of(bpffs_dir: &Path, taps: &[&Tap]) -> Result<Self> {
        let mut pinned = BTreeSet::new();
        for entry in std::fs::read_dir(bpffs_dir).context("nothing is pinned")? {
            let path = entry?.path();
            // An iterator, and a directory of links: no maps.
            if path.ends_with("threads") || path.ends_with("links") {
                continue;
            }
            let arguments = ["-j", "map", "show", "pinned"].map(Into::into);
            let arguments = arguments.into_iter().chain([path.into_os_string()]);
            let output = command::run("bpftool", arguments)?;
            let map: Value = serde_json::from_slice(&output).context("bpftool printed no JSON")?;
            pinned.extend(map["id"].as_u64());
        }
        let mut holdings = Self { programs: BTreeSet::new(), maps: pinned.clone() };
        for program in shown("prog")? {
            let maps: BTreeSet<u64> = program["map_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .collect();
            if !maps.is_disjoint(&pinned) {
                holdings.programs.extend(program["id"].as_u64());
                holdings.maps.extend(maps);
            }
        }
        ensure!(!holdings.programs.is_empty(), "no program uses the maps {pinned:?}");
        for tap in taps {
            for id in on_tap(tap)? {
                let name = tap.name();
                ensure!(holdings.programs.contains(&id), "program {id} on {name} is another's");
            }
        }
        Ok(holdings)
    }

    /// Waits a moment, as the kernel takes its time, until none of it is left.
    pub(crate) fn wait_until_gone(&self) -> Result<()> {
        let mut left = (Vec::new(), Vec::new());
        let gone =
            interrupt::wait_until("end of all programs and maps", Duration::from_secs(5), || {
                left = (still_there("prog", &self.programs)?, still_there("map", &self.maps)?);
                Ok((left.0.is_empty() && left.1.is_empty()).then_some(()))
            });
        if let Err(error) = gone {
            bail!("{error:#}: left are the programs {:?} and the maps {:?}", left.0, left.1);
        }
        Ok(())
    }
}

fn still_there(kind: &str, ids: &BTreeSet<u64>) -> Result<Vec<Value>> {
    let ours = |object: &Value| object["id"].as_u64().is_some_and(|id| ids.contains(&id));
    Ok(shown(kind)?.into_iter().filter(ours).collect())
}

fn shown(kind: &str) -> Result<Vec<Value>> {
    let output = command::run("bpftool", ["-j", kind, "show"])?;
    serde_json::from_slice(&output).context("bpftool printed no JSON list")
}
