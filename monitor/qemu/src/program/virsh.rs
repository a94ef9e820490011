//! `virsh`, by which libvirt is spoken to: its library would have to be linked to, and `virsh` can be ended.
//!
//! A domain is named by its UUID, which `virsh` takes for a name (`virshLookupDomainInternal` in libvirt's
//! tools/virsh-util.c), and which can be nothing else: a domain's own name may have any character.

use super::Program;

/// `virsh` for one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virsh {
    /// The program, with words that come before all others.
    program: Vec<String>,
    uri: String,
    uuid: String,
}

impl Virsh {
    /// For the domain with this UUID, by this connection.
    pub fn new(uri: &str, uuid: &str) -> Self {
        Self { program: vec!["virsh".to_owned()], uri: uri.to_owned(), uuid: uuid.to_owned() }
    }

    /// The same with another program.
    #[cfg(test)]
    pub fn by(self, program: &[&str]) -> Self {
        Self { program: program.iter().map(|&word| word.to_owned()).collect(), ..self }
    }

    /// One of its commands that is about a domain.
    pub fn on_domain(&self, command: &str) -> Program {
        let words = ["-q", "-c", &self.uri, command, "--domain", &self.uuid].map(str::to_owned);
        Program { words: self.program.iter().cloned().chain(words).collect() }
    }

    /// Asks for the domain's state, and how it came to be.
    pub fn state(&self) -> Program {
        let mut program = self.on_domain("domstate");
        program.words.push("--reason".to_owned());
        program
    }

    /// A QMP command in JSON, answered with QEMU's own reply. libvirt marks the domain as tainted by that.
    pub fn monitor_command(&self, qmp: &str) -> Program {
        let mut program = self.on_domain("qemu-monitor-command");
        program.words.extend(["--".to_owned(), qmp.to_owned()]);
        program
    }

    /// Prints the domain's QMP events, a line each, for as long as it runs. What `virsh` prints into a pipe would
    /// wait there for more, so that it is told to print line by line.
    pub fn events(&self) -> Program {
        let mut program = self.on_domain("qemu-monitor-event");
        program.words.extend(["--loop", "--timestamp"].map(str::to_owned));
        if super::find("stdbuf").is_some() {
            program.words.splice(..0, ["stdbuf", "-oL"].map(str::to_owned));
        }
        program
    }
}
