use std::collections::BTreeMap;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn vm(pid: u32) -> VmId {
    VmId { pid, start_ticks: 1 }
}

fn at(second: u32) -> Duration {
    SECOND * second
}

/// What the programs say: by slot, of life, and the agent's last word.
#[derive(Debug, Default)]
struct Said {
    life: BTreeMap<u32, u64>,
    words: BTreeMap<u32, (VmId, u64, bool)>,
}

impl Signs for Said {
    fn life(&self, slot: u32) -> Option<u64> {
        self.life.get(&slot).copied()
    }

    fn said(&self, slot: u32) -> Option<u64> {
        Some(self.words.get(&slot).map_or(0, |(_, said, _)| *said))
    }

    fn word(&self, vm: VmId, slot: u32) -> Option<(u64, bool)> {
        let (of, said, is_beat) = self.words.get(&slot)?;
        (*of == vm).then_some((*said, *is_beat))
    }
}

impl Said {
    /// All of them live.
    fn live(&mut self, slots: &[u32]) {
        slots.iter().for_each(|slot| *self.life.entry(*slot).or_default() += 1);
    }
}

/// Those whose rest ended in the tick at `second`.
fn ended(rests: &Rests, said: &Said, second: u32) -> Vec<(u32, Course)> {
    let mut all = Vec::new();
    rests.look(said, at(second), &mut |vm, course| all.push((vm.pid, course)));
    all
}

/// One that rests from second 10 to 20, in this slot.
fn rests_in(rests: &Rests, slot: u32, beats_within: Option<Duration>) -> Place {
    let rest = Rest { until: at(20), beats_within };
    rests.lay_down((vm(slot + 100), slot), (0, 0), rest, at(10))
}

#[test]
fn a_rest_ends_in_the_first_tick_without_life_and_when_its_time_is_up() {
    let (rests, mut said) = (Rests::default(), Said::default());
    rests.look(&said, at(10), &mut |_, _| unreachable!());
    let places = [rests_in(&rests, 0, None), rests_in(&rests, 7, None)];
    for second in 11..15 {
        said.live(&[0, 7]);
        assert_eq!(ended(&rests, &said, second), []);
        let course = places[0].course().map(|course| course.lived_at);
        assert_eq!(course, Some(at(second)), "it lived in the last tick");
    }
    said.live(&[7]);
    let silent = Course { lived_at: at(14), said_at: None, is_over: false };
    assert_eq!(ended(&rests, &said, 15), [(100, silent)]);
    assert_eq!(places[0].course(), None, "it is over");
    for second in 16..20 {
        said.live(&[0, 7]);
        assert_eq!(ended(&rests, &said, second), []);
    }
    said.live(&[0, 7]);
    let over = Course { lived_at: at(20), said_at: None, is_over: true };
    assert_eq!(ended(&rests, &said, 20), [(107, over)]);
    said.live(&[0, 7]);
    assert_eq!(ended(&rests, &said, 21), []);
}

#[test]
fn one_that_wakes_between_two_ticks_is_awake_in_the_next_and_leaves_its_row_to_another() {
    let (rests, mut said) = (Rests::default(), Said::default());
    rests.found(vm(5));
    assert_eq!(rests.look(&said, at(10), &mut |_, _| {}), [vm(5)]);
    let place = rests_in(&rests, 3, None);
    assert_eq!(place.course().map(|course| course.lived_at), Some(at(10)));
    drop(place);
    let other = Rest { until: at(20), beats_within: None };
    let other = rests.lay_down((vm(9), 3), (0, 0), other, at(10));
    said.live(&[3]);
    assert_eq!(rests.look(&said, at(11), &mut |_, _| unreachable!()), [vm(103)]);
    assert!(other.course().is_some());
}

#[test]
fn beats_that_stay_away_and_words_that_are_none_end_a_rest() {
    let (rests, mut said) = (Rests::default(), Said::default());
    let word = |said: &mut Said, slot: u32, jiffies: u64, is_beat: bool| {
        said.words.insert(slot, (vm(slot + 100), jiffies, is_beat));
    };
    rests.look(&said, at(10), &mut |_, _| {});
    let within = Some(SECOND * 3);
    let _places = [
        rests_in(&rests, 0, within),
        rests_in(&rests, 1, within),
        rests_in(&rests, 2, within),
        rests_in(&rests, 3, None),
    ];
    said.live(&[0, 1, 2, 3]);
    (0..3).for_each(|slot| word(&mut said, slot, 1, true));
    assert_eq!(ended(&rests, &said, 11), []);
    said.live(&[0, 1, 2, 3]);
    word(&mut said, 0, 2, true);
    word(&mut said, 1, 2, false);
    word(&mut said, 3, 1, true);
    let ends = |lived: u32, spoke: u32| Course {
        lived_at: at(lived),
        said_at: Some(at(spoke)),
        is_over: false,
    };
    let of_tick = [(101, ends(12, 12)), (103, ends(12, 12))];
    assert_eq!(ended(&rests, &said, 12), of_tick, "a word of its end, and an agent's first");
    said.live(&[0, 2]);
    assert_eq!(ended(&rests, &said, 13), []);
    said.live(&[0, 2]);
    assert_eq!(ended(&rests, &said, 14), [(102, ends(14, 11))], "none for three seconds");
    said.live(&[0]);
    said.words.insert(0, (vm(4711), 3, true));
    assert_eq!(ended(&rests, &said, 15), [(100, ends(15, 12))], "the row is another VM's");
}
