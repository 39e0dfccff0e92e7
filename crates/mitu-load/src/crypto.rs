//! The public-key operations of a handshake, alone: what no server that uses this library can go below.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    RSA_PSS_SHA256,
};
use clap::Args;
use serde::Serialize;

use crate::error::LoadError;

/// What CertificateVerify signs is this long in TLS 1.3: 64 spaces, a context string, a zero, a SHA-256 digest.
const SIGNED_BYTES: usize = 64 + 33 + 1 + 32;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Batches of each operation; the median is reported
    #[arg(long, default_value = "21")]
    batches: usize,
    /// Operations in a batch
    #[arg(long, default_value = "200")]
    operations: usize,
}

/// Microseconds for one operation, by its name.
#[derive(Debug, Serialize)]
pub struct Costs {
    microseconds: BTreeMap<&'static str, f64>,
}

pub fn run(arguments: &Arguments) -> Result<Costs, LoadError> {
    measure(arguments).map_err(|Unspecified| LoadError::Protocol("a cryptographic operation failed"))
}

fn measure(arguments: &Arguments) -> Result<Costs, Unspecified> {
    let random = SystemRandom::new();
    let message = [0x20; SIGNED_BYTES];
    let mut microseconds = BTreeMap::new();

    let ecdsa: [(_, &'static EcdsaSigningAlgorithm); 2] =
        [("ecdsa_p256_sign", &ECDSA_P256_SHA256_ASN1_SIGNING), ("ecdsa_p384_sign", &ECDSA_P384_SHA384_ASN1_SIGNING)];
    for (name, algorithm) in ecdsa {
        let key = EcdsaKeyPair::generate(algorithm)?;
        microseconds.insert(name, median(arguments, || key.sign(&random, &message).map(drop))?);
    }

    let key = RsaKeyPair::generate(KeySize::Rsa2048)?;
    let mut signature = vec![0; key.public_modulus_len()];
    let sign = || key.sign(&RSA_PSS_SHA256, &random, &message, &mut signature);
    microseconds.insert("rsa_2048_sign", median(arguments, sign)?);

    for (name, algorithm) in [("x25519", &X25519), ("ecdh_p256", &ECDH_P256), ("ecdh_p384", &ECDH_P384)] {
        let peer = EphemeralPrivateKey::generate(algorithm, &random)?.compute_public_key()?;
        let peer = UnparsedPublicKey::new(algorithm, peer.as_ref());
        // Both halves that a server does: its own key share, and the agreement with the client's.
        let exchange = || {
            let private = EphemeralPrivateKey::generate(algorithm, &random)?;
            black_box(private.compute_public_key()?);
            agree_ephemeral(private, peer, Unspecified, |secret| {
                black_box(secret);
                Ok(())
            })
        };
        microseconds.insert(name, median(arguments, exchange)?);
    }
    Ok(Costs { microseconds })
}

/// Microseconds for one call, as the median over batches.
fn median(arguments: &Arguments, mut operation: impl FnMut() -> Result<(), Unspecified>) -> Result<f64, Unspecified> {
    let operations = arguments.operations.max(1);
    let mut batches = Vec::with_capacity(arguments.batches.max(1));
    for _ in 0..arguments.batches.max(1) {
        let started = Instant::now();
        for _ in 0..operations {
            operation()?;
        }
        batches.push(started.elapsed().as_secs_f64() * 1e6 / operations as f64);
    }
    batches.sort_by(f64::total_cmp);
    Ok(batches[batches.len() / 2])
}
