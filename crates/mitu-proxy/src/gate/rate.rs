//! How many handshakes a second one source, or one server name, may have: a token bucket for each.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::config::RateConfig;

/// Buckets that are kept. When all of them are in use, others are let through: who has so many addresses is not held by
/// a limit for each of them.
const BUCKETS: usize = 65_536;

#[derive(Debug)]
pub struct Rate<Key> {
    bucket: Bucket,
    full_at: HashMap<Key, Instant>,
    /// When full buckets may be looked for again, if there are too many.
    sweep_at: Option<Instant>,
}

impl<Key: Eq + Hash> Rate<Key> {
    /// One worker's part of `config`.
    pub fn new(config: RateConfig, workers: usize) -> Self {
        let every = Duration::from_secs(1) * u32::try_from(workers).unwrap_or(u32::MAX) / config.per_second.get();
        let burst = (config.burst.get() as usize / workers).max(1);
        let bucket = Bucket::new(every, u32::try_from(burst).unwrap_or(u32::MAX));
        Self { bucket, full_at: HashMap::new(), sweep_at: None }
    }

    /// Takes a token from the bucket of `key`; false: it is empty.
    pub fn take<Known>(&mut self, key: &Known, now: Instant) -> bool
    where
        Key: Borrow<Known>,
        Known: ?Sized + Eq + Hash + ToOwned<Owned = Key>,
    {
        if let Some(full_at) = self.full_at.get_mut(key) {
            let taken = self.bucket.take(full_at.saturating_duration_since(now));
            if let Ok(full_in) = taken {
                *full_at = now + full_in;
            }
            return taken.is_ok();
        }
        if self.full_at.len() >= BUCKETS && self.sweep_at.is_none_or(|at| now >= at) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = Some(now + self.bucket.every);
        }
        if self.full_at.len() < BUCKETS {
            self.full_at.insert(key.to_owned(), now + self.bucket.every);
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn rate(per_second: u32, burst: u32, workers: usize) -> Rate<String> {
        let [per_second, burst] = [per_second, burst].map(|number| NonZeroU32::new(number).unwrap());
        Rate::new(RateConfig { per_second, burst }, workers)
    }

    fn taken(rate: &mut Rate<String>, key: &str, now: Instant) -> usize {
        (0..100).filter(|_| rate.take(key, now)).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let (mut rate, begun) = (rate(10, 5, 1), Instant::now());
        assert_eq!(taken(&mut rate, "a", begun), 5);
        assert_eq!(taken(&mut rate, "b", begun), 5);
        assert_eq!(taken(&mut rate, "a", begun + Duration::from_millis(350)), 3);
        assert_eq!(taken(&mut rate, "a", begun + Duration::from_secs(60)), 5);
    }

    #[test]
    fn workers_have_equal_parts_and_each_has_one() {
        let begun = Instant::now();
        assert_eq!(taken(&mut rate(10, 6, 2), "a", begun), 3);
        assert_eq!(taken(&mut rate(10, 1, 4), "a", begun), 1);
    }

    #[test]
    fn buckets_do_not_add_up() {
        let (mut rate, begun) = (rate(1, 1, 1), Instant::now());
        for number in 0..2 * BUCKETS {
            assert!(rate.take(&*number.to_string(), begun));
        }
        assert_eq!(rate.full_at.len(), BUCKETS);
        assert!(rate.take("later", begun + Duration::from_secs(2)));
        assert_eq!(rate.full_at.len(), 1);
    }
}
