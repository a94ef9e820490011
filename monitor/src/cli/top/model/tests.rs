//! What the keys and the daemon's answers come to.

use std::time::{Duration, Instant};

use crate::api::view::{LineView, LinesView, VmView};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Column, Effect, Key, Look, Model, Overlay, PageAnswer, life};
use crate::cli::samples::{now, status, vm};

const LOOK: Look = Look { unicode: true, colours: false };

/// A model of a terminal of 80x24 that has these VMs.
fn model(vms: Vec<VmView>) -> Model {
    let begin = Instant::now();
    let mut model = Model::new(LOOK, (80, 24), begin, now());
    model.on_status(status(vms), None, begin);
    model
}

/// A model with `count` VMs, all alive.
fn many(count: u32) -> Model {
    model((0..count).map(|number| vm(&format!("vm-{number:04}"), number + 1, "alive")).collect())
}

fn press(model: &mut Model, keys: &[KeyCode]) -> Effect {
    let press = |model: &mut Model, code: &KeyCode| model.on_key(KeyEvent::from(*code));
    keys.iter().map(|code| press(model, code)).last().expect("a key")
}

fn type_in(model: &mut Model, text: &str) {
    let keys: Vec<KeyCode> = text.chars().map(KeyCode::Char).collect();
    press(model, &keys);
}

fn names(model: &Model) -> Vec<&str> {
    (0..model.shown.len()).filter_map(|index| Some(&*model.row(index)?.vm.name)).collect()
}

fn at(model: &Model) -> &str {
    model.selected().map_or("nowhere", |row| &row.vm.name)
}

#[test]
fn a_vm_that_needs_a_person_stands_first() {
    let model = model(vec![
        vm("a", 1, "alive"),
        vm("b", 2, "suspect"),
        vm("c", 3, "held"),
        vm("d", 4, "failed"),
        vm("e", 5, "word of a newer daemon's"),
    ]);
    assert_eq!(names(&model), ["d", "b", "c", "e", "a"]);
}

#[test]
fn each_columns_key_sorts_by_it_and_turns_it_round_the_second_time() {
    let mut busy = vm("busy", 1, "alive");
    busy.vcpus[0].busy_ratio = Some(0.9);
    busy.restarts_in_window = 2;
    busy.flat_seconds = Some(0.0);
    let mut unread = vm("unread", 2, "unobservable");
    unread.vcpus.clear();
    unread.storage = None;
    unread.flat_seconds = None;
    let mut stuck = vm("stuck", 3, "held");
    stuck.flat_seconds = Some(50.0);
    if let Some(storage) = &mut stuck.storage {
        storage.in_flight = 9;
    }
    let mut model = model(vec![busy, unread, stuck]);
    for (key, there, back) in [
        ('N', ["busy", "stuck", "unread"], ["unread", "stuck", "busy"]),
        ('S', ["unread", "stuck", "busy"], ["busy", "stuck", "unread"]),
        // What isn't known stands last either way.
        ('P', ["busy", "stuck", "unread"], ["stuck", "busy", "unread"]),
        ('F', ["stuck", "busy", "unread"], ["busy", "stuck", "unread"]),
        ('L', ["stuck", "busy", "unread"], ["busy", "stuck", "unread"]),
        ('C', ["busy", "stuck", "unread"], ["stuck", "unread", "busy"]),
    ] {
        press(&mut model, &[KeyCode::Char(key)]);
        assert_eq!(names(&model), there, "{key}");
        press(&mut model, &[KeyCode::Char(key)]);
        assert_eq!((names(&model), model.reversed), (back.to_vec(), true), "{key}");
        press(&mut model, &[KeyCode::Char('R')]);
        assert!(!model.reversed, "{key}");
    }
    press(&mut model, &[KeyCode::Char('>')]);
    assert_eq!(model.column, Column::Name, "around the end");
    press(&mut model, &[KeyCode::Char('<'), KeyCode::Char('<')]);
    assert_eq!(model.column, Column::Life);
    press(&mut model, &[KeyCode::F(6), KeyCode::Down, KeyCode::Enter]);
    assert_eq!((model.column, &model.overlay), (Column::Restarts, &Overlay::None));
}

#[test]
fn a_filter_is_typed_kept_taken_back_and_cleared() {
    let mut web = vm("web-1", 10, "alive");
    web.uuid = Some("0F1E".to_owned());
    let mut held = vm("db-1", 20, "alive");
    held.hold = Some("until it is released".to_owned());
    let mut model = model(vec![web, held, vm("web-2", 30, "suspect")]);
    press(&mut model, &[KeyCode::Char('/')]);
    type_in(&mut model, "WEB");
    assert_eq!(names(&model), ["web-2", "web-1"]);
    type_in(&mut model, "q");
    assert!(names(&model).is_empty(), "a letter is no key meanwhile");
    press(&mut model, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!((names(&model).len(), model.overlay.clone()), (2, Overlay::None));
    press(&mut model, &[KeyCode::F(4), KeyCode::Char('x'), KeyCode::Esc]);
    assert_eq!(model.filter, "WEB", "as it was");
    press(&mut model, &[KeyCode::Esc]);
    assert_eq!(names(&model).len(), 3);
    for (needle, name) in
        [("0f1e", "web-1"), ("20", "db-1"), ("on hold", "db-1"), ("susp", "web-2")]
    {
        press(&mut model, &[KeyCode::Esc, KeyCode::Char('\\')]);
        type_in(&mut model, needle);
        assert_eq!(names(&model), [name], "{needle}");
        press(&mut model, &[KeyCode::Enter]);
    }
}

#[test]
fn the_cursor_goes_with_its_vm_and_stays_at_the_top_while_it_was_not_moved() {
    let mut model = model(vec![vm("a", 1, "alive"), vm("b", 2, "alive"), vm("c", 3, "alive")]);
    let changed = |states: [&str; 3]| {
        let vms = ["a", "b", "c"].into_iter().zip(1..).zip(states);
        status(vms.map(|((name, pid), state)| vm(name, pid, state)).collect())
    };
    let now = Instant::now();
    model.on_status(changed(["alive", "alive", "failed"]), None, now);
    assert_eq!(at(&model), "c");
    press(&mut model, &[KeyCode::Down]);
    assert_eq!(at(&model), "a");
    model.on_status(changed(["alive", "failed", "failed"]), None, now);
    assert_eq!((at(&model), model.cursor), ("a", 2));
    model.on_status(status(vec![vm("b", 2, "failed")]), None, now);
    assert_eq!(at(&model), "b", "its VM is gone");
    model.on_status(status(Vec::new()), None, now);
    assert_eq!(at(&model), "nowhere");
    press(&mut model, &[KeyCode::Down, KeyCode::End, KeyCode::Enter, KeyCode::PageUp]);
    assert!(model.page.is_none());
}

#[test]
fn a_thousand_rows_are_scrolled_by_lines_screens_and_ends() {
    let mut model = many(1000);
    let lines = usize::from(model.regions().rows.height);
    assert_eq!(lines, 19);
    press(&mut model, &[KeyCode::PageDown]);
    assert_eq!((at(&model), model.offset), ("vm-0019", 1));
    press(&mut model, &[KeyCode::End]);
    assert_eq!((at(&model), model.offset), ("vm-0999", 1000 - lines));
    press(&mut model, &[KeyCode::Down, KeyCode::PageUp, KeyCode::Up]);
    assert_eq!(at(&model), "vm-0979");
    model.resize((80, 5));
    assert_eq!((at(&model), model.offset), ("vm-0979", 979));
    model.resize((1, 1));
    press(&mut model, &[KeyCode::Down]);
    assert_eq!(at(&model), "vm-0980");
    press(&mut model, &[KeyCode::Home]);
    assert_eq!((at(&model), model.offset), ("vm-0000", 0));
}

#[test]
fn only_its_own_keys_end_or_stop_it() {
    let mut model = many(1);
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert_eq!(model.on_key(control('c')), Effect::Quit);
    assert_eq!(model.on_key(control('z')), Effect::Suspend);
    assert_eq!(model.on_key(control('l')), Effect::DrawAll);
    assert_eq!(model.on_key(control('q')), Effect::Draw);
    assert_eq!(press(&mut model, &[KeyCode::Char('q')]), Effect::Quit);
    assert_eq!(press(&mut model, &[KeyCode::F(10)]), Effect::Quit);
    // In a page and in the help, `q` goes back.
    assert_eq!(press(&mut model, &[KeyCode::Enter]), Effect::Ask);
    assert_eq!(press(&mut model, &[KeyCode::Char('q')]), Effect::Draw);
    assert_eq!(press(&mut model, &[KeyCode::Char('?'), KeyCode::Char('q')]), Effect::Draw);
    assert_eq!((model.page.is_none(), model.overlay), (true, Overlay::None));
}

#[test]
fn a_page_goes_to_the_next_vm_and_outlives_its_own() {
    let mut model = many(3);
    press(&mut model, &[KeyCode::Enter]);
    let pid = |model: &Model| model.page.as_ref().map(|page| page.key.pid);
    assert_eq!(pid(&model), Some(1));
    assert_eq!(press(&mut model, &[KeyCode::Char('n')]), Effect::Ask);
    assert_eq!(pid(&model), Some(2));
    press(&mut model, &[KeyCode::Char('p'), KeyCode::Char('p')]);
    assert_eq!(pid(&model), Some(1), "there is none before it");
    model.on_status(status(vec![vm("vm-0001", 2, "alive")]), None, Instant::now());
    let page = model.page.as_mut().expect("it stays open");
    assert!(page.complaint.as_ref().is_some_and(|why| why.contains("gone")), "{page:?}");
    // An answer about another page's VM is none.
    let key = Key { pid: 9, name: "other".to_owned() };
    page.on_answer(PageAnswer { key, show: Err(Some("busy".to_owned())), incidents: None });
    assert!(page.complaint.as_ref().is_some_and(|why| why.contains("gone")), "{page:?}");
    press(&mut model, &[KeyCode::Esc]);
    assert_eq!((pid(&model), at(&model)), (None, "vm-0001"));
}

#[test]
fn a_page_asks_for_incidents_at_first_and_when_its_vm_stands_otherwise() {
    let mut model = many(1);
    press(&mut model, &[KeyCode::Enter]);
    let mut wants = |state: &str| {
        model.on_status(status(vec![vm("vm-0000", 1, state)]), None, Instant::now());
        model.page.as_mut().is_some_and(super::Page::wants_incidents)
    };
    assert!(wants("alive") && !wants("alive") && !wants("alive"));
    assert!(wants("suspect") && !wants("suspect"));
    assert_eq!((0..20).filter(|_| wants("suspect")).count(), 2, "and now and then");
}

#[test]
fn without_an_answer_the_picture_is_kept_as_stale_and_the_gap_is_not_known() {
    let begin = Instant::now();
    let later = |seconds| begin + Duration::from_secs(seconds);
    let mut model = Model::new(LOOK, (80, 24), begin, now());
    model.on_status(status(vec![vm("a", 1, "alive")]), None, begin);
    model.tick(later(2), now());
    assert_eq!(model.feed.stale(), None, "an answer may take a while");
    model.tick(later(4), now());
    assert!(model.feed.stale().is_some_and(|stale| stale.why.is_empty()), "none came");
    model.on_silence("no such daemon".to_owned(), later(5));
    let stale = model.feed.stale().expect("it is");
    assert_eq!((stale.age, &*stale.why), (Duration::from_secs(5), "no such daemon"));
    assert_eq!(names(&model), ["a"]);
    // Its counters went on meanwhile; how fast is not known.
    let mut after = vm("a", 1, "alive");
    after.vcpus[0].busy_ratio = Some(0.3);
    model.on_status(status(vec![after]), None, later(6));
    assert_eq!(model.feed.stale(), None);
    assert_eq!(life(&model.rows[0].ticks, 3), [None, None, None]);
}

#[test]
fn lines_begin_with_what_the_daemon_remembers_of_that_very_vm() {
    let line = |name: &str, pid, figure| LineView {
        name: name.to_owned(),
        pid,
        start_ticks: 1,
        packets_from_guest: vec![None, Some(figure)],
        packets_to_guest: vec![None, Some(0.0)],
        completed: vec![Some(0.0), Some(0.0)],
        vcpu: vec![None, Some(0.5)],
        // An older or newer daemon's rows may be of another length.
        in_flight: Vec::new(),
    };
    let lines =
        LinesView { interval_seconds: 1.0, vms: vec![line("a", 1, 3.0), line("b", 3, 5.0)] };
    let begin = Instant::now();
    let mut model = Model::new(LOOK, (80, 24), begin, now());
    let vms = vec![vm("a", 1, "alive"), vm("b", 2, "alive")];
    model.on_status(status(vms), Some(lines), begin);
    let life = |index: usize| super::life(&model.rows[index].ticks, 2);
    assert_eq!((life(0), life(1)), (vec![None, Some(3.0)], vec![None, None]));
}

#[test]
fn the_same_sample_seen_twice_is_no_silent_tick() {
    let begin = Instant::now();
    let later = |seconds| begin + Duration::from_secs(seconds);
    let sample = |sent, busy| {
        let mut vm = vm("a", 1, "alive");
        vm.vcpus[0].busy_ratio = Some(busy);
        if let Some(network) = &mut vm.network {
            network.guest_tx_packets = sent;
        }
        status(vec![vm])
    };
    let mut model = Model::new(LOOK, (80, 24), begin, now());
    model.on_status(sample(10, 0.1), None, begin);
    model.on_status(sample(11, 0.2), None, later(1));
    model.on_status(sample(11, 0.2), None, later(2));
    model.on_status(sample(15, 0.3), None, later(3));
    // A vCPU that ran as long as before, to the nanosecond, isn't one that stood still.
    model.on_status(sample(15, 0.31), None, later(4));
    let life = life(&model.rows[0].ticks, 4);
    assert_eq!(life, [None, Some(1.0), Some(2.0), Some(0.0)]);
}
