//! From the finished handshake to the protocol's handler, before an application byte is read. The handler gets the
//! TLS stream itself: no copy and no buffer stands between them.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::sync::Arc;

use mitu_telemetry::connections::RelayEnd;
use mitu_telemetry::http::Reason;
use mitu_tls::stream::SecureStream;

use crate::connection::Connection;
use crate::protocol::http::DownstreamError;
use crate::protocol::{Protocol, http, relay};

/// What a connection's handler gets.
pub enum Stream {
    Tcp(SecureStream),
    /// Its streams.
    Quic(quinn::Connection),
}

/// Runs the handler of the protocol with this index, to the connection's end, and writes the connection's log line.
pub async fn run(stream: Stream, protocol: usize, connection: Arc<Connection>) {
    let (mut bytes, mut left) = (None, None);
    let end = match (&connection.listener.protocols[protocol].protocol, stream) {
        // Boxed, so that a connection takes the room that its protocol needs, and not that of the largest.
        (Protocol::H1, Stream::Tcp(stream)) => Box::pin(http::serve_h1(stream, connection.clone())).await,
        (Protocol::H2, Stream::Tcp(stream)) => Box::pin(http::serve_h2(stream, connection.clone())).await,
        (Protocol::H3, Stream::Quic(quic)) => Box::pin(http::serve_h3(quic, connection.clone())).await,
        // Each transport has a selector of its own, which chooses among what it can carry.
        (Protocol::H3, Stream::Tcp(_)) | (_, Stream::Quic(_)) => Err(DownstreamError::Refused(Reason::Internal)),
        (Protocol::Relay { upstream, metrics }, Stream::Tcp(stream)) => {
            let outcome = Box::pin(relay::serve(stream, &connection, upstream, metrics)).await;
            bytes = Some((outcome.sent, outcome.received));
            left = matches!(outcome.end, RelayEnd::Drain | RelayEnd::Removal).then(|| outcome.end.as_str());
            outcome.error.map_or(Ok(()), |error| Err(error.into()))
        }
    };
    if let Some(log) = &*connection.telemetry.access_log.load()
        && log.connections_enabled()
    {
        let error = left.map(Cow::from).or_else(|| end.as_ref().err().map(told));
        let mut record = connection.record();
        record.bytes_received = bytes.map(|(sent, _)| sent);
        record.bytes_sent = bytes.map(|(_, received)| received);
        record.error = error.as_deref();
        log.write(&record);
    }
}

/// What the log says of a connection's end: one word where a side left without saying so, for which every library has
/// a text of its own; else the error's text.
fn told(error: &DownstreamError) -> Cow<'static, str> {
    let io = match error {
        DownstreamError::Refused(_) | DownstreamError::Abused | DownstreamError::H3(_) | DownstreamError::Quic(_) => {
            None
        }
        DownstreamError::Io(error) => Some(error),
        DownstreamError::H2(error) => error.source().and_then(|source| source.downcast_ref::<io::Error>()),
    };
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof) => "unexpected_eof".into(),
        _ => error.to_string().into(),
    }
}
