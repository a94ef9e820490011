//! QEMUs that are made up here, over real Unix sockets.

use std::sync::Mutex;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::*;
use flatline_qemu::{
    discover::{Ownership, VmId, start_ticks},
    qmp::{self, QmpNotice, QmpState, QmpTarget, Transport},
};

const X86: &str = "CPU#0\r\nRAX=0\r\nRIP=0000fff0 RFL=00000002 CPL=0 HLT=0\r\nCR0=60000010\r\n";
const ARM: &str =
    "CPU#0\r\n PC=0000000040400004 SP=0000000000000000\r\nPSTATE=000003c5 ---- EL1h\r\n";

/// Commands, in the order in which they came.
type Log = Arc<Mutex<Vec<String>>>;

/// A QEMU in this process that says what `says` does to `COMMAND` or `qom-get PATH PROPERTY`; an error where that is
/// `Err`.
struct Qemu {
    handle: QmpHandle,
    asked: Log,
    _directory: tempfile::TempDir,
}

impl Qemu {
    async fn start(says: fn(&str) -> Result<Value, &'static str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let pid = std::process::id();
        let vm = VmId { pid, start_ticks: start_ticks(pid).unwrap() };
        let (notices, mut heard) = mpsc::channel(64);
        let handle = qmp::spawn(
            Transport::Keep(QmpTarget::at_path(vm, &socket)),
            notices,
            qmp::Limits::default(),
            qmp::Room::default(),
        );
        let (stream, _) = listener.accept().await.unwrap();
        let asked = Log::default();
        tokio::spawn(serve(stream, says, asked.clone()));
        while !matches!(heard.recv().await, Some((_, QmpNotice::State(QmpState::Ready)))) {}
        tokio::spawn(async move { while heard.recv().await.is_some() {} });
        Self { handle, asked, _directory: directory }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

async fn serve(
    stream: UnixStream,
    says: fn(&str) -> Result<Value, &'static str>,
    asked: Log,
) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.ok()?;
    while let Some(line) = lines.next_line().await.ok()? {
        let command: Value = serde_json::from_str(&line).ok()?;
        let name = command["execute"].as_str()?.to_owned();
        let argument = |name: &str| command["arguments"][name].as_str().map(|it| format!(" {it}"));
        let words: Vec<String> = ["path", "property"].into_iter().filter_map(argument).collect();
        let question = name.clone() + &words.concat();
        let said = match name.as_str() {
            "qmp_capabilities" => Ok(json!({})),
            "query-status" => Ok(json!({"status": "running"})),
            _ => {
                asked.lock().unwrap().push(question.clone());
                says(&question)
            }
        };
        let id = &command["id"];
        let reply = match said {
            Ok(value) => json!({"return": value, "id": id}),
            Err(why) => json!({"error": {"class": "GenericError", "desc": why}, "id": id}),
        };
        writer.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
    }
    None
}

fn vm() -> Vm {
    Vm::stand_in(Ownership::bare(), &[])
}

#[tokio::test]
async fn an_ordinary_guest_is_asked_about_once_and_its_registers_are_read() {
    let qemu = Qemu::start(|question| {
        Ok(match question {
            "qom-get /machine confidential-guest-support" => json!(""),
            "query-target" => json!({"arch": "x86_64"}),
            "human-monitor-command" => json!(X86),
            other => panic!("{other} is not asked for"),
        })
    })
    .await;
    let insight = Insight::begin(&vm());
    for _ in 0..3 {
        assert_eq!(insight.registers(&qemu.handle).await.unwrap(), Readable::X86);
        assert_eq!(insight.encryption(&qemu.handle).await, Encryption::None);
    }
    assert_eq!((qemu.asked(), insight.lacks()), (3, None));
}

#[tokio::test]
async fn qemu_knows_better_what_it_executes_than_its_name() {
    let qemu = Qemu::start(|question| match question {
        "query-target" => Ok(json!({"arch": "aarch64"})),
        "qom-get /machine virtualization" => Ok(json!(false)),
        "human-monitor-command" => Ok(json!(ARM)),
        // As a QEMU before 2.12 says.
        _ => Err("Property '.confidential-guest-support' not found"),
    })
    .await;
    let insight = Insight::begin(&vm());
    let found = insight.registers(&qemu.handle).await.unwrap();
    assert_eq!(found, Readable::Arm { may_nest: false });
}

#[tokio::test]
async fn an_arm_machine_may_have_guests_of_its_own_unless_it_says_that_it_has_not() {
    let on = Qemu::start(|question| match question {
        "query-target" => Ok(json!({"arch": "aarch64"})),
        "qom-get /machine virtualization" => Ok(json!(true)),
        "human-monitor-command" => Ok(json!(ARM)),
        _ => Err("Property not found"),
    });
    let unknown = Qemu::start(|question| match question {
        "query-target" => Ok(json!({"arch": "aarch64"})),
        "human-monitor-command" => Ok(json!(ARM)),
        _ => Err("Property 'sbsa-ref-machine.virtualization' not found"),
    });
    for qemu in [on.await, unknown.await] {
        let found = Insight::begin(&vm()).registers(&qemu.handle).await.unwrap();
        assert_eq!(found, Readable::Arm { may_nest: true });
    }
}

#[tokio::test]
async fn a_guest_that_qemu_calls_confidential_is_not_looked_at() {
    let qemu = Qemu::start(|question| {
        Ok(match question {
            "qom-get /machine confidential-guest-support" => {
                return Err(
                    "Property 'pc-i440fx-5.2-machine.confidential-guest-support' not found",
                );
            }
            "qom-get /machine memory-encryption" => json!("sev0"),
            "qom-get /objects/sev0 type" => json!("sev-guest"),
            "qom-get /objects/sev0 policy" => json!(5),
            other => panic!("{other} is not asked for"),
        })
    })
    .await;
    let insight = Insight::begin(&vm());
    for _ in 0..3 {
        let why = insight.registers(&qemu.handle).await.unwrap_err();
        assert!(matches!(&why, Unreadable::Ever(why) if why.contains("SEV-ES")), "{why}");
    }
    assert_eq!(qemu.asked(), 4);
    assert!(insight.lacks_registers().is_some() && insight.lacks().is_some());
    assert!(insight.encryption(&qemu.handle).await.memory().is_err());
}

#[tokio::test]
async fn of_a_guest_whose_memory_alone_is_encrypted_the_registers_are_read() {
    let qemu = Qemu::start(|question| {
        Ok(match question {
            "qom-get /machine confidential-guest-support" => json!("/objects/lsec0"),
            "qom-get /objects/lsec0 type" => json!("sev-guest"),
            "qom-get /objects/lsec0 policy" => json!(1),
            "query-target" => json!({"arch": "x86_64"}),
            "human-monitor-command" => json!(X86),
            other => panic!("{other} is not asked for"),
        })
    })
    .await;
    let insight = Insight::begin(&vm());
    assert_eq!(insight.registers(&qemu.handle).await.unwrap(), Readable::X86);
    assert_eq!(insight.lacks_registers(), None);
    assert_eq!(insight.lacks().as_deref(), Some("its memory is encrypted (sev-guest)"));
}

#[tokio::test]
async fn where_the_command_line_says_so_nothing_is_asked() {
    let qemu = Qemu::start(|question| panic!("{question} is asked")).await;
    let encryption = Encryption::of_object("tdx-guest", None);
    let insight = Insight::begin(&Vm { encryption: encryption.clone(), ..vm() });
    assert!(insight.lacks().is_some());
    assert!(matches!(insight.registers(&qemu.handle).await, Err(Unreadable::Ever(_))));
    assert_eq!(insight.encryption(&qemu.handle).await, encryption);
    assert_eq!(qemu.asked(), 0);
}

#[tokio::test]
async fn one_of_which_qemu_will_not_say_may_be_encrypted() {
    let qemu = Qemu::start(|_| Err("Permission denied")).await;
    let insight = Insight::begin(&vm());
    let why = insight.registers(&qemu.handle).await.unwrap_err();
    assert!(matches!(&why, Unreadable::Ever(why) if why.contains("perhaps")), "{why}");
}

#[tokio::test]
async fn what_is_not_understood_is_asked_for_once() {
    let foreign = Qemu::start(|question| match question {
        "query-target" => Ok(json!({"arch": "riscv64"})),
        "human-monitor-command" => panic!("no test reads that"),
        _ => Ok(json!("")),
    })
    .await;
    let garbled = Qemu::start(|question| match question {
        "query-target" => Ok(json!({"arch": "x86_64"})),
        "human-monitor-command" => Ok(json!("CPU#0\r\nnothing of interest\r\n")),
        _ => Ok(json!("")),
    })
    .await;
    for (qemu, said, asked) in [(foreign, "riscv64", 2), (garbled, "vCPU 0", 3)] {
        let insight = Insight::begin(&vm());
        for _ in 0..3 {
            let why = insight.registers(&qemu.handle).await.unwrap_err();
            assert!(matches!(&why, Unreadable::Ever(why) if why.contains(said)), "{why}");
        }
        assert_eq!(qemu.asked(), asked);
        assert!(insight.lacks().is_some_and(|why| why.contains(said)));
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_none() {
    let qemu = Qemu::start(|_| Ok(json!({}))).await;
    let insight = Insight::begin(&vm());
    for _ in 0..2 {
        let why = insight.registers(&qemu.handle).await.unwrap_err();
        assert!(matches!(why, Unreadable::Now(QmpError::Malformed { .. })), "{why}");
    }
    assert_eq!(insight.lacks(), None);
}
