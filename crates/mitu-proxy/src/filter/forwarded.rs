//! What only a proxy may claim: where a request came from, and who the client proved to be.
//!
//! `X-Forwarded-*`, `X-Real-IP` and `Forwarded` (RFC 7239) are believed from trusted proxies only, and extended;
//! `X-Client-*` always comes from this gateway. Whatever else a client sends under these names is removed, in every
//! spelling that a server may take for the same variable (`X_Forwarded_For`).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{Entry, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use mitu_tls::identity::ClientIdentity;
use parking_lot::Mutex;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_CLIENT_VERIFIED: HeaderName = HeaderName::from_static("x-client-verified");
const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
const X_CLIENT_CERT_SAN: HeaderName = HeaderName::from_static("x-client-cert-san");
const X_CLIENT_CERT_FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");

/// The claims about one connection, prepared once.
#[derive(Debug)]
pub struct Claims {
    /// Whether the peer's own claims are kept.
    trusted: bool,
    /// The client's address as `X-Forwarded-For` has it.
    address: HeaderValue,
    /// The `for=` and `proto=` of `Forwarded`.
    forwarded: String,
    /// The last request's host, and the `Forwarded` that went with it: clients seldom change it.
    last: Mutex<Option<(HeaderValue, HeaderValue)>>,
    identity: Option<IdentityHeaders>,
}

#[derive(Debug)]
struct IdentityHeaders {
    subject: HeaderValue,
    sans: HeaderValue,
    fingerprint: HeaderValue,
}

impl Claims {
    pub fn new(peer: SocketAddr, identity: Option<&ClientIdentity>, trusted: bool) -> Self {
        let ip = peer.ip();
        let node = match ip {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        Self {
            trusted,
            address: visible(ip.to_string()),
            forwarded: format!("for={node};proto=https"),
            last: Mutex::new(None),
            identity: identity.map(IdentityHeaders::new),
        }
    }

    /// Replaces or extends what `headers` claim. The request's `Host` is among them.
    pub fn apply(&self, headers: &mut HeaderMap) {
        remove_claims(headers, self.trusted);
        let host = headers.get(HOST).cloned();
        if self.trusted {
            self.extend(headers, host);
        } else {
            headers.insert(X_FORWARDED_FOR, self.address.clone());
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
            headers.insert(header::FORWARDED, self.forwarded_for(host.as_ref()));
            if let Some(host) = host {
                headers.insert(X_FORWARDED_HOST, host);
            }
        }
        match &self.identity {
            None => {
                headers.insert(X_CLIENT_VERIFIED, HeaderValue::from_static("NONE"));
            }
            Some(identity) => {
                headers.insert(X_CLIENT_VERIFIED, HeaderValue::from_static("SUCCESS"));
                headers.insert(X_CLIENT_CERT_SUBJECT, identity.subject.clone());
                headers.insert(X_CLIENT_CERT_SAN, identity.sans.clone());
                headers.insert(X_CLIENT_CERT_FINGERPRINT, identity.fingerprint.clone());
            }
        }
    }

    /// A trusted proxy knows better how the client reached it; this gateway adds that proxy's address.
    fn extend(&self, headers: &mut HeaderMap, host: Option<HeaderValue>) {
        append_element(headers, X_FORWARDED_FOR, &self.address);
        let forwarded = self.forwarded_for(host.as_ref());
        append_element(headers, header::FORWARDED, &forwarded);
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("https"));
        if let Some(host) = host {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
    }

    fn forwarded_for(&self, host: Option<&HeaderValue>) -> HeaderValue {
        let Some(host) = host else { return visible(self.forwarded.clone()) };
        let mut last = self.last.lock();
        if let Some((_, value)) = last.as_ref().filter(|(known, _)| known == host) {
            return value.clone();
        }
        let text = host.to_str().unwrap_or_default();
        let value = visible(format!("{};host=\"{text}\"", self.forwarded));
        *last = Some((host.clone(), value.clone()));
        value
    }
}

impl IdentityHeaders {
    fn new(identity: &ClientIdentity) -> Self {
        let sans: Vec<_> = identity.sans.iter().map(|san| percent_encode(san)).collect();
        Self {
            subject: visible(percent_encode(&identity.subject)),
            sans: visible(sans.join(",")),
            fingerprint: visible(identity.fingerprint.clone()),
        }
    }
}

/// A header value of visible ASCII; what is not (which the callers rule out) becomes empty.
fn visible(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// Keeps unreserved characters and a few that stand in names (`CN=device-17,O=…` stays readable but for spaces and
/// commas); everything else is escaped, so that no value can end a list or a header.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~:/@=*+".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Adds `element` at the end of the list in `name`, as one header line.
fn append_element(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(element.clone());
        }
        Entry::Occupied(mut entry) => {
            let mut list = Vec::new();
            for value in entry.iter() {
                list.extend_from_slice(value.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(element.as_bytes());
            let joined = HeaderValue::from_bytes(&list).unwrap_or_else(|_| element.clone());
            entry.insert(joined);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Where the request came from.
    Origin,
    /// Who the client proved to be.
    Identity,
}

/// Whether `name` is one that only a proxy may set.
pub fn claims_proxy(name: &HeaderName) -> bool {
    claim(name.as_str()).is_some()
}

fn claim(name: &str) -> Option<Claim> {
    let bytes = name.as_bytes();
    match bytes.first() {
        Some(b'f') => (name == "forwarded").then_some(Claim::Origin),
        Some(b'x') if bytes.get(1).is_some_and(|byte| is_mark(*byte)) => {
            if same(bytes, b"x-forwarded-", true) || same(bytes, b"x-real-ip", false) {
                Some(Claim::Origin)
            } else if same(bytes, b"x-client-cert-", true) || same(bytes, b"x-client-verified", false) {
                Some(Claim::Identity)
            } else {
                None
            }
        }
        _ => None,
    }
}

/// Whether `name` is, or begins with, `wanted`, whatever stands for its dashes: many servers hand on headers as variables,
/// in which every other character has become an underscore.
fn same(name: &[u8], wanted: &[u8], begins: bool) -> bool {
    (name.len() == wanted.len() || (begins && name.len() > wanted.len()))
        && name.iter().zip(wanted).all(|(found, wanted)| found == wanted || (is_mark(*found) && *wanted == b'-'))
}

fn is_mark(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric()
}

/// Removes claims that are not the peer's to make, and misspelt ones from everybody.
fn remove_claims(headers: &mut HeaderMap, trusted: bool) {
    let refused: Vec<HeaderName> = headers
        .keys()
        .filter(|name| match claim(name.as_str()) {
            None => false,
            Some(Claim::Identity) => true,
            Some(Claim::Origin) => !trusted || name.as_str().bytes().any(|byte| byte != b'-' && is_mark(byte)),
        })
        .cloned()
        .collect();
    for name in refused {
        headers.remove(name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
        let mut pairs: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        pairs.sort();
        pairs
    }

    fn claims(identity: Option<&ClientIdentity>, trusted: bool) -> Claims {
        Claims::new("192.0.2.7:5000".parse().unwrap(), identity, trusted)
    }

    const SPOOFED: [(&str, &str); 12] = [
        ("forwarded", "for=1.1.1.1"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x_forwarded_for", "1.1.1.1"),
        ("x-forwarded_proto", "http"),
        ("x-forwarded-port", "80"),
        ("x-real-ip", "1.1.1.1"),
        ("x-client-verified", "SUCCESS"),
        ("x_client_verified", "SUCCESS"),
        ("x_client_cert_subject", "CN=root"),
        ("x-client_cert-san", "DNS:root"),
        ("x.client.verified", "SUCCESS"),
        ("x-forwarded.for", "1.1.1.1"),
    ];

    #[test]
    fn a_client_can_claim_nothing() {
        let mut headers = map(&SPOOFED);
        headers.insert(HOST, HeaderValue::from_static("a.example"));
        claims(None, false).apply(&mut headers);
        let expected = [
            ("forwarded", "for=192.0.2.7;proto=https;host=\"a.example\""),
            ("host", "a.example"),
            ("x-client-verified", "NONE"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(sorted(&headers), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_trusted_proxy_is_extended() {
        let mut headers = map(&SPOOFED);
        headers.append("x-forwarded-for", HeaderValue::from_static("2.2.2.2"));
        headers.insert("x-forwarded-host", HeaderValue::from_static("outer.example"));
        claims(None, true).apply(&mut headers);
        let expected = [
            ("forwarded", "for=1.1.1.1, for=192.0.2.7;proto=https"),
            ("x-client-verified", "NONE"),
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 192.0.2.7"),
            ("x-forwarded-host", "outer.example"),
            ("x-forwarded-port", "80"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.1.1.1"),
        ];
        assert_eq!(sorted(&headers), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_verified_identity_is_passed_on_escaped() {
        let identity = ClientIdentity {
            subject: "CN=device 17, O=Fl\u{e9}et\r\nX-Admin: 1".into(),
            common_name: None,
            sans: vec!["DNS:device-17.example".into(), "URI:spiffe://fleet/a,b".into()],
            fingerprint: "ab12".into(),
            not_after: 0,
        };
        let mut headers = HeaderMap::new();
        claims(Some(&identity), true).apply(&mut headers);
        assert_eq!(headers["x-client-verified"], "SUCCESS");
        assert_eq!(headers["x-client-cert-subject"], "CN=device%2017%2C%20O=Fl%C3%A9et%0D%0AX-Admin:%201");
        assert_eq!(headers["x-client-cert-san"], "DNS:device-17.example,URI:spiffe://fleet/a%2Cb");
        assert_eq!(headers["x-client-cert-fingerprint"], "ab12");
    }

    #[test]
    fn ipv6_is_quoted() {
        let mut headers = HeaderMap::new();
        Claims::new("[2001:db8::1]:443".parse().unwrap(), None, false).apply(&mut headers);
        assert_eq!(headers[header::FORWARDED], "for=\"[2001:db8::1]\";proto=https");
        assert_eq!(headers[X_FORWARDED_FOR], "2001:db8::1");
    }

    #[test]
    fn the_prepared_value_follows_the_host() {
        let claims = claims(None, false);
        for host in ["a.example", "a.example", "b.example"] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            claims.apply(&mut headers);
            assert!(headers[header::FORWARDED].to_str().unwrap().ends_with(&format!("host=\"{host}\"")));
        }
    }
}
