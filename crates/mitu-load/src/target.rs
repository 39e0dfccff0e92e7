//! Whom to connect to, and from where.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use quinn::Endpoint;
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};

use crate::error::LoadError;
use crate::protocol::Protocol;
use crate::quic;

/// The ports that Linux gives to clients, and how many of them are tried for one connection.
const FIRST_PORT: u16 = 32_768;
const PORTS: usize = 28_232;
const TRIES: usize = 64;

#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// As requests name it.
    pub host: String,
    pub path: String,
    pub server_name: ServerName<'static>,
    /// How long one connection may take, from connect to response.
    pub timeout: Duration,
    /// Emulated: what arrives is acted upon so much later (see the module `delay`).
    pub round_trip: Duration,
    /// Spoken when TLS negotiates nothing because nothing was offered, or is not there.
    pub default_protocol: Protocol,
    sources: Option<IpNet>,
    connections: AtomicUsize,
    /// For connections in QUIC.
    endpoint: OnceLock<Endpoint>,
}

impl Target {
    /// `host`: the server's name, or an address in brackets if it is an IPv6 one. `sources`: the network whose
    /// addresses connections come from in turn.
    pub fn new(address: SocketAddr, host: &str, path: &str, sources: Option<IpNet>) -> Result<Self, LoadError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name =
            ServerName::try_from(bare).map_err(|_| LoadError::Usage(format!("'{host}' is not a server name")))?;
        if let Some(sources) = sources
            && sources.addr().is_ipv4() != address.is_ipv4()
        {
            return Err(LoadError::Usage(format!("no connection leads from {sources} to {address}")));
        }
        Ok(Self {
            address,
            host: host.to_owned(),
            path: path.to_owned(),
            server_name,
            timeout: Duration::from_secs(10),
            round_trip: Duration::ZERO,
            default_protocol: Protocol::Http1,
            sources,
            connections: AtomicUsize::new(0),
            endpoint: OnceLock::new(),
        })
    }

    /// Where its connections in QUIC come from, whatever its sources.
    pub fn endpoint(&self) -> io::Result<&Endpoint> {
        if let Some(endpoint) = self.endpoint.get() {
            return Ok(endpoint);
        }
        let endpoint = quic::endpoint(self.address)?;
        Ok(self.endpoint.get_or_init(|| endpoint))
    }

    /// A new connection, from the next of the sources.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let Some(sources) = self.sources else {
            return TcpStream::connect(self.address).await;
        };
        let hosts =
            1_usize.checked_shl((sources.max_prefix_len() - sources.prefix_len()).into()).unwrap_or(usize::MAX);
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let address = nth(sources.network(), number % hosts);
        // One process begins elsewhere than the one before it, whose ports are still waiting.
        let first = std::process::id() as usize * TRIES + number / hosts;
        let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
        for port in first..first + TRIES {
            let source = SocketAddr::new(address, FIRST_PORT + (port % PORTS) as u16);
            match self.connect_from(source).await {
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                    taken = error;
                }
                connected => return connected,
            }
        }
        Err(taken)
    }

    /// The port is given, not left to the kernel: among ports that are nearly all waiting for their last connection's
    /// time to pass, it searches for as long as many handshakes take.
    async fn connect_from(&self, source: SocketAddr) -> io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
        socket.connect(self.address).await
    }
}

/// The address so many after `first`.
fn nth(first: IpAddr, number: usize) -> IpAddr {
    match first {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(number as u32)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(number as u128)).into(),
    }
}
