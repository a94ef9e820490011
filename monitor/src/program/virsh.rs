//! `virsh`, by which libvirt is spoken to: its library would have to be linked to, and `virsh` can be ended.
//!
//! A domain is named by its UUID, which `virsh` takes for a name (`virshLookupDomainInternal` in libvirt's
//! tools/virsh-util.c), and which can be nothing else: a domain's own name may have any character.

use serde_json::Value;

use super::Program;

/// `virsh` on the domain with this UUID.
pub fn on_domain(uri: &str, command: &str, uuid: &str) -> Program {
    Program::new(["virsh", "-q", "-c", uri, command, "--domain", uuid])
}

/// Asks for a domain's state, and how it came to be.
pub fn state(uri: &str, uuid: &str) -> Program {
    let mut program = on_domain(uri, "domstate", uuid);
    program.words.push("--reason".to_owned());
    program
}

/// A QMP command, answered with QEMU's own reply. libvirt marks the domain as tainted by that.
pub fn monitor_command(uri: &str, uuid: &str, qmp: &Value) -> Program {
    let mut program = on_domain(uri, "qemu-monitor-command", uuid);
    program.words.extend(["--".to_owned(), qmp.to_string()]);
    program
}

/// Prints the domain's QMP events, a line each, for as long as it runs. What `virsh` prints into a pipe would wait
/// there for more, so that it is told to print line by line.
pub fn events(uri: &str, uuid: &str) -> Program {
    let mut program = on_domain(uri, "qemu-monitor-event", uuid);
    program.words.extend(["--loop", "--timestamp"].map(str::to_owned));
    if super::find("stdbuf").is_some() {
        program.words.splice(..0, ["stdbuf", "-oL"].map(str::to_owned));
    }
    program
}
