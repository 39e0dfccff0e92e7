//! Time and chance, as cheap as the path of a request needs them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::balancer::scramble;

/// What the clock shows at first: 0 is no time.
const DAY: u64 = 24 * 60 * 60 * 1000;

/// Milliseconds, since a day before the first call.
pub fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + DAY
}

/// A number from 0 to 1, the latter left out. Nobody's secret depends on it.
pub fn random() -> f64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let seed = SEED.get_or_init(|| RandomState::new().build_hasher().finish());
    let drawn = scramble(seed.wrapping_add(DRAWN.fetch_add(1, Ordering::Relaxed)));
    // The 53 bits that a float holds exactly.
    (drawn >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_even() {
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            tenths[(random() * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }
}
