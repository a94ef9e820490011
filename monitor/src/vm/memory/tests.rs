use super::*;
use crate::balloon::tests::{FakeQemu, Machine};

fn errand(qemu: &FakeQemu, polls: bool) -> Errand {
    Errand {
        qmp: qemu.qmp.clone(),
        balloon: None,
        polls,
        turns: Turns::default(),
        stop: CancellationToken::new(),
    }
}

fn untold(result: Result<GuestMemory, Unread>) -> String {
    match result {
        Err(Unread::Untold(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_guest_that_nobody_polls_is_asked_and_found_at_once_the_next_time() {
    let qemu = FakeQemu::start(|_| {}).await;
    let (told, balloon) = errand(&qemu, true).run().await;
    let told = told.expect("told");
    assert_eq!((told.told_at, told.total, told.available), (6, Some(100), Some(40)));
    assert_eq!(qemu.polled(), (0, vec![1, 0]));
    // Its place is remembered: it is not looked for again.
    qemu.machine().balloon = false;
    let (told, _) = Errand { balloon, ..errand(&qemu, true) }.run().await;
    assert_eq!(told.expect("told").told_at, 7);
}

#[tokio::test]
async fn where_somebody_else_polls_or_libvirt_would_nothing_is_set() {
    for (interval, polls) in [(2, true), (2, false), (0, false)] {
        let qemu = FakeQemu::start(|machine: &mut Machine| machine.interval = interval).await;
        let (told, _) = errand(&qemu, polls).run().await;
        assert_eq!(told.expect("told").told_at, 5);
        assert!(qemu.machine().set.is_empty(), "{interval} {polls}");
    }
}

#[tokio::test]
async fn a_guest_that_never_told_anything_and_a_missing_balloon_are_told_from_zeros() {
    let silent = |machine: &mut Machine| (machine.answers, machine.last_update) = (false, 0);
    let qemu = FakeQemu::start(silent).await;
    let (told, balloon) = errand(&qemu, true).run().await;
    assert!(untold(told).contains("driver"));
    assert!(balloon.is_none(), "another may be plugged in");
    let (told, _) = errand(&qemu, false).run().await;
    assert!(untold(told).contains("<stats period="));
    qemu.machine().balloon = false;
    let (told, _) = errand(&qemu, true).run().await;
    assert_eq!(untold(told), "QEMU names no balloon");
}

#[tokio::test]
async fn a_reading_ends_where_a_witness_asks_or_it_is_given_up_before_it_sets_anything() {
    let qemu = FakeQemu::start(|_| {}).await;
    let busy = errand(&qemu, true);
    let _turn = busy.turns.try_take();
    assert!(matches!(busy.run().await.0, Err(Unread::NotNow(_))));
    let given_up = errand(&qemu, true);
    given_up.stop.cancel();
    assert!(matches!(given_up.run().await.0, Err(Unread::NotNow(_))));
    assert!(qemu.machine().set.is_empty());
}

fn watch() -> MemoryWatch {
    MemoryWatch::new(Duration::from_secs(30), None, Duration::ZERO)
}

/// A reading of a guest that has 1 % available, and had so many major faults.
fn read(told_at: u64, major_faults: u64) -> MemoryRead {
    let guest = GuestMemory {
        told_at,
        total: Some(100),
        available: Some(1),
        major_faults: Some(major_faults),
        ..GuestMemory::default()
    };
    unread(Ok(guest))
}

fn unread(guest: Result<GuestMemory, Unread>) -> MemoryRead {
    let qemu = Ok(QemuMemory { rss: 7, ..QemuMemory::default() });
    MemoryRead { boot_began: Duration::ZERO, balloon: None, guest, qemu }
}

#[test]
fn two_tellings_make_a_rate_and_one_that_is_read_again_keeps_it() {
    let (mut watch, now) = (watch(), unix_now());
    assert_eq!(watch.take(read(now - 30, 0), true).strain, None);
    assert_eq!(watch.told.thrashing(), None);
    watch.take(read(now, 3000), true);
    watch.take(read(now, 3000), true);
    let words = "thrashing: 1.0 % of its memory available, 100 major faults/s";
    assert_eq!(watch.told.thrashing().as_deref(), Some(words));
    assert_eq!(
        (watch.told.view().thrashing, watch.told.view().qemu_rss_bytes),
        (Some(true), Some(7))
    );
    watch.take(read(now + 30, 3100), true);
    assert_eq!((watch.told.thrashing(), watch.told.view().thrashing), (None, Some(false)));
}

#[test]
fn who_cannot_be_asked_now_keeps_what_he_told_last_and_is_not_said_to_thrash_for_ever() {
    let (mut watch, now) = (watch(), unix_now());
    watch.take(read(now - 100, 0), true);
    watch.take(read(now - 69, 5000), true);
    assert!(watch.told.thrashing().is_some());
    let not_now = || unread(Err(Unread::NotNow("busy".to_owned())));
    let memory = watch.take(not_now(), true);
    assert_eq!(memory.guest.as_ref().map(|guest| guest.major_faults), Ok(Some(5000)));
    watch.take(read(now - 95, 0), true);
    watch.take(read(now - 75, 5000), true);
    assert_eq!((watch.told.view().thrashing, watch.told.thrashing()), (Some(true), None));
}

#[test]
fn a_balloon_that_is_gone_takes_its_figures_with_it() {
    let mut watch = watch();
    watch.take(read(100, 0), true);
    let gone = unread(Err(Unread::Untold("QEMU names no balloon".to_owned())));
    assert!(watch.take(gone, true).guest.is_err());
    let view = watch.told.view();
    assert_eq!((view.total_bytes, view.qemu_rss_bytes), (None, Some(7)));
    assert_eq!(view.guest_missing.as_deref(), Some("QEMU names no balloon"));
}

#[test]
fn what_was_told_in_another_boot_is_not_this_ones() {
    let (mut watch, now) = (watch(), unix_now());
    watch.take(read(now - 30, 0), true);
    watch.take(read(now, 9000), true);
    watch.forget_guest();
    assert_eq!((watch.told.thrashing(), watch.told.told_at()), (None, None));
    assert_eq!(watch.told.view().qemu_rss_bytes, Some(7));
    // A reading that began before the reset comes in after it.
    watch.take(read(now, 9000), false);
    assert_eq!(watch.told.told_at(), None);
    assert_eq!(watch.take(read(now, 10), true).strain, None);
}

#[test]
fn a_reading_is_due_once_at_a_time_and_never_where_none_is_wanted() {
    let second = Duration::from_secs(1);
    let mut watch = MemoryWatch::new(30 * second, None, 5 * second);
    assert_eq!(watch.due(), Some(5 * second));
    watch.reading = Some(CancellationToken::new());
    assert_eq!(watch.due(), None);
    watch.give_up();
    assert!(watch.reading.as_ref().is_some_and(CancellationToken::is_cancelled));
    let never = MemoryWatch::new(Duration::ZERO, None, Duration::ZERO);
    assert_eq!(never.due(), None);
    assert_eq!(never.told.view().guest_missing.as_deref(), Some("it is not read"));
}

#[test]
fn memory_of_a_guest_without_a_balloon_is_read_when_it_is_asked_for_and_due() {
    use flatline_qemu::discover::{Ownership, VmId};

    let id = VmId { pid: std::process::id(), start_ticks: 1 };
    let mut vm = Vm { id, ..Vm::stand_in(Ownership::bare(), &[]) };
    vm.pidfd = Arc::new(
        rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )
        .expect("it is there"),
    );
    let reader = MemoryReader::default();
    let second = Duration::from_secs(1);
    let mut told = watch().told;
    assert!(told.read_if_due(&vm, &reader, 2 * second).is_none(), "it was found just now");
    let read = told.read_if_due(&vm, &reader, 3 * second).expect("it is due");
    assert!(told.view().qemu_rss_bytes > Some(1 << 20), "{:?}", told.view());
    assert_eq!(told.view().guest_missing.as_deref(), Some(NO_BALLOON));
    let mut watch = watch();
    assert_eq!(watch.take(read, true).qemu, told.latest().expect("it was read").qemu);
    told.due = 30 * second;
    assert!(told.read_if_due(&vm, &reader, 29 * second).is_none());
    assert!(told.read_if_due(&vm, &reader, 30 * second).is_some());
    vm.has_balloon = true;
    assert!(told.read_if_due(&vm, &reader, 30 * second).is_none(), "its turn comes by itself");
    let mut never = MemoryWatch::new(Duration::ZERO, None, Duration::ZERO).told;
    vm.has_balloon = false;
    assert!(never.read_if_due(&vm, &reader, 90 * second).is_none());
}
