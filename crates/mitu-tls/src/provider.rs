//! The libraries that do the cryptography, each a rustls [`CryptoProvider`].
//!
//! Handshakes and records are computed by the provider that a policy names. What is this gateway's own (session
//! tickets, fingerprints, TLS towards upstreams) is computed by AWS-LC, which every build has (docs/adr/0010).

#[cfg(feature = "boringssl")]
mod boringssl;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::config::Provider;
use crate::error::TlsConfigError;
#[cfg(not(feature = "fips"))]
use crate::key_schedule::cipher_suites;

/// What this build has, AWS-LC first.
pub const AVAILABLE: &[Provider] = &[
    AWS_LC,
    #[cfg(feature = "boringssl")]
    Provider::BoringSsl,
];

/// The AWS-LC of this build: one module takes the other's place.
pub const AWS_LC: Provider = if cfg!(feature = "fips") { Provider::AwsLcFips } else { Provider::AwsLc };

/// The whole of a provider, before a policy narrows it.
pub fn base_provider(provider: Provider) -> Result<CryptoProvider, TlsConfigError> {
    match provider {
        // The module's certificate covers its own key schedule, and not another one beside it.
        #[cfg(feature = "fips")]
        Provider::AwsLcFips => Ok(aws_lc_rs::default_provider()),
        #[cfg(not(feature = "fips"))]
        Provider::AwsLc => {
            Ok(CryptoProvider { cipher_suites: cipher_suites().to_vec(), ..aws_lc_rs::default_provider() })
        }
        #[cfg(feature = "boringssl")]
        Provider::BoringSsl => Ok(boringssl::provider()),
        #[allow(unreachable_patterns, reason = "a build may have all of them")]
        missing => Err(TlsConfigError::MissingProvider(missing)),
    }
}
