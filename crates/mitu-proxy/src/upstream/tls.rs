//! TLS towards an upstream: whom to believe, and how to identify this gateway.

use std::sync::Arc;

use mitu_tls::certificate::Certificate;
use mitu_tls::config::{CertificateConfig, UpstreamTlsConfig};
use mitu_tls::error::{Secrets, TlsConfigError};
use mitu_tls::provider::{AWS_LC, base_provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Builds the configuration that all connections of one upstream share; ALPN is chosen for each connection.
pub fn client_config(
    config: &UpstreamTlsConfig,
    certificates: &[CertificateConfig],
    secrets: &Secrets,
) -> Result<ClientConfig, TlsConfigError> {
    let provider = Arc::new(base_provider(AWS_LC)?);
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if config.verify {
        builder.with_root_certificates(roots(config.ca.as_deref(), secrets)?)
    } else {
        let algorithms = provider.signature_verification_algorithms;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
    };
    match &config.client_certificate {
        None => Ok(builder.with_no_client_auth()),
        Some(id) => {
            let key = client_certificate(id, certificates, secrets, &provider)?.key.clone();
            Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))))
        }
    }
}

fn client_certificate(
    id: &str,
    certificates: &[CertificateConfig],
    secrets: &Secrets,
    provider: &CryptoProvider,
) -> Result<Certificate, TlsConfigError> {
    let config = certificates
        .iter()
        .find(|certificate| certificate.id == id)
        .ok_or_else(|| TlsConfigError::MissingCertificate(id.to_owned()))?;
    Certificate::load(config, secrets, provider)
}

fn roots(ca: Option<&str>, secrets: &Secrets) -> Result<RootCertStore, TlsConfigError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(id) => {
            for root in mitu_tls::certificate::read_chain(secrets, id)? {
                roots.add(root).map_err(|source| TlsConfigError::Certificate { id: id.to_owned(), source })?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(system.certs);
            if added == 0 {
                let errors: Vec<_> = system.errors.iter().map(ToString::to_string).collect();
                let reason = if errors.is_empty() { "there are none".to_owned() } else { errors.join("; ") };
                return Err(TlsConfigError::SystemRoots(reason));
            }
        }
    }
    Ok(roots)
}

/// `verify: false`: any certificate will do. The signatures are still checked, so that the peer must hold its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
