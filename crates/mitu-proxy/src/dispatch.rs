//! From the finished handshake to the protocol's handler, before an application byte is read. The handler gets the
//! TLS stream itself: no copy and no buffer stands between them.

use std::sync::Arc;

use mitu_tls::stream::SecureStream;

use crate::connection::Connection;
use crate::protocol::{Protocol, http, relay};

/// Runs the handler of the protocol with this index, to the connection's end, and writes the connection's log line.
pub async fn run(stream: SecureStream, protocol: usize, connection: Arc<Connection>) {
    let mut bytes = None;
    let error = match &connection.listener.protocols[protocol].protocol {
        // Boxed, so that a connection takes the room that its protocol needs, and not that of the largest.
        Protocol::H1 => {
            Box::pin(http::serve_h1(stream, connection.clone())).await.err().map(|error| error.to_string())
        }
        Protocol::H2 => {
            Box::pin(http::serve_h2(stream, connection.clone())).await.err().map(|error| error.to_string())
        }
        Protocol::Relay { upstream, metrics } => {
            let outcome = Box::pin(relay::serve(stream, &connection, upstream, metrics)).await;
            bytes = Some((outcome.sent, outcome.received));
            outcome.error.map(|error| error.to_string())
        }
    };
    if let Some(log) = &*connection.telemetry.access_log.load()
        && log.connections_enabled()
    {
        let mut record = connection.record();
        record.bytes_received = bytes.map(|(sent, _)| sent);
        record.bytes_sent = bytes.map(|(_, received)| received);
        record.error = error.as_deref();
        log.write(&record);
    }
}
