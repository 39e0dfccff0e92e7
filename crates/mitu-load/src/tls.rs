//! A client's TLS: what it offers, whom it trusts, what it resumes.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::SupportedProtocolVersion;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;

use crate::error::LoadError;

/// Tickets that are kept at most: as many as the largest storm has devices in a minute, in some 100 MB.
pub const TICKETS_LIMIT: usize = 100_000;

/// What every connection offers, whatever its ALPN list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// "1.3" or "1.2"; empty: both.
    #[serde(default)]
    pub versions: Vec<String>,
    /// IANA names; empty: all that the library has, in its order.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Likewise: X25519, secp256r1, secp384r1, X25519MLKEM768.
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default)]
    pub trust: Trust,
}

/// Whose certificates are accepted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Anybody's, without looking: verifying would be the client's work, and it is the server that is measured.
    #[default]
    Anybody,
    /// Those that the system's store vouches for.
    System,
    /// Those that this PEM document vouches for.
    Pem(String),
}

impl Offer {
    pub fn config(&self, alpn: &[String], resumption: Resumption) -> Result<Arc<ClientConfig>, LoadError> {
        let provider = Arc::new(self.provider()?);
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&self.versions()?)?;
        let verifier: Arc<dyn ServerCertVerifier> = match &self.trust {
            Trust::Anybody => Arc::new(AnyCertificate(provider.signature_verification_algorithms.supported_schemes())),
            Trust::System => verifier(system_roots()?, provider)?,
            Trust::Pem(pem) => verifier(pem_roots(pem)?, provider)?,
        };
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = alpn.iter().filter(|name| !name.is_empty()).map(|name| name.clone().into()).collect();
        config.resumption = resumption;
        Ok(Arc::new(config))
    }

    fn provider(&self) -> Result<CryptoProvider, LoadError> {
        let provider = aws_lc_rs::default_provider();
        let suite_name =
            |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
        Ok(CryptoProvider {
            cipher_suites: pick("cipher suite", &self.suites, &provider.cipher_suites, suite_name)?,
            kx_groups: pick("group", &self.groups, &provider.kx_groups, |group| format!("{:?}", group.name()))?,
            ..provider
        })
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, LoadError> {
        pick("TLS version", &self.versions, &[&TLS13, &TLS12], |version| {
            format!("{:?}", version.version).replace("TLSv1_", "1.")
        })
    }
}

/// Those of `known` that are named, in the order they are named; all of them if none is.
fn pick<T: Copy>(
    what: &'static str,
    wanted: &[String],
    known: &[T],
    name: impl Fn(&T) -> String,
) -> Result<Vec<T>, LoadError> {
    if wanted.is_empty() {
        return Ok(known.to_vec());
    }
    let find = |value: &String| {
        let found = known.iter().find(|candidate| name(candidate) == *value).copied();
        let all = || known.iter().map(&name).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| LoadError::Unknown { what, value: value.clone(), known: all() })
    };
    wanted.iter().map(find).collect()
}

/// Makes this thread's first use of the random generator now: seeding it can take longer than many handshakes, and the
/// first connections would wait for it.
pub fn warm_up() -> Result<(), LoadError> {
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut [0; 32]).map_err(|_| LoadError::Usage("there are no random numbers".to_owned()))
}

fn system_roots() -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        Err(LoadError::Usage("the system has no store of authorities".to_owned()))
    } else {
        Ok(roots)
    }
}

fn pem_roots(pem: &str) -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| LoadError::Usage(format!("no PEM certificate: {error}")))?)?;
    }
    if roots.is_empty() { Err(LoadError::Usage("no PEM certificate in it".to_owned())) } else { Ok(roots) }
}

fn verifier(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, LoadError> {
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    builder.build().map_err(|error| LoadError::Usage(error.to_string()))
}

/// Tickets of one server, the oldest used first. TLS 1.3 tickets are used once (RFC 8446, appendix C.4).
#[derive(Debug, Default)]
pub struct Tickets {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tls13: VecDeque<Tls13ClientSessionValue>,
    tls12: Option<Tls12ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} tickets", self.tls13.len())
    }
}

impl Tickets {
    /// Connections that could resume now.
    pub fn ready(&self) -> usize {
        let state = self.state.lock();
        if state.tls12.is_some() { usize::MAX } else { state.tls13.len() }
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server: ServerName<'static>, group: NamedGroup) {
        self.state.lock().group = Some(group);
    }

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        self.state.lock().group
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.state.lock().tls12 = Some(session);
    }

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.state.lock().tls12.clone()
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {
        self.state.lock().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut state = self.state.lock();
        if state.tls13.len() < TICKETS_LIMIT {
            state.tls13.push_back(ticket);
        }
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.state.lock().tls13.pop_front()
    }
}

/// Fills a store and takes nothing out of it: every handshake is a full one.
#[derive(Debug)]
pub struct Gathering(pub Arc<Tickets>);

impl ClientSessionStore for Gathering {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.0.set_tls12_session(server, session);
    }

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

/// Accepts every certificate and signature, without looking.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_are_those_of_the_standards() {
        let offer = Offer {
            versions: named(&["1.3"]),
            suites: named(&["TLS_CHACHA20_POLY1305_SHA256"]),
            groups: named(&["X25519MLKEM768", "secp256r1"]),
            trust: Trust::Anybody,
        };
        let config = offer.config(&named(&["h2", ""]), Resumption::disabled()).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2"]);
        let groups: Vec<_> = config.crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups, [NamedGroup::X25519MLKEM768, NamedGroup::secp256r1]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let offer = Offer { versions: named(&["1.1"]), ..Offer::default() };
        let error = offer.config(&[], Resumption::disabled()).unwrap_err().to_string();
        assert_eq!(error, "'1.1' is not a known TLS version; known: 1.3, 1.2");
    }

    #[test]
    fn trust_needs_a_certificate() {
        let offer = Offer { trust: Trust::Pem("nothing".to_owned()), ..Offer::default() };
        assert_eq!(offer.config(&[], Resumption::disabled()).unwrap_err().kind(), "usage");
    }
}
