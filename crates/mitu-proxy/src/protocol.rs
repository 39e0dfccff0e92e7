//! The protocols a listener serves, each behind the ALPN name that leads to it.

pub mod http;
pub mod mqtt;
pub mod relay;

use std::sync::Arc;

use mitu_telemetry::connections::RelayMetrics;

use crate::upstream::Upstream;

/// Who speaks with a client once its handshake is done.
#[derive(Debug)]
pub enum Protocol {
    H1,
    H2,
    /// In QUIC.
    H3,
    /// MQTT and private protocols: the decrypted bytes go to an upstream.
    Relay {
        upstream: Arc<Upstream>,
        metrics: RelayMetrics,
    },
}
