//! The identity of a client that showed a certificate and was verified.

use std::fmt::Write;
use std::str::from_utf8;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, BmpString, Tag, ToDer};
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What a handler or an upstream may want to know of a verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Distinguished name in the certificate's order, its values escaped as in RFC 4514: `CN=device-17, O=Fleet`.
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
        Self { subject: render_name(subject), common_name, sans, fingerprint, not_after }
    }

    pub fn is_expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| self.not_after < now)
    }
}

/// No value can end its attribute, or the line: what could is escaped.
fn render_name(name: &X509Name<'_>) -> String {
    let parts = name.iter_rdn().map(|rdn| rdn.iter().map(render_attribute).collect::<Vec<_>>().join(" + "));
    parts.collect::<Vec<_>>().join(", ")
}

/// RFC 4514, sections 2.3 and 2.4: the DER in hex where the type has no name, or the value is no text.
fn render_attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let der = || format!("#{}", hex(&value.to_der_vec().unwrap_or_default()));
    match oid2abbrev(attribute.attr_type(), oid_registry()) {
        Ok(name) => format!("{name}={}", text(value).map_or_else(der, |text| escape(&text))),
        Err(_) => format!("{}={}", attribute.attr_type().to_id_string(), der()),
    }
}

/// What a value of one of the string types says.
fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::BmpString => BmpString::try_from(value.clone()).ok().map(|text| text.string()),
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::T61String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::GeneralString => from_utf8(value.data).ok().map(str::to_owned),
        _ => None,
    }
}

/// RFC 4514, section 2.4; control characters, which it leaves as they are but for NUL, are escaped as well.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for (at, char) in value.char_indices() {
        let edge = at == 0 || at + 1 == value.len();
        match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => escaped.extend(['\\', char]),
            '#' if at == 0 => escaped.push_str("\\#"),
            ' ' if edge => escaped.push_str("\\ "),
            char if char.is_control() => {
                for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(escaped, "\\{byte:02X}");
                }
            }
            char => escaped.push(char),
        }
    }
    escaped
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
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};
    use x509_parser::der_parser::{Oid, oid};
    use x509_parser::x509::RelativeDistinguishedName;

    fn attribute<'a>(oid: Oid<'a>, tag: Tag, value: &'a [u8]) -> AttributeTypeAndValue<'a> {
        AttributeTypeAndValue::new(oid, Any::from_tag_and_data(tag, value))
    }

    fn common_name(tag: Tag, value: &[u8]) -> String {
        render_attribute(&attribute(oid!(2.5.4.3), tag, value))
    }

    #[test]
    fn what_has_a_meaning_is_escaped() {
        let escaped = |value: &str| common_name(Tag::Utf8String, value.as_bytes());
        assert_eq!(escaped("device-17"), "CN=device-17");
        // The examples of RFC 4514, section 4.
        assert_eq!(escaped("James \"Jim\" Smith, III"), r#"CN=James \"Jim\" Smith\, III"#);
        assert_eq!(escaped("Before\rAfter"), r"CN=Before\0DAfter");
        assert_eq!(escaped("Lučić"), "CN=Lučić");
        assert_eq!(escaped(r"a+b;c<d>e\f=g"), r"CN=a\+b\;c\<d\>e\\f=g");
        assert_eq!(escaped("# #"), r"CN=\# #");
        assert_eq!(escaped("  a b  "), r"CN=\  a b \ ");
        assert_eq!(escaped(" "), r"CN=\ ");
        assert_eq!(escaped(""), "CN=");
        assert_eq!(escaped("a\0b\r\nX-Admin: 1\u{7f}\u{85}"), r"CN=a\00b\0D\0AX-Admin: 1\7F\C2\85");
    }

    #[test]
    fn what_is_no_text_is_hexadecimal() {
        assert_eq!(common_name(Tag::OctetString, b"Hi"), "CN=#04024869");
        assert_eq!(common_name(Tag::T61String, b"Fl\xe9et"), "CN=#1405466ce96574");
        assert_eq!(common_name(Tag::BmpString, b"\0a\0,"), r"CN=a\,");
        assert_eq!(common_name(Tag::BmpString, b"\xd8\0"), "CN=#1e02d800");
        // An example of RFC 4514, section 4: what the type is called is not known.
        let unknown = attribute(oid!(1.3.6.1.4.1.1466.0), Tag::OctetString, b"Hi");
        assert_eq!(render_attribute(&unknown), "1.3.6.1.4.1.1466.0=#04024869");
    }

    #[test]
    fn attributes_cannot_be_taken_for_one_another() {
        let one = |value| attribute(oid!(2.5.4.3), Tag::Utf8String, value);
        let name = |parts: Vec<Vec<AttributeTypeAndValue<'static>>>| {
            render_name(&parts.into_iter().map(RelativeDistinguishedName::new).collect())
        };
        assert_eq!(name(vec![vec![one(b"a"), one(b"b")], vec![one(b"c")]]), "CN=a + CN=b, CN=c");
        assert_eq!(name(vec![vec![one(b"a + CN=b, CN=c")]]), r"CN=a \+ CN=b\, CN=c");
        assert_eq!(name(vec![]), "");
    }

    #[test]
    fn a_certificate_cannot_forge_a_line() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("a\r\nX-Admin: 1\0".to_owned()));
        params.distinguished_name.push(DnType::OrganizationName, "Fleet, CN=root");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let identity = ClientIdentity::from_verified(certificate.der());
        assert_eq!(identity.subject, r"CN=a\0D\0AX-Admin: 1\00, O=Fleet\, CN=root");
    }
}
