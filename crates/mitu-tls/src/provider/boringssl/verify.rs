//! Signatures of certificates and of handshakes.

use std::sync::LazyLock;

use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::pkey::PKey;
use boring::rsa::Padding;
use boring::sign::{RsaPssSaltlen, Verifier};
use rustls::SignatureScheme;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use rustls::sign::public_key_to_spki;

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// As for AWS-LC: every curve with every hash, RSA from 2048 to 8192 bits. ML-DSA is not among them.
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
        let theirs = aws_lc_rs::default_provider().signature_verification_algorithms;
        let ours = |theirs: &[Algorithm]| -> Vec<Algorithm> { theirs.iter().filter_map(on_boringssl).collect() };
        let mapping: Vec<(SignatureScheme, &'static [Algorithm])> = theirs
            .mapping
            .iter()
            .map(|(scheme, algorithms)| (*scheme, &*ours(algorithms).leak()))
            .filter(|(_, algorithms)| !algorithms.is_empty())
            .collect();
        WebPkiSupportedAlgorithms { all: ours(theirs.all).leak(), mapping: mapping.leak() }
    });
    *ALGORITHMS
}

/// What AWS-LC does under this name, done by BoringSSL.
fn on_boringssl(theirs: &Algorithm) -> Option<Algorithm> {
    let how = How::of(theirs.signature_alg_id())?;
    Some(Box::leak(Box::new(Named { theirs: *theirs, how })))
}

#[derive(Debug)]
struct Named {
    theirs: Algorithm,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Ed25519,
    Ecdsa(Hash),
    RsaPkcs1(Hash),
    RsaPss(Hash),
}

#[derive(Debug, Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn digest(self) -> MessageDigest {
        match self {
            Self::Sha256 => MessageDigest::sha256(),
            Self::Sha384 => MessageDigest::sha384(),
            Self::Sha512 => MessageDigest::sha512(),
        }
    }
}

impl How {
    fn of(signature: AlgorithmIdentifier) -> Option<Self> {
        let known = [
            (alg_id::ED25519, Self::Ed25519),
            (alg_id::ECDSA_SHA256, Self::Ecdsa(Hash::Sha256)),
            (alg_id::ECDSA_SHA384, Self::Ecdsa(Hash::Sha384)),
            (alg_id::ECDSA_SHA512, Self::Ecdsa(Hash::Sha512)),
            (alg_id::RSA_PKCS1_SHA256, Self::RsaPkcs1(Hash::Sha256)),
            (alg_id::RSA_PKCS1_SHA384, Self::RsaPkcs1(Hash::Sha384)),
            (alg_id::RSA_PKCS1_SHA512, Self::RsaPkcs1(Hash::Sha512)),
            (alg_id::RSA_PSS_SHA256, Self::RsaPss(Hash::Sha256)),
            (alg_id::RSA_PSS_SHA384, Self::RsaPss(Hash::Sha384)),
            (alg_id::RSA_PSS_SHA512, Self::RsaPss(Hash::Sha512)),
        ];
        let found = known.iter().find(|(id, _)| same(id, &signature));
        found.map(|(_, how)| *how)
    }
}

/// Whether two identifiers name the same, be there a NULL in the parameters' place or nothing (RFC 4055 §5).
fn same(one: &AlgorithmIdentifier, other: &AlgorithmIdentifier) -> bool {
    let bare = |id: &AlgorithmIdentifier| id.strip_suffix(&[5, 0]).unwrap_or(id).to_vec();
    bare(one) == bare(other)
}

impl SignatureVerificationAlgorithm for Named {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        match self.verify(key, message, signature) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(InvalidSignature),
        }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.theirs.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.theirs.signature_alg_id()
    }
}

impl Named {
    fn verify(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        let key = PKey::public_key_from_der(&public_key_to_spki(&self.public_key_alg_id(), key))?;
        let mut verifier = match self.how {
            How::Ed25519 => Verifier::new_without_digest(&key)?,
            How::Ecdsa(hash) | How::RsaPkcs1(hash) | How::RsaPss(hash) => Verifier::new(hash.digest(), &key)?,
        };
        if let How::RsaPkcs1(_) | How::RsaPss(_) = self.how
            && !(2048..=8192).contains(&key.rsa()?.n().num_bits())
        {
            return Ok(false);
        }
        if let How::RsaPss(hash) = self.how {
            verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
            verifier.set_rsa_mgf1_md(hash.digest())?;
        }
        verifier.verify_oneshot(signature, message)
    }
}
