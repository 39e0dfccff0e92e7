//! One address of an upstream, and how it has been doing.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mitu_telemetry::http::{Families, UpstreamMetrics};
use rustls::pki_types::ServerName;

use super::connector::Target;
use super::{BuildError, UpstreamError, parse_target};
use crate::config::{EndpointConfig, UpstreamConfig};

/// How long an endpoint that could not be connected to is left alone while there are others.
const REST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Endpoint {
    /// As configured.
    pub address: Arc<str>,
    pub target: Target,
    /// Sent as SNI and verified; none without TLS.
    pub server_name: Option<ServerName<'static>>,
    pub metrics: UpstreamMetrics,
    weight: u64,
    active: AtomicU64,
    /// Milliseconds on [`clock`].
    resting_until: AtomicU64,
}

impl Endpoint {
    pub fn build(
        upstream: &UpstreamConfig,
        config: &EndpointConfig,
        families: &Families,
    ) -> Result<Arc<Self>, BuildError> {
        let target = parse_target(&upstream.name, &config.address)?;
        let server_name = match &upstream.tls {
            None => None,
            Some(tls) => {
                let name = match &tls.server_name {
                    Some(name) => ServerName::try_from(name.clone()).ok(),
                    None => target.server_name(),
                };
                Some(name.ok_or_else(|| BuildError::ServerName {
                    upstream: upstream.name.clone(),
                    address: config.address.clone(),
                })?)
            }
        };
        Ok(Arc::new(Self {
            address: config.address.as_str().into(),
            metrics: families.upstream(&upstream.name, &config.address),
            weight: u64::from(config.weight.max(1)),
            active: AtomicU64::new(0),
            resting_until: AtomicU64::new(0),
            target,
            server_name,
        }))
    }

    /// Requests in progress, by weight.
    pub fn load(&self) -> u64 {
        (self.active.load(Ordering::Relaxed) << 16) / self.weight
    }

    pub fn is_resting(&self) -> bool {
        let until = self.resting_until.load(Ordering::Relaxed);
        until != 0 && clock() < until
    }

    /// Takes note of a connection that failed.
    pub fn failed(&self, error: &UpstreamError) {
        self.metrics.connect_failed(error.reason);
        self.resting_until.store(clock() + REST.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn connected(&self) {
        self.metrics.connects.inc();
        if self.resting_until.load(Ordering::Relaxed) != 0 {
            self.resting_until.store(0, Ordering::Relaxed);
        }
    }
}

/// Milliseconds since the first call.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// A request or relay in progress at an endpoint.
#[derive(Debug)]
pub struct Active(Arc<Endpoint>);

impl Active {
    pub fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        endpoint.metrics.active.inc();
        Self(endpoint.clone())
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.active.dec();
    }
}
