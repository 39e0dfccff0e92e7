//! Connections: how many are open, why some never got further, and what a relay moved.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::register;

#[derive(Debug)]
pub struct Families {
    accepted: IntCounterVec,
    accepted_quic: IntCounterVec,
    quic_retries: IntCounterVec,
    active: IntGaugeVec,
    refused: IntCounterVec,
    relayed_bytes: IntCounterVec,
    relay_ends: IntCounterVec,
    access_log_dropped: IntCounterVec,
    overload_step: IntGaugeVec,
    overload_actions: IntCounterVec,
    early_data: IntCounterVec,
    memory_pressure: Gauge,
    connections_pressure: GaugeVec,
}

/// The handles of one listener.
#[derive(Debug, Clone)]
pub struct ListenerMetrics {
    pub accepted: IntCounter,
    /// On the UDP side.
    pub accepted_quic: IntCounter,
    /// Clients that had to show that they are at their address.
    pub quic_retries: IntCounter,
    pub active: IntGauge,
    /// Over `limits.connections`.
    pub refused_limit: IntCounter,
    /// A PROXY header missing or malformed; a late one is a handshake that took too long.
    pub refused_proxy_protocol: IntCounter,
    /// `accept` failed for want of descriptors or memory.
    pub refused_resources: IntCounter,
    /// Closed on accept because the gateway is overloaded.
    pub refused_overload: IntCounter,
    /// Connections that would have been kept, and requests that would have been served.
    pub overload_keepalive: IntCounter,
    pub overload_requests: IntCounter,
    /// Requests in early data: those that were served at once, and those that had to wait for the handshake.
    pub early_data_served: IntCounter,
    pub early_data_delayed: IntCounter,
}

/// How overloaded one listener is.
#[derive(Debug, Clone)]
pub struct OverloadMetrics {
    pub step: IntGauge,
    /// On account of its connections.
    pub pressure: Gauge,
}

/// The handles of one relayed protocol on one listener.
#[derive(Debug, Clone)]
pub struct RelayMetrics {
    /// Client to upstream.
    pub sent: IntCounter,
    /// Upstream to client.
    pub received: IntCounter,
    /// By [`RelayEnd`].
    ends: [IntCounter; RelayEnd::ALL.len()],
}

impl RelayMetrics {
    pub fn ended(&self, end: RelayEnd) {
        self.ends[end as usize].inc();
    }
}

/// Why a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both sides had.
    Finished,
    /// Nothing moved for too long.
    Idle,
    /// One of the connections broke.
    Failed,
    /// No endpoint could be connected to.
    Unreachable,
    /// What came first was no MQTT CONNECT, where its client is looked at, or one that is too long.
    NotMqtt,
    /// It did not come in time.
    MqttTimeout,
    /// The listener drains.
    Drain,
    /// The endpoint has been removed.
    Removal,
}

impl RelayEnd {
    pub const ALL: [Self; 8] = [
        Self::Finished,
        Self::Idle,
        Self::Failed,
        Self::Unreachable,
        Self::NotMqtt,
        Self::MqttTimeout,
        Self::Drain,
        Self::Removal,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Idle => "idle",
            Self::Failed => "failed",
            Self::Unreachable => "unreachable",
            Self::NotMqtt => "not_mqtt",
            Self::MqttTimeout => "mqtt_timeout",
            Self::Drain => "drain",
            Self::Removal => "removal",
        }
    }
}

/// Why an access log line was not written.
#[derive(Debug, Clone)]
pub struct AccessLogMetrics {
    pub dropped_queue_full: IntCounter,
    pub dropped_write_failed: IntCounter,
}

impl Families {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Ok(Self {
            accepted: counter("mitu_connections_accepted_total", "TCP connections accepted.", &["listener"])?,
            accepted_quic: counter("mitu_quic_accepted_total", "QUIC connections taken up.", &["listener"])?,
            quic_retries: counter(
                "mitu_quic_retries_total",
                "QUIC clients that were asked to show that they are at their address.",
                &["listener"],
            )?,
            active: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mitu_connections_active", "Connections open now, handshakes included."),
                    &["listener"],
                ),
            )?,
            refused: counter(
                "mitu_connections_refused_total",
                "Connections closed before a handshake, by reason.",
                &["listener", "reason"],
            )?,
            relayed_bytes: counter(
                "mitu_relay_bytes_total",
                "Decrypted bytes relayed; sent: client to upstream, received: upstream to client.",
                &["listener", "alpn", "direction"],
            )?,
            relay_ends: counter(
                "mitu_relay_ends_total",
                "Relays that ended, by reason; WebSockets are counted where they had to leave.",
                &["listener", "alpn", "reason"],
            )?,
            access_log_dropped: counter(
                "mitu_access_log_dropped_total",
                "Access log lines that were not written, by reason.",
                &["reason"],
            )?,
            overload_step: register(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "mitu_overload_step",
                        "0: normal, 1: keep-alive is disabled, 2: requests are refused, 3: connections are rejected.",
                    ),
                    &["listener"],
                ),
            )?,
            overload_actions: counter(
                "mitu_overload_actions_total",
                "What was not done because of overload, by action.",
                &["listener", "action"],
            )?,
            early_data: counter(
                "mitu_http_early_data_requests_total",
                "Requests that came before the end of the handshake; served: at once, delayed: after it.",
                &["listener", "outcome"],
            )?,
            memory_pressure: register(
                registry,
                Gauge::new("mitu_overload_memory_ratio", "Resident memory, as a share of its ceiling."),
            )?,
            connections_pressure: register(
                registry,
                GaugeVec::new(
                    Opts::new("mitu_overload_connections_ratio", "Open connections, as a share of their limit."),
                    &["listener"],
                ),
            )?,
        })
    }

    pub fn listener(&self, name: &str) -> ListenerMetrics {
        let refused = |reason| self.refused.with_label_values(&[name, reason]);
        let action = |action| self.overload_actions.with_label_values(&[name, action]);
        ListenerMetrics {
            accepted: self.accepted.with_label_values(&[name]),
            accepted_quic: self.accepted_quic.with_label_values(&[name]),
            quic_retries: self.quic_retries.with_label_values(&[name]),
            active: self.active.with_label_values(&[name]),
            refused_limit: refused("limit"),
            refused_proxy_protocol: refused("proxy_protocol"),
            refused_resources: refused("resources"),
            refused_overload: refused("overload"),
            overload_keepalive: action("disable_keepalive"),
            overload_requests: action("stop_accepting_requests"),
            early_data_served: self.early_data.with_label_values(&[name, "served"]),
            early_data_delayed: self.early_data.with_label_values(&[name, "delayed"]),
        }
    }

    pub fn overload(&self, listener: &str) -> OverloadMetrics {
        OverloadMetrics {
            step: self.overload_step.with_label_values(&[listener]),
            pressure: self.connections_pressure.with_label_values(&[listener]),
        }
    }

    /// Resident memory, as a share of its ceiling.
    pub fn memory_pressure(&self, share: f64) {
        self.memory_pressure.set(share);
    }

    pub fn relay(&self, listener: &str, alpn: &str) -> RelayMetrics {
        RelayMetrics {
            sent: self.relayed_bytes.with_label_values(&[listener, alpn, "sent"]),
            received: self.relayed_bytes.with_label_values(&[listener, alpn, "received"]),
            ends: RelayEnd::ALL.map(|end| self.relay_end(listener, alpn, end)),
        }
    }

    pub fn relay_end(&self, listener: &str, alpn: &str, end: RelayEnd) -> IntCounter {
        self.relay_ends.with_label_values(&[listener, alpn, end.as_str()])
    }

    pub fn access_log(&self) -> AccessLogMetrics {
        AccessLogMetrics {
            dropped_queue_full: self.access_log_dropped.with_label_values(&["queue_full"]),
            dropped_write_failed: self.access_log_dropped.with_label_values(&["write_failed"]),
        }
    }
}
