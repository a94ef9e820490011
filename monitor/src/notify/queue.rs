//! What waits to be delivered to one target, in order. Pure: `now` comes in.
//!
//! ```text
//!   push ─▶ waiting ─▶ under way ─▶ delivered, or refused for good
//!              ▲            │
//!              └── failed ──┘   tried again after a pause that grows with each failure
//! ```
//!
//! Where there is no room for another one, or one waits for longer than events are kept, the oldest one is lost: what
//! happened last is what a person needs to know. How many were lost is told with the next delivery, and never forgotten.

use std::{collections::VecDeque, time::Duration};

/// The pause after the first failure; each further one doubles it.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that comes of doubling.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest pause that a receiver may ask for (`Retry-After`).
pub(crate) const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(600);

/// What is to be done next for a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next<J> {
    /// Deliver this.
    Deliver(J),
    /// Nothing before this moment.
    Wait(Duration),
    /// Nothing.
    Nothing,
}

impl<J> Next<J> {
    /// The same with what `make` makes of the delivery.
    pub(super) fn map<K>(self, make: impl FnOnce(J) -> K) -> Next<K> {
        match self {
            Self::Deliver(job) => Next::Deliver(make(job)),
            Self::Wait(until) => Next::Wait(until),
            Self::Nothing => Next::Nothing,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry<T> {
    item: T,
    since: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: VecDeque<Entry<T>>,
    under_way: Option<Entry<T>>,
    most: usize,
    keep: Duration,
    lost: u64,
    /// Those that the delivery under way tells of.
    lost_told: u64,
    /// When to try again.
    pub(super) pacing: Pacing,
}

/// When to try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pacing {
    failures: u32,
    not_before: Option<Duration>,
}

impl Pacing {
    /// It went well.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// It did not, and the receiver may have `asked` for a pause. Returns the pause.
    pub(crate) fn failed(&mut self, asked: Option<Duration>, now: Duration) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        let pause = asked.map_or(doubled, |asked| asked.min(LONGEST_ASKED_PAUSE).max(doubled));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        pause
    }

    /// The moment before which nothing is to be tried.
    pub(crate) fn not_before(&self) -> Option<Duration> {
        self.not_before
    }

    /// Failures since it last went well.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Tries now, once.
    pub(crate) fn retry_now(&mut self) {
        self.not_before = None;
    }
}

impl<T: Clone> Queue<T> {
    /// An empty one, for `most` at a time, each for `keep`.
    pub(crate) fn new(most: usize, keep: Duration) -> Self {
        Self {
            waiting: VecDeque::new(),
            under_way: None,
            most,
            keep,
            lost: 0,
            lost_told: 0,
            pacing: Pacing::default(),
        }
    }

    /// Has other bounds from now on; returns how many are lost by that.
    pub(crate) fn set_bounds(&mut self, most: usize, keep: Duration) -> u64 {
        (self.most, self.keep) = (most, keep);
        self.make_room(0)
    }

    /// Puts one at the end; returns how many had to go for it.
    pub(crate) fn push(&mut self, item: T, now: Duration) -> u64 {
        let gone = self.make_room(1);
        self.waiting.push_back(Entry { item, since: now });
        gone
    }

    fn make_room(&mut self, for_more: usize) -> u64 {
        let mut gone = 0;
        while self.len() + for_more > self.most && self.waiting.pop_front().is_some() {
            gone += 1;
        }
        self.lost += gone;
        gone
    }

    /// The delivery that is due now, as an item and how many were lost before it; and how many had waited for too long.
    pub(crate) fn next(&mut self, now: Duration) -> (Next<(T, u64)>, u64) {
        let mut expired = 0;
        while self.waiting.pop_front_if(|first| now >= first.since + self.keep).is_some() {
            expired += 1;
        }
        self.lost += expired;
        let next = match self.pacing.not_before {
            _ if self.under_way.is_some() || self.waiting.is_empty() => Next::Nothing,
            Some(moment) if moment > now => Next::Wait(moment),
            _ => match self.waiting.pop_front() {
                Some(entry) => {
                    self.lost_told = self.lost;
                    let item = entry.item.clone();
                    self.under_way = Some(entry);
                    Next::Deliver((item, self.lost))
                }
                None => Next::Nothing,
            },
        };
        (next, expired)
    }

    /// The one under way was delivered, with what was lost before it.
    pub(crate) fn delivered(&mut self) {
        self.under_way = None;
        self.lost -= self.lost_told;
        self.pacing.succeeded();
    }

    /// The receiver will never take it.
    pub(crate) fn refused(&mut self) {
        self.under_way = None;
        self.lost += 1;
        self.pacing.succeeded();
    }

    /// It was not delivered, and is tried again after a pause, which is returned.
    pub(crate) fn failed(&mut self, asked: Option<Duration>, now: Duration) -> Duration {
        if let Some(entry) = self.under_way.take() {
            self.waiting.push_front(entry);
        }
        self.pacing.failed(asked, now)
    }

    /// Whether nothing can be done now: all is delivered, or has to wait.
    pub(crate) fn is_drained(&self, now: Duration) -> bool {
        let waits = self.pacing.not_before.is_some_and(|moment| moment > now);
        self.under_way.is_none() && (waits || self.waiting.is_empty())
    }

    /// How many wait, the one under way among them.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.under_way.is_some())
    }

    /// How many were lost of which nothing was told so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// All that wait, the oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.under_way.iter().chain(&self.waiting).map(|entry| &entry.item)
    }

    /// Takes up what waited with an earlier daemon, and what that one had lost.
    pub(crate) fn restore(&mut self, items: Vec<T>, lost: u64, now: Duration) {
        self.lost += lost;
        for item in items {
            self.push(item, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn queue(most: usize, items: std::ops::Range<u32>) -> Queue<u32> {
        let mut queue = Queue::new(most, KEEP);
        items.for_each(|item| assert_eq!(queue.push(item, at(0)), 0));
        queue
    }

    #[test]
    fn events_are_delivered_in_order_and_one_at_a_time() {
        let mut queue = queue(4, 0..3);
        for item in 0..3 {
            assert_eq!(queue.next(at(1)), (Next::Deliver((item, 0)), 0));
            assert_eq!(queue.next(at(1)), (Next::Nothing, 0));
            queue.delivered();
        }
        assert_eq!(queue.next(at(1)).0, Next::Nothing);
        assert!(queue.len() == 0);
    }

    #[test]
    fn what_failed_comes_first_again_after_pauses_that_grow() {
        let mut queue = queue(4, 0..2);
        let mut now = at(10);
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(queue.next(now).0, Next::Deliver((0, 0)));
            assert_eq!(queue.failed(None, now), at(pause));
            let due = now + at(pause);
            assert_eq!(queue.next(due - Duration::from_millis(1)).0, Next::Wait(due));
            now = due;
        }
        assert_eq!(queue.next(now).0, Next::Deliver((0, 0)));
        queue.delivered();
        assert_eq!(queue.next(now).0, Next::Deliver((1, 0)));
        assert_eq!(queue.failed(None, now), FIRST_PAUSE);
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_within_a_bound_and_for_no_shorter_one() {
        for (asked, pause) in [(30, at(30)), (0, FIRST_PAUSE), (1 << 40, LONGEST_ASKED_PAUSE)] {
            let mut queue = queue(4, 0..1);
            assert_eq!(queue.next(at(0)).0, Next::Deliver((0, 0)));
            assert_eq!(queue.failed(Some(at(asked)), at(0)), pause);
        }
    }

    #[test]
    fn without_room_the_oldest_goes_and_the_next_delivery_tells_how_many() {
        let mut queue = queue(3, 0..3);
        assert_eq!(queue.push(3, at(0)), 1);
        assert_eq!(queue.push(4, at(0)), 1);
        assert_eq!((queue.len(), queue.lost()), (3, 2));
        assert_eq!(queue.next(at(0)).0, Next::Deliver((2, 2)));
        // The one under way keeps its place.
        assert_eq!(queue.push(5, at(0)), 1);
        assert_eq!(queue.failed(None, at(0)), FIRST_PAUSE);
        assert_eq!(queue.next(at(1)).0, Next::Deliver((2, 3)));
        queue.delivered();
        assert_eq!(queue.lost(), 0);
        assert_eq!(queue.next(at(1)).0, Next::Deliver((4, 0)));
    }

    #[test]
    fn what_is_lost_during_a_delivery_is_told_with_the_next() {
        let mut queue = queue(2, 0..2);
        assert_eq!(queue.next(at(0)).0, Next::Deliver((0, 0)));
        assert_eq!(queue.push(2, at(0)), 1);
        queue.delivered();
        assert_eq!(queue.next(at(0)).0, Next::Deliver((2, 1)));
    }

    #[test]
    fn what_waited_for_too_long_is_given_up_and_counted() {
        let mut queue = queue(4, 0..2);
        queue.push(2, at(60));
        assert_eq!(queue.next(KEEP), (Next::Deliver((2, 2)), 2));
        queue.failed(None, KEEP);
        assert_eq!(queue.next(KEEP + at(60)), (Next::Nothing, 1));
        assert_eq!(queue.lost(), 3);
    }

    #[test]
    fn what_is_refused_is_lost_and_holds_nothing_up() {
        let mut queue = queue(4, 0..2);
        assert_eq!(queue.next(at(0)).0, Next::Deliver((0, 0)));
        queue.refused();
        assert_eq!(queue.next(at(0)).0, Next::Deliver((1, 1)));
    }

    #[test]
    fn in_a_hurry_a_pause_is_cut_short_once() {
        let mut queue = queue(4, 0..1);
        assert_eq!(queue.next(at(0)).0, Next::Deliver((0, 0)));
        queue.failed(Some(at(60)), at(0));
        queue.pacing.retry_now();
        assert_eq!(queue.next(at(1)).0, Next::Deliver((0, 0)));
        queue.failed(None, at(1));
        assert!(matches!(queue.next(at(1)).0, Next::Wait(_)));
    }

    #[test]
    fn smaller_bounds_hold_at_once() {
        let mut queue = queue(4, 0..4);
        assert_eq!(queue.set_bounds(1, KEEP), 3);
        assert_eq!(queue.all().copied().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn what_an_earlier_daemon_had_left_is_taken_up_within_the_bounds() {
        let mut queue: Queue<u32> = Queue::new(2, KEEP);
        queue.restore(vec![1, 2, 3], 4, at(0));
        assert_eq!(queue.next(at(0)).0, Next::Deliver((2, 5)));
    }
}
