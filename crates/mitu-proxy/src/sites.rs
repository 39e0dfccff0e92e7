//! Which requests belong on a connection. Clients that have one for a host use it for others that its certificate is good
//! for (RFC 9113, section 9.1.1); where the connection could not have been made to such a host, its rules are not to be
//! got round that way: such a request is misdirected.

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
        });
        let names = ServerNameTable::new(&config.sites, config.default_site)?;
        Ok(Self { names, rules: rules.collect(), default: config.default_site })
    }

    /// The site that has this server name.
    pub fn named(&self, name: Option<&str>) -> Option<usize> {
        name.and_then(|name| self.names.named(name))
    }

    /// Whether a connection's client would get h3 as well.
    pub fn over_quic(&self, connection: &Connection) -> bool {
        connection.site.or(self.default).is_some_and(|site| self.rules[site].over_quic)
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
