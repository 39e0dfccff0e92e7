//! Every kind of key with every suite and group, on every provider, from clients on every provider.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use mitu_tls::certificate::load_all;
use mitu_tls::config::{CertificateConfig, ClientAuthConfig, PostQuantum, Provider, TlsPolicy, Version};
use mitu_tls::error::Secrets;
use mitu_tls::policy::PreparedPolicy;
use mitu_tls::provider::{AVAILABLE, base_provider};
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, SignatureAlgorithm,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConnection, SupportedCipherSuite};

const KEYS: [(&str, &SignatureAlgorithm); 5] = [
    ("ecdsa-p256", &PKCS_ECDSA_P256_SHA256),
    ("ed25519", &PKCS_ED25519),
    ("ecdsa-p384", &PKCS_ECDSA_P384_SHA384),
    ("ecdsa-p521", &PKCS_ECDSA_P521_SHA512),
    ("rsa", &PKCS_RSA_SHA256),
];

/// A self-signed certificate of each kind, with its key.
fn certificates() -> (Vec<CertificateConfig>, Secrets) {
    let mut secrets = Secrets::new();
    let configs = KEYS.map(|(id, kind)| {
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (chain, file) = (format!("{id}.crt"), format!("{id}.key"));
        secrets.insert(chain.clone(), certificate.pem().into_bytes());
        secrets.insert(file.clone(), key.serialize_pem().into_bytes());
        CertificateConfig { id: id.to_owned(), chain, key: file }
    });
    (configs.to_vec(), secrets)
}

fn policy(provider: Provider) -> TlsPolicy {
    TlsPolicy {
        provider,
        min_version: Version::Tls12,
        max_version: Version::Tls13,
        cipher_suites: vec![],
        groups: vec![],
        post_quantum: PostQuantum::Allow,
        client_auth: ClientAuthConfig::None,
        tickets: 0,
        early_data: false,
    }
}

/// A client that has one suite and one group.
fn client(provider: &CryptoProvider, suite: SupportedCipherSuite, group: NamedGroup, root: &[u8]) -> ClientConnection {
    let mut provider = CryptoProvider { cipher_suites: vec![suite], ..provider.clone() };
    provider.kx_groups.retain(|one| one.name() == group);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    ClientConnection::new(Arc::new(config), ServerName::try_from("a.test").unwrap()).unwrap()
}

/// Until both have finished, and then a record each way.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) {
    use std::io::{Read, Write};
    client.writer().write_all(b"ping").unwrap();
    server.writer().write_all(b"pong").unwrap();
    while client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut rest = flight.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        flight.clear();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut rest = flight.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let mut said = [0; 4];
    server.reader().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ping");
    client.reader().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"pong");
}

#[test]
fn all_combinations_shake_hands() {
    let (configs, secrets) = certificates();
    let all = load_all(&configs, &secrets, AVAILABLE.iter().copied()).unwrap();
    let mut shaken = 0;
    for &provider in AVAILABLE {
        let prepared = PreparedPolicy::new(&policy(provider), "h2", &secrets).unwrap();
        for (id, _) in KEYS {
            let certificate = &all[&provider][id];
            assert_eq!(certificate.key_type.name(), id);
            let configs = prepared.server_configs(Some("h2"), certificate, None).unwrap();
            for peer in AVAILABLE.iter().map(|peer| base_provider(*peer).unwrap()) {
                let algorithm = certificate.key.key.algorithm();
                let fits = |suite: &&SupportedCipherSuite| suite.usable_for_signature_algorithm(algorithm);
                for suite in peer.cipher_suites.iter().filter(fits) {
                    for group in &peer.kx_groups {
                        if !group.usable_for_version(suite.version().version) {
                            continue;
                        }
                        let mut client = client(&peer, *suite, group.name(), &secrets[&format!("{id}.crt")]);
                        let place = prepared.groups.all.iter().position(|one| one.name() == group.name()).unwrap();
                        let mut server = ServerConnection::new(configs[place].clone()).unwrap();
                        shake(&mut client, &mut server);
                        assert_eq!(server.negotiated_cipher_suite().unwrap().suite(), suite.suite());
                        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), group.name());
                        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
                        shaken += 1;
                    }
                }
            }
        }
    }
    // Five kinds of key, and of suites that fit three of TLS 1.3 with four groups and three of TLS 1.2 with three.
    assert_eq!(shaken, AVAILABLE.len() * AVAILABLE.len() * 5 * (3 * 4 + 3 * 3));
}
