//! A listener: what it is configured to do (compiled, immutable), and its place among the live ones.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use ipnet::IpNet;
use mitu_telemetry::Telemetry;
use mitu_telemetry::connections::ListenerMetrics;
use mitu_telemetry::tls::{HandshakeLabels, HandshakeMetrics};
use mitu_tls::alpn::{OFFERED_SETS, Verdict};
use mitu_tls::certificate::Certificates;
use mitu_tls::client_hello::ClientHello;
use mitu_tls::early_data;
use mitu_tls::error::{Secrets, TlsConfigError};
use mitu_tls::handshake::{HandshakeError, Reason};
use mitu_tls::quic::Choose;
use mitu_tls::select::{Asked, Chosen, Offer, Prepared, Selector, SelectorConfig};
use mitu_tls::ticket::Ticketers;
use prometheus::IntCounter;
use quinn::TransportConfig;
use rustls::AlertDescription;

use crate::config::{AltSvcConfig, HandlerConfig, Limits, ListenerConfig, Timeouts};
use crate::drain::DrainSignal;
use crate::protocol::Protocol;
use crate::router::{self, Router};
use crate::sites::Sites;
use crate::upstream::Upstreams;

/// What `Alt-Svc` says where h3 was spoken, and is no more (RFC 7838, section 3).
pub const TAKEN_BACK: &str = "clear";

/// Everything a connection needs of its listener's configuration. A reload makes a new one.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    proxy_protocol_from: Vec<IpNet>,
    pub trusted_proxies: Vec<IpNet>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub router: Router,
    pub sites: Sites,
    /// By the protocol's index, as selectors tell it.
    pub protocols: Vec<Served>,
    pub metrics: ListenerMetrics,
    tcp: Transport,
    quic: Option<Quic>,
    alt_svc: AltSvc,
    telemetry: Arc<Telemetry>,
    /// By reason, each looked up when first needed: a flood of failures takes no lock.
    failures: [OnceLock<IntCounter>; Reason::ALL.len()],
}

/// What clients can choose from on TCP, or on UDP.
#[derive(Debug)]
struct Transport {
    selector: Selector,
    handshakes: Vec<HandshakeKinds>,
    alpn: AlpnCounters,
}

/// The UDP side.
#[derive(Debug)]
struct Quic {
    transport: Transport,
    config: Arc<TransportConfig>,
    early_data: bool,
}

/// Where else the listener's sites are to be had, as responses say it (RFC 7838).
#[derive(Debug)]
struct AltSvc {
    config: Option<AltSvcConfig>,
    value: ArcSwapOption<HeaderValue>,
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
    /// `previous`: the listener of that name, which this one is to replace.
    pub fn build(
        config: &ListenerConfig,
        parts: &Parts<'_>,
        ticketers: &mut Ticketers,
        previous: Option<&Self>,
    ) -> Result<Self, ListenerError> {
        // Early data in QUIC comes under the limits of the connection before (RFC 9000, section 7.4.1).
        let same_limits = previous.is_some_and(|one| one.limits == config.limits && one.timeouts == config.timeouts);
        let mut transport = |over_quic: bool| {
            let protocols = config.protocols.iter().enumerate();
            let protocols = protocols.filter(|(_, protocol)| is_over_quic(&protocol.handler) == over_quic);
            let offers =
                protocols.map(|(index, protocol)| Offer { index, alpn: &protocol.alpn, policy: &protocol.tls });
            let selector = SelectorConfig {
                listener: &config.name,
                protocols: offers.collect(),
                sites: &config.sites,
                default_site: config.default_site,
                early_data: if over_quic { early_data::IN_QUIC } else { early_data::MAX_TCP },
                is_as_before: !over_quic || same_limits,
            };
            let (secrets, previous) = (parts.secrets, parts.previous_tickets);
            let selector = Selector::new(&selector, parts.certificates, secrets, ticketers, previous)?;
            Ok::<_, ListenerError>(Transport {
                handshakes: selector.prepared().iter().map(|_| HandshakeKinds::default()).collect(),
                alpn: AlpnCounters::new(parts.telemetry, &config.name, &selector, config.protocols.len()),
                selector,
            })
        };
        let tcp = transport(false)?;
        let over_quic = config.protocols.iter().any(|protocol| is_over_quic(&protocol.handler));
        let quic = over_quic.then(|| {
            let early_data =
                config.protocols.iter().any(|protocol| is_over_quic(&protocol.handler) && protocol.tls.early_data);
            let config = Arc::new(crate::quic::transport(&config.limits, &config.timeouts));
            Ok::<_, ListenerError>(Quic { transport: transport(true)?, config, early_data })
        });
        let serve = |protocol: &crate::config::ProtocolConfig| {
            let handler = match &protocol.handler {
                HandlerConfig::Http1 => Protocol::H1,
                HandlerConfig::Http2 => Protocol::H2,
                HandlerConfig::Http3 => Protocol::H3,
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
            sites: Sites::build(config)?,
            router: Router::build(
                &config.name,
                &config.routes,
                parts.upstreams,
                &parts.telemetry.http,
                previous.map(|listener| &listener.router),
            )?,
            metrics: parts.telemetry.connections.listener(&config.name),
            tcp,
            quic: quic.transpose()?,
            alt_svc: AltSvc { config: config.alt_svc.clone(), value: ArcSwapOption::empty() },
            failures: [const { OnceLock::new() }; Reason::ALL.len()],
            telemetry: parts.telemetry.clone(),
            name: config.name.clone(),
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
        })
    }

    /// Whether a peer at this address is one that tells its client's in a PROXY header.
    pub fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|trusted| trusted.contains(&peer))
    }

    /// Whether it has a UDP side.
    pub fn speaks_quic(&self) -> bool {
        self.quic.is_some()
    }

    /// How QUIC connections behave here.
    pub fn quic_transport(&self) -> Option<Arc<TransportConfig>> {
        self.quic.as_ref().map(|quic| quic.config.clone())
    }

    /// Whether QUIC connections may begin with early data.
    pub fn allows_early_quic(&self) -> bool {
        self.quic.as_ref().is_some_and(|quic| quic.early_data)
    }

    /// Chooses for a ClientHello on TCP, and counts what was offered and chosen.
    pub fn select(&self, hello: &ClientHello<'_>) -> Result<Chosen, HandshakeError> {
        self.select_on(&self.tcp, hello)
    }

    fn select_on(&self, transport: &Transport, hello: &ClientHello<'_>) -> Result<Chosen, HandshakeError> {
        match transport.selector.select(hello) {
            Ok(selection) => {
                self.count_alpn(transport, &selection.asked, Some(selection.prepared));
                Ok(selection.chosen(&transport.selector))
            }
            Err(refusal) => {
                self.count_alpn(transport, &refusal.asked, None);
                Err(refusal.error)
            }
        }
    }

    fn count_alpn(&self, transport: &Transport, asked: &Asked, chosen: Option<&Prepared>) {
        let Transport { selector, alpn, .. } = transport;
        if let Some(decision) = asked.decision {
            (if decision.cached { &alpn.hit } else { &alpn.miss }).inc();
        }
        alpn.choice(asked.decision.map(|decision| decision.offered), chosen.map(|prepared| prepared.protocol))
            .get_or_init(|| {
                let label = asked.decision.map(|decision| selector.alpn.offered_label(decision.offered));
                let name = chosen.map_or("refused", |prepared| &*self.protocols[prepared.protocol].alpn);
                self.telemetry.tls.alpn(&self.name, label.as_deref().unwrap_or("absent"), name)
            })
            .inc();
        if let Some(site) = asked.site {
            let counter = &alpn.verdicts[site][asked.verdict as usize];
            let (counter, outcome) = match chosen {
                Some(_) => (&counter.served, "served"),
                None => (&counter.refused, "refused"),
            };
            counter
                .get_or_init(|| {
                    let (site, mode) = selector.site(site);
                    let labels = [&*self.name, site, mode.as_str(), asked.verdict.as_str(), outcome];
                    self.telemetry.tls.alpn_verdict(labels)
                })
                .inc();
        }
    }

    /// The histograms for a finished handshake on TCP.
    pub fn handshake_metrics(&self, prepared: usize, version: &'static str, resumed: bool) -> &HandshakeMetrics {
        self.handshake_metrics_on(&self.tcp, prepared, version, resumed)
    }

    /// The same for one in QUIC, which has no version but 1.3.
    pub fn quic_handshake_metrics(&self, prepared: usize, resumed: bool) -> Option<&HandshakeMetrics> {
        let quic = self.quic.as_ref()?;
        Some(self.handshake_metrics_on(&quic.transport, prepared, "TLSv1.3", resumed))
    }

    fn handshake_metrics_on<'a>(
        &self,
        transport: &'a Transport,
        prepared: usize,
        version: &'static str,
        resumed: bool,
    ) -> &'a HandshakeMetrics {
        let kind = usize::from(version == "TLSv1.2") | usize::from(resumed) << 1;
        transport.handshakes[prepared][kind].get_or_init(|| {
            let config = &transport.selector.prepared()[prepared];
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

    /// What responses say in `Alt-Svc`; None: nothing.
    pub fn alt_svc(&self) -> Option<HeaderValue> {
        self.alt_svc.value.load().as_deref().cloned()
    }

    /// From here on the sites of `ranking` have their protocols in this order.
    pub fn rank(&self, ranking: &str, order: &[String]) {
        for transport in std::iter::once(&self.tcp).chain(self.quic.as_ref().map(|quic| &quic.transport)) {
            transport.selector.rank(ranking, order);
        }
        self.sites.rank(ranking, order);
    }

    /// From here on responses say that h3 is spoken on this port, unless another is configured.
    fn advertise(&self, port: u16) {
        if let Some(AltSvcConfig { port: configured, max_age_s }) = &self.alt_svc.config {
            let port = configured.unwrap_or(port);
            if let Ok(value) = HeaderValue::try_from(format!("h3=\":{port}\"; ma={max_age_s}")) {
                self.alt_svc.value.store(Some(Arc::new(value)));
            }
        }
    }

    /// From here on responses take back what others have said before.
    fn withdraw(&self) {
        self.alt_svc.value.store(Some(Arc::new(HeaderValue::from_static(TAKEN_BACK))));
    }

    /// Counts a handshake that did not finish.
    pub fn handshake_failed(&self, reason: Reason) {
        self.failures[reason as usize].get_or_init(|| self.telemetry.tls.failure(&self.name, reason.as_str())).inc();
    }
}

fn is_over_quic(handler: &HandlerConfig) -> bool {
    *handler == HandlerConfig::Http3
}

/// What is chosen on UDP.
impl Choose for Listener {
    fn choose(&self, hello: &ClientHello<'_>) -> Result<Chosen, HandshakeError> {
        let nobody = HandshakeError::Refused(AlertDescription::NoApplicationProtocol);
        let quic = self.quic.as_ref().ok_or(nobody)?;
        self.select_on(&quic.transport, hello)
    }
}

/// ALPN counters, each looked up when first needed.
#[derive(Debug)]
struct AlpnCounters {
    hit: IntCounter,
    miss: IntCounter,
    /// For each kind of list offered, by what was chosen.
    choices: Box<[OnceLock<IntCounter>]>,
    /// The listener's, and being refused.
    outcomes: usize,
    /// By site.
    verdicts: Vec<[OutcomeCounters; Verdict::ALL.len()]>,
}

#[derive(Debug, Default)]
struct OutcomeCounters {
    served: OnceLock<IntCounter>,
    refused: OnceLock<IntCounter>,
}

impl AlpnCounters {
    /// `protocols`: how many the listener has.
    fn new(telemetry: &Telemetry, listener: &str, selector: &Selector, protocols: usize) -> Self {
        /// The kinds of lists, the last of which stands for all that are too many, and no list at all.
        const OFFERS: usize = OFFERED_SETS + 2;
        let (hit, miss) = telemetry.tls.alpn_cache(listener);
        let outcomes = protocols + 1;
        Self {
            hit,
            miss,
            choices: (0..OFFERS * outcomes).map(|_| OnceLock::new()).collect(),
            outcomes,
            verdicts: (0..selector.sites()).map(|_| Default::default()).collect(),
        }
    }

    /// `offered`: none: no ALPN extension; `chosen`: none: refused.
    fn choice(&self, offered: Option<usize>, chosen: Option<usize>) -> &OnceLock<IntCounter> {
        let offer = offered.unwrap_or(OFFERED_SETS + 1);
        &self.choices[offer * self.outcomes + chosen.unwrap_or(self.outcomes - 1)]
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
        listener.advertise(address.port());
        Self { address, current: ArcSwap::new(listener), drain: DrainSignal::new(), active: AtomicUsize::new(0) }
    }

    /// From here on new connections are `listener`'s.
    pub fn replace(&self, listener: Arc<Listener>) {
        listener.advertise(self.address.port());
        let previous = self.current.swap(listener.clone());
        if previous.alt_svc().is_some() && listener.alt_svc().is_none() {
            listener.withdraw();
        }
    }

    /// The UDP side does not work any more.
    pub fn datagrams_failed(&self) {
        let listener = self.current.load();
        if listener.alt_svc().is_some() {
            listener.withdraw();
        }
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
