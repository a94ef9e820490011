use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, option, prelude::*};

use super::super::{
    FORMAT,
    record::{Before, Changed, Record},
};
use crate::{
    activity::{Activity, HeartbeatActivity, NetworkActivity, StorageActivity, VcpuActivity},
    verdict::{
        Act, Answer, Cause, Dump, HeartbeatLoss, HeartbeatState, Input, Liveness, Monitor,
        Questions, State, Statement, Tally, Testimony, Tick, Watch,
    },
};
use flatline_samples::{
    GuestMemory, Memory, Missing, ProcessState, QemuMemory, QmpEvent, RunState, Strain,
};

fn missing() -> impl Strategy<Value = Missing> {
    "[ -~]{0,20}".prop_map(|why| Missing::new("storage", why))
}

fn reading<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Result<T, Missing>> {
    prop_oneof![4 => value.prop_map(Ok), 1 => missing().prop_map(Err)]
}

fn span() -> impl Strategy<Value = Duration> {
    (0_u64..100, 0_u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1.1_f64, (0_u32..2_000_000).prop_map(|n| f64::from(n) / 1e9)]
}

fn vcpu() -> impl Strategy<Value = VcpuActivity> {
    (0..3_u32, 1..4_u32, share(), share()).prop_map(|(index, tid, busy, waiting)| VcpuActivity {
        index,
        tid,
        busy,
        waiting,
    })
}

fn monitor() -> impl Strategy<Value = Monitor> {
    prop_oneof![
        4 => Just(Monitor::Answers(RunState::Running)),
        1 => "[ -~]{0,20}".prop_map(Monitor::Unknown),
        1 => "[ -~]{0,20}".prop_map(Monitor::Unresponsive),
        1 => "[ -~]{0,20}".prop_map(Monitor::NotStarted),
    ]
}

fn tick() -> impl Strategy<Value = Tick> {
    let network = (0_u64..3, 0_u64..3, any::<u64>()).prop_map(|(a, b, c)| NetworkActivity {
        guest_packets: a,
        packets_to_guest: Some(b),
        probe_answers: c,
    });
    let storage = (any::<u64>(), 0_u64..3, 0_u64..2, option::of(span())).prop_map(
        |(submitted, completed, in_flight, oldest)| StorageActivity {
            submitted,
            completed,
            in_flight,
            oldest,
        },
    );
    let process = prop_oneof![Just(ProcessState::Running), Just(ProcessState::Uninterruptible)];
    let heartbeat = (0_u64..2, any::<(bool, bool)>(), span(), any::<u64>(), "[ -~]{0,9}").prop_map(
        |(beats, (failed, leaving), interval, boot, check)| HeartbeatActivity {
            beats,
            failed,
            leaving,
            interval,
            boot,
            check,
        },
    );
    let activity = (
        span(),
        reading(option::of(network)),
        reading(storage),
        reading(vec(vcpu(), 0..4)),
        process,
        reading(option::of(heartbeat)),
    )
        .prop_map(|(elapsed, network, storage, vcpus, process, heartbeat)| Activity {
            elapsed,
            network,
            storage,
            vcpus,
            process,
            heartbeat,
        });
    (activity, monitor(), any::<(bool, bool)>()).prop_map(
        |(activity, monitor, (calibratable, undecided))| Tick {
            activity,
            monitor,
            calibratable,
            undecided,
        },
    )
}

fn memory() -> impl Strategy<Value = Memory> {
    let guest = (any::<u64>(), option::of(any::<u64>())).prop_map(|(told_at, available)| {
        GuestMemory { told_at, available, ..GuestMemory::default() }
    });
    let strain =
        (share(), share()).prop_map(|(available, major_faults)| Strain { available, major_faults });
    let qemu = any::<u64>().prop_map(|rss| QemuMemory { rss, swap: Some(0), hugetlb: None });
    (reading(guest), option::of(strain), reading(qemu)).prop_map(|(guest, strain, qemu)| Memory {
        guest,
        strain,
        qemu,
    })
}

fn input() -> impl Strategy<Value = Input> {
    let text = || "[ -~]{0,30}".prop_map(|text: String| text);
    let answer = prop_oneof![
        text().prop_map(Answer::Lives),
        text().prop_map(Answer::Silent),
        Just(Answer::Halted)
    ];
    let said = answer.prop_map(|answer| Statement { witness: "arp".into(), answer });
    prop_oneof![
        6 => tick().prop_map(|tick| Input::Tick(Arc::new(tick))),
        1 => vec(said, 0..4)
            .prop_map(|statements| Input::Testimony(Arc::new(Testimony { statements }))),
        1 => (monitor(), any::<bool>()).prop_map(|(monitor, guest)| Input::Event {
            monitor,
            event: QmpEvent::Reset { guest },
        }),
        1 => Just(Input::Restarted { cause: Cause::Spinning, was_up: true }),
        1 => option::of(text()).prop_map(Input::Storm),
        1 => memory().prop_map(|memory| Input::Memory(Arc::new(memory))),
    ]
}

type Told = (i32, Input, Option<Questions>, Option<String>);

fn told() -> impl Strategy<Value = Told> {
    let asks = option::of(prop_oneof![Just(Questions::All), Just(Questions::IsItUp)]);
    (-1_000_000..2_000_000_000, input(), asks, option::of("[ -~]{0,30}".prop_map(|it: String| it)))
}

/// The records that stand for `told`, and their bytes.
fn written(told: Vec<Told>) -> (Vec<Record>, Vec<u8>) {
    let begins = Duration::from_secs(7);
    let (mut before, mut bytes, mut records) = (Before::new(begins), Vec::new(), Vec::new());
    let mut at = begins;
    for (nanos, input, asks, reason) in told {
        let step = Duration::from_nanos(nanos.unsigned_abs().into());
        at = if nanos < 0 { at.saturating_sub(step) } else { at + step };
        let act = asks.map_or(Act::Nothing, Act::Ask);
        let state = State::Crashed { cause: Cause::Halted };
        let changed = reason.as_ref().map(|reason| (&state, reason.as_str()));
        before.write(&mut bytes, at, &input, &act, changed).expect("written");
        let changed =
            reason.map(|reason| Changed { state: "crashed", cause: Some(Cause::Halted), reason });
        records.push(Record { at, input, act, changed });
    }
    (records, bytes)
}

fn read(mut bytes: &[u8]) -> (Vec<Record>, bool) {
    let (mut before, mut records) = (Before::new(Duration::from_secs(7)), Vec::new());
    while !bytes.is_empty() {
        match before.read(&mut bytes) {
            Ok(record) => records.push(record),
            Err(_) => return (records, false),
        }
    }
    (records, true)
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written_to_the_last_bit(told in vec(told(), 0..20)) {
        let (records, bytes) = written(told);
        prop_assert_eq!(read(&bytes), (records, true));
    }

    #[test]
    fn bytes_that_are_cut_off_anywhere_give_a_prefix_of_the_records(
        told in vec(told(), 1..8),
        cut in 0.0..1.0_f64,
    ) {
        let (records, bytes) = written(told);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part")]
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let length = (bytes.len() as f64 * cut) as usize;
        let (read, _) = read(&bytes[..length]);
        prop_assert_eq!(&read[..], &records[..read.len()]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        read(&bytes);
    }
}

fn with_a_beat() -> Input {
    let Input::Tick(tick) = super::tick(3, 0.25) else { unreachable!() };
    let mut tick = Tick::clone(&tick);
    let interval = Duration::from_secs(1);
    let check = "text".to_owned();
    let said =
        HeartbeatActivity { beats: 1, failed: false, leaving: true, interval, boot: 7, check };
    tick.activity.heartbeat = Ok(Some(said));
    Input::Tick(Arc::new(tick))
}

/// The inputs whose form the format's number stands for.
fn samples() -> Vec<Told> {
    let text = || "text".to_owned();
    let monitor = || Monitor::Answers(RunState::Paused);
    let statements = vec![Statement { witness: "w".into(), answer: Answer::Excuse(text()) }];
    [
        super::tick(3, 0.25),
        with_a_beat(),
        Input::Testimony(Arc::new(Testimony { statements })),
        Input::Event { monitor: monitor(), event: QmpEvent::DeviceDeleted },
        Input::RunState(RunState::Colo),
        Input::Restarted { cause: Cause::BootLoop, was_up: false },
        Input::StillWriting,
        Input::SetAside(text()),
        Input::LimitReached { cause: Cause::QemuExited, reason: text() },
        Input::Reexamine,
        Input::Unseen(text()),
        Input::Storm(Some(text())),
        Input::Released,
        Input::Memory(Arc::new(super::memory(3, 5))),
        Input::MayBeTouched(text()),
    ]
    .into_iter()
    .map(|input| (1_000_000, input, Some(Questions::IsItUp), Some(text())))
    .collect()
}

#[test]
fn a_change_to_what_is_recorded_changes_the_formats_number() {
    let (_, mut bytes) = written(samples());
    let second = Duration::from_secs(1);
    let (cause, tally) = (Cause::Halted, Tally { rounds: 1, silent: 2, ..Tally::default() });
    let mut watch = Watch::begin(second, second, second);
    watch.state = State::Recovering { cause, deadline: second, tally, was_up: true };
    watch.reason = "text".to_owned();
    watch.liveness = Liveness { pinned_since: Some(second), ..Liveness::begin(second, "text") };
    watch.boot.answered.insert("arp".into());
    watch.boot.dump = Some(Dump::new(second, second));
    watch.boot.heartbeat = Some(HeartbeatState {
        boot: 7,
        interval: second,
        check: "web".to_owned(),
        beat: Some(second),
        heard: second,
        leaving: None,
        missed: Some(HeartbeatLoss {
            since: second,
            rounds: 1,
            stormy: false,
            told: Some(Cause::UserlandDead),
            reason: "text".to_owned(),
        }),
    });
    watch.resets.push(second);
    let Input::Tick(tick) = super::tick(3, 0.25) else { unreachable!() };
    watch.last = Some((second, tick));
    super::super::record::put(&mut bytes, &watch).expect("written");
    super::super::record::put(&mut bytes, &watch.silence).expect("written");
    super::super::record::put(&mut bytes, &super::header()).expect("written");
    let message = "what is recorded has another form: count FORMAT up, and put the new sum here";
    assert_eq!((FORMAT, crc32fast::hash(&bytes)), (2, 1_591_068_965), "{message}");
}
