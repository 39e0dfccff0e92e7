//! HTTP: a connection is served in its version, and every request takes the same way through [`exchange`].

pub mod account;
mod activity;
pub mod body;
mod compressed;
mod date;
mod exchange;
pub mod h1;
mod h2;
pub mod h3;
pub mod timer;
pub mod upgrade;
mod validate;
mod websocket;

use std::io;
use std::sync::{Arc, OnceLock};

use mitu_telemetry::http::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use self::h3::error::Violation;
use crate::connection::Connection;
use crate::filter::forwarded::Claims;

/// How a connection ended that did not end well. Failures of single requests are not among these.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    #[error("{}", .0.as_str())]
    Refused(Reason),
    #[error("too many requests were cancelled")]
    Abused,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    H2(#[from] hyper::Error),
    #[error("{}", .0.reason)]
    H3(Violation),
    #[error(transparent)]
    Quic(quinn::ConnectionError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    H1,
    H2,
    H3,
}

/// One connection as its requests see it.
#[derive(Debug)]
pub struct Downstream {
    pub connection: Arc<Connection>,
    pub version: Version,
    claims: OnceLock<Claims>,
}

impl Downstream {
    fn new(connection: Arc<Connection>, version: Version) -> Arc<Self> {
        Arc::new(Self { connection, version, claims: OnceLock::new() })
    }

    /// Made for the first request that an upstream gets.
    fn claims(&self) -> &Claims {
        self.claims.get_or_init(|| {
            let connection = &self.connection;
            let peer = connection.peer.ip();
            let trusted = connection.listener.trusted_proxies.iter().any(|network| network.contains(&peer));
            Claims::new(connection.peer, connection.identity.as_deref(), trusted)
        })
    }

    /// Whether the access log wants a line for each request.
    fn logs_requests(&self) -> bool {
        self.connection.telemetry.access_log.load().as_ref().is_some_and(|log| log.requests_enabled())
    }
}

/// Serves HTTP/1.1 and HTTP/1.0 until the connection ends.
pub async fn serve_h1<S>(stream: S, connection: Arc<Connection>) -> Result<(), DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    h1::server::serve(stream, Downstream::new(connection, Version::H1)).await
}

/// Serves HTTP/2 until the connection ends.
pub async fn serve_h2<S>(stream: S, connection: Arc<Connection>) -> Result<(), DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    h2::serve(stream, Downstream::new(connection, Version::H2)).await
}

/// Serves HTTP/3 until the connection ends.
pub async fn serve_h3(quic: quinn::Connection, connection: Arc<Connection>) -> Result<(), DownstreamError> {
    h3::serve(quic, Downstream::new(connection, Version::H3)).await
}
