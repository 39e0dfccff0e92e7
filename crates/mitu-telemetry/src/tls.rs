//! Handshakes: how long each stage took, how they failed, and what clients offered.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use serde::Serialize;

use crate::register;

/// 25 µs to 10 s: a resumed handshake's crypto up to a handshake's time limit.
const BUCKETS: [f64; 18] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_5, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 10.0,
];

/// Lists of offered protocols that have series of their own, for each listener.
const OFFERED_LISTS: usize = 256;

/// What one handshake spent in each stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageTimes {
    /// From the event loop noticing the connection to its task running.
    pub accept_wait: Duration,
    /// Until the whole ClientHello is read.
    pub client_hello: Duration,
    /// Choosing protocol, certificate and TLS configuration.
    pub select: Duration,
    /// Waiting for its turns. Some of it counts in the stages around it as well.
    pub gate: Duration,
    /// This side's computation: key exchange, signature, key schedule, and writing the flights.
    pub crypto: Duration,
    /// Waiting for the client's next flight.
    pub client_flight: Duration,
    /// From accept to the finished handshake.
    pub total: Duration,
}

impl StageTimes {
    /// Name and time of each stage, in order.
    fn stages(&self) -> [(&'static str, Duration); STAGES] {
        [
            ("accept_wait", self.accept_wait),
            ("client_hello", self.client_hello),
            ("select", self.select),
            ("gate", self.gate),
            ("crypto", self.crypto),
            ("client_flight", self.client_flight),
            ("total", self.total),
        ]
    }
}

const STAGES: usize = 7;

/// Stage times as whole microseconds, for a log line.
impl Serialize for StageTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(STAGES))?;
        for (name, time) in self.stages() {
            map.serialize_entry(&format_args!("{name}_us"), &(time.as_micros() as u64))?;
        }
        map.end()
    }
}

#[derive(Debug)]
pub struct Families {
    stages: HistogramVec,
    failures: IntCounterVec,
    waiting: IntGaugeVec,
    alpn: IntCounterVec,
    /// Listener and list of each series of `alpn`: clients choose the lists, and series outlive configurations.
    offered: Mutex<HashSet<(String, String)>>,
    alpn_verdicts: IntCounterVec,
    alpn_cache: IntCounterVec,
}

/// The labels that tell one kind of handshake from another.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeLabels<'a> {
    pub listener: &'a str,
    pub alpn: &'a str,
    pub version: &'a str,
    pub resumed: bool,
    pub key_type: &'a str,
    /// The first server name of the set that was chosen.
    pub site: &'a str,
}

/// The seven histograms of one kind of handshake.
#[derive(Debug)]
pub struct HandshakeMetrics([Histogram; STAGES]);

impl HandshakeMetrics {
    pub fn observe(&self, times: &StageTimes) {
        for (histogram, (_, time)) in self.0.iter().zip(times.stages()) {
            histogram.observe(time.as_secs_f64());
        }
    }
}

impl Families {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Ok(Self {
            stages: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new("mitu_tls_handshake_duration_seconds", "Time spent in each handshake stage.")
                        .buckets(BUCKETS.to_vec()),
                    &["listener", "stage", "alpn", "version", "resumed", "key_type", "site"],
                ),
            )?,
            failures: counter(
                "mitu_tls_handshake_failures_total",
                "Handshakes that did not finish, by reason.",
                &["listener", "reason"],
            )?,
            waiting: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mitu_tls_handshakes_waiting", "Handshakes that wait for a turn to compute."),
                    &["worker"],
                ),
            )?,
            alpn: counter(
                "mitu_alpn_decisions_total",
                "ALPN lists by what the client offered and what was chosen.",
                &["listener", "offered", "chosen"],
            )?,
            offered: Mutex::default(),
            alpn_verdicts: counter(
                "mitu_alpn_verdicts_total",
                "Clients by how their ALPN and the site that they asked for stand to each other.",
                &["listener", "site", "mode", "verdict", "outcome"],
            )?,
            alpn_cache: counter(
                "mitu_alpn_cache_total",
                "ALPN decisions by whether the client's list was in the cache.",
                &["listener", "result"],
            )?,
        })
    }

    pub fn handshake(&self, labels: HandshakeLabels<'_>) -> HandshakeMetrics {
        let resumed = if labels.resumed { "true" } else { "false" };
        HandshakeMetrics(StageTimes::default().stages().map(|(stage, _)| {
            self.stages.with_label_values(&[
                labels.listener,
                stage,
                labels.alpn,
                labels.version,
                resumed,
                labels.key_type,
                labels.site,
            ])
        }))
    }

    pub fn failure(&self, listener: &str, reason: &str) -> IntCounter {
        self.failures.with_label_values(&[listener, reason])
    }

    pub fn waiting(&self, worker: usize) -> IntGauge {
        self.waiting.with_label_values(&[&*worker.to_string()])
    }

    pub fn alpn(&self, listener: &str, offered: &str, chosen: &str) -> IntCounter {
        let mut known = self.offered.lock();
        let kind = (listener.to_owned(), offered.to_owned());
        let room = known.iter().filter(|(name, _)| name == listener).count() < OFFERED_LISTS;
        let told = if known.contains(&kind) || (room && known.insert(kind)) { offered } else { "overflow" };
        self.alpn.with_label_values(&[listener, told, chosen])
    }

    /// `labels`: listener, site, mode, verdict and outcome.
    pub fn alpn_verdict(&self, labels: [&str; 5]) -> IntCounter {
        self.alpn_verdicts.with_label_values(&labels)
    }

    /// The counters of hits and of misses.
    pub fn alpn_cache(&self, listener: &str) -> (IntCounter, IntCounter) {
        let result = |result| self.alpn_cache.with_label_values(&[listener, result]);
        (result("hit"), result("miss"))
    }
}
