//! What happened, as it happens: one recorder for each thread, added up when somebody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use super::series::Series;
use super::times::Times;
use crate::error::LoadError;
use crate::session::Opened;

/// What counts as one: a connection, a request or a device.
#[derive(Debug, Clone)]
pub struct Recorder {
    pub begun: u64,
    pub completed: u64,
    pub failed: u64,
    /// Handshakes that succeeded, or connects without TLS.
    pub connections: u64,
    pub resumed: u64,
    /// Handshakes before the start, for tickets and for connections that stay.
    pub prepared: u64,
    /// Attempts of devices beyond their first.
    pub retries: u64,
    pub held: u64,
    /// Held connections that the server closed.
    pub dropped: u64,
    pub negotiated: BTreeMap<String, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub errors: BTreeMap<&'static str, Trouble>,
    pub stages: Stages,
    pub series: Series,
    /// From the start to the last completion or failure.
    pub last: Duration,
}

#[derive(Debug, Clone)]
pub struct Trouble {
    pub count: u64,
    pub example: String,
}

#[derive(Debug, Clone)]
pub struct Stages {
    /// From when it was due until it was begun: this program's own lateness.
    pub late: Times,
    pub connect: Times,
    pub handshake: Times,
    /// From the request's first byte to the response's last.
    pub response: Times,
    /// From when it was due until it was done.
    pub total: Times,
    /// Devices: from the start of the storm until they were in.
    pub since_start: Times,
}

impl Recorder {
    pub fn new() -> Result<Self, LoadError> {
        Ok(Self {
            begun: 0,
            completed: 0,
            failed: 0,
            connections: 0,
            resumed: 0,
            prepared: 0,
            retries: 0,
            held: 0,
            dropped: 0,
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
        self.begun += 1;
        if let Some(late) = late {
            self.stages.late.record(late);
        }
        self.series.begun(at)
    }

    pub fn open(&mut self, opened: &Opened) {
        self.connections += 1;
        self.resumed += u64::from(opened.resumed);
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
        self.completed += 1;
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
        self.failed += 1;
        self.last = self.last.max(at);
        self.series.failed(at)
    }

    pub fn add(&mut self, other: &Self) -> Result<(), LoadError> {
        for (own, others) in [
            (&mut self.begun, other.begun),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.connections, other.connections),
            (&mut self.resumed, other.resumed),
            (&mut self.prepared, other.prepared),
            (&mut self.retries, other.retries),
            (&mut self.held, other.held),
            (&mut self.dropped, other.dropped),
        ] {
            *own += others;
        }
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

impl Stages {
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
}
