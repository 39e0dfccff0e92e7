//! Runs the handshake on the configuration that was selected, and times its stages.

mod reason;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::server::Acceptor;
use rustls::{AlertDescription, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use reason::Reason;

use crate::alpn::Terms;
use crate::client_hello::Hello;
use crate::session::Session;
use crate::stream::{FlightStream, SecureStream};

/// How long, and how much of, what a client sends is read after an alert.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;

/// Why a handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the client closed the connection")]
    Closed,
    #[error("not finished in time")]
    Timeout,
    #[error("the listener drains, and the client had not begun")]
    Draining,
    #[error("it would have waited for longer than a client does")]
    Shed,
    #[error("its source, or the server name that it asks for, has more handshakes than `handshakes` allows")]
    RateLimited,
    #[error("malformed PROXY header: {0}")]
    ProxyProtocol(&'static str),
    #[error("its second ClientHello takes back the ALPN of its first")]
    AlpnTakenBack,
    #[error("refused: {0:?}")]
    Refused(AlertDescription),
    #[error("no protocol: {0}")]
    NoProtocol(Terms),
    #[error(transparent)]
    Tls(rustls::Error),
    #[error("QUIC: {0}")]
    Quic(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    /// rustls' errors arrive inside `InvalidData`.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::InvalidData => match error.downcast::<rustls::Error>() {
                Ok(tls) => Self::Tls(tls),
                Err(error) => Self::Io(error),
            },
            _ => Self::Io(error),
        }
    }
}

impl HandshakeError {
    /// How a client is told of it whose ClientHello is refused.
    pub fn alert(&self) -> AlertDescription {
        match self {
            Self::Refused(alert) => *alert,
            Self::NoProtocol(_) => AlertDescription::NoApplicationProtocol,
            _ => AlertDescription::InternalError,
        }
    }

    /// What a client that is refused a protocol asked for.
    pub fn terms(&self) -> Option<&Terms> {
        match self {
            Self::NoProtocol(terms) => Some(terms),
            _ => None,
        }
    }

    /// What it counts as.
    pub fn reason(&self) -> Reason {
        use rustls::Error as Tls;
        match self {
            Self::Closed => Reason::ClientClosed,
            Self::Timeout => Reason::Timeout,
            Self::Draining => Reason::Draining,
            Self::Shed => Reason::Shed,
            Self::RateLimited => Reason::RateLimited,
            Self::ProxyProtocol(_) => Reason::ProxyProtocol,
            Self::AlpnTakenBack => Reason::PeerMisbehaved,
            Self::NoProtocol(_) => Reason::NoApplicationProtocol,
            Self::Refused(AlertDescription::UnrecognisedName) => Reason::UnrecognizedName,
            Self::Refused(AlertDescription::DecodeError) => Reason::NotTls,
            Self::Refused(_) => Reason::Refused,
            Self::Tls(Tls::NoApplicationProtocol) => Reason::NoApplicationProtocol,
            Self::Tls(Tls::AlertReceived(_)) => Reason::AlertReceived,
            Self::Tls(Tls::PeerIncompatible(_)) => Reason::PeerIncompatible,
            Self::Tls(Tls::PeerMisbehaved(_)) => Reason::PeerMisbehaved,
            Self::Tls(Tls::NoCertificatesPresented) => Reason::ClientCertificateMissing,
            Self::Tls(Tls::InvalidCertificate(_)) => Reason::ClientCertificateInvalid,
            Self::Tls(
                Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } | Tls::InappropriateHandshakeMessage { .. },
            ) => Reason::NotTls,
            Self::Tls(Tls::DecryptError) => Reason::DecryptError,
            Self::Tls(_) => Reason::Tls,
            Self::Quic(_) => Reason::Quic,
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Reason::ClientReset,
            Self::Io(_) => Reason::Io,
        }
    }
}

/// A handshake that did not finish.
#[derive(Debug)]
pub struct Failed {
    pub error: HandshakeError,
    /// The connection, where the client has been sent an alert.
    told: Option<TcpStream>,
}

impl<E: Into<HandshakeError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), told: None }
    }
}

impl Failed {
    /// Ends the connection. A socket that is closed with bytes unread is reset, and the reset overtakes the alert: what
    /// the client has sent meanwhile is read first.
    pub async fn close(self) {
        // Whether the client still listens changes nothing.
        if let Some(mut tcp) = self.told
            && tcp.shutdown().await.is_ok()
        {
            let _ = timeout(LINGER, copy(&mut tcp.take(LINGER_BYTES), &mut sink())).await;
        }
    }
}

/// What a handshake takes, written down however it ends: it may finish, fail, or be given up by the caller.
#[derive(Debug)]
pub struct Clock<'a> {
    begun: Instant,
    /// Computing and writing: every poll of the handshake together.
    crypto: &'a mut Duration,
    /// Waiting for the client between them.
    client_flight: &'a mut Duration,
}

impl<'a> Clock<'a> {
    pub fn start(crypto: &'a mut Duration, client_flight: &'a mut Duration) -> Self {
        Self { begun: Instant::now(), crypto, client_flight }
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        *self.client_flight = self.begun.elapsed().saturating_sub(*self.crypto);
    }
}

/// Runs the handshake to its end, from the ClientHello, which has been read, or to the first early data. The caller
/// bounds the time.
pub async fn run(
    tcp: TcpStream,
    hello: Vec<u8>,
    config: Arc<ServerConfig>,
    clock: Clock<'_>,
) -> Result<SecureStream, Failed> {
    let session = Session::new(FlightStream::holding(tcp), config, hello).map_err(HandshakeError::Tls)?;
    let mut session = Box::new(session);
    let done = poll_fn(|context| {
        let resumed = Instant::now();
        let poll = session.poll_handshake(context);
        *clock.crypto += resumed.elapsed();
        poll
    })
    .await;
    if let Err(error) = done {
        // The alert that says why.
        let mut flight = session.io;
        let told = poll_fn(|context| flight.poll_send(context)).await.is_ok();
        return Err(Failed { error: error.into(), told: told.then(|| flight.into_tcp()) });
    }
    let mut stream = SecureStream::new(session);
    // In TLS 1.2 the client waits for the end of the handshake, and with early data for this side's part of it; else only
    // tickets are held, which can wait for the first response.
    if stream.tls().protocol_version() == Some(ProtocolVersion::TLSv1_2) || stream.early_data().is_some() {
        stream.flush().await?;
    }
    Ok(stream)
}

/// Answers a ClientHello that cannot be served: a fatal alert in the clear (RFC 8446 §6), as no keys exist.
pub async fn refuse(tcp: TcpStream, error: HandshakeError) -> Failed {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let record = [ALERT, 3, 3, 0, 2, FATAL, u8::from(error.alert())];
    tell(tcp, &record, error).await
}

/// Answers what is no ClientHello as rustls does, which tells what is wrong with it.
pub async fn refuse_malformed(tcp: TcpStream, hello: Hello) -> Failed {
    match complaint(&hello.into_records()) {
        Some((error, alert)) => tell(tcp, &alert, HandshakeError::Tls(error)).await,
        None => refuse(tcp, HandshakeError::Refused(AlertDescription::DecodeError)).await,
    }
}

/// Sends an alert, whose record this is.
async fn tell(mut tcp: TcpStream, alert: &[u8], error: HandshakeError) -> Failed {
    let told = tcp.write_all(alert).await.is_ok();
    Failed { error, told: told.then_some(tcp) }
}

/// rustls' error, and the record with its alert. None: it does not know of any, or not yet.
fn complaint(mut records: &[u8]) -> Option<(rustls::Error, Vec<u8>)> {
    let mut acceptor = Acceptor::default();
    while acceptor.read_tls(&mut records).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(_)) => break,
            Err((error, mut alert)) => {
                let mut record = Vec::new();
                alert.write_all(&mut record).ok()?;
                return Some((error, record));
            }
        }
    }
    None
}
