//! What is said on a monitor: greetings, and requests of a client.

use std::{
    io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use anyhow::{Context as _, Result, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// What a QEMU 7.2 says first.
pub(super) const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);

pub(super) fn next_request(requests: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = Vec::new();
    requests.by_ref().take(1 << 20).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).context("the client sent no JSON line")
}

/// Answers the next request as `answer` has it of a command.
pub(super) fn answer_next(
    client: &mut UnixStream,
    requests: &mut BufReader<UnixStream>,
    answer: impl FnOnce(&str) -> Value,
) -> Result<()> {
    let request = next_request(requests)?;
    let answer = answer(request["execute"].as_str().unwrap_or_default());
    let answer = json!({"return": answer, "id": request["id"]});
    Ok(client.write_all(format!("{answer}\r\n").as_bytes())?)
}

/// The next request of which `bytes` may be the beginning, and the last descriptor that came with any.
pub(super) fn next_request_with(
    client: &mut UnixStream,
    bytes: &mut Vec<u8>,
    descriptor: &mut Option<OwnedFd>,
) -> Result<Value> {
    loop {
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            return serde_json::from_slice(&line).context("the client sent no JSON line");
        }
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let received = recvmsg(&*client, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                *descriptor = rights.last().or(descriptor.take());
            }
        }
        if received.bytes == 0 {
            bail!("the client hung up");
        }
        bytes.extend_from_slice(&chunk[..received.bytes]);
    }
}

/// Answers what a client asks first.
pub(super) fn behave(client: &mut UnixStream) -> Result<()> {
    client.write_all(GREETING.as_bytes())?;
    let mut requests = BufReader::new(client.try_clone()?);
    for answer in [json!({}), json!({"status": "running", "singlestep": false, "running": true})] {
        let id = next_request(&mut requests)?["id"].clone();
        client.write_all(format!("{}\r\n", json!({"return": answer, "id": id})).as_bytes())?;
    }
    Ok(())
}
