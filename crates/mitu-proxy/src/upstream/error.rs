//! What can go wrong on the way to an upstream, or in its configuration.

use std::error::Error;
use std::sync::Arc;

use mitu_telemetry::http::Reason;
use mitu_tls::error::TlsConfigError;

use crate::files;

pub type Source = Box<dyn Error + Send + Sync>;

/// An exchange with an upstream that failed.
#[derive(Debug, thiserror::Error)]
#[error("{}{}{}", reason.as_str(), at(endpoint), because(source))]
pub struct UpstreamError {
    pub reason: Reason,
    /// None: it failed before an endpoint was chosen.
    pub endpoint: Option<Arc<str>>,
    #[source]
    pub source: Option<Source>,
}

fn at(endpoint: &Option<Arc<str>>) -> String {
    endpoint.as_ref().map(|address| format!(" at {address}")).unwrap_or_default()
}

fn because(source: &Option<Source>) -> String {
    source.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
}

impl UpstreamError {
    pub fn new(reason: Reason) -> Self {
        Self { reason, endpoint: None, source: None }
    }

    pub fn because(reason: Reason, source: impl Into<Source>) -> Self {
        Self { reason, endpoint: None, source: Some(source.into()) }
    }

    /// Whether it says nothing of the endpoint: this gateway has no descriptor or no port left.
    pub fn is_ours(&self) -> bool {
        let source = self.source.as_ref().and_then(|source| source.downcast_ref());
        source.is_some_and(files::is_exhausted)
    }

    #[must_use]
    pub fn at(mut self, endpoint: &Arc<str>) -> Self {
        self.endpoint = Some(endpoint.clone());
        self
    }
}

/// What can be wrong with an upstream.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("upstream '{upstream}': {source}")]
    Tls { upstream: String, source: TlsConfigError },
    #[error("upstream '{upstream}': '{address}' is neither host:port, [v6]:port nor unix:/path")]
    Address { upstream: String, address: String },
    #[error("upstream '{upstream}': TLS to '{address}' needs a server_name")]
    ServerName { upstream: String, address: String },
    #[error("upstream '{upstream}': more than {max} endpoints")]
    TooManyEndpoints { upstream: String, max: usize },
    #[error("two upstreams are named '{0}'")]
    DuplicateName(String),
}
