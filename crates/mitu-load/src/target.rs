//! Whom to connect to and how: the options that every client command shares.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::LoadError;
use crate::protocol::Protocol;

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

/// Options, resolved.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
    pub server_name: ServerName<'static>,
    pub timeout: Duration,
    sources: Option<IpNet>,
    connections: AtomicUsize,
    /// Spoken when TLS negotiates nothing, or is not there.
    pub default_protocol: Protocol,
}

impl Target {
    /// A new connection, from the next of the sources.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let Some(sources) = self.sources else {
            return TcpStream::connect(self.address).await;
        };
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let hosts = 1_usize.checked_shl((sources.max_prefix_len() - sources.prefix_len()).into()).unwrap_or(usize::MAX);
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(nth(sources.network(), number % hosts), 0))?;
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

impl TargetOptions {
    pub fn target(&self) -> Result<Target, LoadError> {
        let server_name = ServerName::try_from(self.server_name.clone())
            .map_err(|_| LoadError::Usage(format!("'{}' is not a server name", self.server_name)))?;
        Ok(Target {
            address: self.address,
            host: self.server_name.clone(),
            path: self.path.clone(),
            server_name,
            timeout: Duration::from_secs(self.timeout),
            sources: self.sources,
            connections: AtomicUsize::new(0),
            default_protocol: self.alpn.first().map_or(Protocol::Http1, |name| Protocol::from_alpn(name.as_bytes())),
        })
    }

    /// A client configuration with a ticket store of its own, so that no two clients share a session.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, LoadError> {
        let version = match self.version.as_str() {
            "1.3" => &TLS13,
            "1.2" => &TLS12,
            other => return Err(unknown("TLS version", other, &["1.3".to_owned(), "1.2".to_owned()])),
        };
        let provider = aws_lc_rs::default_provider();
        let provider = CryptoProvider {
            cipher_suites: pick("cipher suite", &self.suites, &provider.cipher_suites, |suite| {
                format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
            })?,
            kx_groups: pick("group", &self.groups, &provider.kx_groups, |group| format!("{:?}", group.name()))?,
            ..provider
        };
        let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms.supported_schemes()));
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols =
            self.alpn.iter().filter(|name| !name.is_empty()).map(|name| name.clone().into()).collect();
        config.resumption = if self.resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Ok(Arc::new(config))
    }
}

/// Those of `known` that are named, in the order they are named.
fn pick<T: Copy>(
    what: &'static str,
    wanted: &[String],
    known: &[T],
    name: impl Fn(&T) -> String,
) -> Result<Vec<T>, LoadError> {
    let find = |value: &String| {
        let found = known.iter().find(|candidate| name(candidate) == *value).copied();
        found.ok_or_else(|| unknown(what, value, &known.iter().map(&name).collect::<Vec<_>>()))
    };
    wanted.iter().map(find).collect()
}

fn unknown(what: &'static str, value: &str, known: &[String]) -> LoadError {
    LoadError::Unknown { what, value: value.to_owned(), known: known.join(", ") }
}

/// Accepts every certificate and signature, without looking (see the crate's documentation).
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
