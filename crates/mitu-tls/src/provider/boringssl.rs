//! BoringSSL behind rustls, behaving as AWS-LC does behind it: the same keys are taken, the same signatures verified,
//! the same alerts sent. `boring-rustls-provider` does the work; what it is laxer or stricter in is set right here.

mod group;
mod quic;
mod record;
mod verify;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, KeyProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use x509_parser::asn1_rs::{Any, FromDer, Integer, Sequence, ToDer};

pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: record::cipher_suites().to_vec(),
        kx_groups: group::groups().to_vec(),
        signature_verification_algorithms: verify::algorithms(),
        key_provider: &Keys,
        ..boring_rustls_provider::provider()
    }
}

#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    /// AWS-LC reads the key as well: it knows a weak one, and which certificate a key belongs to.
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let read = aws_lc_rs::default_provider().key_provider.load_private_key(key.clone_key())?;
        let key = match key {
            PrivateKeyDer::Pkcs8(pkcs8) => match first_version(pkcs8.secret_pkcs8_der()) {
                Some(rewritten) => PrivatePkcs8KeyDer::from(rewritten).into(),
                None => PrivateKeyDer::Pkcs8(pkcs8),
            },
            other => other,
        };
        let signs = boring_rustls_provider::provider().key_provider.load_private_key(key)?;
        Ok(Arc::new(Key { signs, read }))
    }
}

/// Signs with BoringSSL.
#[derive(Debug)]
struct Key {
    signs: Arc<dyn SigningKey>,
    read: Arc<dyn SigningKey>,
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.signs.choose_scheme(offered)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.read.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.signs.algorithm()
    }
}

/// The PKCS#8 of the first version (RFC 5208) for one of the second (RFC 5958), which repeats the public key at its end
/// and which BoringSSL does not read. None for anything else.
fn first_version(pkcs8: &[u8]) -> Option<Vec<u8>> {
    let (_, whole) = Sequence::from_der(pkcs8).ok()?;
    let (rest, version) = Integer::from_der(&whole.content).ok()?;
    if version.as_u8().ok()? != 1 {
        return None;
    }
    let (after_algorithm, _) = Any::from_der(rest).ok()?;
    let (after_key, _) = Any::from_der(after_algorithm).ok()?;
    let algorithm_and_key = &rest[..rest.len() - after_key.len()];
    let content = [&Integer::from(0_u8).to_der_vec().ok()?, algorithm_and_key].concat();
    Sequence::new(content.into()).to_der_vec().ok()
}

#[cfg(test)]
mod tests;
