//! A connection to an upstream that carries bytes as they are: MQTT, private protocols, upgraded h1.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mitu_telemetry::http::Retry;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::breaker::Full;
use super::connector::Io;
use super::endpoint::Active;
use super::retry::{Failed, Journey, Next};
use super::{Upstream, UpstreamError, balancer};
use crate::config::{BalancerConfig, HashKey};
use crate::connection::Connection;
use crate::proxy_protocol;
use crate::relays::Notice;

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

    /// Given once that endpoint has been removed.
    pub fn removal(&self) -> &Arc<Notice> {
        &self.active.endpoint().removal
    }
}

impl Upstream {
    /// Whether its balancer looks at what an MQTT client calls itself.
    pub fn knows_mqtt_clients(&self) -> bool {
        matches!(self.config.balancer, BalancerConfig::Hash { on: HashKey::MqttClientId })
    }

    /// Opens a connection for a relay: balanced, and at another endpoint where one cannot be connected to. TLS, where
    /// the upstream has it, offers the client's own protocol. `client`: what an MQTT client calls itself; none, or
    /// empty, where it does not say.
    pub async fn connect(
        &self,
        connection: &Connection,
        client: Option<&[u8]>,
    ) -> Result<UpstreamStream, UpstreamError> {
        let (endpoints, cursor) = (self.endpoints.load_full(), self.cursor(connection));
        let hash = match client {
            Some(client) if !client.is_empty() => balancer::hash(client),
            _ => self.hash(connection, None, None),
        };
        let mut journey = Journey::new(self, &endpoints, cursor, hash, false);
        let (mut index, mut active) = journey.enter().inspect_err(|error| self.tell(error, &endpoints))?;
        loop {
            let failed = match self.open_relay(active, connection).await {
                Ok(stream) => return Ok(stream),
                Err(failed) => failed,
            };
            let Some(next) = journey.next(index, failed.again, None) else {
                self.tell(&failed.error, &endpoints);
                return Err(failed.error);
            };
            Next { index, active, .. } = next;
        }
    }

    async fn open_relay(&self, mut active: Active, connection: &Connection) -> Result<UpstreamStream, Failed> {
        let endpoint = active.endpoint().clone();
        active.keep(endpoint.breaker.try_connection().map_err(|Full| Failed::overflow())?);
        let preamble = self.config.proxy_protocol.then(|| proxy_protocol::header(connection));
        let alpn = [connection.alpn.as_bytes()];
        match self.connector.connect(&endpoint.target, endpoint.server_name.as_ref(), &alpn, preamble).await {
            Ok(io) => {
                endpoint.agreed(&io);
                endpoint.connected();
                endpoint.succeeded();
                Ok(UpstreamStream { io, active })
            }
            Err(error) => {
                endpoint.connect_failed(&error);
                Err(Failed::because(error.at(&endpoint.address), Retry::Connect, true))
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
