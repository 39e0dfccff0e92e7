//! What a run has come to so far, or in the end: JSON for Python, which shows and keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::record::{Counts, Recorder, Stages, Trouble};
use super::series::Timeline;
use super::times::Latency;

#[derive(Debug, Serialize)]
pub struct Report {
    pub phase: Phase,
    /// From the start to now; in the end, to the last completion or failure.
    pub seconds: f64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Under way, or cut off when the run was stopped.
    pub unfinished: u64,
    pub per_second: f64,
    /// "version suite group alpn" → connections.
    pub negotiated: BTreeMap<String, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: BTreeMap<&'static str, Trouble>,
    pub stages: Stages<Latency>,
    /// Percentile and milliseconds, from when each was due until it was done.
    pub curve: Vec<(f64, f64)>,
    pub timeline: Timeline,
    pub threads: usize,
    /// Seconds that the threads of the load generator were on a CPU; none before the end, or where the kernel does
    /// not say.
    pub client_cpu_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Preparing,
    Running,
    Done,
    Stopped,
}

impl Report {
    pub fn of(recorder: Recorder, phase: Phase, elapsed: Duration, threads: usize, cpu: Option<Duration>) -> Self {
        let settled = phase == Phase::Done && !recorder.last.is_zero();
        let seconds = if settled { recorder.last } else { elapsed }.as_secs_f64();
        let Recorder { counts, negotiated, statuses, errors, stages, series, .. } = recorder;
        Self {
            phase,
            seconds,
            counts,
            unfinished: counts.begun - counts.completed - counts.failed,
            per_second: if seconds > 0.0 { counts.completed as f64 / seconds } else { 0.0 },
            negotiated,
            statuses,
            errors,
            stages: stages.latencies(),
            curve: stages.total.curve(),
            timeline: series.report(),
            threads,
            client_cpu_seconds: cpu.map(|cpu| cpu.as_secs_f64()),
        }
    }
}
