//! The runtime configuration: the one document that Python compiles and the data plane obeys.
//!
//! Everything is resolved before it gets here: defaults are filled in, names are checked, durations are
//! milliseconds, sizes are bytes, and key material travels beside the document as [`Secrets`], never in it. The
//! Python side of this contract is `src/mitu/config/compile.py`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::filter::compression::Encoding;
pub use mitu_tls::config::{
    AlpnMode, AlpnPolicy, CertificateConfig, ClientAuthConfig, SiteConfig, TicketsConfig, TlsPolicy, UpstreamTlsConfig,
};

/// PEM documents by the identifier that the configuration refers to them with.
pub type Secrets = HashMap<String, Vec<u8>>;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    pub workers: usize,
    pub scheduler: Scheduler,
    /// The first file descriptor that no client and no upstream may have; none: all that there are.
    pub kept_files: Option<i32>,
    pub access_log: Option<AccessLogConfig>,
    pub tickets: TicketsConfig,
    pub handshakes: HandshakesConfig,
    pub overload: OverloadConfig,
    pub certificates: Vec<CertificateConfig>,
    pub listeners: Vec<ListenerConfig>,
    pub upstreams: Vec<UpstreamConfig>,
}

/// What is known of the upstreams, which changes without a reload.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovered {
    /// By upstream: its endpoints. Those of the others stay.
    pub endpoints: HashMap<String, Vec<EndpointConfig>>,
    /// By ranking: its protocols, most preferred first.
    pub orders: HashMap<String, Vec<String>>,
}

/// How workers share the cores (docs/adr/0003).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// One thread, one event loop and one `SO_REUSEPORT` socket per worker.
    PerCore,
    /// One runtime whose threads steal each other's connections.
    WorkStealing,
}

/// How handshakes take turns, on every listener alike (`gate.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandshakesConfig {
    /// One that would wait for longer, or has, is shed.
    pub patience_ms: u64,
    /// Most that may wait on one worker; none: as many as patience allows.
    pub queue: Option<usize>,
    /// Bits of an address that tell one source from another.
    pub source_prefix: SourcePrefix,
    /// Full and resumed ones from one source; none: unlimited.
    pub source_rate: Option<RateConfig>,
    /// The same for one server name.
    pub server_name_rate: Option<RateConfig>,
}

/// What is done when memory runs short, on every listener alike (`overload.rs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverloadConfig {
    /// What the process may hold; none: nothing is done.
    pub memory_bytes: Option<NonZeroU64>,
    /// Shares of that at which each step begins, in ascending order.
    pub disable_keepalive: f64,
    pub stop_accepting_requests: f64,
    pub reject_connections: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePrefix {
    pub ipv4: u8,
    pub ipv6: u8,
}

/// A token bucket, of which each worker has an equal part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateConfig {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLogConfig {
    /// A file's path, or `stdout` / `stderr`.
    pub path: String,
    /// One line for each request.
    pub requests: bool,
    /// One line for each connection, with its stage times.
    pub connections: bool,
    /// Lines that may wait for the writer; further ones are dropped and counted.
    pub queue: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    pub name: String,
    pub bind: SocketAddr,
    pub backlog: u32,
    /// Peers whose PROXY v2 header is required and believed; empty: nobody's is read.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are kept; everybody else's are replaced.
    pub trusted_proxies: Vec<IpNet>,
    /// ALPN protocols, most preferred first.
    pub protocols: Vec<ProtocolConfig>,
    /// What h1 and h2 responses say of h3; none: nothing.
    pub alt_svc: Option<AltSvcConfig>,
    pub sites: Vec<SiteConfig>,
    /// Index into `sites` for an unknown or missing server name; none: refused.
    pub default_site: Option<usize>,
    pub routes: Vec<RouteConfig>,
    pub limits: Limits,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolConfig {
    pub alpn: String,
    pub handler: HandlerConfig,
    pub tls: TlsPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum HandlerConfig {
    Http1,
    Http2,
    /// In QUIC, on the UDP port of the same number.
    Http3,
    /// The decrypted bytes are relayed to an upstream; `mqtt` and private protocols.
    Relay {
        upstream: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AltSvcConfig {
    /// The UDP port that clients reach; none: the listener's.
    pub port: Option<u16>,
    /// For how long clients may remember it.
    pub max_age_s: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Connections open at once on the listener; further ones are closed on accept and counted.
    pub connections: usize,
    pub request_header_bytes: usize,
    pub request_headers: usize,
    /// None: unlimited.
    pub request_body_bytes: Option<u64>,
    /// Requests at once on one h2 or h3 connection.
    pub concurrent_streams: u32,
    /// Bytes that one stream or relay direction may hold while its receiver is slow.
    pub buffer_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// From accept to the finished handshake, PROXY header included.
    pub handshake_ms: u64,
    /// From the first byte of a request to the end of its headers.
    pub request_header_ms: u64,
    /// Between two requests of a connection.
    pub idle_ms: u64,
    /// A relay on which nothing moves in either direction.
    pub relay_idle_ms: u64,
    /// Over what time relays end once the listener drains; none: as long as the drain lets them.
    pub relay_drain_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    pub name: String,
    #[serde(rename = "match")]
    pub matcher: MatchConfig,
    pub filters: Vec<FilterConfig>,
    /// A request has to pass all of them.
    #[serde(default)]
    pub rate_limits: Vec<RateLimitConfig>,
    /// None: the listener's.
    pub request_body_bytes: Option<u64>,
    /// None: unlimited.
    pub response_body_bytes: Option<u64>,
    /// Whether safe requests are served that come in early data, where somebody may send them again.
    #[serde(default)]
    pub early_data: bool,
    /// None: responses are passed on as they come.
    pub compress: Option<CompressConfig>,
    pub action: ActionConfig,
}

/// What of a route's responses is compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompressConfig {
    /// Most preferred first.
    pub encodings: Vec<Encoding>,
    /// Shorter ones are passed on as they are.
    pub min_bytes: u64,
    /// Media types, in which one `*` may stand for anything.
    pub types: Vec<String>,
}

/// A token bucket for each client of a route, whichever worker serves it (`router/limiter.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    pub key: ClientKey,
    /// One token comes in this time.
    pub every_ns: u64,
    pub burst: NonZeroU32,
}

/// What tells one client from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum ClientKey {
    /// The network that its address is in.
    Source(SourcePrefix),
    ClientCertificate,
    /// The host that it asks for.
    Host,
    Header(String),
}

/// Every condition given must hold; within `hosts` and `methods` any one is enough.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Exact names or `*.example.com`, lower case, without a port; empty: any host.
    pub hosts: Vec<String>,
    pub path: Option<PathMatch>,
    /// Empty: any method.
    pub methods: Vec<String>,
    pub headers: Vec<HeaderMatch>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum PathMatch {
    Exact(String),
    /// Whole segments: `/api` matches `/api` and `/api/x`, not `/apix`.
    Prefix(String),
    /// Must match the whole path.
    Regex(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    pub name: String,
    pub value: HeaderValueMatch,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum HeaderValueMatch {
    Present,
    Absent,
    Exact(String),
    Regex(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilterConfig {
    RequestHeaders(HeaderOps),
    ResponseHeaders(HeaderOps),
    /// The matched prefix is replaced (`PathMatch::Prefix` only).
    RewritePrefix {
        to: String,
    },
    /// The first match of `pattern` in the path is replaced; `$1` refers to groups.
    RewriteRegex {
        pattern: String,
        to: String,
    },
    /// The `Host` header (`:authority`) the upstream sees.
    Host {
        to: String,
    },
    /// What comes as gRPC-Web goes to the upstream as gRPC.
    GrpcWeb,
}

/// Applied in this order: remove, set, add.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderOps {
    pub remove: Vec<String>,
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ActionConfig {
    Upstream {
        upstream: String,
        /// From the request's arrival to the end of the response's headers; over: 504.
        timeout_ms: u64,
        /// The same for one try, after which another is made where that is safe; none: `timeout_ms` alone.
        try_timeout_ms: Option<u64>,
    },
    Respond {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// Fields left out are taken from the request. `path` replaces path and query.
    Redirect {
        status: u16,
        scheme: Option<String>,
        host: Option<String>,
        path: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    pub name: String,
    pub endpoints: Vec<EndpointConfig>,
    pub balancer: BalancerConfig,
    pub protocol: UpstreamProtocol,
    pub tls: Option<UpstreamTlsConfig>,
    /// Send a PROXY v2 header, with ALPN, server name and TLS details, before the first byte (relays).
    pub proxy_protocol: bool,
    pub connect_timeout_ms: u64,
    /// How long an unused connection is kept.
    pub idle_timeout_ms: u64,
    /// Unused connections kept per endpoint and worker.
    pub max_idle: usize,
    /// Over what time relays to an endpoint end once it has been removed.
    pub drain_ms: u64,
    /// When an endpoint that keeps failing is left alone; none: it never is.
    pub outlier_detection: Option<OutlierConfig>,
    /// How long an endpoint that is new or back gets less than its share; none: it gets all of it at once.
    pub slow_start_ms: Option<NonZeroU64>,
    pub limits: EndpointLimits,
    pub retries: RetriesConfig,
    /// After which a request without side effects is sent to a second endpoint as well; none: never.
    pub hedge_after_ms: Option<u64>,
}

/// When an endpoint is left alone because of what came of its requests (`upstream/outlier.rs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutlierConfig {
    pub consecutive_failures: NonZeroU32,
    /// Statuses that are failures.
    pub statuses: Vec<u16>,
    /// For the first time; further times are longer by as much each.
    pub ejection_ms: u64,
    pub max_ejection_ms: u64,
    /// Share of the endpoints that may be left alone at once.
    pub max_ejected: f64,
}

/// What one endpoint is asked for at once, by all workers; none: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointLimits {
    /// Connections that each serve one request at a time, or a relay.
    pub connections: Option<NonZeroU32>,
    /// Requests that may wait for one of them.
    pub pending: usize,
    /// Requests and relays in progress.
    pub requests: Option<NonZeroU32>,
}

/// When a request is sent again (`upstream/retry.rs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetriesConfig {
    /// Further tries of one request or relay.
    pub attempts: u32,
    /// Retries there may be, as a share of the requests of late.
    pub budget: f64,
    /// Those that there may be whatever the share.
    pub min_per_second: u32,
    /// What a connection that cannot be made is followed by.
    pub connect: bool,
    /// A connection that ends before a response begins.
    pub reset: bool,
    pub refused_stream: bool,
    /// Responses that are not passed on while there is another try.
    pub statuses: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// `host:port`, `[v6]:port` or `unix:/path`; a host name is resolved at each connect.
    pub address: String,
    pub weight: u32,
    /// It has keys of a hash, which go elsewhere for as long as it is not used.
    #[serde(default = "used")]
    pub used: bool,
}

impl EndpointConfig {
    /// What it gets now.
    pub fn share(&self) -> u32 {
        if self.used { self.weight } else { 0 }
    }
}

fn used() -> bool {
    true
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BalancerConfig {
    RoundRobin,
    LeastRequest,
    Hash { on: HashKey },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum HashKey {
    ClientAddress,
    Header(String),
    /// Of a relay that begins with an MQTT CONNECT; the client's address, where it is empty.
    MqttClientId,
    Path,
    /// The server name from the ClientHello.
    ServerName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpstreamProtocol {
    #[serde(rename = "http/1.1")]
    Http1,
    /// Over TLS by ALPN, in the clear by prior knowledge.
    #[serde(rename = "h2")]
    Http2,
    /// By what the upstream's ALPN answers; http/1.1 in the clear.
    #[serde(rename = "auto")]
    Auto,
}
