//! The identity of a client that showed a certificate and was verified.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a handler or an upstream may want to know of a verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Distinguished name, RFC 4514 style: `CN=device-17, O=Fleet`.
    pub subject: String,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// `DNS:…`, `URI:…`, `IP:…`, `email:…`, in the certificate's order.
    pub sans: Vec<String>,
    /// SHA-256 of the DER, lower-case hex.
    pub fingerprint: String,
    /// When the certificate expires, in seconds since the epoch.
    pub not_after: i64,
}

impl ClientIdentity {
    /// Reads a leaf that the handshake has verified; what cannot be read is left empty.
    pub fn from_verified(leaf: &CertificateDer<'_>) -> Self {
        let fingerprint = hex(digest::digest(&digest::SHA256, leaf).as_ref());
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return Self { subject: String::new(), common_name: None, sans: Vec::new(), fingerprint, not_after: 0 };
        };
        let sans = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => extension.value.general_names.iter().filter_map(render_san).collect(),
            _ => Vec::new(),
        };
        let subject = certificate.subject();
        let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        let not_after = certificate.validity().not_after.timestamp();
        Self { subject: subject.to_string(), common_name, sans, fingerprint, not_after }
    }

    pub fn is_expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| self.not_after < now)
    }
}

fn render_san(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        GeneralName::URI(uri) => Some(format!("URI:{uri}")),
        GeneralName::RFC822Name(address) => Some(format!("email:{address}")),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| format!("IP:{}", std::net::Ipv4Addr::from(ip))),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| format!("IP:{}", std::net::Ipv6Addr::from(ip))),
            _ => None,
        },
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
