//! A QEMU that is made up, over a real Unix socket, for tests of evidence and restarts.

use std::{
    fs::File,
    io::{IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use crate::{insight::Insight, recovery::evidence::Wanted};
use flatline_qemu::{
    discover::{self, Ownership, Vm, VmId},
    qmp::{self, QmpHandle, QmpNotice, QmpState, QmpTarget, Transport},
};

/// What a QEMU says to a command; `None`: nothing, ever.
pub(in crate::recovery) type Says = Option<Result<Value, &'static str>>;

/// A QEMU that is this very process, and says what `says` does. It has the descriptor that it was handed last.
pub(in crate::recovery) struct Qemu {
    pub(in crate::recovery) handle: QmpHandle,
    vm: Arc<Vm>,
    _directory: tempfile::TempDir,
}

pub(in crate::recovery) async fn qemu(
    says: impl FnMut(&str, &Value, &mut Option<OwnedFd>) -> Says + Send + 'static,
) -> Qemu {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let pid = std::process::id();
    let id = VmId { pid, start_ticks: discover::start_ticks(pid).unwrap() };
    let (notices, mut heard) = mpsc::channel(64);
    let handle = qmp::spawn(
        Transport::Keep(QmpTarget::at_path(id, socket)),
        notices,
        qmp::Limits::default(),
        qmp::Room::default(),
    );
    let (stream, _) = listener.accept().await.unwrap();
    tokio::spawn(serve(stream, says));
    while !matches!(heard.recv().await, Some((_, QmpNotice::State(QmpState::Ready)))) {}
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    let executable = std::env::current_exe().unwrap();
    let vm = Vm { id, executable, ..Vm::stand_in(Ownership::bare(), &[]) };
    Qemu { handle, vm: Arc::new(vm), _directory: directory }
}

impl Qemu {
    /// Has its console written to this file.
    pub(in crate::recovery) fn log_to(&mut self, log: PathBuf) {
        Arc::make_mut(&mut self.vm).console_logs.push(log);
    }
}

async fn serve(
    mut stream: UnixStream,
    mut says: impl FnMut(&str, &Value, &mut Option<OwnedFd>) -> Says,
) {
    stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
    let (mut line, mut descriptor) = (Vec::new(), None);
    loop {
        let mut byte = [0];
        let received = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut byte)];
            let received = recvmsg(&stream, &mut parts, &mut control, RecvFlags::empty())?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut rights) = message {
                    descriptor = rights.next();
                }
            }
            Ok(received.bytes)
        });
        if !received.await.is_ok_and(|bytes| bytes > 0) {
            return;
        }
        line.push(byte[0]);
        let Ok(command) = serde_json::from_slice::<Value>(&line) else { continue };
        line.clear();
        let (name, id) = (command["execute"].as_str().unwrap(), &command["id"]);
        let said = match name {
            "qmp_capabilities" => Some(Ok(json!({}))),
            name => says(name, &command["arguments"], &mut descriptor),
        };
        let reply = match said {
            None => continue,
            Some(Ok(value)) => json!({"return": value, "id": id}),
            Some(Err(why)) => json!({"error": {"class": "GenericError", "desc": why}, "id": id}),
        };
        if stream.write_all(reply.to_string().as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What a QEMU in good health says, with a display of 2x1.
pub(in crate::recovery) fn healthy(
    command: &str,
    arguments: &Value,
    descriptor: &mut Option<OwnedFd>,
) -> Says {
    Some(Ok(match command {
        "query-status" => json!({"status": "guest-panicked"}),
        "human-monitor-command" => json!("CPU#0\r\nRAX=0000000000000000\r\n"),
        "query-cpus-fast" => {
            json!([{"cpu-index": 0, "qom-path": "/machine/unattached/device[0]"}])
        }
        "query-block" => json!([{"device": "disk0", "io-status": "ok"}]),
        "query-blockstats" | "query-rx-filter" => json!([]),
        "qom-get" if arguments["path"] == "/machine" => json!(""),
        "qom-get" => return Some(Err("No crash occured")),
        "add-fd" => json!({"fdset-id": 3, "fd": 9}),
        "screendump" => {
            assert_eq!(arguments["filename"], "/dev/fdset/3");
            let mut file = File::from(descriptor.take().expect("it was handed over"));
            // As QEMU does with what it opens.
            file.set_len(0).unwrap();
            file.write_all(b"P6\n2 1\n255\n\x01\x02\x03\x04\x05\x06").unwrap();
            json!({})
        }
        "remove-fd" => json!({}),
        other => panic!("{other} is not asked for"),
    }))
}

pub(in crate::recovery) fn wanted(qemu: &Qemu, limit: Duration) -> Wanted {
    Wanted {
        vm: qemu.vm.clone(),
        incident: "20261122T100001Z-g".to_owned(),
        limit,
        announced: true,
        figures: "{}\n".to_owned(),
        memory: None,
        insight: Insight::begin(&qemu.vm),
        own_dump: Duration::ZERO,
        asks: true,
    }
}
