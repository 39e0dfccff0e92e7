//! Upstreams: named groups of endpoints. A request takes three steps here: the [`balancer`] chooses an endpoint, the
//! [`pool`] may have a connection to it, else the [`connector`] opens one.

mod answer;
mod attempt;
pub mod balancer;
mod breaker;
mod budget;
mod chance;
pub mod connector;
mod endpoint;
mod endpoints;
mod error;
mod h1;
mod h2;
mod hedge;
mod outlier;
mod pool;
mod relay;
mod report;
mod request;
mod retry;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tls;
mod warmth;

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use mitu_telemetry::http::Families;
use mitu_tls::config::CertificateConfig;
use mitu_tls::error::Secrets;

use crate::config::{BalancerConfig, EndpointConfig, HashKey, UpstreamConfig, UpstreamProtocol};
use crate::connection::Connection;
use balancer::Cursor;
use budget::Budget;
use connector::{Connector, Target};
use endpoint::Endpoint;
use endpoints::Endpoints;
use outlier::Outliers;
use parking_lot::Mutex;

pub use answer::{Answer, UpstreamBody};
pub use error::{BuildError, UpstreamError};
pub use relay::UpstreamStream;
pub use report::EndpointReport;
pub use request::{Outbound, Patience};

/// The upstreams of one configuration.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_name: HashMap<String, Arc<Upstream>>,
    /// Those of the same names under other settings that connections from before still use. Their endpoints change too.
    replaced: Vec<Weak<Upstream>>,
    /// What is to become of those that were there before.
    changes: Vec<(Arc<Upstream>, Change)>,
}

#[derive(Debug)]
pub struct Upstream {
    pub name: String,
    /// But for its endpoints, which change without it.
    config: UpstreamConfig,
    /// Of the keys and certificates it was built with.
    material: u64,
    connector: Connector,
    endpoints: ArcSwap<Endpoints>,
    /// Taken to make another set of them: what each takes over is the last one's.
    changing: Mutex<Changing>,
    /// Each worker's place in the balancer's order.
    cursors: Box<[Cursor]>,
    outliers: Arc<Outliers>,
    budget: Budget,
    families: Families,
}

#[derive(Debug, Default)]
struct Changing {
    /// The endpoints that the configuration names.
    configured: Vec<EndpointConfig>,
    /// Those removed at which something was still under way.
    leaving: Vec<Arc<Endpoint>>,
}

/// Other endpoints for an upstream, which it does not have yet.
#[derive(Debug)]
struct Change {
    /// None: they stay as they are.
    endpoints: Option<Endpoints>,
    /// None: the configuration names those that it has named before.
    configured: Option<Vec<EndpointConfig>>,
}

impl Upstreams {
    /// Builds every upstream. One whose configuration and secrets are those of `previous`, but for the endpoints, is taken
    /// over with its connections and all that is known of it; its endpoints change with [`Self::settle`]. `discovered`:
    /// endpoints by upstream, in place of those that are configured.
    pub fn build(
        configs: &[UpstreamConfig],
        certificates: &[CertificateConfig],
        secrets: &Secrets,
        workers: usize,
        previous: Option<&Self>,
        discovered: &HashMap<String, Vec<EndpointConfig>>,
        families: &Families,
    ) -> Result<Self, BuildError> {
        let mut upstreams = HashMap::with_capacity(configs.len());
        let mut changes = Vec::new();
        let mut replaced: Vec<_> = previous.iter().flat_map(|previous| previous.replaced()).collect();
        for config in configs {
            let Entry::Vacant(entry) = upstreams.entry(config.name.clone()) else {
                return Err(BuildError::DuplicateName(config.name.clone()));
            };
            let material = material(config, certificates, secrets);
            let discovered = discovered.get(&config.name).map(Vec::as_slice);
            let settings = UpstreamConfig { endpoints: Vec::new(), ..config.clone() };
            let before = previous.and_then(|previous| previous.get(&config.name));
            let taken_over = before.clone().filter(|upstream| {
                upstream.config == settings && upstream.material == material && upstream.cursors.len() == workers
            });
            if taken_over.is_none() {
                replaced.extend(before);
            }
            for upstream in replaced.iter().filter(|upstream| upstream.name == config.name) {
                // One that its settings do not allow, such as a Unix socket without a name for TLS, is not for it.
                if let Ok(change) = upstream.change(discovered, Some(&config.endpoints)) {
                    changes.push((upstream.clone(), change));
                }
            }
            entry.insert(match taken_over {
                Some(upstream) => {
                    let change = upstream.change(discovered, Some(&config.endpoints))?;
                    changes.push((upstream.clone(), change));
                    upstream
                }
                None => {
                    let endpoints = discovered.unwrap_or(&config.endpoints);
                    let built =
                        Upstream::build(settings, endpoints, material, certificates, secrets, workers, families)?;
                    built.changing.lock().configured.clone_from(&config.endpoints);
                    Arc::new(built)
                }
            });
        }
        Ok(Self { by_name: upstreams, replaced: replaced.iter().map(Arc::downgrade).collect(), changes })
    }

    /// From here on those that were there before have the endpoints that they are to have. Relays at the others are given
    /// notice: they are to be woken.
    pub fn settle(&mut self) {
        for (upstream, change) in self.changes.drain(..) {
            upstream.settle(change);
        }
    }

    /// The same for what is discovered: all of it, or nothing where an endpoint is none.
    pub fn discover(&self, discovered: &HashMap<String, Vec<EndpointConfig>>) -> Result<(), BuildError> {
        let known = discovered.iter().filter_map(|(name, endpoints)| Some((self.by_name.get(name)?, endpoints)));
        let changes = known.map(|(upstream, endpoints)| Ok((upstream, upstream.change(Some(endpoints), None)?)));
        for (upstream, change) in changes.collect::<Result<Vec<_>, BuildError>>()? {
            upstream.settle(change);
        }
        for upstream in self.replaced() {
            let change = discovered.get(&upstream.name).map(|endpoints| upstream.change(Some(endpoints), None));
            if let Some(Ok(change)) = change {
                upstream.settle(change);
            }
        }
        Ok(())
    }

    fn replaced(&self) -> impl Iterator<Item = Arc<Upstream>> {
        self.replaced.iter().filter_map(Weak::upgrade)
    }

    pub fn get(&self, name: &str) -> Option<Arc<Upstream>> {
        self.by_name.get(name).cloned()
    }

    /// What is known of the endpoints of each.
    pub fn report(&self) -> impl Iterator<Item = (String, Vec<EndpointReport>)> {
        self.by_name.values().map(|upstream| (upstream.name.clone(), upstream.report()))
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
        config: UpstreamConfig,
        endpoints: &[EndpointConfig],
        material: u64,
        certificates: &[CertificateConfig],
        secrets: &Secrets,
        workers: usize,
        families: &Families,
    ) -> Result<Self, BuildError> {
        let upstream = || config.name.clone();
        let tls = match &config.tls {
            None => None,
            Some(tls) => Some(Arc::new(
                tls::client_config(tls, certificates, secrets)
                    .map_err(|source| BuildError::Tls { upstream: upstream(), source })?,
            )),
        };
        let outliers = Outliers::new(config.outlier_detection.as_ref());
        let endpoints = Endpoints::build(&config, endpoints.to_vec(), workers, &outliers, families, None, &[])?;
        endpoints.begin(&outliers);
        Ok(Self {
            name: upstream(),
            material,
            connector: Connector { tls, timeout: Duration::from_millis(config.connect_timeout_ms) },
            endpoints: ArcSwap::from_pointee(endpoints),
            changing: Mutex::default(),
            cursors: (0..workers).map(Cursor::starting_at).collect(),
            outliers,
            budget: Budget::new(&config.retries),
            families: families.clone(),
            config,
        })
    }

    /// What it takes for its endpoints to be those `discovered`, or else those `configured` where the configuration names
    /// others than before: those of an upstream that nothing new is known of stay.
    fn change(
        &self,
        discovered: Option<&[EndpointConfig]>,
        configured: Option<&[EndpointConfig]>,
    ) -> Result<Change, BuildError> {
        let changing = self.changing.lock();
        let before = self.endpoints.load();
        let configured = configured.filter(|configs| **configs != *changing.configured);
        let wanted = discovered.or(configured).filter(|configs| !before.are(configs));
        let build = |configs: &[EndpointConfig]| {
            let (workers, outliers, families) = (self.cursors.len(), &self.outliers, &self.families);
            let (configs, previous) = (configs.to_vec(), Some(&**before));
            Endpoints::build(&self.config, configs, workers, outliers, families, previous, &changing.leaving)
        };
        let endpoints = wanted.map(build).transpose()?;
        Ok(Change { endpoints, configured: configured.map(<[_]>::to_vec) })
    }

    /// From here on its endpoints are others. Requests that are under way at those removed finish there, their connections
    /// close behind them, and their relays are given notice.
    fn settle(&self, change: Change) {
        let mut changing = self.changing.lock();
        if let Some(configured) = change.configured {
            changing.configured = configured;
        }
        if let Some(after) = change.endpoints {
            after.begin(&self.outliers);
            let before = self.endpoints.swap(Arc::new(after));
            changing.leaving.extend(before.members().iter().map(|member| member.endpoint.clone()));
        }
        let endpoints = self.endpoints.load();
        let kept = endpoints.addresses();
        let within = Duration::from_millis(self.config.drain_ms);
        // One that nothing is under way at is forgotten. The others may come back, with all that is known of them.
        changing.leaving.retain(|endpoint| {
            if kept.contains(&*endpoint.address) {
                return false;
            }
            endpoint.removal.give(within);
            let is_busy = endpoint.active() > 0;
            if !is_busy {
                self.families.forget(&endpoint.metrics);
            }
            is_busy
        });
    }

    fn cursor(&self, connection: &Connection) -> &Cursor {
        // A worker started after a reload to fewer workers has none of its own.
        &self.cursors[connection.worker % self.cursors.len()]
    }

    /// The hash of what the balancer looks at, or 0 when it looks at nothing of the request.
    fn hash(&self, connection: &Connection, path: Option<&str>, headers: Option<&http::HeaderMap>) -> u64 {
        let BalancerConfig::Hash { on } = &self.config.balancer else { return 0 };
        match on {
            HashKey::ClientAddress | HashKey::MqttClientId => {
                balancer::hash(connection.peer.ip().to_string().as_bytes())
            }
            HashKey::ServerName => balancer::hash(connection.server_name.as_deref().unwrap_or_default().as_bytes()),
            HashKey::Path => {
                let path = path.unwrap_or_default();
                balancer::hash(path.split('?').next().unwrap_or_default().as_bytes())
            }
            HashKey::Header(name) => {
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
