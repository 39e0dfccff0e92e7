//! Cipher suites.

use std::sync::LazyLock;

use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, KeyBlockShape, MessageDecrypter, MessageEncrypter,
    Tls12AeadAlgorithm, UnsupportedOperationError,
};
use rustls::{ConnectionTrafficSecrets, Error, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};

use super::quic;

/// The most that a record may hold (RFC 5246 §6.2.1).
const MAX_PLAIN: usize = 16 << 10;

/// All there are. Those of TLS 1.3 keep BoringSSL's key schedule: who chooses this library wants no other one beside it.
pub fn cipher_suites() -> &'static [SupportedCipherSuite] {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        let known = boring_rustls_provider::provider().cipher_suites;
        let checked = known.into_iter().map(|suite| match suite {
            SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(bounded(suite)),
            SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(over_quic(suite)),
        });
        checked.collect()
    });
    &SUITES
}

fn over_quic(suite: &'static Tls13CipherSuite) -> &'static Tls13CipherSuite {
    Box::leak(Box::new(Tls13CipherSuite {
        common: copied(&suite.common),
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: suite.quic.map(|algorithm| quic::mended(suite.common.suite, algorithm)),
    }))
}

fn bounded(suite: &'static Tls12CipherSuite) -> &'static Tls12CipherSuite {
    Box::leak(Box::new(Tls12CipherSuite {
        common: copied(&suite.common),
        prf_provider: suite.prf_provider,
        kx: suite.kx,
        sign: suite.sign,
        aead_alg: Box::leak(Box::new(Bounded(suite.aead_alg))),
    }))
}

/// rustls has no copy of it.
fn copied(common: &CipherSuiteCommon) -> CipherSuiteCommon {
    let CipherSuiteCommon { suite, hash_provider, confidentiality_limit } = *common;
    CipherSuiteCommon { suite, hash_provider, confidentiality_limit }
}

/// Refuses records of TLS 1.2 that hold more than they may, which is left to the provider there.
struct Bounded(&'static dyn Tls12AeadAlgorithm);

impl Tls12AeadAlgorithm for Bounded {
    fn encrypter(&self, key: AeadKey, iv: &[u8], extra: &[u8]) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv, extra)
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Decrypter(self.0.decrypter(key, iv)))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.0.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv, explicit)
    }
}

struct Decrypter(Box<dyn MessageDecrypter>);

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(&mut self, message: InboundOpaqueMessage<'a>, seq: u64) -> Result<InboundPlainMessage<'a>, Error> {
        let plain = self.0.decrypt(message, seq)?;
        if plain.payload.len() > MAX_PLAIN {
            return Err(Error::PeerSentOversizedRecord);
        }
        Ok(plain)
    }
}
