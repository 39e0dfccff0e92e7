//! Certificates: loaded once for each configuration, shared by every site and protocol that serves them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme, SupportedCipherSuite};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::client_hello::ClientHello;
use crate::config::{CertificateConfig, Provider};
use crate::error::{Secrets, TlsConfigError, secret};
use crate::provider::base_provider;

/// A chain with its key, checked to belong together.
#[derive(Debug)]
pub struct Certificate {
    pub id: String,
    pub key: Arc<CertifiedKey>,
    pub key_type: KeyType,
    /// What the key can sign with.
    schemes: Vec<SignatureScheme>,
}

/// In the order of preference: the cheapest signature first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    EcdsaP256,
    Ed25519,
    EcdsaP384,
    EcdsaP521,
    Rsa,
}

impl KeyType {
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::EcdsaP521 => "ecdsa-p521",
            Self::Rsa => "rsa",
        }
    }

    fn of(key: &CertifiedKey) -> Self {
        match key.key.algorithm() {
            SignatureAlgorithm::RSA => Self::Rsa,
            SignatureAlgorithm::ED25519 => Self::Ed25519,
            _ if signs(key, SignatureScheme::ECDSA_NISTP384_SHA384) => Self::EcdsaP384,
            _ if signs(key, SignatureScheme::ECDSA_NISTP521_SHA512) => Self::EcdsaP521,
            _ => Self::EcdsaP256,
        }
    }
}

impl Certificate {
    pub fn load(
        config: &CertificateConfig,
        secrets: &Secrets,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsConfigError> {
        let chain = read_chain(secrets, &config.chain)?;
        let key = PrivateKeyDer::from_pem_slice(secret(secrets, &config.key)?).map_err(|source| {
            TlsConfigError::Pem { id: config.key.clone(), wanted: "an unencrypted private key", source }
        })?;
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|source| TlsConfigError::Certificate { id: config.id.clone(), source })?;
        let known = provider.signature_verification_algorithms.supported_schemes().into_iter();
        let schemes = known.filter(|&scheme| signs(&key, scheme)).collect();
        Ok(Self { id: config.id.clone(), key_type: KeyType::of(&key), schemes, key: Arc::new(key) })
    }

    /// Whether a client that says this can be served with this certificate and one of `suites`.
    pub fn suits(&self, hello: &ClientHello<'_>, suites: &[SupportedCipherSuite]) -> bool {
        let algorithm = self.key.key.algorithm();
        self.schemes.iter().any(|&scheme| hello.has_scheme(scheme))
            && suites.iter().any(|suite| {
                // TLS 1.3 suites say nothing of the key; TLS 1.2 suites name its algorithm.
                suite.usable_for_signature_algorithm(algorithm) && hello.has_suite(suite.suite())
            })
    }
}

fn signs(key: &CertifiedKey, scheme: SignatureScheme) -> bool {
    key.key.choose_scheme(&[scheme]).is_some()
}

/// The certificates of a PEM bundle, of which there must be one at least.
pub fn read_chain(secrets: &Secrets, id: &str) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(secret(secrets, id)?)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsConfigError::Pem { id: id.to_owned(), wanted: "certificates", source })?;
    if chain.is_empty() {
        return Err(TlsConfigError::EmptyChain { id: id.to_owned() });
    }
    Ok(chain)
}

/// Every certificate of a configuration, with its key in each of the providers that sign with it, by identifier.
pub type Certificates = HashMap<Provider, HashMap<String, Arc<Certificate>>>;

pub fn load_all(
    configs: &[CertificateConfig],
    secrets: &Secrets,
    providers: impl IntoIterator<Item = Provider>,
) -> Result<Certificates, TlsConfigError> {
    let load = |provider| {
        let crypto = base_provider(provider)?;
        let load = |config: &CertificateConfig| {
            Ok((config.id.clone(), Arc::new(Certificate::load(config, secrets, &crypto)?)))
        };
        Ok((provider, configs.iter().map(load).collect::<Result<_, TlsConfigError>>()?))
    };
    providers.into_iter().collect::<HashSet<_>>().into_iter().map(load).collect()
}
