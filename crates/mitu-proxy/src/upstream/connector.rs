//! Opening a connection to an endpoint: resolve, connect, PROXY header, TLS; all within one time limit.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mitu_telemetry::http::Reason;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::UpstreamError;
use crate::files;

/// Where an endpoint listens.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Socket(SocketAddr),
    /// Resolved at each connect.
    Name {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Target {
    pub fn parse(address: &str) -> Option<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        if let Ok(socket) = address.parse() {
            return Some(Self::Socket(socket));
        }
        let (host, port) = address.rsplit_once(':')?;
        let named = !host.is_empty() && !host.contains([':', '[', ']', '/']);
        named.then_some(())?;
        Some(Self::Name { host: host.to_owned(), port: port.parse().ok()? })
    }

    /// The name a TLS server at this address would have.
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        match self {
            Self::Socket(address) => Some(ServerName::from(address.ip())),
            Self::Name { host, .. } => ServerName::try_from(host.clone()).ok(),
            Self::Unix(_) => None,
        }
    }
}

/// The bytes to and from an endpoint.
#[derive(Debug)]
pub enum Io {
    Plain(Plain),
    Tls(Box<TlsStream<Plain>>),
}

#[derive(Debug)]
pub enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Io {
    /// Ends with a reset in place of an orderly close.
    pub fn reset_when_closed(&self) {
        let plain = match self {
            Self::Plain(plain) => plain,
            Self::Tls(stream) => stream.get_ref().0,
        };
        if let Plain::Tcp(tcp) = plain {
            // At worst it is closed in order.
            let _ = tcp.set_zero_linger();
        }
    }

    /// What the endpoint chose by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

/// How one upstream is connected to.
#[derive(Debug)]
pub struct Connector {
    pub tls: Option<Arc<ClientConfig>>,
    pub timeout: Duration,
}

impl Connector {
    /// Connects to `target`. `preamble`: bytes to send before anything else, the PROXY header.
    pub async fn connect(
        &self,
        target: &Target,
        server_name: Option<&ServerName<'static>>,
        alpn: &[&[u8]],
        preamble: Option<Vec<u8>>,
    ) -> Result<Io, UpstreamError> {
        let connect = async {
            let mut plain = open(target).await?;
            if let Some(preamble) = preamble {
                plain
                    .write_all(&preamble)
                    .await
                    .map_err(|error| UpstreamError::because(Reason::ConnectFailed, error))?;
            }
            match (&self.tls, server_name) {
                (Some(config), Some(name)) => {
                    let alpn = alpn.iter().map(|name| name.to_vec()).collect();
                    let stream = TlsConnector::from(config.clone())
                        .with_alpn(alpn)
                        .connect(name.clone(), plain)
                        .await
                        .map_err(|error| UpstreamError::because(Reason::TlsFailed, error))?;
                    Ok(Io::Tls(Box::new(stream)))
                }
                _ => Ok(Io::Plain(plain)),
            }
        };
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(UpstreamError::new(Reason::ConnectTimeout)),
        }
    }
}

async fn open(target: &Target) -> Result<Plain, UpstreamError> {
    let stream = match target {
        Target::Unix(path) => {
            let stream = UnixStream::connect(path).await.and_then(files::admit).map_err(refused)?;
            return Ok(Plain::Unix(stream));
        }
        Target::Socket(address) => TcpStream::connect(address).await,
        Target::Name { host, port } => {
            let addresses: Vec<_> = lookup_host((host.as_str(), *port))
                .await
                .map_err(|error| UpstreamError::because(Reason::ResolveFailed, error))?
                .collect();
            if addresses.is_empty() {
                return Err(UpstreamError::new(Reason::ResolveFailed));
            }
            TcpStream::connect(addresses.as_slice()).await
        }
    };
    let stream = stream.and_then(files::admit).map_err(refused)?;
    stream.set_nodelay(true).map_err(|error| UpstreamError::because(Reason::ConnectFailed, error))?;
    Ok(Plain::Tcp(stream))
}

fn refused(error: io::Error) -> UpstreamError {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    };
    UpstreamError::because(reason, error)
}

macro_rules! delegate {
    ($type:ty, $($variant:ident),+) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_read(context, buffer),)+
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_write(context, bytes),)+
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_write_vectored(context, slices),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $(Self::$variant(stream) => stream.is_write_vectored(),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_flush(context),)+
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_shutdown(context),)+
                }
            }
        }
    };
}

delegate!(Plain, Tcp, Unix);
delegate!(Io, Plain, Tls);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let name = |host: &str, port| Some(Target::Name { host: host.to_owned(), port });
        for (address, target) in [
            ("127.0.0.1:80", Some(Target::Socket("127.0.0.1:80".parse().unwrap()))),
            ("[::1]:80", Some(Target::Socket("[::1]:80".parse().unwrap()))),
            ("app.internal:8080", name("app.internal", 8080)),
            ("unix:/run/app.sock", Some(Target::Unix("/run/app.sock".into()))),
            ("unix:relative", None),
            ("app.internal", None),
            (":80", None),
            ("app:99999", None),
            ("a:b:80", None),
        ] {
            assert_eq!(Target::parse(address), target, "{address}");
        }
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let connector = Connector { tls: None, timeout: Duration::from_millis(200) };
        let reason = async |address: &str| {
            connector.connect(&Target::parse(address).unwrap(), None, &[], None).await.unwrap_err().reason
        };
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        assert_eq!(reason(&format!("127.0.0.1:{port}")).await, Reason::ConnectRefused);
        assert_eq!(reason("unix:/nonexistent/socket").await, Reason::ConnectRefused);
        assert_eq!(reason("no-such-host.invalid:80").await, Reason::ResolveFailed);
    }
}
