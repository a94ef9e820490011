//! The guest agent: a process in the guest that answers on a channel of its own.
//!
//! It is asked for `guest-sync-delimited`, which any agent answers with the number that it was given, in
//! 2 ms. That shows as much as a `guest-ping` after it would, and a single question leaves no stray answer
//! behind for the next client.
//!
//! The channel serves one client at a time, and others need it: a round connects, asks and leaves. Before
//! that, QEMU's monitor tells whether another client is connected, since what is written into the listen queue
//! is handed to the guest as soon as that client leaves, and the answer to the next one (seen with 7.2). QEMU's
//! descriptors tell the same, and where neither does, bytes that QEMU leaves unread (`SIOCOUTQ`).
//!
//! QEMU reads from the socket only while a process in the guest holds the channel open, and while the guest's
//! driver has buffers for it. Measured with QEMU 7.2 and Linux 6.1: no bytes were taken before the agent
//! opened the channel; after a panic QEMU took 128 questions, one a buffer, and no more. By then, the verdict
//! has long been given.

use std::{
    os::fd::AsRawFd as _,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::{Note, ProbeContext, Witness, of_calibrated};
use flatline_detector::verdict::{Answer, Questions};
use flatline_qemu::blocking::{UnderWay, within};
use flatline_qemu::{
    discover::{AgentSocket, Found},
    peer::{self, PeerError},
    qmp::QmpHandle,
    text::error_chain,
};

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "guest agent",
    looks_for: "its answer on the agent's channel",
    asked_in: of_calibrated,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// How long the agent may take. Measured: 2 ms where it waits for a question. But qemu-ga polls a channel that
/// no client is connected to, every 100 ms (`ga_channel_read` and `channel_event_cb` in QEMU's qga/).
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long it may take while all is well, and nothing waits for the outcome. A slower agent's silence doesn't
/// count for all that: see [`AgentMemory::number`].
const CALIBRATED_WITHIN: Duration = Duration::from_millis(1500);
/// How long it may take to find the socket and connect to it. Not measured: both are local.
const CONNECT_WITHIN: Duration = Duration::from_millis(300);
/// What is said of a channel that is in use.
const HELD: &str = "another client holds the agent's channel";
/// An answer takes some 30 bytes, and those to others that asked before are about as short.
const MOST_REPLY_BYTES: usize = 4096;
/// The most character devices that are looked through: more than any VM has.
const MOST_CHARDEVS: usize = 4096;

/// What is kept from round to round.
struct AgentMemory {
    /// A look-up of the socket that is under way still.
    lookup: UnderWay<Result<Found, PeerError>>,
    /// What the agent is to answer, the same in each round: a process that answers when we have left is blocked
    /// until a client connects, so that a late answer comes in the next round, and is as good. Nothing keeps an
    /// answer but a guest that lives: QEMU drops what it can't deliver.
    number: u64,
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    let mut memory =
        note.take().unwrap_or_else(|| AgentMemory { lookup: None, number: new_number() });
    let answer = question(context, &mut memory).await;
    note.put(memory);
    answer
}

async fn question(context: &ProbeContext, memory: &mut AgentMemory) -> Result<Answer, String> {
    let Some(socket) = &context.vm.agent_socket else {
        return Err(if context.vm.has_agent_channel {
            "its channel is no socket that could be connected to".to_owned()
        } else {
            "it has no channel".to_owned()
        });
    };
    if let Ok(qmp) = &context.qmp {
        is_free(qmp, socket).await?;
    }
    let (vm, threads) = (context.vm.id, context.vm.threads);
    let wanted = socket.socket.clone();
    let resolve = move || peer::resolve(vm.pid, &wanted, threads);
    let found = within(CONNECT_WITHIN, &mut memory.lookup, resolve)
        .await
        .ok_or_else(|| "looking up the path of its channel takes too long".to_owned())?
        .map_err(|error| error_chain(&error))?;
    if found.is_held {
        return Err(HELD.to_owned());
    }
    let stream = timeout(CONNECT_WITHIN, peer::connect(vm, found, &socket.socket.at))
        .await
        .map_err(|_| "its channel can't be connected to in time".to_owned())?
        .map_err(|error| error_chain(&error))?;
    let limit = match context.questions {
        Questions::Calibrate => CALIBRATED_WITHIN,
        _ => ANSWER_WITHIN,
    };
    converse(stream, memory.number, limit).await
}

/// Whether the channel can be used, as far as QEMU's monitor tells; a monitor that doesn't tell forbids nothing.
async fn is_free(qmp: &QmpHandle, socket: &AgentSocket) -> Result<(), String> {
    let reply = qmp.reply("query-chardev", None).await.ok();
    let why = reply.and_then(|reply| why_not_free(&reply, &socket.chardev));
    why.map_or(Ok(()), |why| Err(why.to_owned()))
}

/// Why the channel can't be used, by the reply to `query-chardev`.
fn why_not_free(reply: &Value, chardev: &str) -> Option<&'static str> {
    let text = |of: &Value, field: &str| of.get(field)?.as_str().map(str::to_owned);
    let mut chardevs = reply.as_array()?.iter().take(MOST_CHARDEVS);
    let ours = chardevs.find(|one| text(one, "label").as_deref() == Some(chardev))?;
    if ours.get("frontend-open").and_then(Value::as_bool) == Some(false) {
        return Some("no agent has opened its channel in the guest");
    }
    // A socket without a client is called `disconnected:unix:..` (`char_socket_class_init` and
    // `update_disconnected_filename` in QEMU's chardev/char-socket.c).
    let connected = text(ours, "filename")?.starts_with("unix:");
    connected.then_some(HELD)
}

/// A number that answers to others' questions don't have: the guest may know it, others don't happen to use it.
fn new_number() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // JSON's numbers are exact up to 2^53.
    u64::from(now.subsec_nanos()) << 20 | (u64::from(std::process::id()) & 0xf_ffff)
}

/// Puts the question, and waits for the answer to it.
async fn converse(mut stream: UnixStream, number: u64, limit: Duration) -> Result<Answer, String> {
    let deadline = Instant::now() + limit;
    // 0xff makes an agent forget what it has read in part.
    let mut question = vec![0xff];
    question.extend_from_slice(
        format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{number}}}}}\n")
            .as_bytes(),
    );
    let not_taken = || "QEMU reads nothing from the agent's channel".to_owned();
    timeout_at(deadline, stream.write_all(&question))
        .await
        .map_err(|_| not_taken())?
        .map_err(|error| format!("the agent's channel failed: {error}"))?;
    let mut reply = Vec::with_capacity(MOST_REPLY_BYTES);
    while reply.len() < MOST_REPLY_BYTES {
        let mut chunk = [0; 512];
        match timeout_at(deadline, stream.read(&mut chunk)).await {
            Ok(Ok(0)) => return Err("QEMU closed the agent's channel".to_owned()),
            Ok(Err(error)) => return Err(format!("the agent's channel failed: {error}")),
            Ok(Ok(length)) => reply.extend_from_slice(&chunk[..length]),
            Err(_) => break,
        }
        if is_answered(&reply, number) {
            return Ok(Answer::UserSpaceLives("its agent answers".to_owned()));
        }
    }
    match unread(&stream) {
        Some(0) if reply.is_empty() => {
            Ok(Answer::Silent(format!("its agent did not answer within {} ms", limit.as_millis())))
        }
        // Something spoke: perhaps an agent that is busy with what others asked before.
        Some(0) => {
            Ok(Answer::Nothing("its agent's channel has other answers than ours".to_owned()))
        }
        Some(_) => {
            Err("QEMU does not read from the agent's channel: another client holds it, or no \
                        agent has it open"
                .to_owned())
        }
        None => Err(not_taken()),
    }
}

/// Whether the answer to our question is among what was read, which is garbage otherwise.
fn is_answered(reply: &[u8], number: u64) -> bool {
    let is_ours = |line: &[u8]| {
        let line = serde_json::from_slice::<Value>(line).ok();
        line.and_then(|line| line.get("return")?.as_u64()) == Some(number)
    };
    reply.split(|byte| matches!(byte, 0xff | b'\n')).any(is_ours)
}

/// Bytes that we wrote and QEMU did not read, in the kernel's own reckoning of them: 0 says that it read all.
fn unread(stream: &UnixStream) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (which Linux calls TIOCOUTQ as well) writes one int to the address that it is given, and
    // `bytes` is one that lives as long as the call.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::UnixListener;

    use super::*;

    /// As QEMU 7.2 answers `query-chardev`.
    fn chardev(open: bool, filename: &str) -> Value {
        json!([
            {"frontend-open": true, "filename": "unix:q.sock,server=on", "label": "compat_monitor0"},
            {"frontend-open": open, "filename": filename, "label": "qga0"}
        ])
    }

    #[test]
    fn a_channel_that_another_client_holds_or_no_agent_opened_is_left_alone() {
        let free = "disconnected:unix:a.sock,server=on";
        assert_eq!(why_not_free(&chardev(true, free), "qga0"), None);
        assert!(why_not_free(&chardev(false, free), "qga0").unwrap().contains("no agent"));
        let held = chardev(true, "unix:a.sock,server=on");
        assert!(why_not_free(&held, "qga0").unwrap().contains("another client"));
        assert_eq!(why_not_free(&held, "no such"), None);
        assert_eq!(why_not_free(&json!({"label": 7}), "qga0"), None);
    }

    #[test]
    fn the_answer_is_found_after_others_and_garbage_is_none() {
        assert!(is_answered(b"{\"return\": {}}\n\xff{\"return\": 5}\n\xff{\"return\": 7}\n", 7));
        assert!(!is_answered(b"\xff{\"return\": 7", 7));
        assert!(!is_answered(b"\xff{\"return\": \"7\"}\n7\n{\"error\": 7}\n\xfe[[[[", 7));
        assert!(!is_answered("[".repeat(MOST_REPLY_BYTES).as_bytes(), 7));
    }

    #[test]
    fn the_number_is_exact_in_json() {
        assert!(new_number() < 1 << 53);
    }

    /// Asks a peer that is connected or not, and then says `answer` to our number.
    async fn asked(serve: bool, answer: impl FnOnce(String) -> Vec<u8>) -> Result<Answer, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let conversation =
            tokio::spawn(converse(UnixStream::connect(&path).await.unwrap(), 77, ANSWER_WITHIN));
        let mut server = None;
        if serve {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = vec![0; 512];
            let length = stream.read(&mut question).await.unwrap();
            assert_eq!(question[0], 0xff);
            let question = String::from_utf8(question[1..length].to_vec()).unwrap();
            // One that floods is left before it has written all.
            let _ = stream.write_all(&answer(question)).await;
            server = Some(stream);
        }
        let said = conversation.await.unwrap();
        drop(server);
        said
    }

    #[tokio::test]
    async fn an_agent_lives_if_it_answers_our_question() {
        let answered = asked(true, |question| {
            let question: Value = serde_json::from_str(&question).unwrap();
            assert_eq!(question["execute"], "guest-sync-delimited");
            format!("\u{fffd}\n\n{{\"return\": {}}}\n", question["arguments"]["id"]).into_bytes()
        });
        assert!(matches!(answered.await, Ok(Answer::UserSpaceLives(_))));
    }

    #[tokio::test]
    async fn an_agent_that_read_the_question_is_silent_and_one_that_could_not_was_not_asked() {
        assert!(matches!(asked(true, |_| Vec::new()).await, Ok(Answer::Silent(_))));
        assert!(asked(false, |_| Vec::new()).await.unwrap_err().contains("another client"));
    }

    #[tokio::test]
    async fn a_flood_ends_and_says_nothing() {
        let flooded = asked(true, |_| vec![b'{'; 1 << 20]).await;
        assert!(matches!(flooded, Ok(Answer::Nothing(_))), "{flooded:?}");
    }
}
