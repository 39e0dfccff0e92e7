//! Which requests belong on a connection. Clients that have one for a host use it for others that its certificate is good
//! for (RFC 9113, section 9.1.1); where the connection could not have been made to such a host, its rules are not to be
//! got round that way: such a request is misdirected.

use std::sync::atomic::{AtomicBool, Ordering};

use mitu_tls::alpn::Verdict;
use mitu_tls::error::TlsConfigError;
use mitu_tls::server_name::ServerNameTable;

use crate::config::{AlpnMode, AlpnPolicy, HandlerConfig, ListenerConfig};
use crate::connection::Connection;
use crate::protocol::http::Version;
use crate::router::host_name;

/// The sites of one listener.
#[derive(Debug)]
pub struct Sites {
    names: ServerNameTable,
    rules: Vec<Rules>,
    default: Option<usize>,
}

#[derive(Debug)]
struct Rules {
    alpn: AlpnPolicy,
    certificates: Vec<String>,
    /// Whether a client can have h3 here.
    over_quic: bool,
    /// Whether it is better off with something else, as far as is known now.
    rather_over_tcp: AtomicBool,
}

/// What clients of a site that come by TCP are to hear of h3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverQuic {
    /// It is not for them.
    Never,
    /// It is what they get best.
    Now,
    /// Not now: whoever was told of it is to forget it.
    Withdrawn,
}

impl Sites {
    pub fn build(config: &ListenerConfig) -> Result<Self, TlsConfigError> {
        let is_quic = |index: usize| {
            config.protocols.get(index).is_some_and(|protocol| protocol.handler == HandlerConfig::Http3)
        };
        let rules = config.sites.iter().map(|site| Rules {
            alpn: site.alpn.clone(),
            certificates: site.certificates.clone(),
            over_quic: site.alpn.protocols.iter().any(|&index| is_quic(index)),
            rather_over_tcp: AtomicBool::new(false),
        });
        let names = ServerNameTable::new(&config.sites, config.default_site)?;
        Ok(Self { names, rules: rules.collect(), default: config.default_site })
    }

    /// The site that has this server name.
    pub fn named(&self, name: Option<&str>) -> Option<usize> {
        name.and_then(|name| self.names.named(name))
    }

    /// What a connection's client is to hear of h3.
    pub fn over_quic(&self, connection: &Connection) -> OverQuic {
        match connection.site.or(self.default).map(|site| &self.rules[site]) {
            Some(rules) if !rules.over_quic => OverQuic::Never,
            Some(rules) if rules.rather_over_tcp.load(Ordering::Relaxed) => OverQuic::Withdrawn,
            Some(_) => OverQuic::Now,
            None => OverQuic::Never,
        }
    }

    /// The sites of `ranking` have this order from here on: h3 is advertised while no other protocol of the routes goes
    /// before it.
    pub fn rank(&self, ranking: &str, order: &[String]) {
        let first = order.iter().find(|name| matches!(name.as_str(), "h3" | "h2" | "http/1.1"));
        let rather_over_tcp = first.is_none_or(|first| first != "h3");
        for rules in self.rules.iter().filter(|rules| rules.alpn.ranking.as_deref() == Some(ranking)) {
            rules.rather_over_tcp.store(rather_over_tcp, Ordering::Relaxed);
        }
    }

    /// Whether a request for `host` came on a connection that could not have been made to it: its protocol is not for
    /// that site, or a client that shares connections between hosts has been shown another certificate.
    pub fn misdirected(&self, connection: &Connection, version: Version, host: &str) -> bool {
        let host = host_name(host);
        if self.rules.len() < 2 || connection.server_name.as_deref() == Some(host) {
            return false;
        }
        let Some(target) = self.names.named(&host.to_ascii_lowercase()) else { return false };
        if Some(target) == connection.site {
            return false;
        }
        let rules = &self.rules[target];
        let shown_another = |site: usize| self.rules[site].certificates != rules.certificates;
        let shared = version != Version::H1 && connection.site.is_some_and(shown_another);
        shared || !rules.admit(connection)
    }
}

impl Rules {
    /// Whether a connection on its terms would have come about here.
    fn admit(&self, connection: &Connection) -> bool {
        let Connection { protocol, terms, .. } = connection;
        self.alpn.mode == AlpnMode::Observe
            || match terms.verdict {
                Verdict::Agreed | Verdict::NotAllowed => self.alpn.protocols.contains(protocol),
                Verdict::Absent => self.alpn.no_alpn == Some(*protocol),
                Verdict::Mismatch => false,
            }
    }
}
