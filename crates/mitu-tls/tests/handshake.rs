//! From a real client's ClientHello to the finished handshake, over TCP: what is chosen, and how it is refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use mitu_tls::certificate::load_all;
use mitu_tls::client_hello;
use mitu_tls::config::{
    AlpnMode, AlpnPolicy, CertificateConfig, ClientAuthConfig, PostQuantum, Provider, SiteConfig, TicketsConfig,
    TlsPolicy, Version,
};
use mitu_tls::early_data::MAX_TCP;
use mitu_tls::error::Secrets;
use mitu_tls::handshake::{self, Clock, Failed};
use mitu_tls::identity::ClientIdentity;
use mitu_tls::provider::{AVAILABLE, AWS_LC, base_provider};
use mitu_tls::select::{Offer, Selector, SelectorConfig};
use mitu_tls::ticket::Ticketers;
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// What the server chose for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chosen {
    protocol: usize,
    site: String,
    key_type: &'static str,
    resumed: bool,
    group: NamedGroup,
    /// Whether the client was asked for another key.
    retried: bool,
    identity: Option<String>,
}

type Outcomes = Arc<Mutex<Vec<Result<Chosen, &'static str>>>>;

/// Serves `selector` until the test ends.
async fn serve(selector: Selector) -> (std::net::SocketAddr, Outcomes) {
    serve_shared(Arc::new(selector)).await
}

/// The same with one that is changed meanwhile.
async fn serve_shared(selector: Arc<Selector>) -> (std::net::SocketAddr, Outcomes) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let outcomes = Outcomes::default();
    let told = outcomes.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (selector, told) = (selector.clone(), told.clone());
            tokio::spawn(async move {
                let outcome = accept(tcp, &selector).await.map_err(|failed| failed.error.reason().as_str());
                told.lock().unwrap().push(outcome);
            });
        }
    });
    (address, outcomes)
}

async fn accept(mut tcp: TcpStream, selector: &Selector) -> Result<Chosen, Failed> {
    let arrived = client_hello::read(&mut tcp, pending()).await?;
    let Some(hello) = arrived.view() else { return Err(handshake::refuse_malformed(tcp, arrived).await) };
    let resumes = hello.resumes;
    let (prepared, config, retries) = match selector.select(&hello) {
        Ok(selection) => (selection.index, selection.config.clone(), selection.retries),
        Err(refusal) => return Err(handshake::refuse(tcp, refusal.error).await),
    };
    let (mut crypto, mut client_flight) = Default::default();
    let clock = Clock::start(&mut crypto, &mut client_flight);
    let mut stream = handshake::run(tcp, arrived.into_records(), config, clock).await?;
    assert!(!crypto.is_zero() && !client_flight.is_zero());
    let tls = stream.tls();
    let prepared = &selector.prepared()[prepared];
    let leaf = tls.peer_certificates().and_then(<[_]>::first);
    let chosen = Chosen {
        protocol: prepared.protocol,
        site: prepared.site.to_string(),
        key_type: prepared.key_type.name(),
        resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        group: tls.negotiated_key_exchange_group().unwrap().name(),
        retried: tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest),
        identity: leaf.and_then(|leaf| ClientIdentity::from_verified(leaf).common_name),
    };
    assert!(resumes || !chosen.resumed);
    assert_eq!(retries, chosen.retried);
    // The ticket goes out with the server's end of the connection.
    stream.shutdown().await.unwrap();
    Ok(chosen)
}

/// A CA, what it issued for the servers, and a device's certificate.
struct Pki {
    /// What the server runs on.
    provider: Provider,
    secrets: Secrets,
    certificates: Vec<CertificateConfig>,
    device: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

fn pki(provider: Provider) -> Pki {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let mut secrets = Secrets::from([("ca".to_owned(), ca_certificate.pem().into_bytes())]);
    let mut certificates = Vec::new();
    for (id, algorithm) in [("ecdsa", &PKCS_ECDSA_P256_SHA256), ("rsa", &PKCS_RSA_SHA256)] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned(), "b.test".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        secrets.insert(format!("{id}.crt"), certificate.pem().into_bytes());
        secrets.insert(format!("{id}.key"), key.serialize_pem().into_bytes());
        certificates.push(CertificateConfig {
            id: id.to_owned(),
            chain: format!("{id}.crt"),
            key: format!("{id}.key"),
        });
    }
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "device-17");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let device = params.signed_by(&key, &issuer).unwrap();
    Pki { provider, secrets, certificates, device: (device.der().clone(), key.serialize_der().try_into().unwrap()) }
}

/// One for each of the providers, all of which do the same.
fn every() -> impl Iterator<Item = Pki> {
    AVAILABLE.iter().map(|provider| pki(*provider))
}

fn policy(provider: Provider, min_version: Version, client_auth: ClientAuthConfig) -> TlsPolicy {
    TlsPolicy {
        provider,
        min_version,
        max_version: Version::Tls13,
        cipher_suites: vec![],
        groups: vec![],
        post_quantum: PostQuantum::Allow,
        client_auth,
        tickets: 1,
        early_data: false,
    }
}

/// A policy that lets every protocol be, `count` of them.
fn lenient(count: usize, no_alpn: Option<usize>) -> AlpnPolicy {
    AlpnPolicy { mode: AlpnMode::Lenient, protocols: (0..count).collect(), no_alpn, ranking: None }
}

/// `h2` wants TLS 1.3, `mqtt` allows 1.2 and a client certificate, `private/1` demands one.
fn selector(pki: &Pki, no_alpn: Option<usize>, default_site: Option<usize>) -> Selector {
    selector_with(pki, [lenient(3, no_alpn), lenient(3, no_alpn)], default_site)
}

/// `alpn`: of `a.test` and `b.test`.
fn selector_with(pki: &Pki, alpn: [AlpnPolicy; 2], default_site: Option<usize>) -> Selector {
    let ca = || "ca".to_owned();
    let policies = [
        ("h2", policy(pki.provider, Version::Tls13, ClientAuthConfig::None)),
        ("mqtt", policy(pki.provider, Version::Tls12, ClientAuthConfig::Optional { ca: ca() })),
        ("private/1", policy(pki.provider, Version::Tls13, ClientAuthConfig::Required { ca: ca() })),
    ];
    selector_of(pki, &policies, alpn, default_site)
}

fn selector_of(
    pki: &Pki,
    policies: &[(&str, TlsPolicy)],
    alpn: [AlpnPolicy; 2],
    default_site: Option<usize>,
) -> Selector {
    let certificates = load_all(&pki.certificates, &pki.secrets, [pki.provider]).unwrap();
    let site = |name: &str, alpn: AlpnPolicy| SiteConfig {
        alpn,
        names: vec![name.to_owned()],
        certificates: pki.certificates.iter().map(|certificate| certificate.id.clone()).collect(),
    };
    let [a, b] = alpn;
    let offers = policies.iter().enumerate().map(|(index, (alpn, policy))| Offer { index, alpn, policy });
    let config = SelectorConfig {
        listener: "edge",
        protocols: offers.collect(),
        sites: &[site("a.test", a), site("b.test", b)],
        default_site,
        early_data: MAX_TCP,
        is_as_before: true,
    };
    let tickets =
        TicketsConfig { secrets: vec![], rotation_ms: NonZeroU64::new(3_600_000).unwrap(), lifetime_ms: 7_200_000 };
    let mut ticketers = Ticketers::new(&tickets, &pki.secrets).unwrap();
    Selector::new(&config, &certificates, &pki.secrets, &mut ticketers, None).unwrap()
}

/// Any certificate will do, as long as it is signed with one of these schemes.
#[derive(Debug)]
struct Schemes(Vec<SignatureScheme>);

impl ServerCertVerifier for Schemes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
const RSA: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;

struct Client<'a> {
    alpn: &'a [&'a str],
    versions: &'a [&'static SupportedProtocolVersion],
    schemes: &'a [SignatureScheme],
    /// It sends a key for the first; with the hybrid, one for X25519 as well.
    groups: &'a [&'static dyn SupportedKxGroup],
    device: Option<&'a Pki>,
}

impl Default for Client<'_> {
    fn default() -> Self {
        const GROUPS: &[&dyn SupportedKxGroup] = &[X25519, SECP256R1];
        Self { alpn: &["h2"], versions: rustls::ALL_VERSIONS, schemes: &[ECDSA, RSA], groups: GROUPS, device: None }
    }
}

impl Client<'_> {
    fn config(&self) -> Arc<ClientConfig> {
        let provider = CryptoProvider { kx_groups: self.groups.to_vec(), ..base_provider(AWS_LC).unwrap() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Schemes(self.schemes.to_vec())));
        let mut config = match self.device {
            Some(pki) => builder.with_client_auth_cert(vec![pki.device.0.clone()], pki.device.1.clone_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Connects, reads to the end, and gives the ALPN that was agreed.
async fn connect(
    address: std::net::SocketAddr,
    name: &'static str,
    config: Arc<ClientConfig>,
) -> Result<Option<String>, Error> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let unwrap = |error: std::io::Error| error.downcast::<Error>().unwrap_or_else(|error| panic!("{error}"));
    let mut stream = TlsConnector::from(config).connect(name, tcp).await.map_err(unwrap)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map_err(unwrap)?;
    Ok(stream.get_ref().1.alpn_protocol().map(|alpn| String::from_utf8(alpn.to_vec()).unwrap()))
}

async fn last(outcomes: &Outcomes) -> Result<Chosen, &'static str> {
    for _ in 0..200 {
        if let Some(outcome) = outcomes.lock().unwrap().pop() {
            return outcome;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the server finished nothing");
}

#[tokio::test]
async fn each_protocol_has_a_policy_of_its_own() {
    for pki in every() {
        let (address, outcomes) = serve(selector(&pki, None, Some(0))).await;
        let tls12 = &[&rustls::version::TLS12][..];

        let old_h2 = Client { versions: tls12, ..Client::default() };
        let refused = connect(address, "a.test", old_h2.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::ProtocolVersion));
        assert_eq!(last(&outcomes).await, Err("peer_incompatible"));

        let old_mqtt = Client { alpn: &["mqtt"], versions: tls12, ..Client::default() };
        assert_eq!(connect(address, "a.test", old_mqtt.config()).await.unwrap().as_deref(), Some("mqtt"));
        assert_eq!(last(&outcomes).await.unwrap().identity, None);

        let device = Client { alpn: &["mqtt"], device: Some(&pki), ..Client::default() };
        connect(address, "a.test", device.config()).await.unwrap();
        assert_eq!(last(&outcomes).await.unwrap().identity.as_deref(), Some("device-17"));

        let anonymous = Client { alpn: &["private/1"], ..Client::default() };
        let refused = connect(address, "a.test", anonymous.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(last(&outcomes).await, Err("client_certificate_missing"));
    }
}

#[tokio::test]
async fn the_certificate_is_one_the_client_can_verify() {
    for pki in every() {
        let (address, outcomes) = serve(selector(&pki, None, Some(0))).await;
        let tls12 = &[&rustls::version::TLS12][..];
        for (schemes, versions, expected) in [
            (&[ECDSA, RSA][..], rustls::ALL_VERSIONS, "ecdsa-p256"),
            (&[RSA], rustls::ALL_VERSIONS, "rsa"),
            (&[ECDSA], tls12, "ecdsa-p256"),
            (&[RSA], tls12, "rsa"),
        ] {
            let client = Client { alpn: &["mqtt"], versions, schemes, ..Client::default() };
            connect(address, "a.test", client.config()).await.unwrap();
            assert_eq!(last(&outcomes).await.unwrap().key_type, expected, "{schemes:?} {versions:?}");
        }
    }
}

#[tokio::test]
async fn the_group_is_one_the_client_has_a_key_for_unless_the_hybrid_is_preferred() {
    const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;
    for pki in every() {
        let make = |alpn, post_quantum, groups: &[&str]| {
            let groups = groups.iter().map(ToString::to_string).collect();
            (alpn, TlsPolicy { post_quantum, groups, ..policy(pki.provider, Version::Tls12, ClientAuthConfig::None) })
        };
        let policies = [
            make("prefer", PostQuantum::Prefer, &[]),
            make("allow", PostQuantum::Allow, &[]),
            make("off", PostQuantum::Off, &[]),
            make("listed", PostQuantum::Allow, &["secp384r1", "X25519"]),
        ];
        let (address, outcomes) =
            serve(selector_of(&pki, &policies, [lenient(4, None), lenient(4, None)], Some(0))).await;
        let tls12 = &[&rustls::version::TLS12][..];
        for (alpn, groups, versions, group, retried) in [
            ("prefer", &[X25519MLKEM768, X25519][..], rustls::ALL_VERSIONS, HYBRID, false),
            ("allow", &[X25519MLKEM768, X25519], rustls::ALL_VERSIONS, HYBRID, false),
            ("off", &[X25519MLKEM768, X25519], rustls::ALL_VERSIONS, NamedGroup::X25519, false),
            // No key for the hybrid.
            ("prefer", &[X25519, X25519MLKEM768], rustls::ALL_VERSIONS, HYBRID, true),
            ("allow", &[X25519, X25519MLKEM768], rustls::ALL_VERSIONS, NamedGroup::X25519, false),
            ("prefer", &[X25519, SECP256R1], rustls::ALL_VERSIONS, NamedGroup::X25519, false),
            // A key for one that costs more is better than a round trip, and the listed order counts among those without.
            ("allow", &[SECP384R1, X25519], rustls::ALL_VERSIONS, NamedGroup::secp384r1, false),
            ("listed", &[X25519, SECP384R1], rustls::ALL_VERSIONS, NamedGroup::X25519, false),
            ("listed", &[SECP256R1, X25519, SECP384R1], rustls::ALL_VERSIONS, NamedGroup::secp384r1, true),
            ("allow", &[X25519MLKEM768], rustls::ALL_VERSIONS, HYBRID, false),
            // TLS 1.2 has neither hybrid nor keys sent ahead.
            ("prefer", &[SECP256R1, X25519MLKEM768, X25519], tls12, NamedGroup::X25519, false),
        ] {
            let client = Client { alpn: &[alpn], groups, versions, ..Client::default() };
            connect(address, "a.test", client.config()).await.unwrap();
            let chosen = last(&outcomes).await.unwrap();
            assert_eq!((chosen.group, chosen.retried), (group, retried), "{alpn} {groups:?} {versions:?}");
        }
        let nothing = Client { alpn: &["listed"], groups: &[SECP256R1], ..Client::default() };
        let refused = connect(address, "a.test", nothing.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::HandshakeFailure));
        assert_eq!(last(&outcomes).await, Err("peer_incompatible"));
    }
}

#[tokio::test]
async fn names_lead_to_sites_and_unknown_ones_to_the_default_or_an_alert() {
    for pki in every() {
        let client = Client::default();
        let (address, outcomes) = serve(selector(&pki, None, Some(1))).await;
        for (name, site) in [("a.test", "a.test"), ("b.test", "b.test"), ("c.test", "b.test")] {
            connect(address, name, client.config()).await.unwrap();
            assert_eq!(last(&outcomes).await.unwrap().site, site);
        }
        let (address, outcomes) = serve(selector(&pki, None, None)).await;
        let refused = connect(address, "c.test", client.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::UnrecognisedName));
        assert_eq!(last(&outcomes).await, Err("unrecognized_name"));
    }
}

#[tokio::test]
async fn nothing_in_common_is_an_alert_and_no_alpn_a_setting() {
    for pki in every() {
        let stranger = Client { alpn: &["spdy/3.1"], ..Client::default() };
        let silent = Client { alpn: &[], ..Client::default() };

        let (address, outcomes) = serve(selector(&pki, Some(1), Some(0))).await;
        let refused = connect(address, "a.test", stranger.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
        assert_eq!(last(&outcomes).await, Err("no_application_protocol"));
        assert_eq!(connect(address, "a.test", silent.config()).await.unwrap(), None);
        assert_eq!(last(&outcomes).await.unwrap().protocol, 1);

        let (address, outcomes) = serve(selector(&pki, None, Some(0))).await;
        let refused = connect(address, "a.test", silent.config()).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
        assert_eq!(last(&outcomes).await, Err("no_application_protocol"));
    }
}

/// A ranking orders the sites that have it, and what it leaves out is to them as what is not allowed.
#[tokio::test]
async fn an_order_that_changes_is_the_next_handshakes() {
    let pki = pki(AWS_LC);
    let ranked = AlpnPolicy { ranking: Some("edge".to_owned()), ..lenient(2, Some(0)) };
    let selector = Arc::new(selector_with(&pki, [lenient(2, Some(0)), ranked], Some(0)));
    let (address, _) = serve_shared(selector.clone()).await;
    let negotiated = async |name: &'static str, alpn: &'static [&'static str]| {
        let client = Client { alpn, ..Client::default() };
        connect(address, name, client.config()).await.ok().flatten()
    };
    let both = &["h2", "mqtt"];
    let (h2, mqtt) = (Some("h2".to_owned()), Some("mqtt".to_owned()));
    assert_eq!(negotiated("b.test", both).await, h2);
    for order in [vec!["mqtt", "h2"], vec!["unknown", "mqtt", "h2", "private/1"]] {
        selector.rank("edge", &order.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(negotiated("b.test", both).await, mqtt);
        assert_eq!(negotiated("a.test", both).await, h2, "another site's order stays");
        assert_eq!(negotiated("b.test", &["private/1"]).await, None, "not allowed before either");
    }
    selector.rank("another", &["h2".to_owned()]);
    assert_eq!(negotiated("b.test", both).await, mqtt);
    selector.rank("edge", &["h2".to_owned()]);
    assert_eq!(negotiated("b.test", both).await, h2);
    assert_eq!(negotiated("b.test", &["mqtt"]).await, None);
}

/// What a client of `name` gets under each mode: the protocol that TLS has agreed on, and the one that it is served.
#[tokio::test]
async fn each_server_name_has_its_own_alpn_policy() {
    let pki = pki(AWS_LC);
    let policy = |mode, protocols: &[usize], no_alpn| AlpnPolicy {
        mode,
        protocols: protocols.to_vec(),
        no_alpn,
        ranking: None,
    };
    let (refused, agreed) = (None, |alpn: &str, protocol| Some((Some(alpn.to_owned()), protocol)));
    let unasked = |protocol| Some((None, protocol));
    // Offers of `h2`; of `mqtt`; of `h2` and `mqtt`; of something else; none.
    let offers: [&[&str]; 5] = [&["h2"], &["mqtt"], &["h2", "mqtt"], &["ftp"], &[]];
    let cases = [
        (
            policy(AlpnMode::Strict, &[1], None),
            [refused.clone(), agreed("mqtt", 1), agreed("mqtt", 1), refused.clone(), refused.clone()],
        ),
        (
            policy(AlpnMode::Lenient, &[1], Some(1)),
            [refused.clone(), agreed("mqtt", 1), agreed("mqtt", 1), refused.clone(), unasked(1)],
        ),
        (
            policy(AlpnMode::Observe, &[1], Some(0)),
            [agreed("h2", 0), agreed("mqtt", 1), agreed("mqtt", 1), unasked(0), unasked(0)],
        ),
        (
            policy(AlpnMode::Observe, &[0, 1], None),
            [agreed("h2", 0), agreed("mqtt", 1), agreed("h2", 0), refused.clone(), refused],
        ),
    ];
    for (policy, expected) in cases {
        let (address, outcomes) = serve(selector_with(&pki, [lenient(3, Some(0)), policy.clone()], Some(0))).await;
        for (alpn, expected) in offers.into_iter().zip(expected) {
            let client = Client { alpn, ..Client::default() };
            let found = match connect(address, "b.test", client.config()).await {
                Ok(negotiated) => Some((negotiated, last(&outcomes).await.unwrap().protocol)),
                Err(error) => {
                    assert_eq!(error, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
                    assert_eq!(last(&outcomes).await, Err("no_application_protocol"));
                    None
                }
            };
            assert_eq!(found, expected, "{policy:?} {alpn:?}");
            // The other site is as it was.
            let other = connect(address, "a.test", Client { alpn: &["h2"], ..Client::default() }.config()).await;
            assert_eq!((other.unwrap().as_deref(), last(&outcomes).await.unwrap().protocol), (Some("h2"), 0));
        }
    }
}

#[tokio::test]
async fn a_session_resumes_where_it_was_made_and_nowhere_else() {
    for pki in every() {
        let (address, outcomes) = serve(selector(&pki, None, Some(0))).await;
        let shared = Client { alpn: &["h2"], ..Client::default() }.config();
        for resumed in [false, true] {
            connect(address, "a.test", shared.clone()).await.unwrap();
            assert_eq!(last(&outcomes).await.unwrap().resumed, resumed);
        }
        // The same client, with the same tickets at hand, now asks for the protocol that demands a certificate.
        let mut other = (*shared).clone();
        other.alpn_protocols = vec![b"private/1".to_vec()];
        let refused = connect(address, "a.test", Arc::new(other)).await.unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(last(&outcomes).await, Err("client_certificate_missing"));
    }
}

#[tokio::test]
async fn what_is_not_tls_is_refused() {
    use tokio::io::AsyncWriteExt;
    let (address, outcomes) = serve(selector(&pki(AWS_LC), None, Some(0))).await;
    let mut answers = HashMap::new();
    for garbage in ["GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", ""] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(garbage.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        answers.insert(garbage, last(&outcomes).await.unwrap_err());
    }
    assert_eq!(answers["GET / HTTP/1.1\r\n\r\n"], "not_tls");
    assert_eq!(answers["\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"], "not_tls");
    assert_eq!(answers[""], "client_closed");
}
