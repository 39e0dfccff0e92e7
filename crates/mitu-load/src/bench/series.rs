//! What happened when, in at most so many slots: when they are full, two become one.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::LoadError;

const SLOTS: usize = 120;
const FINEST: Duration = Duration::from_millis(100);
const DIGITS: u8 = 2;

#[derive(Debug, Clone)]
pub struct Series {
    width: Duration,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    begun: u64,
    completed: u64,
    failed: u64,
    /// Microseconds.
    times: Histogram<u32>,
}

impl Series {
    pub fn new() -> Self {
        Self { width: FINEST, slots: Vec::new() }
    }

    pub fn begun(&mut self, at: Duration) -> Result<(), LoadError> {
        self.slot(at)?.begun += 1;
        Ok(())
    }

    pub fn completed(&mut self, at: Duration, took: Duration) -> Result<(), LoadError> {
        let slot = self.slot(at)?;
        slot.completed += 1;
        slot.times.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)).map_err(wrong)
    }

    pub fn failed(&mut self, at: Duration) -> Result<(), LoadError> {
        self.slot(at)?.failed += 1;
        Ok(())
    }

    fn slot(&mut self, at: Duration) -> Result<&mut Slot, LoadError> {
        while at.as_nanos() / self.width.as_nanos() >= SLOTS as u128 {
            self.widen()?;
        }
        let index = (at.as_nanos() / self.width.as_nanos()) as usize;
        while self.slots.len() <= index {
            self.slots.push(Slot::new()?);
        }
        Ok(&mut self.slots[index])
    }

    fn widen(&mut self) -> Result<(), LoadError> {
        self.width *= 2;
        let mut slots = Vec::with_capacity(SLOTS);
        for pair in self.slots.chunks(2) {
            let mut both = pair[0].clone();
            if let Some(second) = pair.get(1) {
                both.add(second)?;
            }
            slots.push(both);
        }
        self.slots = slots;
        Ok(())
    }

    pub fn add(&mut self, other: &Self) -> Result<(), LoadError> {
        let mut other = other.clone();
        while self.width < other.width {
            self.widen()?;
        }
        while other.width < self.width {
            other.widen()?;
        }
        for (index, slot) in other.slots.iter().enumerate() {
            self.slot(self.width * index as u32)?.add(slot)?;
        }
        Ok(())
    }

    pub fn report(&self) -> Timeline {
        let width = self.width.as_secs_f64();
        let milliseconds = |slot: &Slot, quantile| slot.times.value_at_quantile(quantile) as f64 / 1e3;
        let point = |(index, slot): (usize, &Slot)| Point {
            at: width * index as f64,
            begun: slot.begun,
            completed: slot.completed,
            failed: slot.failed,
            p50: (slot.completed > 0).then(|| milliseconds(slot, 0.5)),
            p99: (slot.completed > 0).then(|| milliseconds(slot, 0.99)),
        };
        Timeline { slot_seconds: width, slots: self.slots.iter().enumerate().map(point).collect() }
    }
}

impl Slot {
    fn new() -> Result<Self, LoadError> {
        Ok(Self { begun: 0, completed: 0, failed: 0, times: Histogram::new(DIGITS).map_err(wrong)? })
    }

    fn add(&mut self, other: &Self) -> Result<(), LoadError> {
        self.begun += other.begun;
        self.completed += other.completed;
        self.failed += other.failed;
        self.times.add(&other.times).map_err(wrong)
    }
}

fn wrong(error: impl std::fmt::Display) -> LoadError {
    LoadError::Usage(error.to_string())
}

/// A slot after the other, from the start.
#[derive(Debug, Serialize)]
pub struct Timeline {
    slot_seconds: f64,
    slots: Vec<Point>,
}

/// `p50` and `p99`: milliseconds, of what was completed in this slot.
#[derive(Debug, Serialize)]
struct Point {
    at: f64,
    begun: u64,
    completed: u64,
    failed: u64,
    p50: Option<f64>,
    p99: Option<f64>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slots_become_wider_and_lose_nothing() {
        let (mut short, mut long) = (Series::new(), Series::new());
        for second in 0..100 {
            long.begun(Duration::from_secs(second)).unwrap();
            long.completed(Duration::from_secs(second), Duration::from_millis(second + 1)).unwrap();
        }
        short.begun(Duration::from_millis(50)).unwrap();
        short.failed(Duration::from_millis(1050)).unwrap();
        short.add(&long).unwrap();
        let timeline = short.report();
        assert!(timeline.slots.len() <= SLOTS);
        assert_eq!(timeline.slot_seconds, 1.6);
        assert_eq!(timeline.slots.iter().map(|slot| slot.begun).sum::<u64>(), 101);
        assert_eq!(timeline.slots.iter().map(|slot| slot.completed).sum::<u64>(), 100);
        assert_eq!((timeline.slots[0].begun, timeline.slots[0].failed), (3, 1));
        assert!(timeline.slots.last().unwrap().p50.unwrap() > 90.0);
    }
}
