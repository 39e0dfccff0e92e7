//! The choice made from a ClientHello: site by server name, protocol by ALPN, certificate by what the client can
//! verify, group by what it has sent keys for. Every combination was prepared when the configuration was built, so a
//! choice allocates nothing.

use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{AlertDescription, ServerConfig, SupportedCipherSuite};

use crate::alpn::{AlpnTable, Decision, Preference, Terms, Verdict};
use crate::certificate::{Certificate, Certificates, KeyType};
use crate::client_hello::ClientHello;
use crate::config::{AlpnMode, Provider, SiteConfig, TlsPolicy};
use crate::error::{Secrets, TlsConfigError};
use crate::group::Groups;
use crate::handshake::HandshakeError;
use crate::policy::PreparedPolicy;
use crate::server_name::ServerNameTable;
use crate::ticket::{Resumption, TicketScope, Ticketers};

/// What one listener can choose from.
#[derive(Debug)]
pub struct Selector {
    pub alpn: AlpnTable,
    names: ServerNameTable,
    /// What is offered, in the listener's order.
    offers: Vec<Arc<str>>,
    /// Of those that ask for a name that nobody has.
    strangers: Preference,
    sites: Vec<Site>,
    prepared: Vec<Prepared>,
}

/// An ALPN policy, its protocols by their place among those that are offered.
#[derive(Debug)]
struct Rules {
    mode: AlpnMode,
    /// As configured, most preferred first.
    allowed: Vec<usize>,
    no_alpn: Option<usize>,
}

impl Rules {
    /// Whether a client can come to have this protocol.
    fn serve(&self, protocol: usize) -> bool {
        self.mode == AlpnMode::Observe || self.allowed.contains(&protocol) || self.no_alpn == Some(protocol)
    }
}

#[derive(Debug)]
struct Site {
    /// The first server name, for labels.
    name: Arc<str>,
    rules: Rules,
    /// What is in force: the configured order, or the one that the site's ranking has come to.
    preference: ArcSwap<Preference>,
    /// The ranking that orders its protocols.
    ranking: Option<String>,
    /// Where in `prepared` each protocol's configurations are, one for each certificate. Empty: nobody gets it.
    protocols: Vec<Range<usize>>,
    /// The same for a client whose offers are passed over.
    unasked: Option<Range<usize>>,
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
    pub asked: Asked,
}

/// Why a ClientHello cannot be served.
#[derive(Debug)]
pub struct Refusal {
    pub error: HandshakeError,
    pub asked: Asked,
}

/// What a ClientHello is answered with, whatever became of the selector meanwhile.
#[derive(Debug)]
pub struct Chosen {
    /// Index into [`Selector::prepared`].
    pub prepared: usize,
    pub protocol: usize,
    pub config: Arc<ServerConfig>,
    pub retries: bool,
    pub terms: Terms,
}

/// What a client asked for, and what was found of that.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Index of the site; none: an unknown name that is refused.
    pub site: Option<usize>,
    /// None: the client has no ALPN extension.
    pub decision: Option<Decision>,
    pub verdict: Verdict,
}

/// What a selector is built from.
#[derive(Debug)]
pub struct SelectorConfig<'a> {
    pub listener: &'a str,
    /// Most preferred first.
    pub protocols: Vec<Offer<'a>>,
    pub sites: &'a [SiteConfig],
    pub default_site: Option<usize>,
    /// How much early data a client may send where it is allowed, in bytes.
    pub early_data: u32,
    /// Whether what clients remember of this listener beside their session is still so.
    pub is_as_before: bool,
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
            let own = config.rules(site);
            let mut blocks = Vec::with_capacity(policies.len());
            let mut unasked = None;
            let name: Arc<str> = site.names.first().map_or("default", String::as_str).into();
            for (place, (&Offer { index: protocol, alpn, policy }, ready)) in
                config.protocols.iter().zip(&policies).enumerate()
            {
                if !own.serve(place) {
                    blocks.push(0..0);
                    continue;
                }
                let resumption = if policy.tickets == 0 {
                    None
                } else {
                    let scope = TicketScope::new(config.listener, &site.names, alpn, policy, secrets)?;
                    Some(if policy.early_data {
                        let previous = previous.filter(|_| config.is_as_before);
                        let kept = ticketers.sessions(scope, previous);
                        Resumption::Sessions { kept, early_data: config.early_data }
                    } else {
                        Resumption::Tickets(ticketers.get(scope, previous))
                    })
                };
                let certificates = site_certificates(site, certificates, policy.provider)?;
                let mut prepare = |alpn: Option<&str>| {
                    let first = prepared.len();
                    for certificate in &certificates {
                        prepared.push(Prepared {
                            configs: ready.server_configs(alpn, certificate, resumption.as_ref())?,
                            groups: ready.groups.clone(),
                            protocol,
                            site: name.clone(),
                            key_type: certificate.key_type,
                            certificate: certificate.clone(),
                            suites: ready.suites.clone(),
                        });
                    }
                    Ok::<_, TlsConfigError>(first..prepared.len())
                };
                blocks.push(prepare(Some(alpn))?);
                if own.mode == AlpnMode::Observe && own.no_alpn == Some(place) {
                    unasked = Some(prepare(None)?);
                }
            }
            let preference = ArcSwap::from_pointee(Preference::new(own.allowed.iter().copied()));
            let ranking = site.alpn.ranking.clone();
            sites.push(Site { name, rules: own, preference, ranking, protocols: blocks, unasked });
        }
        Ok(Self {
            alpn: AlpnTable::new(config.protocols.iter().map(|offer| offer.alpn))?,
            names: ServerNameTable::new(config.sites, config.default_site)?,
            offers: config.protocols.iter().map(|offer| offer.alpn.into()).collect(),
            strangers: Preference::default(),
            sites,
            prepared,
        })
    }

    /// Every configuration that can be chosen, by the index that a [`Selection`] names.
    pub fn prepared(&self) -> &[Prepared] {
        &self.prepared
    }

    /// From here on the sites of `ranking` have this order, most preferred first; what it leaves out is to them as what is
    /// not allowed.
    pub fn rank(&self, ranking: &str, order: &[String]) {
        let place = |name: &String| self.offers.iter().position(|offer| **offer == **name);
        for site in self.sites.iter().filter(|site| site.ranking.as_deref() == Some(ranking)) {
            let allowed = &site.rules.allowed;
            let preference = Preference::new(order.iter().filter_map(place).filter(|place| allowed.contains(place)));
            if **site.preference.load() != preference {
                site.preference.store(Arc::new(preference));
            }
        }
    }

    /// How many sites there are, and how one is called: its first server name, and its mode.
    pub fn sites(&self) -> usize {
        self.sites.len()
    }

    pub fn site(&self, site: usize) -> (&str, AlpnMode) {
        let Site { name, rules, .. } = &self.sites[site];
        (name, rules.mode)
    }

    /// On what terms a client has what it asked for.
    fn terms(&self, asked: &Asked) -> Terms {
        let offered = asked.decision.filter(|_| asked.verdict != Verdict::Agreed);
        let offered = offered.map(|decision| self.alpn.offered_label(decision.offered));
        Terms { verdict: asked.verdict, offered }
    }

    pub fn select(&self, hello: &ClientHello<'_>) -> Result<Selection<'_>, Refusal> {
        let found = self.names.find(hello.server_name.as_deref()).filter(|&site| site < self.sites.len());
        let decision = |preference: &Preference| {
            let decide = || self.alpn.decide(preference, || hello.alpn().into_iter().flatten());
            let decision = hello.alpn().is_some().then(decide);
            (decision, Verdict::on(decision, preference))
        };
        let (decision, verdict) = match found {
            Some(site) => decision(&self.sites[site].preference.load()),
            None => decision(&self.strangers),
        };
        let asked = Asked { site: found, decision, verdict };
        let refuse = |error| Refusal { error, asked };
        let unknown = || refuse(HandshakeError::Refused(AlertDescription::UnrecognisedName));
        let site = found.map(|site| &self.sites[site]).ok_or_else(unknown)?;
        let block = self.block(site, &asked);
        let mut block = block.ok_or_else(|| refuse(HandshakeError::NoProtocol(self.terms(&asked))))?;
        let first = block.start;
        let suits = |&index: &usize| self.prepared[index].certificate.suits(hello, &self.prepared[index].suites);
        // Where nothing suits, rustls says so to the client in its own words, on the first certificate.
        let index = block.find(suits).unwrap_or(first);
        let prepared = &self.prepared[index];
        let group = prepared.groups.choose(hello);
        let retries = prepared.groups.retries(group, hello);
        Ok(Selection { index, prepared, config: &prepared.configs[group], retries, asked })
    }

    /// The configurations that a site has for a client; none: it is refused.
    fn block(&self, site: &Site, asked: &Asked) -> Option<Range<usize>> {
        let rules = &site.rules;
        let protocol = match asked.verdict {
            Verdict::Agreed => asked.decision?.chosen,
            Verdict::NotAllowed => asked.decision?.chosen.filter(|_| rules.mode == AlpnMode::Observe),
            Verdict::Absent => rules.no_alpn,
            Verdict::Mismatch => return site.unasked.clone(),
        };
        Some(site.protocols[protocol?].clone())
    }
}

impl Selection<'_> {
    pub fn chosen(&self, selector: &Selector) -> Chosen {
        Chosen {
            prepared: self.index,
            protocol: self.prepared.protocol,
            config: self.config.clone(),
            retries: self.retries,
            terms: selector.terms(&self.asked),
        }
    }
}

impl SelectorConfig<'_> {
    fn rules(&self, site: &SiteConfig) -> Rules {
        let place = |index: usize| self.protocols.iter().position(|offer| offer.index == index);
        Rules {
            mode: site.alpn.mode,
            allowed: site.alpn.protocols.iter().filter_map(|&index| place(index)).collect(),
            no_alpn: site.alpn.no_alpn.and_then(place),
        }
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
