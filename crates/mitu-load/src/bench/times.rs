//! Durations, collected in bounded memory: histograms whose percentiles are right to three digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::LoadError;

const DIGITS: u8 = 3;
/// Nanoseconds that the histogram does not tell apart, and the longest time that it does.
const FINEST: u64 = 100;
const LONGEST: u64 = 3_600_000_000_000;

#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Times {
    pub fn new() -> Result<Self, LoadError> {
        let histogram = Histogram::new_with_bounds(FINEST, LONGEST, DIGITS);
        histogram.map(Self).map_err(|error| LoadError::Usage(error.to_string()))
    }

    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub fn add(&mut self, other: &Self) {
        // All are made by `new`, so that no value of one is out of the other's range.
        let _ = self.0.add(&other.0);
    }

    pub fn latency(&self) -> Latency {
        let histogram = &self.0;
        let at = |quantile| milliseconds(histogram.value_at_quantile(quantile).min(histogram.max()));
        Latency {
            count: histogram.len(),
            mean: histogram.mean() / 1e6,
            min: if histogram.is_empty() { 0.0 } else { milliseconds(histogram.min()) },
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: milliseconds(histogram.max()),
        }
    }

    /// Milliseconds at percentiles that come ever closer to 100: ten for each factor of ten.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let histogram = &self.0;
        let mut curve = Vec::new();
        for step in 0..=50 {
            let beyond = 10_f64.powf(-f64::from(step) / 10.0);
            curve.push((1e2 * (1.0 - beyond), milliseconds(histogram.value_at_quantile(1.0 - beyond))));
            // There is nothing to tell beyond the last sample.
            if beyond * (histogram.len() as f64) < 1.0 {
                break;
            }
        }
        if histogram.is_empty() { Vec::new() } else { curve }
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub p9999: f64,
    pub max: f64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_three_digits() {
        let (mut odd, mut even) = (Times::new().unwrap(), Times::new().unwrap());
        for ms in 1..=1000 {
            if ms % 2 == 0 { &mut even } else { &mut odd }.record(Duration::from_millis(ms));
        }
        odd.add(&even);
        let latency = odd.latency();
        assert_eq!(latency.count, 1000);
        for (found, right) in [(latency.p50, 500.0), (latency.p99, 990.0), (latency.max, 1000.0)] {
            assert!((found / right - 1.0_f64).abs() < 1e-3, "{found} is not {right}");
        }
        let curve = odd.curve();
        assert!(curve.is_sorted_by(|a, b| a.1 <= b.1) && curve.last().unwrap().0 > 99.8);
    }

    #[test]
    fn nothing_takes_no_time() {
        let latency = Times::new().unwrap().latency();
        assert_eq!((latency.count, latency.max, latency.min), (0, 0.0, 0.0));
        assert!(Times::new().unwrap().curve().is_empty());
    }
}
