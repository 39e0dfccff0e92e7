//! Whom to connect to and how: the options that every client command shares.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;
use mitu_load::error::LoadError;
use mitu_load::protocol::Protocol;
use mitu_load::session::Session;
use mitu_load::target::Target;
use mitu_load::tls::{Offer, Trust, warm_up};
use rustls::ClientConfig;
use rustls::client::Resumption;

use crate::report::Sample;

#[derive(Debug, Clone, Args)]
pub struct TargetOptions {
    /// host:port of the server
    pub address: SocketAddr,
    /// Server name sent as SNI and Host
    #[arg(long, default_value = "localhost")]
    pub server_name: String,
    /// ALPN protocols offered, comma separated; empty: no ALPN extension
    #[arg(long, value_delimiter = ',', default_value = "http/1.1")]
    pub alpn: Vec<String>,
    /// TLS version: 1.3 or 1.2
    #[arg(long = "tls", default_value = "1.3")]
    pub version: String,
    /// Cipher suites offered (IANA names), comma separated
    #[arg(long, value_delimiter = ',', default_value = "TLS_AES_128_GCM_SHA256")]
    pub suites: Vec<String>,
    /// Groups offered (X25519, secp256r1, secp384r1, X25519MLKEM768), comma separated
    #[arg(long, value_delimiter = ',', default_value = "X25519")]
    pub groups: Vec<String>,
    /// Resume each session with the ticket of the one before
    #[arg(long)]
    pub resume: bool,
    /// Path of the request
    #[arg(long, default_value = "/health")]
    pub path: String,
    /// Network whose addresses connections come from in turn, such as 127.2.0.0/16
    #[arg(long)]
    pub sources: Option<IpNet>,
    /// Seconds that one connection may take, from connect to response
    #[arg(long, default_value = "10")]
    pub timeout: u64,
}

impl TargetOptions {
    pub fn target(&self) -> Result<Target, LoadError> {
        let mut target = Target::new(self.address, &self.server_name, &self.path, self.sources)?;
        target.timeout = Duration::from_secs(self.timeout);
        target.default_protocol =
            self.alpn.first().map_or(Protocol::Http1, |name| Protocol::from_alpn(name.as_bytes()));
        Ok(target)
    }

    /// A client configuration with a ticket store of its own, so that no two clients share a session.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, LoadError> {
        warm_up()?;
        let offer = Offer {
            versions: vec![self.version.clone()],
            suites: self.suites.clone(),
            groups: self.groups.clone(),
            trust: Trust::Anybody,
        };
        let resumption = if self.resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        offer.config(&self.alpn, resumption)
    }
}

/// Opens a connection that was due at `due` and makes one exchange on it.
pub async fn open(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    due: Instant,
) -> Result<(Session, Sample), LoadError> {
    let begun = Instant::now();
    let deadline = begun + target.timeout;
    let mut session = Session::open(target, tls, deadline).await?;
    session.exchange(target, deadline).await?.succeeded()?;
    let opened = &session.opened;
    let sample = Sample {
        connect: (begun + opened.connect).saturating_duration_since(due),
        handshake: opened.handshake,
        total: due.elapsed(),
        resumed: opened.resumed,
        negotiated: opened.negotiated.clone(),
    };
    Ok((session, sample))
}
