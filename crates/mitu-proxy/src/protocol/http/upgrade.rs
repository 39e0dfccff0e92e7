//! After `101 Switching Protocols`: both connections become byte streams and are relayed to each other. In h2 and h3 the
//! client's is one stream of its connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::account::Account;
use crate::config::{Limits, Timeouts};
use crate::protocol::relay::relay_unless;
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
}

/// Relays until both sides have finished, nothing has moved for `relay_idle_ms`, or `taken_back` says that the client is
/// not there any more.
pub async fn run<S>(
    downstream: S,
    taken_back: impl FnMut(&mut S, &mut Context<'_>) -> Poll<io::Error>,
    upgrade: Upgrade,
    mut account: Account,
    limits: &Limits,
    timeouts: &Timeouts,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let idle = Duration::from_millis(timeouts.relay_idle_ms);
    let outcome = relay_unless(downstream, taken_back, upgrade.stream, idle, limits.buffer_bytes).await;
    account.relayed(outcome.sent, outcome.received);
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
