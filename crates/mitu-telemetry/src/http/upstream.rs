//! What is counted of an upstream's endpoints.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::Reason;

/// The handles of one endpoint of one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) labels: [String; 2],
    pub connects: IntCounter,
    /// Requests sent on a connection that had served one before.
    pub reused: IntCounter,
    /// Requests waiting for their response or streaming it, and open relays.
    pub active: IntGauge,
    /// Requests waiting for a connection.
    pub pending: IntGauge,
    /// Times that it was put out of the balance.
    pub ejections: IntCounter,
    /// 1 while it is.
    pub ejected: IntGauge,
    pub(super) connect_errors: IntCounterVec,
    pub(super) response_errors: IntCounterVec,
    pub(super) retries: IntCounterVec,
    /// What comes of the requests that it still has makes no new series.
    pub(super) forgotten: AtomicBool,
}

/// Why a request is sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The kept connection that it met turned out to be closed.
    Stale,
    /// No connection could be made.
    Connect,
    Reset,
    RefusedStream,
    /// The status of the response.
    Status,
    /// No response in the time for one try.
    Timeout,
    /// No response yet: the first try goes on.
    Hedge,
}

impl Retry {
    pub(super) const ALL: [Self; 7] =
        [Self::Stale, Self::Connect, Self::Reset, Self::RefusedStream, Self::Status, Self::Timeout, Self::Hedge];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::RefusedStream => "refused_stream",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Hedge => "hedge",
        }
    }
}

/// Which of an upstream's limits was in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Requests,
    Connections,
}

impl Limit {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Connections => "connections",
        }
    }
}

impl UpstreamMetrics {
    pub fn connect_failed(&self, reason: Reason) {
        self.count(&self.connect_errors, reason.as_str());
    }

    pub fn response_failed(&self, reason: Reason) {
        self.count(&self.response_errors, reason.as_str());
    }

    /// What came of it here was followed by another try, here or elsewhere.
    pub fn retried(&self, retry: Retry) {
        self.count(&self.retries, retry.as_str());
    }

    fn count(&self, family: &IntCounterVec, reason: &str) {
        if !self.forgotten.load(Ordering::Relaxed) {
            let [upstream, endpoint] = &self.labels;
            family.with_label_values(&[upstream.as_str(), endpoint, reason]).inc();
        }
    }
}
