//! What can be wrong with a TLS configuration.

use std::collections::HashMap;

use crate::config::Provider;
use crate::provider::AVAILABLE;

/// PEM documents by the identifier that the configuration refers to them with.
pub type Secrets = HashMap<String, Vec<u8>>;

#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("no secret with the identifier '{0}'")]
    MissingSecret(String),
    #[error("no certificate with the identifier '{0}'")]
    MissingCertificate(String),
    #[error("'{id}' is not PEM with {wanted}: {source}")]
    Pem { id: String, wanted: &'static str, source: rustls_pki_types::pem::Error },
    #[error("'{id}' holds no certificate")]
    EmptyChain { id: String },
    #[error("certificate '{id}': {source}")]
    Certificate { id: String, source: rustls::Error },
    #[error("client CA '{id}': {reason}")]
    ClientCa { id: String, reason: String },
    #[error("provider '{wanted}' is not in this build, which has {has}", wanted = .0.name(), has = available())]
    MissingProvider(Provider),
    #[error("cipher suite '{name}' is unknown to provider '{provider}'", provider = .provider.name())]
    UnknownCipherSuite { name: String, provider: Provider },
    #[error("key exchange group '{name}' is unknown to provider '{provider}'", provider = .provider.name())]
    UnknownGroup { name: String, provider: Provider },
    #[error("protocol '{alpn}': {reason}")]
    Policy { alpn: String, reason: String },
    #[error("ticket secret '{id}' is shorter than {min} bytes")]
    TicketSecret { id: String, min: usize },
    #[error("more than {max} protocols on one listener: {found}")]
    TooManyProtocols { found: usize, max: usize },
    #[error("'{0}' is not an ALPN protocol name of 1 to 255 bytes, or is listed twice")]
    ProtocolName(String),
    #[error("server name '{0}' is listed by two sites")]
    DuplicateServerName(String),
    #[error("the system's trusted roots could not be read: {0}")]
    SystemRoots(String),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn available() -> String {
    AVAILABLE.iter().map(|provider| provider.name()).collect::<Vec<_>>().join(" and ")
}

/// The PEM document behind `id`.
pub(crate) fn secret<'a>(secrets: &'a Secrets, id: &str) -> Result<&'a [u8], TlsConfigError> {
    secrets.get(id).map(Vec::as_slice).ok_or_else(|| TlsConfigError::MissingSecret(id.to_owned()))
}
