//! What QUIC's packets need of a cipher suite. The provider's header protection asks BoringSSL for more room than it gives,
//! and panics: here is another one for AES.

use boring::symm::{Cipher, Crypter, Mode};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::quic::{Algorithm, HeaderProtectionKey, PacketKey};
use rustls::{CipherSuite, Error};

/// A block, which is also what a sample has (RFC 9001, section 5.4.3).
const BLOCK: usize = 16;

/// `algorithm` of this suite, with header protection that works.
pub fn mended(suite: CipherSuite, algorithm: &'static dyn Algorithm) -> &'static dyn Algorithm {
    let cipher = match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Cipher::aes_128_ecb,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Cipher::aes_256_ecb,
        _ => return algorithm,
    };
    Box::leak(Box::new(Mended { algorithm, cipher }))
}

struct Mended {
    algorithm: &'static dyn Algorithm,
    cipher: fn() -> Cipher,
}

impl Algorithm for Mended {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        self.algorithm.packet_key(key, iv)
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn HeaderProtectionKey> {
        Box::new(HeaderKey { key, cipher: (self.cipher)() })
    }

    fn aead_key_len(&self) -> usize {
        self.algorithm.aead_key_len()
    }
}

struct HeaderKey {
    key: AeadKey,
    cipher: Cipher,
}

impl HeaderKey {
    /// One block, encrypted (RFC 9001, section 5.4.3).
    fn mask(&self, sample: &[u8]) -> Result<[u8; 2 * BLOCK], Error> {
        let failed = |_| Error::General("no mask for a packet's header".to_owned());
        let mut mask = [0; 2 * BLOCK];
        let mut crypter = Crypter::new(self.cipher, Mode::Encrypt, self.key.as_ref(), None).map_err(failed)?;
        crypter.pad(false);
        crypter.update(sample.get(..BLOCK).unwrap_or(&[0; BLOCK]), &mut mask).map_err(failed)?;
        Ok(mask)
    }
}

/// Bits of the first byte that are protected: four where the header is long, else five.
fn protected(first: u8) -> u8 {
    if first & 0x80 != 0 { 0x0f } else { 0x1f }
}

fn apply(mask: &[u8], length: u8, number: &mut [u8]) {
    let length = usize::from(length & 0x03) + 1;
    number.iter_mut().zip(mask).take(length).for_each(|(byte, mask)| *byte ^= mask);
}

impl HeaderProtectionKey for HeaderKey {
    fn encrypt_in_place(&self, sample: &[u8], first: &mut u8, packet_number: &mut [u8]) -> Result<(), Error> {
        let mask = self.mask(sample)?;
        let length = *first;
        *first ^= mask[0] & protected(*first);
        apply(&mask[1..], length, packet_number);
        Ok(())
    }

    fn decrypt_in_place(&self, sample: &[u8], first: &mut u8, packet_number: &mut [u8]) -> Result<(), Error> {
        let mask = self.mask(sample)?;
        *first ^= mask[0] & protected(*first);
        apply(&mask[1..], *first, packet_number);
        Ok(())
    }

    fn sample_len(&self) -> usize {
        BLOCK
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustls::crypto::aws_lc_rs;
    use rustls::quic::Version;
    use rustls::{Side, Tls13CipherSuite};

    use super::*;

    #[test]
    fn both_libraries_protect_headers_alike() {
        let mut compared = 0;
        for suite in super::super::record::cipher_suites() {
            let Some(ours) = suite.tls13() else { continue };
            let theirs = aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|other| other.suite() == suite.suite()).unwrap();
            let key = |suite: &'static Tls13CipherSuite| {
                suite.quic_suite().unwrap().keys(b"destination", Side::Server, Version::V1).local.header
            };
            for first in [0x43, 0xc0, 0xe2] {
                let sample: [u8; BLOCK] = std::array::from_fn(|at| (at as u8 * 3).wrapping_add(first));
                let run = |key: Box<dyn HeaderProtectionKey>| {
                    let (mut protected, mut number) = (first, [1, 2, 3, 4]);
                    key.encrypt_in_place(&sample, &mut protected, &mut number).unwrap();
                    let told = (protected, number);
                    key.decrypt_in_place(&sample, &mut protected, &mut number).unwrap();
                    assert_eq!((protected, number), (first, [1, 2, 3, 4]));
                    told
                };
                assert_eq!(run(key(ours)), run(key(theirs.tls13().unwrap())));
                compared += 1;
            }
        }
        assert_eq!(compared, 9);
    }
}
