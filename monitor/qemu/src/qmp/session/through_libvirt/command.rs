//! One command through libvirt, over its socket or by a `virsh`, and what is read of the answer.

use std::{os::fd::OwnedFd, time::Duration};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::codec::Decoder as _;

use crate::{
    libvirt::{CallError, Domain, Link},
    program::{Place, RunError, run_bounded, virsh::Virsh},
    qmp::{
        QmpError,
        codec::{CodecError, Excess, MAX_COMMAND_BYTES, MAX_MESSAGE_BYTES, Message, QmpCodec},
    },
    text::{MAX_TEXT_CHARS, error_chain, printable},
};

/// `virsh`s for commands that run at the same time, of all sessions: on a host with hundreds of domains, a thousand at
/// once would be a storm of flatline's own making.
static AT_ONCE: Semaphore = Semaphore::const_new(16);

/// Commands that are not passed on: libvirtd 9.0 ends at the completion of a dump that it did not begin itself.
const WITHHELD: [&str; 1] = ["dump-guest-memory"];

/// How libvirt is spoken to.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Over its socket, by the connection of this number.
    Link(Link, Domain, u64),
    /// By a program.
    Virsh(Virsh),
}

/// A command that is to be passed on.
pub(super) struct Command<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: Option<&'a Value>,
    /// Handed over with it, where that can be done.
    pub(super) file: Option<OwnedFd>,
    pub(super) limit: Duration,
}

impl<'a> Command<'a> {
    /// One without arguments.
    pub(super) fn bare(name: &'a str, limit: Duration) -> Self {
        Self { name, arguments: None, file: None, limit }
    }
}

impl Way {
    /// Has libvirt pass a command on to the domain's monitor.
    pub(super) async fn execute(&self, command: Command<'_>) -> Result<Value, QmpError> {
        let Command { name, arguments, file, limit } = command;
        let named = || name.to_owned();
        if WITHHELD.contains(&name) {
            return Err(QmpError::Withheld { command: named() });
        }
        let mut message = json!({ "execute": name });
        if let Some(arguments) = arguments {
            message["arguments"] = arguments.clone();
        }
        let message = message.to_string();
        if message.len() > MAX_COMMAND_BYTES {
            let source = CodecError::CommandTooLarge { bytes: message.len() };
            return Err(QmpError::Unsendable { command: named(), source });
        }
        match self {
            Self::Link(link, domain, _) => {
                let answered = link.execute(domain, message, file, limit).await;
                answered
                    .map_err(|error| of_a_call(name, limit, error))
                    .and_then(|reply| reply_in(name, &reply))
            }
            Self::Virsh(_) if file.is_some() => Err(QmpError::NoDescriptors { command: named() }),
            Self::Virsh(virsh) => by_program(virsh, name, &message, limit).await,
        }
    }
}

/// What became of a call, in the words of a session.
fn of_a_call(command: &str, limit: Duration, error: CallError) -> QmpError {
    let command = command.to_owned();
    match error {
        CallError::NotConnected(reason) | CallError::Gone(reason) => {
            QmpError::NotConnected { reason }
        }
        CallError::Busy => QmpError::Busy,
        CallError::Timeout => QmpError::Timeout { command, limit },
        CallError::Disconnected => QmpError::Disconnected { command },
        CallError::Refused(desc) => {
            QmpError::Command { command, class: "libvirt".to_owned(), desc }
        }
        CallError::TooLong => QmpError::Skipped { command, excess: Excess::Bytes },
        CallError::Malformed => QmpError::Malformed { command },
    }
}

/// One command through a `virsh` of its own.
async fn by_program(
    virsh: &Virsh,
    command: &str,
    message: &str,
    limit: Duration,
) -> Result<Value, QmpError> {
    let name = || command.to_owned();
    let program = virsh.monitor_command(message);
    let deadline = Instant::now() + limit;
    // Never closed.
    let Ok(Ok(_turn)) = timeout_at(deadline, AT_ONCE.acquire()).await else {
        return Err(QmpError::Timeout { command: name(), limit });
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // One byte more: what is cut off is no answer, and is said to be that.
    match run_bounded(&program, &[], left, &Place::default(), MAX_MESSAGE_BYTES + 1).await {
        Ok(ran) => reply_in(command, &ran.stdout),
        Err(RunError::TimeLimit { .. }) => Err(QmpError::Timeout { command: name(), limit }),
        Err(error @ RunError::Failed { .. }) => {
            let said = error.ran().map(|ran| String::from_utf8_lossy(&ran.stderr).into_owned());
            Err(refusal_in(command, &said.unwrap_or_default()))
        }
        Err(error) => Err(QmpError::NotConnected { reason: error_chain(&error) }),
    }
}

/// QEMU's reply, as libvirt passes it on, within the same bounds as one from a socket.
pub(super) fn reply_in(command: &str, printed: &[u8]) -> Result<Value, QmpError> {
    let command = command.to_owned();
    if printed.len() > MAX_MESSAGE_BYTES {
        return Err(QmpError::Skipped { command, excess: Excess::Bytes });
    }
    let mut printed = BytesMut::from(printed);
    printed.extend_from_slice(b"\n");
    match QmpCodec::default().decode(&mut printed) {
        Ok(Some(Message::Return { value, .. })) => Ok(value),
        Ok(Some(Message::Error { class, desc, .. })) => {
            Err(QmpError::Command { command, class, desc })
        }
        Ok(Some(Message::Skipped { excess, .. })) => Err(QmpError::Skipped { command, excess }),
        Ok(Some(Message::Greeting | Message::Event { .. } | Message::Unknown) | None) | Err(_) => {
            Err(QmpError::Malformed { command })
        }
    }
}

/// What `virsh` complained of. Where libvirt or its domain isn't there, nothing was sent; else libvirt refused to.
pub(super) fn refusal_in(command: &str, said: &str) -> QmpError {
    let text = said.lines().map(|line| line.trim_start_matches("error: "));
    let text = text.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let desc = printable(&text, 4 * MAX_TEXT_CHARS);
    let lost = [
        "failed to connect",
        "Failed to connect",
        "failed to get domain",
        "Domain not found",
        "domain is not running",
        "Requested operation is not valid",
    ];
    if lost.iter().any(|part| desc.contains(part)) {
        return QmpError::NotConnected { reason: desc };
    }
    QmpError::Command { command: command.to_owned(), class: "libvirt".to_owned(), desc }
}
