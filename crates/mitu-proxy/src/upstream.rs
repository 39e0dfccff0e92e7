//! Upstreams: named groups of endpoints. A request takes three steps here: the [`balancer`] chooses an endpoint, the
//! [`pool`] may have a connection to it, else the [`connector`] opens one.

pub mod balancer;
pub mod connector;
mod endpoint;
mod error;
mod h1;
mod h2;
mod pool;
mod relay;
mod request;
mod tls;

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use mitu_telemetry::http::{Families, Reason};
use mitu_tls::config::CertificateConfig;
use mitu_tls::error::Secrets;

use crate::config::{HashKey, UpstreamConfig, UpstreamProtocol};
use crate::connection::Connection;
use balancer::{Balancer, Cursor};
use connector::{Connector, Target};
use endpoint::Endpoint;
use pool::Pool;

pub use error::{BuildError, UpstreamError};
pub use relay::UpstreamStream;
pub use request::{Answer, Outbound, UpstreamBody};

/// Endpoints that are tried for one request or relay before it is given up.
const MAX_TRIES: usize = 3;

/// The upstreams of one configuration, by name.
#[derive(Debug, Default)]
pub struct Upstreams(HashMap<String, Arc<Upstream>>);

#[derive(Debug)]
pub struct Upstream {
    pub name: String,
    config: UpstreamConfig,
    /// Of the keys and certificates it was built with.
    material: u64,
    endpoints: Box<[Arc<Endpoint>]>,
    balancer: Balancer,
    connector: Connector,
    /// One for each worker.
    shards: Box<[Shard]>,
}

/// What one worker keeps to itself.
#[derive(Debug)]
struct Shard {
    cursor: Cursor,
    /// By endpoint.
    pools: Box<[Arc<Pool>]>,
}

impl Upstreams {
    /// Builds every upstream; one whose configuration and secrets are those of `previous` is taken over as it is, with
    /// its connections.
    pub fn build(
        configs: &[UpstreamConfig],
        certificates: &[CertificateConfig],
        secrets: &Secrets,
        workers: usize,
        previous: Option<&Self>,
        families: &Families,
    ) -> Result<Self, BuildError> {
        let mut upstreams = HashMap::with_capacity(configs.len());
        for config in configs {
            let Entry::Vacant(entry) = upstreams.entry(config.name.clone()) else {
                return Err(BuildError::DuplicateName(config.name.clone()));
            };
            let material = material(config, certificates, secrets);
            let unchanged = previous.and_then(|previous| previous.get(&config.name)).filter(|upstream| {
                upstream.config == *config && upstream.material == material && upstream.shards.len() == workers
            });
            entry.insert(match unchanged {
                Some(upstream) => upstream,
                None => Arc::new(Upstream::build(config, material, certificates, secrets, workers, families)?),
            });
        }
        Ok(Self(upstreams))
    }

    pub fn get(&self, name: &str) -> Option<Arc<Upstream>> {
        self.0.get(name).cloned()
    }
}

/// A fingerprint of the secrets that an upstream uses.
fn material(config: &UpstreamConfig, certificates: &[CertificateConfig], secrets: &Secrets) -> u64 {
    let mut hasher = DefaultHasher::new();
    if let Some(tls) = &config.tls {
        let certificate = tls
            .client_certificate
            .as_ref()
            .and_then(|id| certificates.iter().find(|certificate| certificate.id == *id));
        let ids = [tls.ca.as_ref(), certificate.map(|found| &found.chain), certificate.map(|found| &found.key)];
        for id in ids {
            id.and_then(|id| secrets.get(id)).hash(&mut hasher);
        }
    }
    hasher.finish()
}

impl Upstream {
    fn build(
        config: &UpstreamConfig,
        material: u64,
        certificates: &[CertificateConfig],
        secrets: &Secrets,
        workers: usize,
        families: &Families,
    ) -> Result<Self, BuildError> {
        let upstream = || config.name.clone();
        if config.endpoints.len() > usize::from(u16::MAX) {
            return Err(BuildError::TooManyEndpoints { upstream: upstream(), max: usize::from(u16::MAX) });
        }
        let tls = match &config.tls {
            None => None,
            Some(tls) => Some(Arc::new(
                tls::client_config(tls, certificates, secrets)
                    .map_err(|source| BuildError::Tls { upstream: upstream(), source })?,
            )),
        };
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| Endpoint::build(config, endpoint, families))
            .collect::<Result<Box<[_]>, _>>()?;
        let idle = Duration::from_millis(config.idle_timeout_ms);
        let shard = |worker| Shard {
            cursor: Cursor::starting_at(worker),
            pools: endpoints.iter().map(|_| Arc::new(Pool::new(config.max_idle, idle))).collect(),
        };
        Ok(Self {
            name: upstream(),
            material,
            balancer: Balancer::new(&config.balancer, &config.endpoints),
            connector: Connector { tls, timeout: Duration::from_millis(config.connect_timeout_ms) },
            shards: (0..workers).map(shard).collect(),
            endpoints,
            config: config.clone(),
        })
    }

    /// An endpoint that is not among `tried`, by its number; one that has just refused a connection is the last choice.
    fn choose(&self, shard: &Shard, hash: u64, tried: &[usize]) -> Result<usize, UpstreamError> {
        let untried = |endpoint: usize| !tried.contains(&endpoint);
        let load = |endpoint: usize| self.endpoints[endpoint].load();
        let rested = |endpoint: usize| untried(endpoint) && !self.endpoints[endpoint].is_resting();
        self.balancer
            .pick(&shard.cursor, hash, load, rested)
            .or_else(|| self.balancer.pick(&shard.cursor, hash, load, untried))
            .ok_or_else(|| UpstreamError::new(Reason::NoEndpoint))
    }

    fn shard(&self, connection: &Connection) -> &Shard {
        // A worker started after a reload to fewer workers has no shard of its own.
        &self.shards[connection.worker % self.shards.len()]
    }

    /// The hash of what the balancer looks at, or 0 when it looks at nothing of the request.
    fn hash(&self, connection: &Connection, path: Option<&str>, headers: Option<&http::HeaderMap>) -> u64 {
        match self.balancer.hash_key() {
            None => 0,
            Some(HashKey::ClientAddress) => balancer::hash(connection.peer.ip().to_string().as_bytes()),
            Some(HashKey::ServerName) => {
                balancer::hash(connection.server_name.as_deref().unwrap_or_default().as_bytes())
            }
            Some(HashKey::Path) => {
                let path = path.unwrap_or_default();
                balancer::hash(path.split('?').next().unwrap_or_default().as_bytes())
            }
            Some(HashKey::Header(name)) => {
                let value = headers.and_then(|headers| headers.get(name.as_str()));
                balancer::hash(value.map(http::HeaderValue::as_bytes).unwrap_or_default())
            }
        }
    }

    /// The names offered by ALPN. `h1_only`: for a request that h2 cannot carry.
    fn alpn(&self, h1_only: bool) -> &'static [&'static [u8]] {
        match self.config.protocol {
            UpstreamProtocol::Http2 => &[b"h2"],
            UpstreamProtocol::Auto if !h1_only => &[b"h2", b"http/1.1"],
            UpstreamProtocol::Auto | UpstreamProtocol::Http1 => &[b"http/1.1"],
        }
    }
}

/// Where an endpoint of this upstream is, for errors.
fn parse_target(upstream: &str, address: &str) -> Result<Target, BuildError> {
    Target::parse(address)
        .ok_or_else(|| BuildError::Address { upstream: upstream.to_owned(), address: address.to_owned() })
}
