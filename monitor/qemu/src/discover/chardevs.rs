//! Character devices on the command line: sockets on which QEMU listens, and files that a guest's console is
//! written to. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    listening::{ListeningSocket, SocketAt},
    options::Members,
    vm::AgentSocket,
};

/// The name of the port that flatline's agent writes to.
const HEARTBEAT_PORT: &str = "org.flatline.heartbeat.0";

/// Devices whose characters are a kernel's console. (A `virtserialport` or a USB converter is not.)
const CONSOLE_DEVICES: [&str; 9] = [
    "isa-serial",
    "pci-serial",
    "pci-serial-2x",
    "pci-serial-4x",
    "virtconsole",
    "isa-debugcon",
    "sclpconsole",
    "sclplmconsole",
    "spapr-vty",
];

/// All that was said of character devices, and what uses them.
#[derive(Default)]
pub(super) struct Chardevs {
    by_id: BTreeMap<String, Members>,
    /// The id of the first one that a guest agent is to be reached by.
    agent: Option<String>,
    /// The id of the first one that flatline's agent writes to.
    heartbeat: Option<String>,
    /// Those that a console is written to, by their id.
    consoles: BTreeSet<String>,
    /// Files that a console is written to, without a character device that has an id.
    console_logs: BTreeSet<PathBuf>,
}

impl Chardevs {
    /// Takes a `-chardev`.
    pub(super) fn take(&mut self, members: Members) {
        if let Some(id) = members.get("id").map(str::to_owned) {
            self.by_id.insert(id, members);
        }
    }

    /// Takes a `-device`, which may use one.
    pub(super) fn take_device(&mut self, driver: &str, members: &Members) {
        let Some(chardev) = members.get_any(&["chardev", "chardev0"]) else {
            return;
        };
        let port = members.get("name").filter(|_| driver == "virtserialport");
        if port == Some("org.qemu.guest_agent.0") {
            self.agent.get_or_insert_with(|| chardev.to_owned());
        } else if port == Some(HEARTBEAT_PORT) {
            self.heartbeat.get_or_insert_with(|| chardev.to_owned());
        } else if CONSOLE_DEVICES.contains(&driver) {
            self.consoles.insert(chardev.to_owned());
        }
    }

    /// Takes a `-serial` or a `-debugcon`, in QEMU's older form.
    pub(super) fn take_serial(&mut self, value: &str) {
        let value = value.strip_prefix("mon:").unwrap_or(value);
        if let Some(id) = value.strip_prefix("chardev:") {
            self.consoles.insert(id.to_owned());
        } else if let Some(path) = value.strip_prefix("file:") {
            // All of it is the path, commas as well (`qemu_chr_parse_compat` in chardev/char.c).
            self.console_logs.insert(PathBuf::from(path));
        } else if let Some((_, address)) = value.split_once(':') {
            self.console_logs.extend(log(&Members::parse(address, Some("path"))));
        }
    }

    /// The one with this id.
    pub(super) fn get(&self, id: &str) -> Option<&Members> {
        self.by_id.get(id)
    }

    /// Where the guest agent is reached, if QEMU listens there.
    pub(super) fn agent_socket(&self) -> Option<AgentSocket> {
        self.socket(self.agent.as_ref()?)
    }

    /// Where flatline's agent is heard, if QEMU listens there.
    pub(super) fn heartbeat_socket(&self) -> Option<AgentSocket> {
        self.socket(self.heartbeat.as_ref()?)
    }

    fn socket(&self, id: &str) -> Option<AgentSocket> {
        let chardev = self.get(id).filter(|chardev| is_socket(chardev) && listens(chardev))?;
        Some(AgentSocket { chardev: id.to_owned(), socket: listening(chardev).ok()? })
    }

    /// The files that a console is written to.
    pub(super) fn console_logs(&self) -> impl Iterator<Item = PathBuf> {
        let of_chardevs = self
            .consoles
            .iter()
            .filter_map(|id| self.get(id))
            .flat_map(|chardev| file(chardev).into_iter().chain(log(chardev)));
        self.console_logs.iter().cloned().chain(of_chardevs).collect::<BTreeSet<_>>().into_iter()
    }
}

fn backend(chardev: &Members) -> Option<&str> {
    chardev.get_any(&["backend", "backend.type"])
}

/// Whether it is a socket.
pub(super) fn is_socket(chardev: &Members) -> bool {
    backend(chardev) == Some("socket")
}

/// Whether QEMU listens on this socket; one to which QEMU connects leads to another program.
pub(super) fn listens(socket: &Members) -> bool {
    // QAPI's default is a server, the short form's is not.
    socket
        .switch("server")
        .or_else(|| socket.switch("backend.data.server"))
        .unwrap_or(socket.is_json)
}

/// Where QEMU listens, or what else this socket is.
pub(super) fn listening(socket: &Members) -> Result<ListeningSocket, &'static str> {
    let at = if let Some(path) =
        socket.get_any(&["path", "addr.path", "backend.data.addr.data.path"])
    {
        if socket.switch("abstract").unwrap_or(false) {
            return Err("an abstract socket, which has no file to be connected to");
        }
        SocketAt::Path(PathBuf::from(path))
    } else if let Some(fd) = socket.get_any(&["fd", "addr.str", "backend.data.addr.data.str"]) {
        let number = fd.parse().map_err(|_| "a descriptor that was handed over under a name")?;
        SocketAt::Descriptor(number)
    } else if socket.get_any(&["port", "addr.port", "backend.data.addr.data.port"]).is_some() {
        return Err("a TCP socket, whose peer can't be told");
    } else {
        return Err("a socket without a path on the command line");
    };
    // QAPI's default is not to wait, the short form's is to (`qmp_chardev_open_socket` and
    // `qemu_chr_parse_socket` in QEMU's chardev/char-socket.c).
    let told = socket.switch("wait").or_else(|| socket.switch("backend.data.wait"));
    Ok(ListeningSocket { at, waits: told.unwrap_or(!socket.is_json) })
}

/// The file that a character device is.
fn file(chardev: &Members) -> Option<PathBuf> {
    let path = chardev.get_any(&["path", "backend.data.out"])?;
    (backend(chardev) == Some("file")).then(|| PathBuf::from(path))
}

/// The file into which a character device's output is copied.
fn log(chardev: &Members) -> Option<PathBuf> {
    chardev.get_any(&["logfile", "backend.data.logfile"]).map(PathBuf::from)
}
