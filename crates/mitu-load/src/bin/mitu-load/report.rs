//! What a run came to: counts, latencies, errors by kind.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use mitu_load::cpu;
use mitu_load::error::LoadError;
use serde::Serialize;

/// One JSON document on a line of standard output.
pub fn print<T: Serialize>(document: &T) -> Result<(), LoadError> {
    let mut line = serde_json::to_vec(document).map_err(io::Error::from)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// What a connection took, and what it agreed on.
#[derive(Debug, Default)]
pub struct Sample {
    /// From the moment it was due to TCP's connect.
    pub connect: Duration,
    /// From TCP's connect to the end of the client's handshake; zero without TLS.
    pub handshake: Duration,
    /// From the moment it was due to the end of the response.
    pub total: Duration,
    pub resumed: bool,
    pub negotiated: Option<String>,
}

/// Collects samples; one for each client, merged at the end.
#[derive(Debug, Default)]
pub struct Recorder {
    connect: Vec<u64>,
    handshake: Vec<u64>,
    total: Vec<u64>,
    resumed: usize,
    negotiated: BTreeMap<String, usize>,
    errors: BTreeMap<&'static str, usize>,
    first_error: Option<String>,
}

impl Recorder {
    pub fn record(&mut self, outcome: Result<Sample, LoadError>) {
        match outcome {
            Ok(sample) => {
                self.connect.push(nanoseconds(sample.connect));
                self.handshake.push(nanoseconds(sample.handshake));
                self.total.push(nanoseconds(sample.total));
                self.resumed += usize::from(sample.resumed);
                if let Some(negotiated) = sample.negotiated {
                    *self.negotiated.entry(negotiated).or_default() += 1;
                }
            }
            Err(error) => {
                *self.errors.entry(error.kind()).or_default() += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.connect.extend(other.connect);
        self.handshake.extend(other.handshake);
        self.total.extend(other.total);
        self.resumed += other.resumed;
        for (key, count) in other.negotiated {
            *self.negotiated.entry(key).or_default() += count;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.first_error = self.first_error.take().or(other.first_error);
    }

    pub fn report(self, elapsed: Duration) -> Report {
        let completed = self.total.len();
        let seconds = elapsed.as_secs_f64();
        Report {
            completed,
            resumed: self.resumed,
            failed: self.errors.values().sum(),
            errors: self.errors,
            first_error: self.first_error,
            seconds,
            per_second: completed as f64 / seconds,
            connect_ms: Latency::of(self.connect),
            handshake_ms: Latency::of(self.handshake),
            total_ms: Latency::of(self.total),
            negotiated: self.negotiated,
            client_cpu_us: cpu::of_this_thread().map(|cpu| cpu.as_secs_f64() * 1e6 / completed.max(1) as f64),
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub completed: usize,
    pub resumed: usize,
    pub failed: usize,
    pub errors: BTreeMap<&'static str, usize>,
    pub first_error: Option<String>,
    pub seconds: f64,
    pub per_second: f64,
    pub connect_ms: Latency,
    pub handshake_ms: Latency,
    pub total_ms: Latency,
    /// "version suite group alpn" → connections.
    pub negotiated: BTreeMap<String, usize>,
    /// The load generator's own CPU, in µs for each connection; none where the kernel does not say.
    pub client_cpu_us: Option<f64>,
}

/// Milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    /// `samples`: nanoseconds, every one of them, so that percentiles are exact.
    pub fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let Some(max) = samples.last() else { return Self::default() };
        let at = |share: f64| {
            let rank = (share * samples.len() as f64).ceil() as usize;
            samples[rank.clamp(1, samples.len()) - 1] as f64 / 1e6
        };
        Self {
            mean: samples.iter().sum::<u64>() as f64 / samples.len() as f64 / 1e6,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: *max as f64 / 1e6,
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let latency = Latency::of((1..=100).map(|ms| ms * 1_000_000).collect());
        assert_eq!((latency.p50, latency.p95, latency.p99, latency.max), (50.0, 95.0, 99.0, 100.0));
        assert_eq!(Latency::of(vec![3_000_000]).p999, 3.0);
        assert_eq!(Latency::of(Vec::new()).max, 0.0);
    }
}
