//! One session with a QEMU that answers, is stopped, goes on, and is wanted by a second client.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use flatline_qemu::{
    discover::{VmId, start_ticks},
    qmp::{
        Limits, QmpError, QmpHandle, QmpNotice, QmpState, QmpTarget, Transport, parse_lapic,
        parse_registers, spawn,
    },
};
use flatline_samples::{QmpEvent, RunState};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{sync::mpsc, time::timeout};

use crate::{Outcome, qemu};

/// Far above what QEMU takes to start; a machine that runs all tests at once takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A QEMU of ours, gone with its test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Qemu {
    fn start(path: &Path, dir: &Path) -> Self {
        let child = Command::new(path)
            .args(["-machine", "q35,accel=tcg", "-smp", "2", "-display", "none", "-nodefaults"])
            .args(["-S", "-qmp", "unix:./q.sock,server=on,wait=off"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .spawn();
        Self(child.expect("starting QEMU"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("signalling our child");
    }
}

/// A session, and what it reports.
struct Session {
    handle: QmpHandle,
    notices: mpsc::Receiver<(VmId, QmpNotice)>,
}

impl Session {
    fn start(pid: u32) -> Self {
        let vm = VmId { pid, start_ticks: start_ticks(pid).expect("our child") };
        let (sender, notices) = mpsc::channel(64);
        let limits = Limits {
            greeting: Duration::from_millis(300),
            busy_pause: Duration::from_millis(50),
            closed_pause_min: Duration::from_millis(10),
            closed_pause_max: Duration::from_millis(50),
            ..Limits::default()
        };
        let target = QmpTarget::at_path(vm, "./q.sock");
        Self {
            handle: spawn(
                Transport::Keep(target),
                sender,
                limits,
                flatline_qemu::qmp::Room::default(),
            ),
            notices,
        }
    }

    async fn next(&mut self) -> QmpNotice {
        let next = timeout(PATIENCE, self.notices.recv()).await;
        next.expect("a notice in time").expect("a session").1
    }

    async fn next_state(&mut self) -> QmpState {
        match self.next().await {
            QmpNotice::State(state) => state,
            other => panic!("{other:?} instead of a state"),
        }
    }

    async fn expect_run_state(&mut self, expected: RunState) {
        assert_eq!(self.next().await, QmpNotice::RunState(expected));
    }
}

pub(crate) fn a_real_qemu_is_asked_stopped_and_shared() -> Outcome {
    let path = qemu()?;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(asked_stopped_and_shared(&path));
    Ok(())
}

async fn asked_stopped_and_shared(path: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let qemu = Qemu::start(path, dir.path());
    let mut session = Session::start(qemu.0.id());
    while session.next_state().await != QmpState::Ready {}
    session.expect_run_state(RunState::Prelaunch).await;
    let handle = session.handle.clone();
    assert_eq!(handle.query_status().await.expect("an answer"), RunState::Prelaunch);
    assert_eq!(handle.query_cpus().await.expect("an answer").len(), 2);
    let text = handle.human("info registers -a").await.expect("an answer");
    let registers = parse_registers(&text).expect("registers");
    assert!(registers.len() == 2 && registers[0].is_at_reset_vector());
    let lapic = handle.human("info lapic 1").await.expect("an answer");
    assert!(!parse_lapic(&lapic).expect("a local APIC").software_enabled);
    let limit = Duration::from_secs(2);
    let refused = handle.execute("no-such-command", None, limit).await;
    assert!(matches!(refused, Err(QmpError::Command { class, .. }) if class == "CommandNotFound"));
    handle.execute("cont", None, limit).await.expect("an answer");
    assert_eq!(session.next().await, QmpNotice::Event(QmpEvent::Resume));

    qemu.signal(Signal::STOP);
    let unanswered = handle.execute("query-status", None, Duration::from_millis(100)).await;
    assert!(matches!(unanswered, Err(QmpError::Timeout { .. })));
    assert!(matches!(session.next_state().await, QmpState::Unresponsive { .. }));
    qemu.signal(Signal::CONT);
    assert_eq!(session.next_state().await, QmpState::Ready);
    session.expect_run_state(RunState::Running).await;

    // A second client waits until the first one leaves.
    let mut second = Session::start(qemu.0.id());
    assert_eq!(second.next_state().await, QmpState::Connecting);
    assert_eq!(second.next_state().await, QmpState::Busy);
    handle.close();
    assert_eq!(second.next_state().await, QmpState::Ready);
    second.expect_run_state(RunState::Running).await;
    drop(qemu);
    assert!(matches!(second.next_state().await, QmpState::Closed { .. }));
}
