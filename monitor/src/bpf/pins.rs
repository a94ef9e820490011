//! What is pinned below `bpffs_dir`, and what an earlier daemon left there.
//!
//! ```text
//! vms life kvm heartbeats slots presence taps files in_flight in_flight_marks executables process_events layout    maps
//! threads                                an iterator, read like a file
//! links/GENERATION-PROGRAM               tracepoints
//! links/tap-NETNS-IFINDEX-{from,to}      taps, through tcx
//! ```
//!
//! Pinned links go on counting while no daemon runs. `layout` says what the pins were made by: of the
//! same layout, everything is taken over; of another one, nothing is.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData};
use monitor_ebpf::{LAYOUT_VERSION, Layout};
use tracing::debug;

use super::{OBJECT, ProbeError};
use crate::config::{ProbeLog, Probes};

/// The maps that all copies of the programs share, and the names they are pinned under.
pub(super) const SHARED_MAPS: [(&str, &str); 13] = [
    ("VMS", "vms"),
    ("LIFE", "life"),
    ("KVM", "kvm"),
    ("HEARTBEATS", "heartbeats"),
    ("SLOTS", "slots"),
    ("PRESENCE", "presence"),
    ("TAPS", "taps"),
    ("FILES", "files"),
    ("IN_FLIGHT", "in_flight"),
    ("IN_FLIGHT_MARKS", "in_flight_marks"),
    ("EXECUTABLES", "executables"),
    ("PROCESS_EVENTS", "process_events"),
    ("LAYOUT", "layout"),
];
/// The iterator over threads.
pub const THREADS: &str = "threads";
const LINKS: &str = "links";

/// The directory of the pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    dir: PathBuf,
}

/// What an earlier daemon left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing that can be taken over: all pins are removed.
    Nothing,
    /// Maps of this layout, and links of this generation.
    Maps {
        /// The generation of the block programs that counts.
        generation: u32,
        /// Whether the programs are the same as this daemon's.
        same_programs: bool,
    },
}

impl Pins {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn threads(&self) -> PathBuf {
        self.dir.join(THREADS)
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.dir.join(LINKS).join(name)
    }

    /// Makes the directory of links.
    pub(super) fn make(&self) -> Result<(), ProbeError> {
        let path = self.dir.join(LINKS);
        fs::create_dir_all(&path).map_err(|source| ProbeError::Path {
            what: "cannot make the directory",
            path,
            source,
        })
    }

    /// Looks at what is there, and removes what can't be taken over. The second is what an operator should
    /// know of it.
    pub(super) fn examine(&self, ours: &Layout) -> Result<(Left, Option<String>), ProbeError> {
        if !self.map("vms").exists() {
            self.remove_all()?;
            return Ok((Left::Nothing, None));
        }
        let found = self.layout().and_then(|map| map.get(&0, 0));
        let why = match found {
            Ok(theirs) if theirs.version != ours.version => {
                format!("layout {} instead of {}", theirs.version, ours.version)
            }
            Ok(theirs) if theirs.sizes != ours.sizes => "maps of other sizes".to_owned(),
            Ok(Layout { generation, programs, .. }) => {
                let same_programs = programs == ours.programs;
                return Ok((Left::Maps { generation, same_programs }, None));
            }
            Err(error) => format!("no layout that can be read ({error})"),
        };
        self.remove_all()?;
        Ok((Left::Nothing, Some(format!("its counters are given up: {why}"))))
    }

    /// Writes down what the pins are made by.
    pub(super) fn write_layout(&self, layout: Layout) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::Map { map: "layout", source };
        self.layout().map_err(failed)?.set(0, layout, 0).map_err(failed)
    }

    fn layout(&self) -> Result<Array<MapData, Layout>, aya::maps::MapError> {
        Array::try_from(Map::Array(MapData::from_pin(self.map("layout"))?))
    }

    /// Names of the pinned links.
    pub(super) fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(LINKS)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Removes one link's pin, if it is there; only a process that has it open holds the link then.
    pub(super) fn remove_link(&self, name: &str) -> Result<(), ProbeError> {
        remove_pin(&self.link(name))
    }

    /// Removes every pin of ours, and the directory if nothing else is in it.
    pub(super) fn remove_all(&self) -> Result<(), ProbeError> {
        for name in self.links() {
            self.remove_link(&name)?;
        }
        remove_pin(&self.threads())?;
        for (_, name) in SHARED_MAPS {
            remove_pin(&self.map(name))?;
        }
        // Others may keep something in them; then they stay.
        let _ = fs::remove_dir(self.dir.join(LINKS));
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

pub(super) fn remove_pin(path: &Path) -> Result<(), ProbeError> {
    match fs::remove_file(path) {
        Ok(()) => debug!("removed the pin {}", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let path = path.to_owned();
            return Err(ProbeError::Path { what: "cannot remove the pin", path, source });
        }
    }
    Ok(())
}

/// The layout of this binary under this configuration.
pub(super) fn layout(probes: &Probes) -> Layout {
    let Probes { log, max_vms, .. } = probes;
    let digest = |write: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        write(&mut hasher);
        hasher.finish()
    };
    Layout {
        version: LAYOUT_VERSION,
        generation: 0,
        sizes: digest(&|hasher| (max_vms, probes.taps(), probes.requests()).hash(hasher)),
        programs: digest(&|hasher| {
            OBJECT.hash(hasher);
            // Programs that log are heard only by the daemon that loaded them.
            if *log != ProbeLog::Off {
                std::process::id().hash(hasher);
            }
        }),
    }
}
