//! What a run has come to so far, or in the end: JSON for Python, which shows and keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::record::Recorder;
use super::series::Timeline;
use super::times::Latency;

#[derive(Debug, Serialize)]
pub struct Report {
    pub phase: Phase,
    /// From the start to now; in the end, to the last completion or failure.
    pub seconds: f64,
    pub begun: u64,
    pub completed: u64,
    pub failed: u64,
    /// Under way, or cut off when the run was stopped.
    pub unfinished: u64,
    pub per_second: f64,
    pub connections: u64,
    pub resumed: u64,
    pub prepared: u64,
    pub retries: u64,
    pub held: u64,
    pub dropped: u64,
    /// "version suite group alpn" → connections.
    pub negotiated: BTreeMap<String, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: BTreeMap<&'static str, Trouble>,
    pub stages: Stages,
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

#[derive(Debug, Serialize)]
pub struct Trouble {
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

#[derive(Debug, Serialize)]
pub struct Stages {
    pub late: Latency,
    pub connect: Latency,
    pub handshake: Latency,
    pub response: Latency,
    pub total: Latency,
    pub since_start: Latency,
}

impl Report {
    pub fn of(recorder: Recorder, phase: Phase, elapsed: Duration, threads: usize, cpu: Option<Duration>) -> Self {
        let settled = phase == Phase::Done && !recorder.last.is_zero();
        let seconds = if settled { recorder.last } else { elapsed }.as_secs_f64();
        let stages = &recorder.stages;
        let trouble =
            |(class, one): (_, super::record::Trouble)| (class, Trouble { count: one.count, example: one.example });
        Self {
            phase,
            seconds,
            begun: recorder.begun,
            completed: recorder.completed,
            failed: recorder.failed,
            unfinished: recorder.begun - recorder.completed - recorder.failed,
            per_second: if seconds > 0.0 { recorder.completed as f64 / seconds } else { 0.0 },
            connections: recorder.connections,
            resumed: recorder.resumed,
            prepared: recorder.prepared,
            retries: recorder.retries,
            held: recorder.held,
            dropped: recorder.dropped,
            stages: Stages {
                late: stages.late.latency(),
                connect: stages.connect.latency(),
                handshake: stages.handshake.latency(),
                response: stages.response.latency(),
                total: stages.total.latency(),
                since_start: stages.since_start.latency(),
            },
            curve: stages.total.curve(),
            timeline: recorder.series.report(),
            negotiated: recorder.negotiated,
            statuses: recorder.statuses,
            errors: recorder.errors.into_iter().map(trouble).collect(),
            threads,
            client_cpu_seconds: cpu.map(|cpu| cpu.as_secs_f64()),
        }
    }
}
