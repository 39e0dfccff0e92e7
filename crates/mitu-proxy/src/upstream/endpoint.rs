//! One address of an upstream, and how it has been doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use mitu_telemetry::http::{Families, Limit, Reason, UpstreamMetrics};
use rustls::pki_types::ServerName;

use super::breaker::{Breaker, Permit};
use super::connector::{Io, Target};
use super::outlier::{Cause, Outliers, Standing};
use super::warmth::Warmth;
use super::{BuildError, UpstreamError, parse_target};
use crate::config::{EndpointConfig, UpstreamConfig};
use crate::relays::Notice;

#[derive(Debug)]
pub struct Endpoint {
    /// As configured.
    pub address: Arc<str>,
    pub target: Target,
    /// Sent as SNI and verified; none without TLS.
    pub server_name: Option<ServerName<'static>>,
    pub metrics: UpstreamMetrics,
    pub breaker: Breaker,
    pub standing: Standing,
    pub warmth: Warmth,
    /// Given to its relays once it has been removed.
    pub removal: Arc<Notice>,
    weight: AtomicU64,
    active: AtomicU64,
    /// Connections that could not be made.
    unreachable: AtomicU64,
    /// What it chose by ALPN when it was last connected to: an index into [`NAMES`].
    alpn: AtomicU8,
}

/// What is told of an endpoint's ALPN. The first: nothing was chosen, or none of the others.
const NAMES: [Option<&str>; 3] = [None, Some("http/1.1"), Some("h2")];

impl Endpoint {
    pub fn build(
        upstream: &UpstreamConfig,
        config: &EndpointConfig,
        outliers: &Arc<Outliers>,
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
        let metrics = families.upstream(&upstream.name, &config.address);
        // One that is replaced by a reload may have been out when it was.
        metrics.ejected.set(0);
        let endpoint = Arc::new(Self {
            address: config.address.as_str().into(),
            metrics,
            breaker: Breaker::new(upstream),
            standing: Standing::new(outliers),
            warmth: Warmth::new(upstream.slow_start_ms),
            removal: Arc::default(),
            weight: AtomicU64::new(u64::from(config.share())),
            active: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            alpn: AtomicU8::new(0),
            target,
            server_name,
        });
        endpoint.standing.count(config.share() > 0);
        Ok(endpoint)
    }

    /// Requests in progress, by weight.
    pub fn load(&self) -> u64 {
        (self.active() << 16) / self.weight.load(Ordering::Relaxed).max(1)
    }

    /// Requests and relays in progress.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    pub fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed)
    }

    /// It has another share from here on.
    pub fn weigh(&self, weight: u32) {
        let before = self.weight.swap(u64::from(weight), Ordering::Relaxed);
        self.standing.count(weight > 0);
        if before == 0 && weight > 0 {
            self.warmth.cool();
        }
    }

    /// Which limit keeps one more request from it.
    pub fn is_full(&self, patient: bool) -> Option<Limit> {
        if !self.breaker.admits(self.active()) {
            Some(Limit::Requests)
        } else if self.breaker.has_connection() || (patient && self.breaker.has_patience()) {
            None
        } else {
            Some(Limit::Connections)
        }
    }

    pub fn alpn(&self) -> Option<&'static str> {
        NAMES.get(usize::from(self.alpn.load(Ordering::Relaxed))).copied().flatten()
    }

    /// Connections to it that could not be made so far.
    pub fn unreachable(&self) -> u64 {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// Takes note of what was agreed on a connection, whether that will do or not.
    pub fn agreed(&self, io: &Io) {
        if let Io::Tls(_) = io {
            let chosen = NAMES.iter().position(|name| name.map(str::as_bytes) == io.alpn()).unwrap_or(0);
            self.alpn.store(chosen as u8, Ordering::Relaxed);
        }
    }

    /// Takes note of a connection.
    pub fn connected(&self) {
        self.metrics.connects.inc();
        self.standing.connected();
    }

    /// Takes note of a connection that could not be made.
    pub fn connect_failed(&self, error: &UpstreamError) {
        self.metrics.connect_failed(error.reason);
        if error.is_ours() {
            return;
        }
        self.unreachable.fetch_add(1, Ordering::Relaxed);
        self.standing.rest();
        self.standing.failed(Cause::Reason(error.reason), &self.metrics);
    }

    /// Takes note of a response that was not given, or not finished.
    pub fn response_failed(&self, reason: Reason) {
        self.metrics.response_failed(reason);
        self.standing.failed(Cause::Reason(reason), &self.metrics);
    }

    /// Takes note of a response's status. False: it says that the endpoint has failed.
    pub fn answered(&self, status: http::StatusCode) -> bool {
        let failed = status.is_server_error() && self.standing.is_failure(status.as_u16());
        if failed {
            self.standing.failed(Cause::Status(status.as_u16()), &self.metrics);
        }
        !failed
    }

    /// Takes note of a response that came to its end, or a relay that has begun.
    pub fn succeeded(&self) {
        if self.standing.succeeded(&self.metrics) {
            self.warmth.cool();
        }
    }
}

/// A request or relay in progress at an endpoint.
#[derive(Debug)]
pub struct Active {
    endpoint: Arc<Endpoint>,
    /// It has one for its connection, as those are limited.
    permitted: bool,
    ended: bool,
    /// It has begun to answer: if that is cut off now, it is because its client has had enough.
    answering: bool,
}

impl Active {
    /// None: there are as many as there may be.
    pub fn begin(endpoint: &Arc<Endpoint>) -> Option<Self> {
        let before = endpoint.active.fetch_add(1, Ordering::Relaxed);
        endpoint.metrics.active.inc();
        let active = Self { endpoint: endpoint.clone(), permitted: false, ended: false, answering: false };
        endpoint.breaker.admits(before).then_some(active)
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Keeps the right to use a connection until it ends.
    pub fn keep(&mut self, permit: Permit<'_>) {
        if let Some(permit) = permit {
            permit.forget();
            self.permitted = true;
        }
    }

    /// Gives that back: its connection is not of the kind that is limited.
    pub fn give_back(&mut self) {
        if std::mem::take(&mut self.permitted) {
            self.endpoint.breaker.give_back();
        }
    }

    /// Whether the endpoint gets credit for what it has answered so far, should nobody want more.
    pub fn answers(&mut self, answering: bool) {
        self.answering = answering;
    }

    /// The endpoint has done its part, whoever may still be at work on what it sent.
    pub fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            self.give_back();
            self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
            self.endpoint.metrics.active.dec();
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.answering {
            self.endpoint.succeeded();
        }
        self.end();
    }
}
