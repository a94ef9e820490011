//! Random choices that a seed repeats: SplitMix64 (Steele, Lea and Flood, 2014), which needs no crate.

use std::time::Duration;

/// A source of choices.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `items`, if there are any.
    pub(super) fn choice<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(items.len()).ok().filter(|count| *count > 0)?;
        items.get(usize::try_from(self.next() % count).ok()?)
    }

    /// A gap as between events that know nothing of each other: exponential, with this mean, cut at its
    /// fourfold.
    pub(super) fn gap(&mut self, mean: Duration) -> Duration {
        // 32 bits fit a double whole.
        let high = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        let uniform = (f64::from(high) + 1.0) / (f64::from(u32::MAX) + 2.0);
        mean.mul_f64((-uniform.ln()).min(4.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices() {
        let items: Vec<u32> = (0..100).collect();
        let choices = |seed| {
            let mut random = Random::new(seed);
            (0..20).filter_map(|_| random.choice(&items).copied()).collect::<Vec<_>>()
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
        assert_eq!(Random::new(7).choice::<u32>(&[]), None);
    }

    #[test]
    fn gaps_have_their_mean_and_an_end() {
        let mut random = Random::new(1);
        let gaps: Vec<f64> =
            (0..10_000).map(|_| random.gap(Duration::from_secs(40)).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / 10_000.0;
        // The cut takes 2 % off.
        assert!((37.0..41.0).contains(&mean), "{mean}");
        assert!(gaps.iter().all(|gap| *gap <= 160.0));
    }
}
