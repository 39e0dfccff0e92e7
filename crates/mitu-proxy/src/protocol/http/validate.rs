//! What every request must satisfy before it is routed, whichever version brought it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use mitu_telemetry::http::Reason;

/// CONNECT is for forward proxies, unless it names a `protocol` to speak with this server; TRACE would show a client the
/// headers that were added on the way.
pub fn method(method: &Method, protocol: Option<&[u8]>) -> Result<(), Reason> {
    match (method, protocol) {
        (&Method::CONNECT, Some(protocol)) if is_relayed(protocol) => Ok(()),
        (&Method::CONNECT, Some(_)) => Err(Reason::ProtocolNotSupported),
        (_, Some(_)) => Err(Reason::BadRequest),
        (&(Method::CONNECT | Method::TRACE), None) => Err(Reason::MethodNotAllowed),
        (_, None) => Ok(()),
    }
}

/// Whether a protocol is one that may go through unseen. With `h2c` a client would send further requests past the
/// routes and filters, inside what was taken for one connection.
pub fn is_relayed(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(b"websocket")
}

/// The target must be a path, an `http` or `https` URL, or the `*` of OPTIONS.
pub fn target(method: &Method, uri: &Uri) -> Result<(), Reason> {
    let scheme = uri.scheme_str().is_none_or(|scheme| matches!(scheme, "http" | "https"));
    let path = uri.path().starts_with('/') || (uri.path() == "*" && *method == Method::OPTIONS);
    if scheme && path { Ok(()) } else { Err(Reason::BadRequest) }
}

/// Settles on one host and leaves it as the request's only `Host` header.
///
/// An authority in the target (`:authority` in h2, an absolute URL in h1) and a `Host` header must agree. Requests
/// without a host are refused where the version demands one.
pub fn host(uri: &Uri, headers: &mut HeaderMap, required: bool) -> Result<(), Reason> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() || header.is_some_and(|host| !is_authority(host.as_bytes())) {
        return Err(Reason::BadHost);
    }
    let Some(authority) = uri.authority() else {
        return if header.is_some() || !required { Ok(()) } else { Err(Reason::BadHost) };
    };
    if !is_authority(authority.as_str().as_bytes()) {
        return Err(Reason::BadHost);
    }
    match header {
        Some(host) if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => Ok(()),
        Some(_) => Err(Reason::BadHost),
        None => {
            let value = Bytes::copy_from_slice(authority.as_str().as_bytes());
            headers.insert(header::HOST, HeaderValue::from_maybe_shared(value).map_err(|_| Reason::BadHost)?);
            Ok(())
        }
    }
}

/// `host [":" port]` (RFC 3986, section 3.2), without user information.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.first() {
        Some(b'[') => match text.iter().position(|&byte| byte == b']') {
            Some(end) => {
                let inside = &text[1..end];
                let address = std::str::from_utf8(inside).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
                if !address {
                    return false;
                }
                (None, &text[end + 1..])
            }
            None => return false,
        },
        _ => {
            let colon = text.iter().position(|&byte| byte == b':').unwrap_or(text.len());
            (Some(&text[..colon]), &text[colon..])
        }
    };
    let host_is_sound = host.is_none_or(|host| {
        !host.is_empty()
            && host.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte))
    });
    let port_is_sound = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    host_is_sound && port_is_sound
}

/// Fields of h2 and h3, whose framing lets through what would mean something else in HTTP/1.1 (RFC 9113, section 8.2.1; RFC
/// 9114, section 10.3).
pub fn fields(headers: &HeaderMap) -> Result<(), Reason> {
    let is_padding = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let sound = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = value.as_bytes();
        // The one byte that `HeaderName` takes and a token (RFC 9110, section 5.6.2) does not have.
        !name.as_str().contains('"') && !is_padding(value.first()) && !is_padding(value.last())
    };
    if headers.iter().all(sound) { Ok(()) } else { Err(Reason::BadRequest) }
}

/// The one `Content-Length` of an h2 request, whose frames have the last word (RFC 9113, section 8.1.1).
pub fn single_content_length(headers: &HeaderMap) -> Result<(), Reason> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(Reason::AmbiguousFraming),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_hosts_with_a_port_at_most() {
        for sound in ["a", "a.example", "a.example:443", "a:", "[::1]", "[2001:db8::1]:8443", "192.0.2.1:80", "a_b"] {
            assert!(is_authority(sound.as_bytes()), "{sound}");
        }
        for odd in
            ["", ":80", "a b", "a/b", "user@a", "a:b", "a:123456", "[::1", "[x]", "[::1]x", "a\"b", "a\\b", "a:1:2"]
        {
            assert!(!is_authority(odd.as_bytes()), "{odd}");
        }
    }

    fn check(uri: &str, hosts: &[&str], required: bool) -> Result<Option<String>, Reason> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        host(&uri.parse().unwrap(), &mut headers, required)?;
        Ok(headers.get(header::HOST).map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn one_host_and_no_doubt_about_it() {
        assert_eq!(check("/", &["a.example"], true), Ok(Some("a.example".into())));
        assert_eq!(check("https://a.example/", &[], true), Ok(Some("a.example".into())));
        assert_eq!(check("https://a.example/", &["A.example"], true), Ok(Some("A.example".into())));
        assert_eq!(check("/", &[], false), Ok(None));
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a.example", "a.example"]),
            ("/", &["a b"]),
            ("/", &[""]),
            ("https://a.example/", &["b.example"]),
            ("https://user@a.example/", &[]),
        ] {
            assert_eq!(check(uri, hosts, true), Err(Reason::BadHost), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn connect_is_for_websocket_alone() {
        assert_eq!(method(&Method::GET, None), Ok(()));
        assert_eq!(method(&Method::CONNECT, Some(b"websocket")), Ok(()));
        assert_eq!(method(&Method::CONNECT, None), Err(Reason::MethodNotAllowed));
        assert_eq!(method(&Method::TRACE, None), Err(Reason::MethodNotAllowed));
        assert_eq!(method(&Method::CONNECT, Some(b"connect-udp")), Err(Reason::ProtocolNotSupported));
        assert_eq!(method(&Method::GET, Some(b"websocket")), Err(Reason::BadRequest));
    }

    #[test]
    fn targets_are_paths_or_urls() {
        let check = |method: Method, uri: &str| target(&method, &uri.parse().unwrap()).is_ok();
        assert!(check(Method::GET, "/x"));
        assert!(check(Method::GET, "http://a/x"));
        assert!(check(Method::OPTIONS, "*"));
        assert!(!check(Method::GET, "*"));
        assert!(!check(Method::GET, "ftp://a/x"));
    }
}
