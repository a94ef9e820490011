use std::sync::{Mutex as StdMutex, MutexGuard};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::*;
use flatline_qemu::{
    discover::{VmId, start_ticks},
    qmp::{self, QmpState, QmpTarget, Transport},
};

/// A QEMU with a balloon, in this very process.
pub(crate) struct FakeQemu {
    pub(crate) qmp: QmpHandle,
    machine: Arc<StdMutex<Machine>>,
    _dir: tempfile::TempDir,
    _notices: mpsc::Receiver<(VmId, qmp::QmpNotice)>,
}

/// What it is made of.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) interval: u64,
    pub(crate) last_update: u64,
    /// The guest answers as soon as the polling is turned on.
    pub(crate) answers: bool,
    pub(crate) balloon: bool,
    /// What the interval was set to, by commands.
    pub(crate) set: Vec<u64>,
    /// Another client sets it to this as soon as it was turned on.
    pub(crate) overruled_by: Option<u64>,
}

impl FakeQemu {
    /// One whose guest answers, that no client polls, after `change`.
    pub(crate) async fn start(change: impl FnOnce(&mut Machine)) -> Self {
        let mut machine = Machine {
            interval: 0,
            last_update: 5,
            answers: true,
            balloon: true,
            set: Vec::new(),
            overruled_by: None,
        };
        change(&mut machine);
        let machine = Arc::new(StdMutex::new(machine));
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = machine.clone();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, &serving).await;
        });
        let pid = std::process::id();
        let vm = VmId { pid, start_ticks: start_ticks(pid).unwrap() };
        let (sender, mut notices) = mpsc::channel(64);
        let qmp = qmp::spawn(
            Transport::Keep(QmpTarget::at_path(vm, socket)),
            sender,
            qmp::Limits::default(),
            qmp::Room::default(),
        );
        loop {
            let notice = timeout(Duration::from_secs(4), notices.recv()).await;
            let (_, notice) = notice.expect("in time").expect("a session");
            if notice == qmp::QmpNotice::State(QmpState::Ready) {
                break;
            }
        }
        Self { qmp, machine, _dir: dir, _notices: notices }
    }

    /// The interval, and what it was set to before.
    pub(crate) fn polled(&self) -> (u64, Vec<u64>) {
        let machine = self.machine();
        (machine.interval, machine.set.clone())
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }
}

async fn serve(stream: UnixStream, machine: &StdMutex<Machine>) {
    let mut stream = BufReader::new(stream);
    let greeting = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    stream.write_all(greeting.as_bytes()).await.unwrap();
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
        let command: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let answer = machine.lock().unwrap().carry_out(&command);
        let reply = json!({"return": answer, "id": command["id"]}).to_string();
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Machine {
    fn carry_out(&mut self, command: &Value) -> Value {
        let arguments = &command["arguments"];
        let name = command["execute"].as_str().unwrap();
        if name.starts_with("qom-") && name != "qom-list" {
            assert_eq!(arguments["path"], "/machine/peripheral-anon/device[2]");
        }
        match (name, arguments["property"].as_str()) {
            ("query-status", _) => json!({"status": "running"}),
            ("qom-list", _) if arguments["path"] == "/machine/peripheral-anon" && self.balloon => {
                json!([{"name": "device[2]", "type": "child<virtio-balloon-pci>"}])
            }
            ("qom-list", _) => json!([]),
            ("qom-get", Some(STATISTICS)) => {
                let stats = json!({"stat-total-memory": 100, "stat-available-memory": 40,
                    "stat-major-faults": self.last_update});
                json!({"stats": stats, "last-update": self.last_update})
            }
            ("qom-get", Some(INTERVAL)) => json!(self.interval),
            ("qom-set", Some(INTERVAL)) => {
                self.interval = arguments["value"].as_u64().unwrap();
                self.set.push(self.interval);
                if self.interval > 0 && self.answers {
                    self.last_update += 1;
                }
                if let Some(other) = self.overruled_by.take() {
                    self.interval = other;
                }
                json!({})
            }
            ("qmp_capabilities", _) => json!({}),
            other => panic!("{other:?}"),
        }
    }
}

const WAIT: Wait =
    Wait { within: Duration::from_millis(60), look_every: Duration::from_millis(20) };

async fn renewed(qemu: &FakeQemu, stop: CancellationToken) -> Result<u64, QmpError> {
    let balloon = Balloon::find(&qemu.qmp).await?.expect("it has one");
    let last = last_update(&balloon.statistics(&qemu.qmp).await?)?;
    let statistics = balloon.renew(&qemu.qmp, last, WAIT, None, stop).await?;
    last_update(&statistics)
}

#[tokio::test]
async fn a_guest_that_nobody_polls_is_asked_once_and_the_polling_is_off_again() {
    let qemu = FakeQemu::start(|_| {}).await;
    assert_eq!(renewed(&qemu, CancellationToken::new()).await.ok(), Some(6));
    assert_eq!(qemu.polled(), (0, vec![1, 0]));
}

#[tokio::test]
async fn a_guest_that_does_not_answer_leaves_the_last_answer_and_the_polling_off() {
    let qemu = FakeQemu::start(|machine| machine.answers = false).await;
    assert_eq!(renewed(&qemu, CancellationToken::new()).await.ok(), Some(5));
    assert_eq!(qemu.machine().set, [1, 0]);
}

#[tokio::test]
async fn who_is_stopped_puts_back_at_once_what_he_found() {
    let qemu = FakeQemu::start(|machine| machine.answers = false).await;
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(renewed(&qemu, stop).await.is_err());
    assert_eq!(qemu.machine().set, [1, 0]);
}

#[tokio::test]
async fn an_interval_that_somebody_sets_meanwhile_stays() {
    let qemu = FakeQemu::start(|machine| machine.overruled_by = Some(5)).await;
    assert_eq!(renewed(&qemu, CancellationToken::new()).await.ok(), Some(6));
    assert_eq!(qemu.polled(), (5, vec![1]));
}

#[tokio::test]
async fn the_polling_is_turned_off_and_the_turn_ends_also_where_the_caller_gives_up() {
    let qemu = FakeQemu::start(|machine| machine.answers = false).await;
    let balloon = Balloon::find(&qemu.qmp).await.unwrap().expect("it has one");
    let turns = Turns::default();
    let asked = balloon.renew(&qemu.qmp, 5, WAIT, turns.try_take(), CancellationToken::new());
    assert!(timeout(Duration::from_millis(10), asked).await.is_err());
    assert!(turns.try_take().is_none(), "its task goes on");
    assert!(turns.take_within(Duration::from_secs(2)).await.is_some());
    assert_eq!(qemu.machine().set, [1, 0]);
}

#[test]
fn the_balloon_is_found_among_a_machines_devices() {
    // As QEMU 7.2 lists /machine/peripheral-anon.
    let listed = json!([
        {"name": "type", "type": "string"},
        {"name": "device[0]", "type": "child<virtio-serial-pci>"},
        {"name": "device[2]", "type": "child<virtio-balloon-pci>"}
    ]);
    assert_eq!(balloon(&listed), Some("device[2]"));
    assert_eq!(balloon(&json!([{"name": "balloon", "type": "string"}, {"type": 7}, 7])), None);
    assert_eq!(balloon(&json!({})), None);
}

#[test]
fn a_time_that_is_none_is_malformed_and_not_never() {
    assert_eq!(last_update(&json!({"last-update": 0})).ok(), Some(0));
    for reply in [json!({}), json!({"last-update": -1}), json!({"last-update": "1"}), json!(7)] {
        assert!(matches!(last_update(&reply), Err(QmpError::Malformed { .. })), "{reply}");
    }
}

#[tokio::test]
async fn one_at_a_time_has_a_turn_and_who_waits_for_it_does_so_for_a_while_only() {
    let turns = Turns::default();
    let turn = turns.try_take().expect("no task has it");
    assert!(turns.try_take().is_none());
    assert!(turns.take_within(Duration::from_millis(10)).await.is_none());
    drop(turn);
    assert!(turns.clone().take_within(Duration::from_millis(10)).await.is_some());
}
