//! The programs of the owners, as argument vectors. No shell ever reads one; names were checked against their
//! product's alphabet when the owner was found, and stand after `--` or an option's own name all the same.

use serde_json::json;

use crate::discover::ResetAction;

/// A program to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, by its absolute path, or by a name that is looked up in [`PATH`], and its arguments.
    pub words: Vec<String>,
}

/// Where programs are looked for, in this order; the environment's own `PATH` is not asked.
pub(super) const PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Program {
    fn new<const N: usize>(words: [&str; N]) -> Self {
        Self { words: words.map(str::to_owned).to_vec() }
    }

    /// The whole line, for logs and incidents: words with a space in them are quoted.
    pub fn line(&self) -> String {
        let word = |word: &String| {
            let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
            if is_plain { word.clone() } else { format!("{word:?}") }
        };
        self.words.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// `virsh` on the domain with this UUID. It takes a UUID for a domain's name (`virshLookupDomainInternal` in
/// libvirt's tools/virsh-util.c), and no name of a domain that could be had there is a UUID's.
pub(super) fn virsh(uri: &str, command: &str, uuid: &str) -> Program {
    Program::new(["virsh", "-q", "-c", uri, command, "--domain", uuid])
}

/// Asks libvirt for a domain's state, and how it came to be.
pub(super) fn domain_state(uri: &str, uuid: &str) -> Program {
    let mut program = virsh(uri, "domstate", uuid);
    program.words.push("--reason".to_owned());
    program
}

/// A QMP command through libvirt, which answers with QEMU's own reply.
pub(super) fn monitor_command(uri: &str, uuid: &str, qmp: &serde_json::Value) -> Program {
    let mut program = virsh(uri, "qemu-monitor-command", uuid);
    program.words.extend(["--".to_owned(), qmp.to_string()]);
    program
}

/// What a reset leads to, told through libvirt.
pub(super) fn set_reboot_action(uri: &str, uuid: &str, action: ResetAction) -> Program {
    let arguments = json!({ "reboot": action.as_str() });
    let qmp = json!({ "execute": "set-action", "arguments": arguments });
    monitor_command(uri, uuid, &qmp)
}

/// `qm`, which takes a VM's number as its first argument.
pub(super) fn qm(command: &str, vmid: u32) -> Program {
    Program::new(["qm", command, &vmid.to_string()])
}

/// `systemctl` on a unit.
pub(super) fn systemctl(command: &str, unit: &str) -> Program {
    Program::new(["systemctl", command, "--", unit])
}

/// Asks systemd for properties of a unit.
pub(super) fn unit_property(property: &str, unit: &str) -> Program {
    Program::new(["systemctl", "show", &format!("--property={property}"), "--", unit])
}
