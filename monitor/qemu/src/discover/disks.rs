//! Which images a VM's disks are backed by, as far as its command line tells.
//!
//! What is firmware (`pflash`) or a CD-ROM is left out: neither says anything of how the guest
//! does. Overlays and backing files that QEMU finds inside an image are not on the command line.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::options::Members;

/// Block drivers that stand above another one; every other driver is where the bytes are.
const FORMATS_AND_FILTERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "luks",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "replication",
    "snapshot-access",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

/// Where one of a VM's disks is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Disk {
    /// The image as QEMU was told: a path (relative ones below QEMU's working directory), for
    /// network storage an address, or empty where there is neither.
    pub path: String,
    /// QEMU's block driver: `file`, `host_device`, `nbd`, `rbd`, .. For a plain file name QEMU
    /// looks at the file itself; here, anything below `/dev` but `/dev/shm` is a `host_device`.
    pub backend: String,
}

/// Nodes and drives that are named as firmware or CD-ROM by another option.
pub(super) type Excluded = BTreeSet<String>;

/// Adds to `excluded` what the excluded ones among `blockdevs` stand upon.
pub(super) fn exclude_below(blockdevs: &[Members], excluded: &mut Excluded) {
    // The order on the command line is bottom up, so one pass from its end goes all the way down.
    for blockdev in blockdevs.iter().rev() {
        if blockdev.get("node-name").is_some_and(|node| excluded.contains(node)) {
            excluded.extend(
                ["file", "backing"].iter().filter_map(|key| blockdev.get(key)).map(str::to_owned),
            );
        }
    }
}

/// The disk of a `-blockdev`; `None` if it is excluded or merely stands upon another node.
pub(super) fn of_blockdev(blockdev: &Members, excluded: &Excluded) -> Option<Disk> {
    if blockdev.get("node-name").is_some_and(|node| excluded.contains(node)) {
        return None;
    }
    innermost(blockdev)
}

/// The disk of a `-drive`; `None` if it is no disk, or an empty one.
pub(super) fn of_drive(drive: &Members, excluded: &Excluded) -> Option<Disk> {
    if drive.get("media") == Some("cdrom")
        || matches!(drive.get("if"), Some("pflash" | "floppy"))
        || drive.get("id").is_some_and(|id| excluded.contains(id))
    {
        return None;
    }
    match drive.get("file") {
        Some(file) => of_file_name(file),
        None => innermost(drive),
    }
}

/// The disk of a file name as `-hda` and `-drive file=` take it: a path, `driver:address`, or
/// `json:{..}`.
pub(super) fn of_file_name(name: &str) -> Option<Disk> {
    if let Some(json) = name.strip_prefix("json:") {
        return innermost(&Members::parse_json(json));
    }
    if name.is_empty() {
        return None;
    }
    // As in QEMU: it is a driver's name if the colon comes before any slash.
    let driver = name.split_once(':').filter(|(driver, _)| !driver.contains('/'));
    Some(match driver {
        Some(("file", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            Disk { path: path.to_owned(), backend: "file".to_owned() }
        }
        Some((driver, path)) if matches!(driver, "host_device" | "host_cdrom" | "fat") => {
            Disk { path: path.to_owned(), backend: driver.to_owned() }
        }
        Some((driver, _)) => {
            // `nbd+unix://..` is the driver nbd.
            let driver = driver.split('+').next().unwrap_or(driver);
            Disk { path: name.to_owned(), backend: driver.to_owned() }
        }
        None => Disk { path: name.to_owned(), backend: plain_file_backend(name).to_owned() },
    })
}

fn plain_file_backend(path: &str) -> &'static str {
    let is_device = path.starts_with("/dev/") && !path.starts_with("/dev/shm/");
    if is_device { "host_device" } else { "file" }
}

/// The protocol driver at the bottom of a node that is written out in full (`file.file.driver`).
fn innermost(node: &Members) -> Option<Disk> {
    let mut prefix = String::new();
    loop {
        let driver = node.get(&format!("{prefix}driver"));
        if let Some(driver) = driver
            && !FORMATS_AND_FILTERS.contains(&driver)
        {
            let path = address(node, &prefix);
            return Some(Disk { path, backend: driver.to_owned() });
        }
        let below = format!("{prefix}file.");
        let goes_on = ["driver", "filename", "file.driver", "file.filename"]
            .iter()
            .any(|key| node.get(&format!("{below}{key}")).is_some());
        if !goes_on {
            // `file.filename` alone is a file name in need of a driver.
            return of_file_name(node.get(&format!("{prefix}filename"))?);
        }
        prefix = below;
    }
}

/// The members that say where a driver's bytes are, joined: no two drivers name them alike.
fn address(node: &Members, prefix: &str) -> String {
    let get = |key: &str| node.get(&format!("{prefix}{key}"));
    if let Some(path) = get("filename").or_else(|| get("url")).or_else(|| get("path")) {
        return path.to_owned();
    }
    if let Some(image) = get("image") {
        return get("pool").map_or_else(|| image.to_owned(), |pool| format!("{pool}/{image}"));
    }
    let host = get("server.host").or_else(|| get("host"));
    let port = get("server.port").or_else(|| get("port"));
    match (get("server.path"), host, port) {
        (Some(path), _, _) => path.to_owned(),
        (None, Some(host), Some(port)) => format!("{host}:{port}"),
        (None, Some(host), None) => host.to_owned(),
        (None, None, _) => get("portal").unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Excluded, exclude_below, of_blockdev, of_drive, of_file_name};
    use crate::discover::options::Members;

    fn blockdev(text: &str) -> Option<(String, String)> {
        of_blockdev(&Members::parse(text, Some("driver")), &Excluded::new())
            .map(|disk| (disk.backend, disk.path))
    }

    fn drive(text: &str) -> Option<(String, String)> {
        of_drive(&Members::parse(text, None), &Excluded::new())
            .map(|disk| (disk.backend, disk.path))
    }

    fn disk(backend: &str, path: &str) -> Option<(String, String)> {
        Some((backend.to_owned(), path.to_owned()))
    }

    #[test]
    fn file_names_name_their_driver() {
        for (name, backend, path) in [
            ("/x/a.img", "file", "/x/a.img"),
            ("/x/a:b.img", "file", "/x/a:b.img"),
            ("file:/x", "file", "/x"),
            ("/dev/vg/lv", "host_device", "/dev/vg/lv"),
            ("/dev/shm/a", "file", "/dev/shm/a"),
            ("nbd+unix:///e?socket=/s", "nbd", "nbd+unix:///e?socket=/s"),
            ("rbd:pool/image", "rbd", "rbd:pool/image"),
            (r#"json:{"driver":"raw","file":{"filename":"/y"}}"#, "file", "/y"),
        ] {
            let found = of_file_name(name).expect(name);
            assert_eq!((found.backend.as_str(), found.path.as_str()), (backend, path), "{name}");
        }
        assert_eq!(of_file_name(""), None);
    }

    #[test]
    fn a_node_written_out_in_full_is_followed_to_its_storage() {
        assert_eq!(
            blockdev("qcow2,node-name=a,file.driver=file,file.filename=/a.qcow2"),
            disk("file", "/a.qcow2")
        );
        assert_eq!(
            blockdev(
                r#"{"driver":"throttle","file":{"driver":"raw","file":{"driver":"nbd","server":{"type":"inet","host":"h","port":"9"}}}}"#
            ),
            disk("nbd", "h:9")
        );
        assert_eq!(
            blockdev(r#"{"driver":"rbd","pool":"p","image":"i","server":[{"host":"h"}]}"#),
            disk("rbd", "p/i")
        );
        assert_eq!(blockdev("raw,node-name=a,file=b"), None);
    }

    #[test]
    fn cd_roms_firmware_and_empty_drives_are_no_disks() {
        assert_eq!(drive("file=/a,if=virtio,format=raw"), disk("file", "/a"));
        assert_eq!(drive("driver=qcow2,file.filename=/a"), disk("file", "/a"));
        for none in ["file=/a,media=cdrom", "if=pflash,file=/a", "if=none,id=x", ""] {
            assert_eq!(drive(none), None, "{none}");
        }
    }

    #[test]
    fn what_an_excluded_node_stands_upon_is_excluded() {
        let nodes = [
            Members::parse("file,filename=/vars.fd,node-name=bottom", Some("driver")),
            Members::parse("raw,file=bottom,node-name=top", Some("driver")),
        ];
        let mut excluded = Excluded::from(["top".to_owned()]);
        exclude_below(&nodes, &mut excluded);
        assert_eq!(of_blockdev(&nodes[0], &excluded), None);
        assert!(of_blockdev(&nodes[0], &Excluded::new()).is_some());
    }
}
