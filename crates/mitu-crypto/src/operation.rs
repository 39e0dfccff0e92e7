//! The operations of a handshake and of its records, timed alone: what no server over this provider can go below.
//!
//! All of it goes through the provider that the gateway runs on. Sealing goes by way of its QUIC packets: they are
//! sealed as records are, and rustls lets nobody but itself make a record's key.

use std::hint::black_box;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};
use mitu_tls::config::Provider;
use mitu_tls::error::TlsConfigError;
use mitu_tls::provider::{AWS_LC, base_provider};
use rustls::crypto::aws_lc_rs::kx_group::MLKEM768;
use rustls::crypto::hash::HashAlgorithm;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::quic::{Keys, Version};
use rustls::sign::Signer;
use rustls::{CipherSuite, NamedGroup, Side, SignatureScheme, SupportedCipherSuite, Tls13CipherSuite};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub use crate::timing::Timed;
use crate::timing::time;

/// What CertificateVerify signs is this long in TLS 1.3: 64 spaces, a context string, a zero, a SHA-256 digest.
const SIGNED_BYTES: usize = 64 + 33 + 1 + 32;

/// The most that a record holds (RFC 8446 §5.1), and a short one.
const RECORD: usize = 16 << 10;
const SHORT: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum CostError {
    #[error("there is no operation '{0}'")]
    Unknown(String),
    #[error("the provider lacks {0}")]
    Missing(String),
    #[error(transparent)]
    Provider(#[from] TlsConfigError),
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    #[error("a cryptographic operation failed")]
    Failed,
}

impl From<Unspecified> for CostError {
    fn from(Unspecified: Unspecified) -> Self {
        Self::Failed
    }
}

/// Something that can be timed.
#[derive(Clone, Copy)]
pub struct Operation {
    pub name: &'static str,
    /// What one call works through; none for public-key operations.
    pub bytes: Option<usize>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Sign(SignatureScheme),
    Verify(SignatureScheme),
    /// Both halves that a server does: its own key share, and the secret from the client's.
    Exchange(NamedGroup),
    Seal(CipherSuite),
    Hash(HashAlgorithm),
}

const P256: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
const P384: SignatureScheme = SignatureScheme::ECDSA_NISTP384_SHA384;
const RSA: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;
const AES_128: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;
const AES_256: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
const CHACHA: CipherSuite = CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;

static OPERATIONS: &[Operation] = &[
    public_key("ecdsa_p256_sign", Kind::Sign(P256)),
    public_key("ecdsa_p256_verify", Kind::Verify(P256)),
    public_key("ecdsa_p384_sign", Kind::Sign(P384)),
    public_key("ecdsa_p384_verify", Kind::Verify(P384)),
    public_key("rsa_2048_sign", Kind::Sign(RSA)),
    public_key("rsa_2048_verify", Kind::Verify(RSA)),
    public_key("x25519", Kind::Exchange(NamedGroup::X25519)),
    public_key("ecdh_p256", Kind::Exchange(NamedGroup::secp256r1)),
    public_key("ecdh_p384", Kind::Exchange(NamedGroup::secp384r1)),
    public_key("ml_kem_768", Kind::Exchange(NamedGroup::MLKEM768)),
    public_key("x25519_ml_kem_768", Kind::Exchange(NamedGroup::X25519MLKEM768)),
    bulk("aes_128_gcm_16k", RECORD, Kind::Seal(AES_128)),
    bulk("aes_128_gcm_64", SHORT, Kind::Seal(AES_128)),
    bulk("aes_256_gcm_16k", RECORD, Kind::Seal(AES_256)),
    bulk("aes_256_gcm_64", SHORT, Kind::Seal(AES_256)),
    bulk("chacha20_poly1305_16k", RECORD, Kind::Seal(CHACHA)),
    bulk("chacha20_poly1305_64", SHORT, Kind::Seal(CHACHA)),
    bulk("sha256_16k", RECORD, Kind::Hash(HashAlgorithm::SHA256)),
    bulk("sha256_64", SHORT, Kind::Hash(HashAlgorithm::SHA256)),
    bulk("sha384_16k", RECORD, Kind::Hash(HashAlgorithm::SHA384)),
    bulk("sha384_64", SHORT, Kind::Hash(HashAlgorithm::SHA384)),
];

const fn public_key(name: &'static str, kind: Kind) -> Operation {
    Operation { name, bytes: None, kind }
}

const fn bulk(name: &'static str, bytes: usize, kind: Kind) -> Operation {
    Operation { name, bytes: Some(bytes), kind }
}

/// What of it `provider` has. No handshake makes the key exchange that some lack, ML-KEM without a curve.
pub fn operations(provider: Provider) -> Result<Vec<Operation>, CostError> {
    let crypto = crypto(provider)?;
    let has = |operation: &&Operation| match operation.kind {
        Kind::Exchange(name) => group(&crypto, name).is_ok(),
        Kind::Seal(name) => suite(&crypto, name).is_ok(),
        Kind::Sign(_) | Kind::Verify(_) | Kind::Hash(_) => true,
    };
    Ok(OPERATIONS.iter().filter(has).copied().collect())
}

/// Time the operation `name` of `provider`, in batches that take about `budget` together.
pub fn measure(provider: Provider, name: &str, budget: Duration) -> Result<Timed, CostError> {
    let found = OPERATIONS.iter().find(|operation| operation.name == name);
    let operation = found.ok_or_else(|| CostError::Unknown(name.to_owned()))?;
    let crypto = crypto(provider)?;
    match operation.kind {
        Kind::Sign(scheme) => sign(&crypto, scheme, budget),
        Kind::Verify(scheme) => verify(&crypto, scheme, budget),
        Kind::Exchange(name) => exchange(group(&crypto, name)?, budget),
        Kind::Seal(name) => seal(suite(&crypto, name)?, operation.bytes.unwrap_or(RECORD), budget),
        Kind::Hash(algorithm) => hash(&crypto, algorithm, operation.bytes.unwrap_or(RECORD), budget),
    }
}

fn crypto(provider: Provider) -> Result<CryptoProvider, CostError> {
    let mut crypto = base_provider(provider)?;
    if provider == AWS_LC {
        crypto.kx_groups.push(MLKEM768);
    }
    Ok(crypto)
}

fn group(crypto: &CryptoProvider, name: NamedGroup) -> Result<&'static dyn SupportedKxGroup, CostError> {
    let found = crypto.kx_groups.iter().find(|group| group.name() == name);
    found.copied().ok_or_else(|| CostError::Missing(format!("{name:?}")))
}

fn suite(crypto: &CryptoProvider, name: CipherSuite) -> Result<&'static Tls13CipherSuite, CostError> {
    let found = crypto.cipher_suites.iter().find(|suite| suite.suite() == name);
    found.and_then(SupportedCipherSuite::tls13).ok_or_else(|| CostError::Missing(format!("{name:?}")))
}

fn sign(provider: &CryptoProvider, scheme: SignatureScheme, budget: Duration) -> Result<Timed, CostError> {
    let signer = signer(provider, scheme, &KeyToTime::generate(scheme)?)?;
    time(budget, || {
        black_box(signer.sign(&[0x20; SIGNED_BYTES])?);
        Ok(())
    })
}

fn verify(provider: &CryptoProvider, scheme: SignatureScheme, budget: Duration) -> Result<Timed, CostError> {
    let key = KeyToTime::generate(scheme)?;
    let message = [0x20; SIGNED_BYTES];
    let signature = signer(provider, scheme, &key)?.sign(&message)?;
    let mut known = provider.signature_verification_algorithms.mapping.iter();
    let algorithms = known.find(|(known, _)| *known == scheme).map(|(_, algorithms)| *algorithms);
    let algorithm = algorithms.and_then(<[_]>::first).ok_or_else(|| CostError::Missing(format!("{scheme:?}")))?;
    time(budget, || algorithm.verify_signature(&key.public, &message, &signature).map_err(|_| CostError::Failed))
}

fn signer(provider: &CryptoProvider, scheme: SignatureScheme, key: &KeyToTime) -> Result<Box<dyn Signer>, CostError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8.clone()));
    let signing = provider.key_provider.load_private_key(key)?;
    signing.choose_scheme(&[scheme]).ok_or_else(|| CostError::Missing(format!("{scheme:?}")))
}

/// A key made for the occasion, which any provider can load.
struct KeyToTime {
    pkcs8: Vec<u8>,
    /// As it stands in a certificate.
    public: Vec<u8>,
}

impl KeyToTime {
    fn generate(scheme: SignatureScheme) -> Result<Self, CostError> {
        match scheme {
            P256 => Self::ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
            P384 => Self::ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
            _ => {
                let key = RsaKeyPair::generate(KeySize::Rsa2048)?;
                let pkcs8: Pkcs8V1Der<'_> = key.as_der()?;
                Ok(Self { pkcs8: pkcs8.as_ref().to_vec(), public: key.public_key().as_ref().to_vec() })
            }
        }
    }

    fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> Result<Self, CostError> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new())?.as_ref().to_vec();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8).map_err(|_| CostError::Failed)?;
        Ok(Self { public: key.public_key().as_ref().to_vec(), pkcs8 })
    }
}

fn exchange(group: &dyn SupportedKxGroup, budget: Duration) -> Result<Timed, CostError> {
    let client = group.start()?;
    time(budget, || {
        black_box(group.start_and_complete(client.pub_key())?);
        Ok(())
    })
}

/// One record in place, its tag beside it.
fn seal(suite: &'static Tls13CipherSuite, bytes: usize, budget: Duration) -> Result<Timed, CostError> {
    let quic = suite.quic.ok_or_else(|| CostError::Missing(format!("{:?} by itself", suite.common.suite)))?;
    let key = Keys::initial(Version::V1, suite, quic, &[0x17; 8], Side::Server).local.packet;
    let mut record = vec![0; bytes];
    time(budget, || {
        // The same nonce each time: nobody will ever see what comes of it.
        let _tag = black_box(key.encrypt_in_place(0, &[0; 5], &mut record)?);
        Ok(())
    })
}

fn hash(
    provider: &CryptoProvider,
    algorithm: HashAlgorithm,
    bytes: usize,
    budget: Duration,
) -> Result<Timed, CostError> {
    let mut hashes = provider.cipher_suites.iter().map(|suite| match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
        SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
    });
    let found = hashes.find(|hash| hash.algorithm() == algorithm);
    let hash = found.ok_or_else(|| CostError::Missing(format!("{algorithm:?}")))?;
    let message = vec![0x20; bytes];
    time(budget, || {
        black_box(hash.hash(&message));
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mitu_tls::provider::AVAILABLE;

    #[test]
    fn every_operation_can_be_timed() {
        for &provider in AVAILABLE {
            let operations = operations(provider).unwrap();
            assert!(operations.len() >= OPERATIONS.len() - 1);
            for Operation { name, .. } in operations {
                assert!(measure(provider, name, Duration::from_millis(1)).unwrap().fastest > 0.0, "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_one_is_refused() {
        assert!(matches!(measure(AWS_LC, "rot13", Duration::ZERO), Err(CostError::Unknown(_))));
    }
}
