//! HTTP requests and the upstreams that answer them: metrics, and the access log's line.

mod reason;
mod upstream;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use serde::Serialize;

pub use reason::{Reason, Side};
pub use upstream::{Limit, Retry, UpstreamMetrics};

use crate::register;

/// 250 µs to 60 s: an answer from this host up to a route's usual time limit.
const BUCKETS: [f64; 16] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// Status codes whose counters are kept at hand; others are looked up by label.
const STATUSES: [u16; 33] = [
    101, 200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 409, 410, 412, 413, 415, 416,
    417, 422, 425, 429, 431, 499, 500, 502, 503, 504,
];

#[derive(Debug, Clone)]
pub struct Families {
    requests: IntCounterVec,
    duration: HistogramVec,
    bytes: IntCounterVec,
    errors: IntCounterVec,
    connects: IntCounterVec,
    connect_errors: IntCounterVec,
    reused: IntCounterVec,
    active: IntGaugeVec,
    response_errors: IntCounterVec,
    retries: IntCounterVec,
    retries_refused: IntCounterVec,
    overflows: IntCounterVec,
    ejections: IntCounterVec,
    ejected: IntGaugeVec,
    pending: IntGaugeVec,
}

/// The handles of one route on one listener in one protocol.
#[derive(Debug)]
pub struct RequestMetrics {
    labels: [String; 3],
    requests: IntCounterVec,
    statuses: [OnceLock<IntCounter>; STATUSES.len()],
    errors: IntCounterVec,
    error_reasons: Box<[OnceLock<IntCounter>]>,
    duration: Histogram,
    received: IntCounter,
    sent: IntCounter,
}

impl RequestMetrics {
    /// Counts a finished exchange; bytes are those of the bodies.
    pub fn finished(&self, status: u16, duration: Duration, received: u64, sent: u64) {
        match STATUSES.binary_search(&status) {
            Ok(index) => self.statuses[index].get_or_init(|| self.status(status)).inc(),
            Err(_) => self.status(status).inc(),
        }
        self.duration.observe(duration.as_secs_f64());
        // Most requests have no body; an atomic add is dearer than the test.
        if received != 0 {
            self.received.inc_by(received);
        }
        if sent != 0 {
            self.sent.inc_by(sent);
        }
    }

    pub fn failed(&self, reason: Reason) {
        self.error_reasons[reason as usize]
            .get_or_init(|| {
                let [listener, route, protocol] = &self.labels;
                self.errors.with_label_values(&[listener, route, protocol, reason.side().as_str(), reason.as_str()])
            })
            .inc();
    }

    fn status(&self, status: u16) -> IntCounter {
        let [listener, route, protocol] = &self.labels;
        self.requests.with_label_values(&[listener, route, protocol, &status.to_string()])
    }
}

impl Families {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Ok(Self {
            requests: counter(
                "mitu_http_requests_total",
                "Requests finished, by status code.",
                &["listener", "route", "protocol", "status"],
            )?,
            duration: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "mitu_http_request_duration_seconds",
                        "From a request's head being read to the end of its response.",
                    )
                    .buckets(BUCKETS.to_vec()),
                    &["listener", "route", "protocol"],
                ),
            )?,
            bytes: counter(
                "mitu_http_body_bytes_total",
                "Body bytes; received: from the client, sent: to the client.",
                &["listener", "route", "protocol", "direction"],
            )?,
            errors: counter(
                "mitu_http_errors_total",
                "Requests that this gateway refused or could not finish, by side and reason.",
                &["listener", "route", "protocol", "side", "reason"],
            )?,
            connects: counter(
                "mitu_upstream_connects_total",
                "Connections opened to an endpoint.",
                &["upstream", "endpoint"],
            )?,
            connect_errors: counter(
                "mitu_upstream_connect_errors_total",
                "Connections to an endpoint that failed, by reason.",
                &["upstream", "endpoint", "reason"],
            )?,
            reused: counter(
                "mitu_upstream_connection_reuses_total",
                "Requests sent on a connection that had served one before.",
                &["upstream", "endpoint"],
            )?,
            active: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mitu_upstream_requests_active", "Requests and relays in progress at an endpoint."),
                    &["upstream", "endpoint"],
                ),
            )?,
            response_errors: counter(
                "mitu_upstream_response_errors_total",
                "Responses that an endpoint did not give or finish, by reason.",
                &["upstream", "endpoint", "reason"],
            )?,
            retries: counter(
                "mitu_upstream_retries_total",
                "Requests sent once more, by the endpoint that did not answer them and the reason.",
                &["upstream", "endpoint", "reason"],
            )?,
            retries_refused: counter(
                "mitu_upstream_retries_refused_total",
                "Requests that were not sent once more because there had been too many retries.",
                &["upstream"],
            )?,
            overflows: counter(
                "mitu_upstream_overflows_total",
                "Requests and relays refused because every endpoint had as many as it may, by limit.",
                &["upstream", "limit"],
            )?,
            ejections: counter(
                "mitu_upstream_ejections_total",
                "Times that an endpoint was put out of the balance because its requests failed.",
                &["upstream", "endpoint"],
            )?,
            ejected: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mitu_upstream_ejected", "1 while an endpoint is out of the balance."),
                    &["upstream", "endpoint"],
                ),
            )?,
            pending: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mitu_upstream_requests_pending", "Requests waiting for a connection to an endpoint."),
                    &["upstream", "endpoint"],
                ),
            )?,
        })
    }

    pub fn request(&self, listener: &str, route: &str, protocol: &str) -> RequestMetrics {
        let bytes = |direction| self.bytes.with_label_values(&[listener, route, protocol, direction]);
        RequestMetrics {
            labels: [listener, route, protocol].map(str::to_owned),
            requests: self.requests.clone(),
            statuses: [const { OnceLock::new() }; STATUSES.len()],
            errors: self.errors.clone(),
            error_reasons: Reason::ALL.iter().map(|_| OnceLock::new()).collect(),
            duration: self.duration.with_label_values(&[listener, route, protocol]),
            received: bytes("received"),
            sent: bytes("sent"),
        }
    }

    pub fn upstream(&self, upstream: &str, endpoint: &str) -> UpstreamMetrics {
        let labels = [upstream, endpoint];
        UpstreamMetrics {
            labels: labels.map(str::to_owned),
            connects: self.connects.with_label_values(&labels),
            reused: self.reused.with_label_values(&labels),
            active: self.active.with_label_values(&labels),
            pending: self.pending.with_label_values(&labels),
            ejections: self.ejections.with_label_values(&labels),
            ejected: self.ejected.with_label_values(&labels),
            connect_errors: self.connect_errors.clone(),
            response_errors: self.response_errors.clone(),
            retries: self.retries.clone(),
            forgotten: AtomicBool::new(false),
        }
    }

    /// A request or relay was refused because of a limit.
    pub fn overflowed(&self, upstream: &str, limit: Limit) {
        self.overflows.with_label_values(&[upstream, limit.as_str()]).inc();
    }

    /// A request was not sent once more because there had been too many of these.
    pub fn retry_refused(&self, upstream: &str) {
        self.retries_refused.with_label_values(&[upstream]).inc();
    }

    /// An endpoint is there no more, and neither are its series: instances come and go without end.
    pub fn forget(&self, metrics: &UpstreamMetrics) {
        metrics.forgotten.store(true, Ordering::Relaxed);
        // What was never counted cannot be removed, which is no matter.
        let [upstream, endpoint] = metrics.labels.each_ref().map(String::as_str);
        let labels = [upstream, endpoint];
        for counter in [&self.connects, &self.reused, &self.ejections] {
            let _ = counter.remove_label_values(&labels);
        }
        for gauge in [&self.active, &self.pending, &self.ejected] {
            let _ = gauge.remove_label_values(&labels);
        }
        for retry in Retry::ALL {
            let _ = self.retries.remove_label_values(&[upstream, endpoint, retry.as_str()]);
        }
        for reason in Reason::ALL {
            for counter in [&self.connect_errors, &self.response_errors] {
                let _ = counter.remove_label_values(&[upstream, endpoint, reason.as_str()]);
            }
        }
    }
}

/// The access log's line for one request.
#[derive(Debug, Serialize)]
pub struct RequestRecord<'a> {
    pub event: &'static str,
    /// Seconds since the epoch, at the request's arrival.
    pub ts: f64,
    pub connection: u64,
    pub client: std::net::SocketAddr,
    pub listener: &'a str,
    pub alpn: &'a str,
    pub method: &'a str,
    pub host: &'a str,
    /// As the client sent it, with its query.
    pub path: &'a str,
    /// Whether it was served before the end of the handshake.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub early_data: bool,
    pub route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<&'a str>,
    pub status: u16,
    /// The request's body.
    pub bytes_received: u64,
    /// The response's body.
    pub bytes_sent: u64,
    pub duration_ms: f64,
    /// Until the head of the upstream's response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<f64>,
    /// Why, when the status is ours or the exchange was cut short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<&'a str>,
    /// From the request's `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span_id: Option<&'a str>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn statuses_can_be_searched() {
        assert!(STATUSES.is_sorted());
    }

    #[test]
    fn requests_are_counted_by_status_and_reason() {
        let registry = Registry::new();
        let families = Families::register(&registry).unwrap();
        let metrics = families.request("edge", "health", "h1");
        metrics.finished(200, Duration::from_millis(1), 0, 11);
        metrics.finished(299, Duration::from_millis(1), 7, 0);
        metrics.failed(Reason::ConnectRefused);
        let count = |status| families.requests.with_label_values(&["edge", "health", "h1", status]).get();
        assert_eq!((count("200"), count("299")), (1, 1));
        assert_eq!(families.bytes.with_label_values(&["edge", "health", "h1", "sent"]).get(), 11);
        assert_eq!(families.bytes.with_label_values(&["edge", "health", "h1", "received"]).get(), 7);
        let errors = &families.errors;
        assert_eq!(errors.with_label_values(&["edge", "health", "h1", "upstream", "connect_refused"]).get(), 1);
    }

    #[test]
    fn handles_survive_a_reload() {
        let registry = Registry::new();
        let families = Families::register(&registry).unwrap();
        families.request("edge", "health", "h1").finished(200, Duration::ZERO, 0, 0);
        families.request("edge", "health", "h1").finished(200, Duration::ZERO, 0, 0);
        assert_eq!(families.requests.with_label_values(&["edge", "health", "h1", "200"]).get(), 2);
    }
}
