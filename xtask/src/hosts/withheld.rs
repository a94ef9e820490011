//! What this machine keeps from an emulated host: its own programs want the CPUs too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flatline_tests::cpu;

/// How long each thread of the emulation has waited for a CPU, from time to time.
#[derive(Debug, Default)]
pub(super) struct Withheld(Vec<(Instant, BTreeMap<u32, Duration>)>);

impl Withheld {
    /// Takes another sample of the process. Without one, what is known is from before.
    pub(super) fn sample(&mut self, pid: u32) {
        self.0.extend(cpu::waits(pid).ok().map(|waits| (Instant::now(), waits)));
    }

    /// How long the thread that waited longest did so between two moments, all in seconds, the moments before now.
    pub(super) fn between(&self, from_ago: f64, to_ago: f64) -> f64 {
        let ago = |(at, _): &&(Instant, BTreeMap<u32, Duration>)| at.elapsed().as_secs_f64();
        let first = self.0.iter().rfind(|sample| ago(sample) >= from_ago).or(self.0.first());
        let last = self.0.iter().find(|sample| ago(sample) <= to_ago).or(self.0.last());
        let (Some((_, first)), Some((_, last))) = (first, last) else { return 0.0 };
        let waited = |(thread, waited): (&u32, &Duration)| {
            waited.saturating_sub(first.get(thread).copied().unwrap_or_default())
        };
        last.iter().map(waited).max().unwrap_or_default().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_thread_waited_between_two_moments_is_counted() {
        let sample = |ago: u64, waits: [u64; 2]| {
            let waits = [1, 2].into_iter().zip(waits.map(Duration::from_secs)).collect();
            (Instant::now().checked_sub(Duration::from_secs(ago)).unwrap(), waits)
        };
        let withheld = Withheld(vec![
            sample(40, [1, 1]),
            sample(20, [5, 2]),
            sample(10, [6, 9]),
            sample(0, [20, 20]),
        ]);
        assert_eq!(withheld.between(19.0, 11.0), 7.0);
        assert_eq!(withheld.between(39.0, 21.0), 4.0);
        assert_eq!(Withheld::default().between(2.0, 1.0), 0.0);
    }
}
