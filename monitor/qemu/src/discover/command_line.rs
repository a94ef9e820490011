//! What a QEMU's command line says of its VM. Pure: no process is looked at.
//!
//! Only what QEMU was *told* at its start is here; what was plugged in or out later, QMP tells.
//! Lists are cut off at [`ITEMS`], as the command line may be hostile.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::chardevs::{self, Chardevs};
use super::disks::{self, Disk, Excluded};
use super::encryption::Encryption;
use super::options::{CommandOption, Members, options};
use super::owner::Told;
use super::{AgentSocket, ListeningSocket, ResetAction, ThreadsTold, display_text};

/// Most entries of each list that are kept; real VMs have a few dozen of anything.
const ITEMS: usize = 1024;
/// KVM's own limit on x86 (`KVM_MAX_VCPUS`), the largest of any accelerator.
const VCPUS: u32 = 4096;
/// What `-smp` multiplies when it is not told the number of vCPUs itself.
const TOPOLOGY: [&str; 8] =
    ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"];

/// Objects that are made before QEMU waits for the first client of a socket, and that are a thread each.
const EARLY_THREADS: [&str; 2] = ["iothread", "thread-context"];

/// What a command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<String>,
    /// In the order in which QEMU tries them; never empty.
    pub(super) accelerators: Vec<String>,
    pub(super) machine: Option<String>,
    pub(super) vcpus: u32,
    pub(super) reboot_action: ResetAction,
    pub(super) qmp_sockets: Vec<ListeningSocket>,
    pub(super) unused_monitors: Vec<String>,
    pub(super) threads: ThreadsTold,
    pub(super) unseen_networks: Vec<String>,
    pub(super) disks: Vec<Disk>,
    pub(super) has_balloon: bool,
    pub(super) has_agent_channel: bool,
    pub(super) agent_socket: Option<AgentSocket>,
    pub(super) heartbeat_socket: Option<AgentSocket>,
    pub(super) console_logs: Vec<PathBuf>,
    pub(super) daemonizes: bool,
    pub(super) encryption: Encryption,
    pub(super) notes: Vec<String>,
    /// What its owner is told by.
    pub(super) traces: Told,
}

/// Everything collected from the options, before what depends on several of them is decided.
#[derive(Default)]
struct Collected {
    /// What one option alone says.
    told: Description,
    name: Members,
    smbios_uuid: Option<String>,
    machine: Members,
    smp: Members,
    chardevs: Chardevs,
    qmp_chardevs: Vec<String>,
    unused_monitors: BTreeSet<String>,
    networks: BTreeSet<String>,
    networks_chosen: bool,
    blockdevs: Vec<Members>,
    drives: Vec<Members>,
    excluded: Excluded,
    asks_for_help: bool,
    notes: BTreeSet<String>,
}

/// What `arguments`, the program's own name first, say; `None` if they start no VM but print
/// something or serve a management tool's questions (`-machine none`).
pub(super) fn describe(arguments: &[String]) -> Option<Description> {
    let (program, arguments) = arguments.split_first()?;
    let mut collected = Collected::default();
    for option in options(arguments) {
        collected.take(option);
    }
    let machine = collected.machine.get("type").map(str::to_owned);
    if collected.asks_for_help || machine.as_deref() == Some("none") {
        return None;
    }
    Some(collected.finish(program, machine))
}

impl Collected {
    fn take(&mut self, option: CommandOption) {
        let CommandOption { name, value } = option;
        let Some(value) = value else {
            return self.take_flag(&name);
        };
        let members = |implied| Members::parse(&value, implied);
        // Of any other option (`-name help`, say) these are ordinary values.
        let lists = ["M", "accel", "chardev", "cpu", "d", "device", "machine", "netdev", "object"];
        if lists.contains(&name.as_str()) && is_question(&value) {
            self.asks_for_help = true;
        }
        match name.as_str() {
            "name" => self.name.merge(members(Some("guest"))),
            "uuid" => self.told.uuid = well_formed_uuid(&value).or(self.told.uuid.take()),
            // Proxmox gives the UUID in this way alone.
            "smbios" => {
                let members = members(None);
                if let Some(uuid) = members.get("uuid").and_then(well_formed_uuid) {
                    self.smbios_uuid = Some(uuid);
                }
                if let Some(maker) = members.get("manufacturer") {
                    self.told.traces.manufacturer = Some(maker.to_owned());
                }
                if let Some(product) = members.get("product") {
                    self.told.traces.product = Some(product.to_owned());
                }
            }
            "id" => self.told.traces.id = Some(value),
            "pidfile" => self.told.traces.pidfile = Some(value),
            "accel" => {
                self.told
                    .accelerators
                    .extend(members(Some("accel")).get("accel").map(str::to_owned));
            }
            "machine" | "M" => self.machine.merge(members(Some("type"))),
            "smp" => self.smp.merge(members(Some("cpus"))),
            "action" => match members(None).get("reboot") {
                Some("shutdown") => self.told.reboot_action = ResetAction::Shutdown,
                Some(_) => self.told.reboot_action = ResetAction::Reset,
                None => {}
            },
            "chardev" => self.chardevs.take(members(Some("backend"))),
            "serial" | "debugcon" => self.chardevs.take_serial(&value),
            "mon" => {
                let members = members(Some("chardev"));
                if members.get("mode") == Some("control") {
                    self.qmp_chardevs.extend(members.get("chardev").map(str::to_owned));
                }
            }
            "qmp" | "qmp-pretty" => self.take_qmp(&value),
            "netdev" | "net" | "nic" => self.take_network(&name, &members(Some("type"))),
            "device" => self.take_device(&members(Some("driver"))),
            "object" => self.take_object(&members(Some("qom-type"))),
            "balloon" => self.told.has_balloon |= value.starts_with("virtio"),
            "blockdev" => self.blockdevs.push(members(Some("driver"))),
            "drive" => self.drives.push(members(None)),
            "hda" | "hdb" | "hdc" | "hdd" | "sd" | "mtdblock" => {
                self.told.disks.extend(disks::of_file_name(&value));
            }
            "readconfig" => {
                self.notes.insert("its -readconfig file is not read".to_owned());
                self.told.traces.readconfig = Some(value);
            }
            _ => {}
        }
    }

    fn take_flag(&mut self, name: &str) {
        match name {
            "enable-kvm" => self.told.accelerators.push("kvm".to_owned()),
            "no-reboot" => self.told.reboot_action = ResetAction::Shutdown,
            "nodefaults" => self.networks_chosen = true,
            "daemonize" => self.told.daemonizes = true,
            "h" | "help" | "version" | "audio-help" => self.asks_for_help = true,
            _ => {}
        }
    }

    fn take_qmp(&mut self, value: &str) {
        if let Some(address) = value.strip_prefix("unix:") {
            self.take_qmp_socket("-qmp", &Members::parse(address, Some("path")));
        } else if let Some(id) = value.strip_prefix("chardev:") {
            self.qmp_chardevs.push(id.to_owned());
        } else {
            let kind = value.split(':').next().unwrap_or_default();
            let kind = display_text(kind);
            self.unused_monitors.insert(format!("QMP monitor -qmp {kind} is no Unix socket"));
        }
    }

    /// A socket counts if QEMU listens on it; one to which QEMU connects (Proxmox's `qmp-event`) leads to
    /// another program.
    fn take_qmp_socket(&mut self, label: &str, socket: &Members) {
        let label = display_text(label);
        if !chardevs::listens(socket) {
            let why =
                format!("QMP monitor {label} leads to a program that QEMU itself connects to");
            self.unused_monitors.insert(why);
            return;
        }
        match chardevs::listening(socket) {
            Ok(socket) => self.told.qmp_sockets.push(socket),
            Err(what) => {
                self.unused_monitors.insert(format!("QMP monitor {label} is {what}"));
            }
        }
    }

    fn take_network(&mut self, option: &str, members: &Members) {
        self.networks_chosen = true;
        let Some(kind) = members.get("type") else {
            return;
        };
        // Taps are found among the descriptors; the others carry no packets of their own.
        let carries_none = ["tap", "bridge", "hubport", "nic", "none"].contains(&kind);
        if is_question(kind) && option != "netdev" {
            self.asks_for_help = true;
        } else if !carries_none {
            self.networks.insert(display_text(kind));
        }
    }

    fn take_device(&mut self, members: &Members) {
        let Some(driver) = members.get("driver") else {
            return;
        };
        self.told.has_balloon |= driver.starts_with("virtio-balloon");
        self.told.has_agent_channel |=
            driver == "virtserialport" && members.get("name") == Some("org.qemu.guest_agent.0");
        self.chardevs.take_device(driver, members);
        // A passed-through device may be anything, a network card among them.
        if driver.starts_with("vfio-") || driver.starts_with("vhost-vdpa") {
            self.networks.insert(display_text(driver));
        }
        if ["ide-cd", "scsi-cd"].contains(&driver) {
            self.excluded.extend(members.get("drive").map(str::to_owned));
        }
    }

    fn take_object(&mut self, members: &Members) {
        if members.get("id") == Some("masterKey0") {
            self.told.traces.master_key = members.get("file").map(str::to_owned);
        }
        let Some(kind) = members.get("qom-type") else { return };
        if EARLY_THREADS.contains(&kind) {
            self.told.threads.early += 1;
        }
        // What `-mon` was up to QEMU 11.0.
        if kind == "monitor-qmp" {
            self.qmp_chardevs.extend(members.get("chardev").map(str::to_owned));
        }
        let told = Encryption::of_command_line(kind, members.get("policy"));
        self.told.encryption = std::mem::take(&mut self.told.encryption).and(told);
    }

    /// What is encrypted. An object that the machine refers to and that isn't there is somewhere else: in the file of
    /// a `-readconfig`, say.
    fn encryption(&self) -> Encryption {
        let told = &self.told.encryption;
        let referred = self.machine.get_any(&["confidential-guest-support", "memory-encryption"]);
        match referred {
            Some(id) if *told == Encryption::None => Encryption::All(format!(
                "by {}, which is not on its command line",
                display_text(id)
            )),
            _ => told.clone(),
        }
    }

    fn finish(mut self, program: &str, machine: Option<String>) -> Description {
        for id in std::mem::take(&mut self.qmp_chardevs) {
            match self.chardevs.get(&id) {
                Some(chardev) if chardevs::is_socket(chardev) => {
                    let chardev = chardev.clone();
                    self.take_qmp_socket(&id, &chardev);
                }
                _ => {
                    let id = display_text(&id);
                    self.unused_monitors.insert(format!("QMP monitor {id} is no socket"));
                }
            }
        }
        if !self.networks_chosen {
            // QEMU then makes a network of its own.
            self.networks.insert("user".to_owned());
        }
        let flash = ["pflash0", "pflash1"].map(|key| self.machine.get(key).map(str::to_owned));
        self.excluded.extend(flash.into_iter().flatten());
        disks::exclude_below(&self.blockdevs, &mut self.excluded);
        let excluded = &self.excluded;
        let drives = self.drives.iter().filter_map(|drive| disks::of_drive(drive, excluded));
        let nodes = self.blockdevs.iter().filter_map(|node| disks::of_blockdev(node, excluded));
        let encryption = self.encryption();
        let told = self.told;
        let uuid = told.uuid.or(self.smbios_uuid);
        Description {
            encryption,
            traces: Told {
                name: self.name.get("guest").map(str::to_owned),
                uuid: uuid.clone(),
                has_charmonitor: self.chardevs.get("charmonitor").is_some(),
                ..told.traces
            },
            name: self.name.get("guest").map(display_text).filter(|name| !name.is_empty()),
            uuid,
            vcpus: vcpus(&self.smp, &self.machine),
            accelerators: accelerators(told.accelerators, &self.machine, program),
            machine: machine.as_deref().map(display_text),
            qmp_sockets: told.qmp_sockets.into_iter().take(ITEMS).collect(),
            unused_monitors: self.unused_monitors.into_iter().take(ITEMS).collect(),
            threads: ThreadsTold {
                named: self.name.switch("debug-threads").unwrap_or(false),
                ..told.threads
            },
            unseen_networks: self.networks.into_iter().take(ITEMS).collect(),
            disks: told.disks.into_iter().chain(drives).chain(nodes).take(ITEMS).collect(),
            agent_socket: self.chardevs.agent_socket(),
            heartbeat_socket: self.chardevs.heartbeat_socket(),
            console_logs: self.chardevs.console_logs().take(ITEMS).collect(),
            notes: self.notes.into_iter().take(ITEMS).collect(),
            ..told
        }
    }
}

/// QEMU prints a list and ends, for `help` and `?`, and for a driver's own `driver,help`.
fn is_question(value: &str) -> bool {
    matches!(value, "help" | "?") || value.ends_with(",help") || value.ends_with(",?")
}

/// The accelerators to be tried. Told nothing, a QEMU whose name ends in `kvm` prefers KVM, any
/// other TCG (`configure_accelerators` in QEMU's system/vl.c).
fn accelerators(told: Vec<String>, machine: &Members, program: &str) -> Vec<String> {
    let mut list: Vec<String> = told;
    if list.is_empty() {
        let told = machine.get("accel").unwrap_or_default();
        list.extend(told.split(':').map(str::to_owned));
    }
    list.retain(|accelerator| !accelerator.is_empty());
    if list.is_empty() {
        let default = if program.ends_with("kvm") { ["kvm", "tcg"] } else { ["tcg", "kvm"] };
        list.extend(default.map(str::to_owned));
    }
    list.iter().take(ITEMS).map(|accelerator| display_text(accelerator)).collect()
}

/// The vCPUs at start: as told, else the product of the topology, 1 by default.
fn vcpus(smp: &Members, machine: &Members) -> u32 {
    let number = |key: &str| {
        let told = smp.get(key).or_else(|| machine.get(&format!("smp.{key}")))?;
        told.parse::<u32>().ok().filter(|&number| number > 0)
    };
    let count = number("cpus").or_else(|| number("maxcpus")).unwrap_or_else(|| {
        TOPOLOGY.iter().filter_map(|key| number(key)).fold(1, u32::saturating_mul)
    });
    count.min(VCPUS)
}

/// A UUID in its usual form, in lower case.
fn well_formed_uuid(text: &str) -> Option<String> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let is_uuid =
        lengths == [8, 4, 4, 4, 12] && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit());
    is_uuid.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
