//! The choice made from a ClientHello: site by server name, protocol by ALPN, certificate by what the client can
//! verify, group by what it has sent keys for. Every combination was prepared when the configuration was built, so a
//! choice allocates nothing.

use std::ops::Range;
use std::sync::Arc;

use rustls::{AlertDescription, ServerConfig, SupportedCipherSuite};

use crate::alpn::{AlpnTable, Decision};
use crate::certificate::{Certificate, Certificates, KeyType};
use crate::client_hello::ClientHello;
use crate::config::{Provider, SiteConfig, TlsPolicy};
use crate::error::{Secrets, TlsConfigError};
use crate::group::Groups;
use crate::policy::PreparedPolicy;
use crate::server_name::ServerNameTable;
use crate::ticket::{TicketScope, Ticketers};

/// What one listener can choose from.
#[derive(Debug)]
pub struct Selector {
    pub alpn: AlpnTable,
    names: ServerNameTable,
    /// As ALPN decides: the protocol's place among those that are offered.
    no_alpn: Option<usize>,
    sites: Vec<Site>,
    prepared: Vec<Prepared>,
}

/// Where in `prepared` each protocol's configurations are, one for each certificate.
#[derive(Debug)]
struct Site {
    protocols: Vec<Range<usize>>,
}

/// TLS configurations, ready to run, for one (site, protocol, certificate).
#[derive(Debug)]
pub struct Prepared {
    /// One for each of `groups`.
    configs: Box<[Arc<ServerConfig>]>,
    groups: Arc<Groups>,
    pub protocol: usize,
    /// The site's first server name, for labels.
    pub site: Arc<str>,
    pub key_type: KeyType,
    certificate: Arc<Certificate>,
    suites: Arc<[SupportedCipherSuite]>,
}

/// What was chosen for one ClientHello.
#[derive(Debug)]
pub struct Selection<'a> {
    /// Index into [`Selector::prepared`].
    pub index: usize,
    pub prepared: &'a Prepared,
    pub config: &'a Arc<ServerConfig>,
    /// Whether the client has sent no key for the group, so that it is asked for another ClientHello.
    pub retries: bool,
    /// None: the client has no ALPN extension.
    pub alpn: Option<Decision>,
}

/// Why a ClientHello cannot be served.
#[derive(Debug)]
pub struct Refusal {
    pub alert: AlertDescription,
    pub alpn: Option<Decision>,
}

/// What a selector is built from.
#[derive(Debug)]
pub struct SelectorConfig<'a> {
    pub listener: &'a str,
    /// Most preferred first.
    pub protocols: Vec<Offer<'a>>,
    /// Index of the protocol for a client without ALPN.
    pub no_alpn: Option<usize>,
    pub sites: &'a [SiteConfig],
    pub default_site: Option<usize>,
}

/// A protocol that can be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// As a [`Prepared`] tells it.
    pub index: usize,
    pub alpn: &'a str,
    pub policy: &'a TlsPolicy,
}

impl Selector {
    pub fn new(
        config: &SelectorConfig<'_>,
        certificates: &Certificates,
        secrets: &Secrets,
        ticketers: &mut Ticketers,
        previous: Option<&Ticketers>,
    ) -> Result<Self, TlsConfigError> {
        let policies = config
            .protocols
            .iter()
            .map(|offer| PreparedPolicy::new(offer.policy, offer.alpn, secrets))
            .collect::<Result<Vec<_>, _>>()?;
        let mut sites = Vec::with_capacity(config.sites.len());
        let mut prepared = Vec::with_capacity(config.sites.len() * policies.len());
        for site in config.sites {
            let mut blocks = Vec::with_capacity(policies.len());
            let name: Arc<str> = site.names.first().map_or("default", String::as_str).into();
            for (&Offer { index: protocol, alpn, policy }, ready) in config.protocols.iter().zip(&policies) {
                let ticketer = if policy.tickets == 0 {
                    None
                } else {
                    let scope = TicketScope::new(config.listener, &site.names, alpn, policy, secrets)?;
                    Some(ticketers.get(scope, previous))
                };
                let first = prepared.len();
                for certificate in site_certificates(site, certificates, policy.provider)? {
                    prepared.push(Prepared {
                        configs: ready.server_configs(alpn, &certificate, ticketer.as_ref())?,
                        groups: ready.groups.clone(),
                        protocol,
                        site: name.clone(),
                        key_type: certificate.key_type,
                        certificate,
                        suites: ready.suites.clone(),
                    });
                }
                blocks.push(first..prepared.len());
            }
            sites.push(Site { protocols: blocks });
        }
        Ok(Self {
            alpn: AlpnTable::new(config.protocols.iter().map(|offer| offer.alpn))?,
            names: ServerNameTable::new(config.sites, config.default_site)?,
            no_alpn: config.protocols.iter().position(|offer| Some(offer.index) == config.no_alpn),
            sites,
            prepared,
        })
    }

    /// Every configuration that can be chosen, by the index that a [`Selection`] names.
    pub fn prepared(&self) -> &[Prepared] {
        &self.prepared
    }

    pub fn select(&self, hello: &ClientHello<'_>) -> Result<Selection<'_>, Refusal> {
        let (alpn, protocol) = match hello.alpn() {
            Some(_) => {
                let decision = self.alpn.decide(|| hello.alpn().into_iter().flatten());
                (Some(decision), decision.chosen)
            }
            None => (None, self.no_alpn),
        };
        let refuse = |alert| Refusal { alert, alpn };
        let site = self.names.find(hello.server_name.as_deref()).and_then(|site| self.sites.get(site));
        let site = site.ok_or_else(|| refuse(AlertDescription::UnrecognisedName))?;
        let protocol = protocol.ok_or_else(|| refuse(AlertDescription::NoApplicationProtocol))?;
        let mut block = site.protocols[protocol].clone();
        let first = block.start;
        let suits = |&index: &usize| self.prepared[index].certificate.suits(hello, &self.prepared[index].suites);
        // Where nothing suits, rustls says so to the client in its own words, on the first certificate.
        let index = block.find(suits).unwrap_or(first);
        let prepared = &self.prepared[index];
        let group = prepared.groups.choose(hello);
        let retries = prepared.groups.retries(group, hello);
        Ok(Selection { index, prepared, config: &prepared.configs[group], retries, alpn })
    }
}

/// A site's certificates with their keys in `provider`, one for each key type, the cheapest to sign with first.
fn site_certificates(
    site: &SiteConfig,
    all: &Certificates,
    provider: Provider,
) -> Result<Vec<Arc<Certificate>>, TlsConfigError> {
    let mut chosen: Vec<Arc<Certificate>> = Vec::new();
    for id in &site.certificates {
        let certificate = all
            .get(&provider)
            .and_then(|all| all.get(id))
            .ok_or_else(|| TlsConfigError::MissingCertificate(id.clone()))?;
        if !chosen.iter().any(|known| known.key_type == certificate.key_type) {
            chosen.push(certificate.clone());
        }
    }
    if chosen.is_empty() {
        return Err(TlsConfigError::MissingCertificate(format!("(none for {:?})", site.names)));
    }
    chosen.sort_by_key(|certificate| certificate.key_type);
    Ok(chosen)
}
