//! The cipher suites with the key schedule of TLS 1.3 on RustCrypto's HMAC instead of AWS-LC's.
//!
//! A handshake derives its keys in some forty HMACs of a block or two each. Both hash them with the CPU's instructions;
//! but AWS-LC makes and clears a context on the heap for each, which takes as long again (docs/adr/0008).

use std::marker::PhantomData;
use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::hmac::{Hmac as RustlsHmac, Key, Tag};
use rustls::crypto::tls13::{Hkdf, HkdfUsingHmac};
use rustls::crypto::{CipherSuiteCommon, aws_lc_rs};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use sha2::{Sha256, Sha384};

/// All that can be configured.
pub fn cipher_suites() -> &'static [SupportedCipherSuite] {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        let replaced = aws_lc_rs::ALL_CIPHER_SUITES.iter().map(|suite| match suite {
            SupportedCipherSuite::Tls13(suite) => {
                SupportedCipherSuite::Tls13(Box::leak(Box::new(on_rust_crypto(suite))))
            }
            suite => *suite,
        });
        replaced.collect()
    });
    &SUITES
}

fn on_rust_crypto(suite: &'static Tls13CipherSuite) -> Tls13CipherSuite {
    let CipherSuiteCommon { suite: name, hash_provider, confidentiality_limit } = suite.common;
    let hkdf_provider: &dyn Hkdf = match hash_provider.output_len() {
        32 => &HkdfUsingHmac(&HmacOf::<Hmac<Sha256>>(PhantomData)),
        _ => &HkdfUsingHmac(&HmacOf::<Hmac<Sha384>>(PhantomData)),
    };
    Tls13CipherSuite {
        common: CipherSuiteCommon { suite: name, hash_provider, confidentiality_limit },
        hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: suite.quic,
    }
}

struct HmacOf<M>(PhantomData<fn() -> M>);

impl<M: Mac + KeyInit + Clone + Send + Sync + 'static> RustlsHmac for HmacOf<M> {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        #[expect(clippy::expect_used, reason = "an HMAC key may have any length")]
        Box::new(Keyed(<M as KeyInit>::new_from_slice(key).expect("of any length")))
    }

    fn hash_output_len(&self) -> usize {
        M::output_size()
    }
}

/// The state after the key, of which each message takes a copy.
struct Keyed<M>(M);

impl<M: Mac + Clone + Send + Sync> Key for Keyed<M> {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut mac = self.0.clone();
        mac.update(first);
        for part in middle {
            mac.update(part);
        }
        mac.update(last);
        Tag::new(&mac.finalize().into_bytes())
    }

    fn tag_len(&self) -> usize {
        M::output_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of both, on the same input.
    fn outputs(hkdf: &dyn Hkdf) -> Vec<Vec<u8>> {
        let secret = [7; 32];
        let info: [&[u8]; 3] = [b"tls13 ", b"derived", &[9; 48]];
        let extracted = [
            hkdf.extract_from_zero_ikm(None),
            hkdf.extract_from_zero_ikm(Some(&secret)),
            hkdf.extract_from_secret(None, &secret),
            hkdf.extract_from_secret(Some(&[1; 48]), &secret),
        ];
        let mut outputs = Vec::new();
        for expander in extracted {
            let block = expander.expand_block(&info);
            let mut long = [0; 150];
            assert!(expander.expand_slice(&info, &mut long).is_ok());
            assert!(expander.expand_slice(&info, &mut vec![0; 255 * expander.hash_len() + 1]).is_err());
            outputs.extend([
                block.as_ref().to_vec(),
                long.to_vec(),
                hkdf.expander_for_okm(&block).expand_block(&[]).as_ref().to_vec(),
                hkdf.hmac_sign(&block, b"message").as_ref().to_vec(),
            ]);
        }
        outputs
    }

    #[test]
    fn both_libraries_derive_the_same() {
        let mut compared = 0;
        for (ours, theirs) in cipher_suites().iter().zip(aws_lc_rs::ALL_CIPHER_SUITES) {
            assert_eq!(ours, theirs);
            if let (Some(ours), Some(theirs)) = (ours.tls13(), theirs.tls13()) {
                assert_eq!(outputs(ours.hkdf_provider), outputs(theirs.hkdf_provider), "{:?}", ours.common.suite);
                compared += 1;
            }
        }
        assert_eq!(compared, 3);
    }
}
