//! A connection to an upstream that carries bytes as they are: MQTT, private protocols, upgraded h1.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connector::Io;
use super::endpoint::Active;
use super::{MAX_TRIES, Upstream, UpstreamError};
use crate::connection::Connection;
use crate::proxy_protocol;

/// A stream to an endpoint, which counts as in use until it is dropped.
#[derive(Debug)]
pub struct UpstreamStream {
    io: Io,
    active: Active,
}

impl UpstreamStream {
    pub(super) fn new(io: Io, active: Active) -> Self {
        Self { io, active }
    }

    /// The address of the endpoint, as configured.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.active.endpoint().address
    }
}

impl Upstream {
    /// Opens a connection for a relay: balanced, and at another endpoint where one cannot be connected to. TLS, where
    /// the upstream has it, offers the client's own protocol.
    pub async fn connect(&self, connection: &Connection) -> Result<UpstreamStream, UpstreamError> {
        let shard = self.shard(connection);
        let hash = self.hash(connection, None, None);
        let mut tried = Vec::new();
        let mut index = self.choose(shard, hash, &tried)?;
        loop {
            let endpoint = &self.endpoints[index];
            let active = Active::new(endpoint);
            let preamble = self.config.proxy_protocol.then(|| proxy_protocol::header(connection));
            let alpn = [connection.alpn.as_bytes()];
            let connected =
                self.connector.connect(&endpoint.target, endpoint.server_name.as_ref(), &alpn, preamble).await;
            match connected {
                Ok(io) => {
                    endpoint.connected();
                    return Ok(UpstreamStream { io, active });
                }
                Err(error) => {
                    endpoint.failed(&error);
                    tried.push(index);
                    match self.choose(shard, hash, &tried) {
                        Ok(next) if tried.len() < MAX_TRIES => index = next,
                        _ => return Err(error.at(&endpoint.address)),
                    }
                }
            }
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
