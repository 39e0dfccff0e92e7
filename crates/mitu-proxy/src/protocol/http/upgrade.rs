//! After `101 Switching Protocols`: both connections become byte streams and are relayed to each other. In h2 and h3 the
//! client's is one stream of its connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderValue;
use mitu_telemetry::connections::RelayEnd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::account::Account;
use crate::connection::Connection;
use crate::protocol::relay::{Terms, relay_unless};
use crate::upstream::UpstreamStream;

/// The upstream's side of a connection that has changed its protocol.
#[derive(Debug)]
pub struct Upgrade {
    /// As the upstream's `Upgrade` header names it.
    pub protocol: HeaderValue,
    pub stream: Rewound<UpstreamStream>,
}

/// A stream whose first bytes were read already.
#[derive(Debug)]
pub struct Rewound<S> {
    first: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub fn new(first: Bytes, stream: S) -> Self {
        Self { first, stream }
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

/// Relays until both sides have finished, nothing has moved for `relay_idle_ms`, its endpoint or its listener wants it to
/// leave, or `taken_back` says that the client is not there any more.
pub async fn run<S>(
    downstream: S,
    taken_back: impl FnMut(&mut S, &mut Context<'_>) -> Poll<io::Error> + Unpin,
    upgrade: Upgrade,
    mut account: Account,
    connection: &Connection,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let terms = Terms::of(connection, upgrade.stream.get_ref());
    let outcome = relay_unless(downstream, Vec::new(), taken_back, upgrade.stream, terms).await;
    account.relayed(outcome.sent, outcome.received);
    if matches!(outcome.end, RelayEnd::Drain | RelayEnd::Removal) {
        let (listener, alpn) = (&connection.listener.name, &connection.alpn);
        connection.telemetry.connections.relay_end(listener, alpn, outcome.end).inc();
    }
    outcome.error.map_or(Ok(()), Err)
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
