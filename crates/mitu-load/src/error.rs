//! What can go wrong with a connection, by the words the reports count it under.

use std::io::{self, ErrorKind};

use rustls::AlertDescription;

/// What a connection was doing when its time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Handshake,
    Response,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not connect: {0}")]
    Connect(#[source] io::Error),
    #[error("handshake failed: {0}")]
    Handshake(#[source] io::Error),
    #[error("the server chose none of the protocols offered: {0}")]
    NoProtocol(String),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection before the response was complete")]
    Closed,
    #[error("the response is not a success: {0}")]
    Status(String),
    #[error("the server broke its protocol: {0}")]
    Protocol(&'static str),
    #[error("no answer within the time limit")]
    Timeout(Stage),
    #[error("not begun: as many connections as may be were under way")]
    NotBegun,
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
    /// The word for this error in the reports of `mitu-load`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Handshake(_) | Self::NoProtocol(_) | Self::Tls(_) => "handshake",
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::Status(_) => "status",
            Self::Protocol(_) => "protocol",
            Self::Crypto(_) => "crypto",
            Self::Timeout(_) | Self::NotBegun => "timeout",
            Self::Unknown { .. } | Self::Usage(_) => "usage",
        }
    }

    /// The word for this error in the reports of `mitu bench`: the stage, and what happened there.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Connect(error) => connect_class(error),
            Self::Handshake(error) => handshake_class(error),
            Self::NoProtocol(_) => "handshake_alpn",
            Self::Tls(_) => "handshake_tls",
            Self::Io(error) if is_reset(error) => "response_reset",
            Self::Io(_) => "response_io",
            Self::Closed => "response_closed",
            Self::Status(_) => "response_status",
            Self::Protocol(_) => "response_protocol",
            Self::Timeout(Stage::Connect) => "connect_timeout",
            Self::Timeout(Stage::Handshake) => "handshake_timeout",
            Self::Timeout(Stage::Response) => "response_timeout",
            Self::NotBegun => "not_begun",
            Self::Crypto(_) | Self::Unknown { .. } | Self::Usage(_) => "usage",
        }
    }
}

fn connect_class(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect_refused",
        ErrorKind::TimedOut => "connect_timeout",
        // The client's own: all ports of its address are taken, or it may open no more files.
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => "client_ports",
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => "client_files",
        _ if is_reset(error) => "connect_reset",
        _ => "connect_io",
    }
}

fn handshake_class(error: &io::Error) -> &'static str {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => "handshake_alpn",
            rustls::Error::AlertReceived(_) => "handshake_alert",
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => "handshake_certificate",
            _ => "handshake_tls",
        };
    }
    match error.kind() {
        ErrorKind::UnexpectedEof => "handshake_closed",
        _ if is_reset(error) => "handshake_reset",
        _ => "handshake_io",
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_name_the_stage_and_whose_fault_it_is() {
        let connect = |code| LoadError::Connect(io::Error::from_raw_os_error(code)).class();
        assert_eq!(connect(libc::ECONNREFUSED), "connect_refused");
        assert_eq!(connect(libc::EMFILE), "client_files");
        assert_eq!(connect(libc::EADDRNOTAVAIL), "client_ports");
        let tls = |error| LoadError::Handshake(io::Error::new(ErrorKind::InvalidData, error)).class();
        let alert = rustls::Error::AlertReceived;
        assert_eq!(tls(alert(AlertDescription::NoApplicationProtocol)), "handshake_alpn");
        assert_eq!(tls(alert(AlertDescription::HandshakeFailure)), "handshake_alert");
        assert_eq!(tls(rustls::CertificateError::UnknownIssuer.into()), "handshake_certificate");
        assert_eq!(LoadError::Handshake(ErrorKind::ConnectionReset.into()).class(), "handshake_reset");
        assert_eq!(LoadError::Timeout(Stage::Response).class(), "response_timeout");
    }
}
