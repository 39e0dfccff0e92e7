//! What can go wrong with a connection, by the words the reports count it under.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not connect: {0}")]
    Connect(#[source] io::Error),
    #[error("handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection before the response was complete")]
    Closed,
    #[error("the response is not a success: {0}")]
    Status(String),
    #[error("the server broke its protocol: {0}")]
    Protocol(&'static str),
    #[error("no answer within the time limit")]
    Timeout,
    #[error("'{value}' is not a known {what}; known: {known}")]
    Unknown { what: &'static str, value: String, known: String },
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Crypto(#[from] mitu_crypto::operation::CostError),
    #[error("{0}")]
    Usage(String),
}

impl LoadError {
    /// The word that the report counts this error under.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Handshake(_) | Self::Tls(_) => "handshake",
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::Status(_) => "status",
            Self::Protocol(_) => "protocol",
            Self::Crypto(_) => "crypto",
            Self::Timeout => "timeout",
            Self::Unknown { .. } | Self::Usage(_) => "usage",
        }
    }
}
