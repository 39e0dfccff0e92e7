//! One connection: TCP, TLS when asked, or QUIC; exchanges, close; with the time of each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::delay::Link;
use crate::error::{LoadError, Stage};
use crate::protocol::{Answer, Conversation, Protocol};
use crate::quic;
use crate::target::Target;

/// How long the server may take to close its side after the client has closed its own.
const LINGER: Duration = Duration::from_secs(1);

/// What it took to get a connection, and what was agreed on.
#[derive(Debug, Clone, Default)]
pub struct Opened {
    /// From the beginning to TCP's connect.
    pub connect: Duration,
    /// From TCP's connect to the end of the client's handshake; zero without TLS. In QUIC: from the beginning.
    pub handshake: Duration,
    /// Never told of QUIC.
    pub resumed: bool,
    /// Version, suite, group and ALPN, as one line to count by; none without TLS.
    pub negotiated: Option<String>,
}

/// An open connection.
pub struct Session {
    pub opened: Opened,
    transport: Transport,
}

enum Transport {
    Stream(MaybeTls, Conversation),
    Quic(quic::Client),
}

impl Session {
    /// Connects, and makes the handshake if there is TLS; both by `deadline`. In QUIC, where `h3` is all that is offered.
    pub async fn open(target: &Target, tls: Option<&Arc<ClientConfig>>, deadline: Instant) -> Result<Self, LoadError> {
        let begun = Instant::now();
        if let Some(config) = tls.filter(|config| config.alpn_protocols == [quic::ALPN]) {
            let client = within(deadline, Stage::Handshake, quic::Client::open(target, config)).await?;
            let opened =
                Opened { handshake: begun.elapsed(), negotiated: Some("QUIC v1 h3".to_owned()), ..Opened::default() };
            return Ok(Self { opened, transport: Transport::Quic(client) });
        }
        let connecting = async {
            let tcp = target.connect().await?;
            tcp.set_nodelay(true)?;
            Ok(Link::new(tcp, target.round_trip).await)
        };
        let link = within(deadline, Stage::Connect, async { connecting.await.map_err(LoadError::Connect) }).await?;
        let mut opened = Opened { connect: begun.elapsed(), ..Opened::default() };
        let (stream, protocol) = match tls {
            None => (MaybeTls::Plain(link), target.default_protocol),
            Some(config) => {
                let connecting = TlsConnector::from(config.clone()).connect(target.server_name.clone(), link);
                let handshake = async { connecting.await.map_err(LoadError::Handshake) };
                let stream = within(deadline, Stage::Handshake, handshake).await?;
                let (_, state) = stream.get_ref();
                opened.handshake = begun.elapsed() - opened.connect;
                opened.resumed = state.handshake_kind() == Some(HandshakeKind::Resumed);
                opened.negotiated = Some(negotiated(state));
                let protocol = protocol(state, config, target)?;
                (MaybeTls::Tls(Box::new(stream)), protocol)
            }
        };
        Ok(Self { opened, transport: Transport::Stream(stream, Conversation::new(protocol)) })
    }

    /// One exchange, by `deadline`, with whatever status the server gives.
    pub async fn exchange(&mut self, target: &Target, deadline: Instant) -> Result<Answer, LoadError> {
        let exchange = async {
            match &mut self.transport {
                Transport::Stream(stream, conversation) => {
                    conversation.exchange(stream, &target.host, &target.path).await
                }
                Transport::Quic(client) => client.get(&target.host, &target.path).await,
            }
        };
        within(deadline, Stage::Response, exchange).await
    }

    /// Does what the protocol demands of a client that has nothing to say, until the server closes.
    pub async fn hold(&mut self) -> Result<(), LoadError> {
        match &mut self.transport {
            Transport::Stream(stream, conversation) => conversation.hold(stream).await,
            Transport::Quic(client) => {
                client.hold().await;
                Ok(())
            }
        }
    }

    /// Closes the client's side first, then waits for the server's, so that neither end sees a reset.
    pub async fn close(self) {
        let mut stream = match self.transport {
            Transport::Stream(stream, _) => stream,
            Transport::Quic(client) => return client.close(),
        };
        let close = async {
            stream.shutdown().await?;
            let mut scratch = [0; 256];
            while stream.read(&mut scratch).await? > 0 {}
            std::io::Result::Ok(())
        };
        // The work is done and measured; a server that resets here, or keeps its side open, has done its part.
        let _ = timeout(LINGER, close).await;
    }
}

async fn within<T>(
    deadline: Instant,
    stage: Stage,
    work: impl Future<Output = Result<T, LoadError>>,
) -> Result<T, LoadError> {
    timeout_at(deadline.into(), work).await.unwrap_or(Err(LoadError::Timeout(stage)))
}

/// What ALPN chose. Clients that offered a list in vain go on with HTTP/1.1 if it is in there (RFC 7301, section 3.1).
fn protocol(state: &rustls::ClientConnection, config: &ClientConfig, target: &Target) -> Result<Protocol, LoadError> {
    match state.alpn_protocol() {
        Some(chosen) => Ok(Protocol::from_alpn(chosen)),
        None if config.alpn_protocols.is_empty() => Ok(target.default_protocol),
        None if config.alpn_protocols.iter().any(|name| name == b"http/1.1") => Ok(Protocol::Http1),
        None => {
            let names: Vec<_> = config.alpn_protocols.iter().map(|name| String::from_utf8_lossy(name)).collect();
            Err(LoadError::NoProtocol(names.join(", ")))
        }
    }
}

fn negotiated(state: &rustls::ClientConnection) -> String {
    let version = state.protocol_version().map_or("?".to_owned(), |version| format!("{version:?}"));
    let suite = state.negotiated_cipher_suite().map_or("?".to_owned(), |suite| format!("{:?}", suite.suite()));
    let group = state.negotiated_key_exchange_group().map_or("?".to_owned(), |group| format!("{:?}", group.name()));
    let alpn = state.alpn_protocol().map_or("none".into(), String::from_utf8_lossy);
    format!("{version} {suite} {group} {alpn}")
}

enum MaybeTls {
    Plain(Link),
    Tls(Box<TlsStream<Link>>),
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
