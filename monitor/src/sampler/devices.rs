//! Progress of the host's block devices, by the kernel's own account of them.

use std::{cell::RefCell, collections::HashMap, fs, path::Path, time::Duration};

/// What all block devices together show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// None has a request in flight.
    Idle,
    /// Those that have some completed others since the last look.
    Moving,
    /// Some device has requests in flight and completes none; or that can't be told.
    Stalled,
}

/// Looks older than this say nothing of now.
const RECENT: Duration = Duration::from_secs(5);
/// Within so short a time, a device that is well may complete nothing.
const LEAST_APART: Duration = Duration::from_millis(500);

/// Compares with its last look.
#[derive(Debug, Default)]
pub(crate) struct DeviceWatch {
    last: RefCell<Option<(Duration, HashMap<String, u64>)>>,
}

impl DeviceWatch {
    /// Looks at `/sys/block` at `now`; a few dozen small files, so only where something seems to be stalled.
    pub(crate) fn look(&self, now: Duration) -> Devices {
        match read(Path::new("/sys/block")) {
            Some(all) => self.judge(all, now),
            None => Devices::Stalled,
        }
    }

    fn judge(&self, all: Vec<Device>, now: Duration) -> Devices {
        let mut last = self.last.borrow_mut();
        let before = last
            .as_ref()
            .filter(|(then, _)| (LEAST_APART..=RECENT).contains(&now.saturating_sub(*then)));
        let moves = |device: &Device| {
            before
                .and_then(|(_, completed)| completed.get(&device.name))
                .is_some_and(|before| device.completed > *before)
        };
        let mut busy = all.iter().filter(|device| device.in_flight > 0).peekable();
        let standing = if busy.peek().is_none() {
            Devices::Idle
        } else if busy.all(moves) {
            Devices::Moving
        } else {
            Devices::Stalled
        };
        *last =
            Some((now, all.into_iter().map(|device| (device.name, device.completed)).collect()));
        standing
    }
}

/// One block device.
struct Device {
    name: String,
    in_flight: u64,
    /// Requests of any kind that it completed since it came.
    completed: u64,
}

/// `None` if some device can't be read.
fn read(directory: &Path) -> Option<Vec<Device>> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|device| {
            let path = device.path();
            let in_flight = fs::read_to_string(path.join("inflight")).ok()?;
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            parse(device.file_name().to_string_lossy().into_owned(), &in_flight, &stat)
        })
        .collect()
}

/// `inflight` has reads and writes; in `stat`, the completed reads, writes, discards and flushes stand at 0, 4,
/// 11 and 15 (Documentation/block/stat.rst and Documentation/ABI/stable/sysfs-block).
fn parse(name: String, in_flight: &str, stat: &str) -> Option<Device> {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        text.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
    };
    let (in_flight, stat) = (numbers(in_flight)?, numbers(stat)?);
    // Older kernels have no discards (4.18) or flushes (5.5).
    let at = |place: usize| stat.get(place).copied();
    let completed = at(0)? + at(4)? + at(11).unwrap_or_default() + at(15).unwrap_or_default();
    (in_flight.len() == 2).then(|| Device { name, in_flight: in_flight.iter().sum(), completed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn device(name: &str, in_flight: u64, completed: u64) -> Device {
        Device { name: name.to_owned(), in_flight, completed }
    }

    #[test]
    fn a_device_that_has_requests_and_completes_none_is_stalled() {
        let watch = DeviceWatch::default();
        let look = |second, loop0, vda| {
            watch.judge(vec![device("loop0", 3, loop0), device("vda", 1, vda)], TICK * second)
        };
        assert_eq!(look(0, 5, 5), Devices::Stalled, "nothing to compare with");
        assert_eq!(look(1, 6, 6), Devices::Moving);
        assert_eq!(look(2, 6, 9), Devices::Stalled);
        assert_eq!(look(20, 9, 19), Devices::Stalled, "the last look is too old");
        assert_eq!(watch.judge(vec![device("loop0", 0, 9)], TICK * 21), Devices::Idle);
    }

    #[test]
    fn the_kernels_files_are_understood_and_torn_ones_are_none() {
        let stat = " 10 0 80 5 20 0 160 7 0 9 12 3 0 24 1 4 6\n";
        let device = parse("vda".to_owned(), " 1 2\n", stat).unwrap();
        assert_eq!((device.in_flight, device.completed), (3, 10 + 20 + 3 + 4));
        let old = parse("vda".to_owned(), "0 0", "10 0 80 5 20 0 160 7 0 9 12").unwrap();
        assert_eq!(old.completed, 30);
        assert!(parse("vda".to_owned(), "0", stat).is_none());
        assert!(parse("vda".to_owned(), "0 0", "10 0 x").is_none());
    }

    #[test]
    fn this_machines_devices_can_be_read() {
        assert!(read(Path::new("/sys/block")).is_some_and(|devices| !devices.is_empty()));
        assert!(read(Path::new("/nonexistent")).is_none());
    }
}
