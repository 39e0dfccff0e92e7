//! One connection: TCP, TLS when asked, one exchange, close; with the time of each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::LoadError;
use crate::protocol::Protocol;
use crate::target::Target;

/// How long the server may take to close its side after the client has closed its own.
const LINGER: Duration = Duration::from_secs(1);

/// What a connection took, and what it agreed on.
#[derive(Debug, Default)]
pub struct Sample {
    /// From the moment it was due to TCP's connect.
    pub connect: Duration,
    /// From TCP's connect to the end of the client's handshake; zero without TLS.
    pub handshake: Duration,
    /// From the moment it was due to the end of the response.
    pub total: Duration,
    pub resumed: bool,
    pub negotiated: Option<Negotiated>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Negotiated(pub String);

/// A connection after its exchange.
pub struct Session {
    pub stream: MaybeTls,
    pub protocol: Protocol,
    pub sample: Sample,
}

pub enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens a connection that was due at `due` and makes one exchange on it.
pub async fn open(target: &Target, tls: Option<&Arc<ClientConfig>>, due: Instant) -> Result<Session, LoadError> {
    timeout(target.timeout, open_unbounded(target, tls, due)).await.unwrap_or(Err(LoadError::Timeout))
}

async fn open_unbounded(target: &Target, tls: Option<&Arc<ClientConfig>>, due: Instant) -> Result<Session, LoadError> {
    let tcp = target.connect().await.map_err(LoadError::Connect)?;
    tcp.set_nodelay(true)?;
    let connected = Instant::now();
    let (mut stream, protocol, resumed, negotiated) = match tls {
        None => (MaybeTls::Plain(tcp), target.default_protocol, false, None),
        Some(config) => {
            let connector = TlsConnector::from(config.clone());
            let stream = connector.connect(target.server_name.clone(), tcp).await.map_err(LoadError::Handshake)?;
            let (_, state) = stream.get_ref();
            let protocol = state.alpn_protocol().map_or(target.default_protocol, Protocol::from_alpn);
            let resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
            let negotiated = negotiated(state);
            (MaybeTls::Tls(Box::new(stream)), protocol, resumed, Some(negotiated))
        }
    };
    let secured = Instant::now();
    protocol.exchange(&mut stream, &target.host, &target.path).await?;
    let sample = Sample {
        connect: connected.saturating_duration_since(due),
        handshake: if tls.is_some() { secured - connected } else { Duration::ZERO },
        total: due.elapsed(),
        resumed,
        negotiated,
    };
    Ok(Session { stream, protocol, sample })
}

/// Version, suite, group and ALPN, as one line to count by.
fn negotiated(state: &rustls::ClientConnection) -> Negotiated {
    let version = state.protocol_version().map_or("?".to_owned(), |version| format!("{version:?}"));
    let suite = state.negotiated_cipher_suite().map_or("?".to_owned(), |suite| format!("{:?}", suite.suite()));
    let group = state.negotiated_key_exchange_group().map_or("?".to_owned(), |group| format!("{:?}", group.name()));
    let alpn = state.alpn_protocol().map_or("none".into(), String::from_utf8_lossy);
    Negotiated(format!("{version} {suite} {group} {alpn}"))
}

impl Session {
    /// Closes the client's side first, then waits for the server's, so that neither end sees a reset.
    pub async fn close(mut self) -> Sample {
        let close = async {
            self.stream.shutdown().await?;
            let mut scratch = [0; 256];
            while self.stream.read(&mut scratch).await? > 0 {}
            std::io::Result::Ok(())
        };
        // The exchange is over and measured; a server that resets here, or keeps its side open, has done its part.
        let _ = timeout(LINGER, close).await;
        self.sample
    }
}

impl AsyncRead for MaybeTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
