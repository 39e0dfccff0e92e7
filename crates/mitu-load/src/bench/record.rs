//! What happened, as it happens: one recorder for each thread, added up when somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::series::Series;
use super::times::{Latency, Times};
use crate::error::LoadError;
use crate::session::Opened;

#[derive(Debug, Clone)]
pub struct Recorder {
    pub counts: Counts,
    pub negotiated: BTreeMap<String, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: BTreeMap<&'static str, Trouble>,
    pub stages: Stages<Times>,
    pub series: Series,
    /// From the start to the last completion or failure.
    pub last: Duration,
}

/// One is a connection, a request or a device.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counts {
    pub begun: u64,
    pub completed: u64,
    pub failed: u64,
    /// Handshakes that succeeded, or connects without TLS.
    pub connections: u64,
    pub resumed: u64,
    /// Handshakes before the start, for tickets.
    pub prepared: u64,
    /// Attempts of devices beyond their first.
    pub retries: u64,
    pub held: u64,
    /// Held connections that the server closed.
    pub dropped: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Stages<T> {
    /// From when it was due until it was begun: this program's own lateness.
    pub late: T,
    pub connect: T,
    pub handshake: T,
    /// From the request's first byte to the response's last.
    pub response: T,
    /// From when it was due until it was done.
    pub total: T,
    /// Devices: from the start of the storm until they were in.
    pub since_start: T,
}

impl Recorder {
    pub fn new() -> Result<Self, LoadError> {
        Ok(Self {
            counts: Counts::default(),
            negotiated: BTreeMap::new(),
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            stages: Stages::new()?,
            series: Series::new(),
            last: Duration::ZERO,
        })
    }

    /// `late`: none where nothing was due.
    pub fn begin(&mut self, at: Duration, late: Option<Duration>) -> Result<(), LoadError> {
        self.counts.begun += 1;
        if let Some(late) = late {
            self.stages.late.record(late);
        }
        self.series.begun(at)
    }

    pub fn open(&mut self, opened: &Opened) {
        self.counts.connections += 1;
        self.counts.resumed += u64::from(opened.resumed);
        self.stages.connect.record(opened.connect);
        if let Some(negotiated) = &opened.negotiated {
            self.stages.handshake.record(opened.handshake);
            if let Some(count) = self.negotiated.get_mut(negotiated) {
                *count += 1;
            } else {
                self.negotiated.insert(negotiated.clone(), 1);
            }
        }
    }

    pub fn answer(&mut self, status: u16, took: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        self.stages.response.record(took);
    }

    pub fn complete(&mut self, at: Duration, took: Duration) -> Result<(), LoadError> {
        self.counts.completed += 1;
        self.stages.total.record(took);
        self.last = self.last.max(at);
        self.series.completed(at, took)
    }

    /// One attempt failed; devices may have another.
    pub fn trouble(&mut self, error: &LoadError) {
        let trouble = self.errors.entry(error.class());
        trouble.or_insert_with(|| Trouble { count: 0, example: error.to_string() }).count += 1;
    }

    pub fn fail(&mut self, at: Duration) -> Result<(), LoadError> {
        self.counts.failed += 1;
        self.last = self.last.max(at);
        self.series.failed(at)
    }

    pub fn add(&mut self, other: &Self) -> Result<(), LoadError> {
        self.counts.add(other.counts);
        for (key, count) in &other.negotiated {
            *self.negotiated.entry(key.clone()).or_default() += count;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (class, trouble) in &other.errors {
            let own = self.errors.entry(class);
            own.or_insert_with(|| Trouble { count: 0, ..trouble.clone() }).count += trouble.count;
        }
        self.stages.add(&other.stages);
        self.last = self.last.max(other.last);
        self.series.add(&other.series)
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.begun += other.begun;
        self.completed += other.completed;
        self.failed += other.failed;
        self.connections += other.connections;
        self.resumed += other.resumed;
        self.prepared += other.prepared;
        self.retries += other.retries;
        self.held += other.held;
        self.dropped += other.dropped;
    }
}

impl Stages<Times> {
    fn new() -> Result<Self, LoadError> {
        let new = Times::new;
        Ok(Self {
            late: new()?,
            connect: new()?,
            handshake: new()?,
            response: new()?,
            total: new()?,
            since_start: new()?,
        })
    }

    fn add(&mut self, other: &Self) {
        self.late.add(&other.late);
        self.connect.add(&other.connect);
        self.handshake.add(&other.handshake);
        self.response.add(&other.response);
        self.total.add(&other.total);
        self.since_start.add(&other.since_start);
    }

    pub fn latencies(&self) -> Stages<Latency> {
        Stages {
            late: self.late.latency(),
            connect: self.connect.latency(),
            handshake: self.handshake.latency(),
            response: self.response.latency(),
            total: self.total.latency(),
            since_start: self.since_start.latency(),
        }
    }
}
