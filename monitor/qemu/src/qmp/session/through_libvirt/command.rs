//! One command through libvirt, and what is read of what `virsh` says to it.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::codec::Decoder as _;

use crate::{
    program::{Place, RunError, run_bounded},
    qmp::{
        LibvirtTarget, QmpError,
        codec::{CodecError, Excess, MAX_COMMAND_BYTES, MAX_MESSAGE_BYTES, Message, QmpCodec},
    },
    text::{MAX_TEXT_CHARS, error_chain, printable},
};

/// `virsh`s for commands that run at the same time, of all sessions: on a host with hundreds of domains, a thousand at
/// once would be a storm of flatline's own making.
static AT_ONCE: Semaphore = Semaphore::const_new(16);

/// One command through a `virsh` of its own.
pub(super) async fn execute(
    target: &LibvirtTarget,
    command: &str,
    arguments: Option<&Value>,
    limit: Duration,
) -> Result<Value, QmpError> {
    let name = || command.to_owned();
    let mut message = json!({ "execute": command });
    if let Some(arguments) = arguments {
        message["arguments"] = arguments.clone();
    }
    let program = target.virsh.monitor_command(&message);
    let bytes = program.words.last().map_or(0, String::len);
    if bytes > MAX_COMMAND_BYTES {
        let source = CodecError::CommandTooLarge { bytes };
        return Err(QmpError::Unsendable { command: name(), source });
    }
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
