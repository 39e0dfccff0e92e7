//! Slow start: an endpoint that is new, or back, gets less than its share at first, and more from moment to moment.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chance::{clock, random};

/// Of its share, at the very first.
const FIRST: f64 = 0.1;

#[derive(Debug)]
pub struct Warmth {
    /// Milliseconds from the first request to the whole share; none: it has all of it from the first.
    time: Option<NonZeroU64>,
    /// Since when it has been warming up, on [`clock`]; 0: it is warm.
    since: AtomicU64,
}

impl Warmth {
    /// Warm.
    pub fn new(time: Option<NonZeroU64>) -> Self {
        Self { time, since: AtomicU64::new(0) }
    }

    /// Begins from the beginning.
    pub fn cool(&self) {
        if self.time.is_some() {
            self.since.store(clock(), Ordering::Relaxed);
        }
    }

    pub fn is_warm(&self) -> bool {
        self.since.load(Ordering::Relaxed) == 0
    }

    /// Whether a request that has come to it is its to serve; the others pass it over.
    pub fn admits(&self) -> bool {
        self.share() >= 1.0 || random() < self.share()
    }

    /// As if it had begun to warm up so many milliseconds ago.
    #[cfg(test)]
    pub fn begun_ago(&self, milliseconds: u64) {
        self.since.store(clock() - milliseconds, Ordering::Relaxed);
    }

    /// What it gets of its share.
    fn share(&self) -> f64 {
        let since = self.since.load(Ordering::Relaxed);
        let (Some(time), true) = (self.time, since != 0) else { return 1.0 };
        let passed = clock().saturating_sub(since) as f64 / time.get() as f64;
        if passed >= 1.0 {
            // It may have cooled meanwhile, and then is not warm.
            let _ = self.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        (FIRST + (1.0 - FIRST) * passed).min(1.0)
    }
}
