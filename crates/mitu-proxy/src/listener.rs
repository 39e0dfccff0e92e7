//! A listener: what it is configured to do (compiled, immutable), and its place among the live ones.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use mitu_telemetry::Telemetry;
use mitu_telemetry::connections::ListenerMetrics;
use mitu_telemetry::tls::{HandshakeLabels, HandshakeMetrics};
use mitu_tls::alpn::{Decision, OFFERED_SETS};
use mitu_tls::certificate::Certificates;
use mitu_tls::client_hello::ClientHello;
use mitu_tls::error::{Secrets, TlsConfigError};
use mitu_tls::handshake::Reason;
use mitu_tls::select::{Prepared, Refusal, Selection, Selector, SelectorConfig};
use mitu_tls::ticket::Ticketers;
use prometheus::IntCounter;

use crate::config::{HandlerConfig, Limits, ListenerConfig, Timeouts};
use crate::drain::DrainSignal;
use crate::protocol::Protocol;
use crate::router::{self, Router};
use crate::upstream::Upstreams;

/// Everything a connection needs of its listener's configuration. A reload makes a new one.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    pub proxy_protocol_from: Vec<IpNet>,
    pub trusted_proxies: Vec<IpNet>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub router: Router,
    pub selector: Selector,
    /// By the protocol's index, as the selector knows it.
    pub protocols: Vec<Served>,
    pub metrics: ListenerMetrics,
    telemetry: Arc<Telemetry>,
    handshakes: Vec<HandshakeKinds>,
    /// By reason, each looked up when first needed: a flood of failures takes no lock.
    failures: [OnceLock<IntCounter>; Reason::ALL.len()],
    alpn: AlpnCounters,
}

/// One protocol under its ALPN name.
#[derive(Debug)]
pub struct Served {
    pub alpn: Arc<str>,
    pub protocol: Protocol,
}

/// Histograms of one prepared configuration by (version, resumed), made when first needed.
type HandshakeKinds = [OnceLock<HandshakeMetrics>; 4];

/// Why a listener cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error(transparent)]
    Routes(#[from] router::BuildError),
    #[error("protocol '{alpn}' is relayed to '{upstream}', which is not an upstream")]
    UnknownUpstream { alpn: String, upstream: String },
}

/// What listeners are built from, beside their own configuration.
pub struct Parts<'a> {
    pub certificates: &'a Certificates,
    pub secrets: &'a Secrets,
    pub upstreams: &'a Upstreams,
    pub previous_tickets: Option<&'a Ticketers>,
    pub telemetry: &'a Arc<Telemetry>,
}

impl Listener {
    pub fn build(
        config: &ListenerConfig,
        parts: &Parts<'_>,
        ticketers: &mut Ticketers,
    ) -> Result<Self, ListenerError> {
        let selector = Selector::new(
            &SelectorConfig {
                listener: &config.name,
                protocols: config.protocols.iter().map(|protocol| (&*protocol.alpn, &protocol.tls)).collect(),
                no_alpn: config.no_alpn,
                sites: &config.sites,
                default_site: config.default_site,
            },
            parts.certificates,
            parts.secrets,
            ticketers,
            parts.previous_tickets,
        )?;
        let serve = |protocol: &crate::config::ProtocolConfig| {
            let handler = match &protocol.handler {
                HandlerConfig::Http1 => Protocol::H1,
                HandlerConfig::Http2 => Protocol::H2,
                HandlerConfig::Relay { upstream } => Protocol::Relay {
                    metrics: parts.telemetry.connections.relay(&config.name, &protocol.alpn),
                    upstream: parts.upstreams.get(upstream).ok_or_else(|| ListenerError::UnknownUpstream {
                        alpn: protocol.alpn.clone(),
                        upstream: upstream.clone(),
                    })?,
                },
            };
            Ok(Served { alpn: protocol.alpn.as_str().into(), protocol: handler })
        };
        Ok(Self {
            protocols: config.protocols.iter().map(serve).collect::<Result<_, ListenerError>>()?,
            router: Router::build(&config.name, &config.routes, parts.upstreams, &parts.telemetry.http)?,
            metrics: parts.telemetry.connections.listener(&config.name),
            alpn: AlpnCounters::new(parts.telemetry, &config.name),
            handshakes: selector.prepared().iter().map(|_| HandshakeKinds::default()).collect(),
            failures: [const { OnceLock::new() }; Reason::ALL.len()],
            telemetry: parts.telemetry.clone(),
            name: config.name.clone(),
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
            selector,
        })
    }

    /// Chooses for a ClientHello, and counts what was offered and chosen.
    pub fn select(&self, hello: &ClientHello<'_>) -> Result<Selection<'_>, Refusal> {
        let result = self.selector.select(hello);
        match &result {
            Ok(selection) => self.count_alpn(selection.alpn, Some(selection.prepared)),
            Err(refusal) => self.count_alpn(refusal.alpn, None),
        }
        result
    }

    fn count_alpn(&self, decision: Option<Decision>, chosen: Option<&Prepared>) {
        let chosen_name = || chosen.map_or("refused", |prepared| &*self.protocols[prepared.protocol].alpn);
        let counter = match decision {
            Some(decision) => {
                (if decision.cached { &self.alpn.hit } else { &self.alpn.miss }).inc();
                &self.alpn.offered[decision.offered]
            }
            None => &self.alpn.absent,
        };
        // A set of offers has one choice, unless the server name was refused: then its own counter tells.
        let choice = if chosen.is_some() { &counter.chosen } else { &counter.refused };
        choice
            .get_or_init(|| {
                let offered = decision.map_or("absent", |decision| self.selector.alpn.offered_label(decision.offered));
                self.telemetry.tls.alpn(&self.name, offered, chosen_name())
            })
            .inc();
    }

    /// The histograms for a finished handshake.
    pub fn handshake_metrics(&self, prepared: usize, version: &'static str, resumed: bool) -> &HandshakeMetrics {
        let kind = usize::from(version == "TLSv1.2") | usize::from(resumed) << 1;
        self.handshakes[prepared][kind].get_or_init(|| {
            let config = &self.selector.prepared()[prepared];
            self.telemetry.tls.handshake(HandshakeLabels {
                listener: &self.name,
                alpn: &self.protocols[config.protocol].alpn,
                version,
                resumed,
                key_type: config.key_type.name(),
                site: &config.site,
            })
        })
    }

    /// Counts a handshake that did not finish.
    pub fn handshake_failed(&self, reason: Reason) {
        self.failures[reason as usize].get_or_init(|| self.telemetry.tls.failure(&self.name, reason.as_str())).inc();
    }
}

/// ALPN counters by the kind of list offered, looked up when a kind is first seen.
#[derive(Debug)]
struct AlpnCounters {
    hit: IntCounter,
    miss: IntCounter,
    offered: Vec<Offered>,
    absent: Offered,
}

#[derive(Debug, Default)]
struct Offered {
    chosen: OnceLock<IntCounter>,
    refused: OnceLock<IntCounter>,
}

impl AlpnCounters {
    fn new(telemetry: &Telemetry, listener: &str) -> Self {
        let (hit, miss) = telemetry.tls.alpn_cache(listener);
        Self {
            hit,
            miss,
            offered: (0..=OFFERED_SETS).map(|_| Offered::default()).collect(),
            absent: Offered::default(),
        }
    }
}

/// A listener that is live under its name and address, through every reload that keeps both.
#[derive(Debug)]
pub struct LiveListener {
    pub address: SocketAddr,
    pub current: ArcSwap<Listener>,
    pub drain: DrainSignal,
    active: AtomicUsize,
}

impl LiveListener {
    pub fn new(address: SocketAddr, listener: Arc<Listener>) -> Self {
        Self { address, current: ArcSwap::new(listener), drain: DrainSignal::new(), active: AtomicUsize::new(0) }
    }

    /// Takes one of the listener's `limits.connections` slots; none: they are all taken.
    pub fn take_slot(self: &Arc<Self>, listener: &Listener) -> Option<Slot> {
        let taken = self.active.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { live: self.clone(), active: listener.metrics.active.clone() };
        slot.active.inc();
        if taken >= listener.limits.connections {
            listener.metrics.refused_limit.inc();
            return None;
        }
        Some(slot)
    }

    /// Connections open now, handshakes included.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }
}

/// A connection's slot, given back when it ends, however it ends.
#[derive(Debug)]
pub struct Slot {
    live: Arc<LiveListener>,
    active: prometheus::IntGauge,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.live.active.fetch_sub(1, Ordering::Relaxed);
        self.active.dec();
    }
}
