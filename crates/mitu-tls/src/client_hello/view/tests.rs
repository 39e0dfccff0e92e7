use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::Acceptor;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

/// The record that rustls sends as a client, whose first group it makes a key for.
fn client(groups: &[&'static dyn SupportedKxGroup], versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let provider = CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = ClientConnection::new(Arc::new(config), "a.test".try_into().unwrap()).unwrap();
    let mut record = Vec::new();
    client.write_tls(&mut record).unwrap();
    record
}

fn parse(record: &[u8]) -> Option<ClientHello<'_>> {
    ClientHello::parse(&record[5 + 4..])
}

/// `record` with one more extension, in front of the others or behind them.
fn with(record: &[u8], extension: &[u8], first: bool) -> Vec<u8> {
    let mut message = record[5..].to_vec();
    let mut body = Reader(&message[4..]);
    body.take(2 + 32).unwrap();
    body.vector8().unwrap();
    body.vector16().unwrap();
    body.vector8().unwrap();
    let lengths = [4 + message[4..].len() - body.0.len(), 2];
    let at = if first { lengths[0] + 2 } else { message.len() };
    message.splice(at..at, extension.iter().copied());
    for at in lengths {
        let length = u16::from_be_bytes([message[at], message[at + 1]]) + extension.len() as u16;
        message[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

/// Both must say the same of what rustls accepts.
fn compare(record: &[u8]) -> bool {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &*record).unwrap();
    let Ok(Some(accepted)) = acceptor.accept() else { return false };
    let theirs = accepted.client_hello();
    let ours = parse(record).unwrap();
    assert_eq!(ours.server_name.as_deref(), theirs.server_name());
    assert_eq!(ours.alpn().map(Iterator::collect::<Vec<_>>), theirs.alpn().map(Iterator::collect));
    let numbers = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    };
    assert_eq!(numbers(ours.suites), theirs.cipher_suites().iter().map(|&one| one.into()).collect::<Vec<_>>());
    assert_eq!(numbers(ours.schemes), theirs.signature_schemes().iter().map(|&one| one.into()).collect::<Vec<_>>());
    let groups = theirs.named_groups().unwrap_or_default();
    assert_eq!(numbers(ours.groups), groups.iter().map(|&one| one.into()).collect::<Vec<_>>());
    true
}

#[test]
fn what_a_client_says_is_found() {
    let record = client(&[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1], &[&TLS13, &TLS12]);
    let hello = parse(&record).unwrap();
    assert_eq!(hello.server_name, Some(Cow::Borrowed("a.test")));
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    assert!(hello.tls13 && !hello.resumes);
    assert!(hello.has_suite(CipherSuite::TLS13_AES_128_GCM_SHA256) && !hello.has_suite(CipherSuite::Unknown(1)));
    assert!(hello.has_scheme(SignatureScheme::ED25519) && !hello.has_scheme(SignatureScheme::Unknown(1)));
    assert!(hello.has_group(NamedGroup::secp256r1) && !hello.has_group(NamedGroup::secp384r1));
    assert!(hello.has_key_for(NamedGroup::X25519MLKEM768) && hello.has_key_for(NamedGroup::X25519));
    assert!(!hello.has_key_for(NamedGroup::secp256r1));
}

#[test]
fn tls_12_has_no_keys() {
    let record = client(&[kx_group::X25519, kx_group::SECP256R1], &[&TLS12]);
    let hello = parse(&record).unwrap();
    assert!(!hello.tls13 && !hello.resumes && !hello.has_key_for(NamedGroup::X25519));
    // An empty ticket asks for one, and resumes nothing.
    assert!(parse(&with(&client(&[kx_group::X25519], &[&TLS13]), &[0, 35, 0, 1, 9], false)).unwrap().resumes);
}

/// A difference between the two would let a client be decided by one thing and served by another.
#[test]
fn whatever_rustls_accepts_means_the_same_here() {
    let hellos = [
        client(&[kx_group::X25519], &[&TLS13, &TLS12]),
        client(&[kx_group::X25519MLKEM768, kx_group::X25519], &[&TLS13]),
        client(&[kx_group::X25519, kx_group::SECP256R1], &[&TLS12]),
    ];
    let mut accepted = 0;
    for record in &hellos {
        assert!(compare(record));
        for end in 5..record.len() {
            for value in
                [0, 1, 2, 16, 0x7f, 0xff, !record[end], record[end].wrapping_add(1), record[end].wrapping_sub(1)]
            {
                let mut wrong = record.clone();
                wrong[end] = value;
                accepted += usize::from(compare(&wrong));
            }
            // A shorter body, whose length says so.
            let mut short = record[..end].to_vec();
            if let [_, _, _, high, low, _, _, high2, low2, rest @ ..] = &mut short[..] {
                [*high, *low] = (rest.len() as u16 + 4).to_be_bytes();
                [*high2, *low2] = (rest.len() as u16).to_be_bytes();
                accepted += usize::from(compare(&short));
            }
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn server_names_are_read_as_rustls_reads_them() {
    let record = client(&[kx_group::X25519], &[&TLS13]);
    let names =
        ["b.test", "B.Test", "b.test.", "127.0.0.1", "::1", "a_b.test", "*.test", "b..test", "-b.test", "é.test", ""];
    // Its own server name is made an unknown extension.
    let at = record.windows(6).position(|bytes| bytes == b"a.test").unwrap() - 9;
    let mut record = record.clone();
    record[at..at + 2].copy_from_slice(&[0x7a, 0x7a]);
    for name in names {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
        let other = [&[1][..], &entry[1..]].concat();
        for list in
            [entry.clone(), [entry.clone(), entry.clone()].concat(), [entry.clone(), other.clone()].concat(), other]
        {
            let body = [&(list.len() as u16).to_be_bytes()[..], &list].concat();
            let extension = [&[0, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
            for first in [true, false] {
                let taken = compare(&with(&record, &extension, first));
                assert!(taken || name != "b.test" || list != entry, "{list:?}");
            }
        }
    }
}
