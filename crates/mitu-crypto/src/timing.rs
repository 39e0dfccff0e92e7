//! How long one call takes.

use std::time::{Duration, Instant};

/// A batch lasts about this long: long beside a reading of the clock, short beside a turn of the scheduler.
const BATCH: Duration = Duration::from_millis(1);
const MIN_BATCHES: usize = 5;

/// Microseconds for one call, over batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// What this machine, with all that runs beside, takes.
    pub median: f64,
    /// What the code takes where nothing disturbs it.
    pub fastest: f64,
}

/// Times as many batches as fit into `budget`.
pub fn time<E>(budget: Duration, mut operation: impl FnMut() -> Result<(), E>) -> Result<Timed, E> {
    let calls = calls_in_a_batch(&mut operation)?;
    let mut batches = Vec::new();
    let begun = Instant::now();
    while batches.len() < MIN_BATCHES || begun.elapsed() < budget {
        batches.push(batch(calls, &mut operation)?.as_secs_f64() * 1e6 / f64::from(calls));
    }
    batches.sort_by(f64::total_cmp);
    Ok(Timed { median: batches[batches.len() / 2], fastest: batches[0] })
}

/// Doubled until they take as long as a batch should; which warms up caches and clock as well.
fn calls_in_a_batch<E>(operation: &mut impl FnMut() -> Result<(), E>) -> Result<u32, E> {
    let mut calls = 1;
    while batch(calls, operation)? < BATCH && calls < 1 << 20 {
        calls *= 2;
    }
    Ok(calls)
}

fn batch<E>(calls: u32, operation: &mut impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    let started = Instant::now();
    for _ in 0..calls {
        operation()?;
    }
    Ok(started.elapsed())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_takes_at_least_as_long_as_it_was_told() {
        let wait = || {
            std::thread::sleep(Duration::from_millis(2));
            Ok::<(), ()>(())
        };
        let timed = time(Duration::from_millis(20), wait).unwrap();
        assert!(timed.fastest >= 2_000.0);
        assert!(timed.median >= timed.fastest);
    }

    #[test]
    fn what_fails_is_not_timed() {
        assert_eq!(time(Duration::from_millis(1), || Err("no")), Err("no"));
    }
}
