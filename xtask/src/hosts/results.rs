//! What was played of each host, kept from run to run: the document tells of all of them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::catalogue::Host;
use super::cell::Cell;

/// A host's cells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Played {
    /// The host's name.
    pub(super) host: String,
    /// Its kernel, as `uname -r` prints it.
    pub(super) kernel: String,
    /// Its guests' QEMU, as that calls itself.
    pub(super) qemu: String,
    /// When.
    pub(super) on: String,
    /// The CRC of the daemon's program.
    pub(super) daemon_crc32: u32,
    /// In the order in which they came.
    pub(super) cells: Vec<Cell>,
}

/// The directory of these.
#[derive(Debug)]
pub(super) struct Results(PathBuf);

impl Results {
    /// Makes it if it is not there.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// What was played of a host; nothing if that is none, or of another form.
    pub(super) fn of(&self, host: &Host) -> Option<Played> {
        serde_json::from_str(&std::fs::read_to_string(self.path(host.name)).ok()?).ok()
    }

    /// Keeps what was played. Cells that were not played now stay what they were, with the same kernel, QEMU and
    /// daemon.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub(super) fn keep(&self, host: &Host, played: &Played) -> Result<()> {
        let path = self.path(host.name);
        let mut whole = match self.of(host) {
            Some(before) => merged(before, played),
            None => played.clone(),
        };
        // What is as is due needs no explanation.
        for cell in whole.cells.iter_mut().filter(|cell| cell.as_due != Some(false)) {
            cell.detail = None;
        }
        std::fs::write(&path, serde_json::to_string_pretty(&whole)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(&self, host: &str) -> PathBuf {
        // A version's last number is no extension.
        self.0.join(format!("{host}.json"))
    }
}

fn merged(before: Played, played: &Played) -> Played {
    let mut whole = played.clone();
    let with = |played: &Played| (played.kernel.clone(), played.qemu.clone(), played.daemon_crc32);
    if with(&before) == with(played) {
        let is_new = |cell: &Cell| !played.cells.iter().any(|other| other.column == cell.column);
        whole.cells.extend(before.cells.into_iter().filter(is_new));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    fn played(kernel: &str, cells: &[(&str, &str)]) -> Played {
        let cells = cells.iter().map(|(column, text)| Cell::played(column, *text, true)).collect();
        Played {
            host: "linux-6".to_owned(),
            kernel: kernel.to_owned(),
            qemu: "7.2".to_owned(),
            on: String::new(),
            daemon_crc32: 1,
            cells,
        }
    }

    #[test]
    fn cells_of_the_same_kernel_are_kept_and_those_of_another_are_not() {
        let before = played("6.18", &[("halt", "old"), ("idle", "old")]);
        let whole = merged(before.clone(), &played("6.18", &[("halt", "new")]));
        let texts: Vec<&str> = whole.cells.iter().map(|cell| cell.text.as_str()).collect();
        assert_eq!(texts, ["new", "old"]);
        assert_eq!(merged(before, &played("6.19", &[("halt", "new")])).cells.len(), 1);
    }

    #[test]
    fn hosts_whose_versions_begin_alike_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let results = Results::new(dir.path().to_owned()).unwrap();
        let host = |name| Host { name, ..catalogue::HOSTS[0] };
        results.keep(&host("linux-6.12"), &played("6.12", &[("halt", "a")])).unwrap();
        assert_eq!(results.of(&host("linux-6.12")).map(|played| played.cells.len()), Some(1));
        assert_eq!(results.of(&host("linux-6.1")), None);
        assert_eq!(results.of(&host("linux-6")), None);
    }
}
