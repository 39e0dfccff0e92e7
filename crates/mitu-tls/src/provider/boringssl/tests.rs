#![allow(clippy::unwrap_used, clippy::panic)]

use boring::hash::MessageDigest;
use boring::pkey::PKey;
use boring::rsa::Rsa;
use boring::sign::Signer;
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm as KeyKind,
};
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::{AlgorithmIdentifier, SignatureVerificationAlgorithm, alg_id};
use rustls::sign::{CertifiedKey, public_key_to_spki};
use rustls::{
    CipherSuite, ContentType, InconsistentKeys, NamedGroup, PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
};

use super::*;

const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];
const KINDS: [&KeyKind; 5] =
    [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512, &PKCS_ED25519, &PKCS_RSA_SHA256];

fn both() -> [CryptoProvider; 2] {
    [aws_lc_rs::default_provider(), provider()]
}

/// Of AWS-LC, ML-DSA left out.
fn verifiers(provider: &CryptoProvider) -> Vec<(AlgorithmIdentifier, AlgorithmIdentifier)> {
    let all = provider.signature_verification_algorithms.all.iter();
    let named = all.map(|one| (one.public_key_alg_id(), one.signature_alg_id()));
    named.filter(|(key, signature)| key != signature || *key == alg_id::ED25519).collect()
}

#[test]
fn the_same_signatures_are_verified() {
    let [theirs, ours] = both();
    assert_eq!(verifiers(&ours), verifiers(&theirs));
    assert_eq!(verifiers(&ours).len(), 19);
    assert_eq!(ours.signature_verification_algorithms.all.len(), 19);
    let schemes = |provider: &CryptoProvider| provider.signature_verification_algorithms.supported_schemes();
    let without_ml_dsa: Vec<_> = schemes(&theirs).into_iter().filter(|scheme| SCHEMES.contains(scheme)).collect();
    assert_eq!(schemes(&ours), without_ml_dsa);
}

/// Each signs with every kind of key and every scheme; either verifies it, and no other message under it.
#[test]
fn each_verifies_what_the_other_signs() {
    let mut signed = 0;
    for kind in KINDS {
        let key = KeyPair::generate_for(kind).unwrap();
        let der = || PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        for signing in both() {
            let loaded = signing.key_provider.load_private_key(der()).unwrap();
            for scheme in SCHEMES {
                let Some(signer) = loaded.choose_scheme(&[scheme]) else { continue };
                let signature = signer.sign(b"message").unwrap();
                for verifying in both() {
                    let known = verifying.signature_verification_algorithms.mapping.iter();
                    let algorithm = known.clone().find(|(known, _)| *known == scheme).unwrap().1[0];
                    let verify = |message| algorithm.verify_signature(key.der_bytes(), message, &signature);
                    assert!(verify(b"message").is_ok(), "{scheme:?}");
                    assert!(verify(b"another").is_err(), "{scheme:?}");
                }
                signed += 1;
            }
        }
    }
    assert_eq!(signed, 2 * (4 + 6));
}

#[test]
fn both_prefer_the_same_scheme() {
    for kind in KINDS {
        let key = KeyPair::generate_for(kind).unwrap();
        let chosen = both().map(|provider| {
            let key = provider.key_provider.load_private_key(key.serialize_der().try_into().unwrap()).unwrap();
            (key.choose_scheme(&SCHEMES).unwrap().scheme(), key.algorithm(), key.public_key().map(|key| key.to_vec()))
        });
        assert_eq!(chosen[0], chosen[1]);
    }
}

/// In certificates and in TLS 1.2 a curve is not bound to a hash.
#[test]
fn every_curve_goes_with_every_hash() {
    let mut verified = 0;
    for kind in &KINDS[..3] {
        let key = KeyPair::generate_for(kind).unwrap();
        let signing = PKey::private_key_from_pkcs8(&key.serialize_der()).unwrap();
        let spki = key.subject_public_key_info();
        for (id, digest) in [
            (alg_id::ECDSA_SHA256, MessageDigest::sha256()),
            (alg_id::ECDSA_SHA384, MessageDigest::sha384()),
            (alg_id::ECDSA_SHA512, MessageDigest::sha512()),
        ] {
            let signature = Signer::new(digest, &signing).unwrap().sign_oneshot_to_vec(b"message").unwrap();
            for provider in both() {
                let of_key = |one: &&&dyn SignatureVerificationAlgorithm| {
                    one.signature_alg_id() == id
                        && public_key_to_spki(&one.public_key_alg_id(), key.der_bytes()).as_ref() == spki
                };
                let algorithm = provider.signature_verification_algorithms.all.iter().find(of_key).unwrap();
                assert!(algorithm.verify_signature(key.der_bytes(), b"message", &signature).is_ok(), "{algorithm:?}");
                verified += 1;
            }
        }
    }
    assert_eq!(verified, 18);
}

#[test]
fn short_rsa_keys_are_refused() {
    let key = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    let public = key.rsa().unwrap().public_key_to_der_pkcs1().unwrap();
    let signature = Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(b"message").unwrap();
    for provider in both() {
        let pkcs8 = PrivatePkcs8KeyDer::from(key.private_key_to_der_pkcs8().unwrap());
        assert!(provider.key_provider.load_private_key(pkcs8.into()).is_err());
        let known = provider.signature_verification_algorithms.mapping.iter();
        let (_, algorithms) = known.clone().find(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256).unwrap();
        assert!(algorithms[0].verify_signature(&public, b"message", &signature).is_err());
    }
}

#[test]
fn a_key_of_another_certificate_is_noticed() {
    let [one, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec![]).unwrap().self_signed(&one).unwrap();
    let load = |key: &KeyPair| {
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        CertifiedKey::from_der(vec![certificate.der().clone()], der, &provider())
    };
    assert!(load(&one).is_ok());
    assert!(matches!(load(&other), Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch))));
}

#[test]
fn both_agree_on_secrets() {
    let [theirs, ours] = both();
    for group in ours.kx_groups {
        let other = *theirs.kx_groups.iter().find(|other| other.name() == group.name()).unwrap();
        for (client, server) in [(group, other), (other, group), (group, group)] {
            let started = client.start().unwrap();
            let completed = server.start_and_complete(started.pub_key()).unwrap();
            assert_eq!((started.group(), completed.group), (group.name(), group.name()));
            let secret = started.complete(&completed.pub_key).unwrap();
            assert_eq!(secret.secret_bytes(), completed.secret.secret_bytes());
        }
    }
}

#[test]
fn bad_key_shares_are_refused_in_the_same_words() {
    let refused = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);
    for provider in both() {
        for group in provider.kx_groups {
            let good = group.start().unwrap().pub_key().to_vec();
            let curve = [NamedGroup::secp256r1, NamedGroup::secp384r1].contains(&group.name());
            let mut shares = vec![vec![], vec![0], vec![0; good.len()], good[..good.len() - 1].to_vec(), {
                let mut longer = good.clone();
                longer.push(0);
                longer
            }];
            if curve {
                let half = good.len() / 2;
                // The same point, compressed; and one off the curve.
                shares.push([&[2 + (good[good.len() - 1] & 1)], &good[1..=half]].concat());
                shares.push([&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat());
            }
            for share in shares {
                let said = group.start_and_complete(&share).map(|_| ()).unwrap_err();
                assert_eq!(said, refused, "{:?} {}", group.name(), share.len());
                if group.name() != NamedGroup::X25519MLKEM768 {
                    let said = group.start().unwrap().complete(&share).map(|_| ()).unwrap_err();
                    assert_eq!(said, refused, "{:?} {}", group.name(), share.len());
                }
            }
        }
    }
}

/// As TLS 1.2 seals them with ChaCha20-Poly1305, whose keys can be made here.
#[test]
fn records_that_hold_too_much_are_refused() {
    const RECORD: usize = 16 << 10;
    for provider in both() {
        let suites = provider.cipher_suites.iter();
        let suite =
            suites.clone().find(|suite| suite.suite() == CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
        let Some(SupportedCipherSuite::Tls12(suite)) = suite else { panic!("it is there") };
        let decrypted = |length: usize| {
            let mut encrypter = suite.aead_alg.encrypter(AeadKey::from([7; 32]), &[9; 12], &[]);
            let plain = OutboundPlainMessage {
                typ: ContentType::ApplicationData,
                version: ProtocolVersion::TLSv1_2,
                payload: OutboundChunks::Single(&vec![1; length]),
            };
            let mut sealed = encrypter.encrypt(plain, 0).unwrap().encode().split_off(5);
            let sealed =
                InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut sealed);
            let mut decrypter = suite.aead_alg.decrypter(AeadKey::from([7; 32]), &[9; 12]);
            decrypter.decrypt(sealed, 0).map(|plain| plain.payload.len())
        };
        assert_eq!(decrypted(RECORD), Ok(RECORD));
        assert_eq!(decrypted(RECORD + 1), Err(Error::PeerSentOversizedRecord));
    }
}

#[test]
fn keys_of_both_versions_of_pkcs8_are_taken() {
    let second = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_der();
    let first = first_version(&second).unwrap();
    assert!(first.len() < second.len());
    assert_eq!(first_version(&first), None);
    assert_eq!(first_version(&second[..40]), None);
    let load = |der: &[u8]| Keys.load_private_key(PrivatePkcs8KeyDer::from(der.to_vec()).into()).unwrap();
    let sign = |key: Arc<dyn SigningKey>| key.choose_scheme(&[SignatureScheme::ED25519]).unwrap().sign(b"it").unwrap();
    assert_eq!(sign(load(&first)), sign(load(&second)));
}
