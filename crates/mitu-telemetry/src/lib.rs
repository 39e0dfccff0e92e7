//! What the data plane tells of itself: metrics, and the access log.
//!
//! Nothing here may make a connection wait. Metric handles are looked up by label when a configuration is built and
//! are plain atomics afterwards; access log lines go through a bounded queue that drops and counts when it is full.

pub mod access_log;
pub mod connections;
pub mod http;
pub mod tls;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use prometheus::{Encoder, Registry, TextEncoder};

pub use access_log::AccessLog;

/// The registry and the log that one data plane shares between its workers, across reloads.
#[derive(Debug)]
pub struct Telemetry {
    pub registry: Registry,
    pub access_log: ArcSwapOption<AccessLog>,
    pub connections: connections::Families,
    pub tls: tls::Families,
    pub http: http::Families,
}

impl Telemetry {
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        Ok(Arc::new(Self {
            connections: connections::Families::register(&registry)?,
            tls: tls::Families::register(&registry)?,
            http: http::Families::register(&registry)?,
            access_log: ArcSwapOption::empty(),
            registry,
        }))
    }

    /// Every metric in Prometheus text format.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(64 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Registers a family and hands it back.
pub(crate) fn register<M>(registry: &Registry, metric: prometheus::Result<M>) -> prometheus::Result<M>
where
    M: prometheus::core::Collector + Clone + 'static,
{
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
