//! VMs that wait for a place among their host's restarts.

use super::*;

#[tokio::test]
async fn a_vm_waits_for_its_turn_where_its_host_has_no_place_and_says_so() {
    let mut rig = Rig::new("[recovery]\nmax_restarts_per_minute = 1\n");
    let place = rig.with(|supervisor, watched, context| {
        let (other, room) = (VmId { pid: 7, ..watched.vm.id }, supervisor.room(context));
        supervisor.places.ask(other, 1000, room).unwrap()
    });
    rig.panic();
    assert_eq!((rig.case().stage, rig.is_to_restart()), (Stage::AwaitingPlace, false));
    let reason = rig.watched.detector.watch.reason.clone();
    assert!(reason.contains("waits for its turn to be restarted: 1 VMs of this host"), "{reason}");
    rig.pass(SECOND * 100);
    assert!(!rig.is_to_restart(), "the other one's restart is under way still");
    drop(place);
    let Rig { mut supervisor, config, watched, now, wall, .. } = rig;
    let (id, mut vms) = (watched.vm.id, Vms::default());
    vms.insert(id, watched);
    supervisor.take_turns(&mut vms, &Context { config: &config, now, wall });
    let effects = supervisor.take_effects();
    assert!(matches!(effects[..], [Effect::Restart { vm, .. }] if vm == id), "{effects:?}");
    assert!(vms.get(&id).unwrap().recovery.is_restarting());
    // Its place is taken for as long as that is under way, and is given back if nothing comes of it.
    let context = Context { config: &config, now: now + SECOND * 100, wall };
    let room = supervisor.room(&context);
    assert!(supervisor.places.ask(VmId { pid: 8, ..id }, 1000, room).is_err());
    drop(effects);
    assert!(supervisor.places.ask(VmId { pid: 8, ..id }, 1000, room).is_ok());
}

#[tokio::test]
async fn a_vm_that_is_put_on_hold_while_it_waits_for_its_turn_is_left_alone() {
    let mut rig = Rig::new("[recovery]\nmax_restarts_per_minute = 1\n");
    let place = rig.with(|supervisor, watched, context| {
        let (other, room) = (VmId { pid: 7, ..watched.vm.id }, supervisor.room(context));
        supervisor.places.ask(other, 1000, room).unwrap()
    });
    rig.panic();
    let key = rig.watched.key.clone();
    rig.supervisor.hold(HoldScope::Vm(&key), Hold { since: rig.wall, until: None });
    drop(place);
    let Rig { mut supervisor, config, watched, now, wall, .. } = rig;
    let (id, mut vms) = (watched.vm.id, Vms::default());
    vms.insert(id, watched);
    supervisor.take_turns(&mut vms, &Context { config: &config, now, wall });
    assert!(supervisor.take_effects().is_empty());
    assert_eq!(vms.get(&id).unwrap().recovery.case.as_ref().unwrap().stage, Stage::OnHold);
}
