//! A request's head (RFC 9114, section 4.3.1), from its field section.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use mitu_telemetry::http::Reason;

use super::super::validate;
use super::qpack::{DecodeError, Decoder, Field, FieldName, Name, Pseudo, is_of_connection};

/// Room for what is added on the way.
const ADDED_HEADERS: usize = 8;

/// The limits of a head, or of trailers.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub bytes: usize,
    pub headers: usize,
}

/// A request's head. Its host is in `Host`.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// As the client announces it.
    pub content_length: Option<u64>,
    /// What CONNECT is to begin (RFC 9220).
    pub protocol: Option<Bytes>,
}

/// Why a head cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// The connection is not to be trusted any further.
    Decompression,
    Refused(Reason),
}

impl From<DecodeError> for HeadError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed => Self::Decompression,
            DecodeError::TooLarge => Self::Refused(Reason::HeaderTooLarge),
        }
    }
}

const MALFORMED: HeadError = HeadError::Refused(Reason::BadRequest);

#[derive(Debug, Default)]
struct PseudoFields {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
}

impl PseudoFields {
    fn set(&mut self, pseudo: Pseudo, value: Bytes) -> Result<(), HeadError> {
        let place = match pseudo {
            Pseudo::Method => &mut self.method,
            Pseudo::Scheme => &mut self.scheme,
            Pseudo::Authority => &mut self.authority,
            Pseudo::Path => &mut self.path,
            Pseudo::Protocol => &mut self.protocol,
            Pseudo::Status => return Err(MALFORMED),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(MALFORMED),
        }
    }
}

impl Head {
    pub fn decode(section: Bytes, limits: HeadLimits) -> Result<Self, HeadError> {
        let mut decoder = Decoder::new(section, limits.bytes)?;
        let mut pseudo = PseudoFields::default();
        let mut headers = HeaderMap::with_capacity(16 + ADDED_HEADERS);
        while let Some(Field { name, value }) = decoder.next()? {
            match named(name)? {
                // Those of HTTP/3 come before all others.
                Named::Pseudo(_) if !headers.is_empty() => return Err(MALFORMED),
                Named::Pseudo(name) => pseudo.set(name, value)?,
                Named::Header(name) => append(&mut headers, name, value, limits.headers)?,
            }
        }
        validate::fields(&headers).map_err(HeadError::Refused)?;
        let method = pseudo.method.as_ref().ok_or(MALFORMED)?;
        let method = Method::from_bytes(method).map_err(|_| MALFORMED)?;
        let uri = uri(&method, &pseudo)?;
        if let Some(authority) = pseudo.authority {
            host(authority, &mut headers)?;
        }
        let content_length = content_length(&headers)?;
        if pseudo.protocol.is_some() && content_length.is_some_and(|length| length > 0) {
            return Err(MALFORMED);
        }
        Ok(Self { method, uri, headers, content_length, protocol: pseudo.protocol })
    }
}

/// Reads trailers.
pub fn decode_trailers(section: Bytes, limits: HeadLimits) -> Result<HeaderMap, HeadError> {
    let mut decoder = Decoder::new(section, limits.bytes)?;
    let mut trailers = HeaderMap::new();
    while let Some(Field { name, value }) = decoder.next()? {
        match named(name)? {
            Named::Pseudo(_) => return Err(MALFORMED),
            Named::Header(name) => append(&mut trailers, name, value, limits.headers)?,
        }
    }
    validate::fields(&trailers).map_err(HeadError::Refused)?;
    Ok(trailers)
}

enum Named {
    Pseudo(Pseudo),
    Header(HeaderName),
}

fn named(name: FieldName) -> Result<Named, HeadError> {
    Ok(match name {
        FieldName::Known(Name::Pseudo(pseudo)) => Named::Pseudo(*pseudo),
        FieldName::Known(Name::Header(name)) => Named::Header(name.clone()),
        FieldName::Literal(name) if name.starts_with(b":") => {
            Named::Pseudo(Pseudo::from_bytes(&name).ok_or(MALFORMED)?)
        }
        // An upper-case letter is none that this allows.
        FieldName::Literal(name) => Named::Header(HeaderName::from_lowercase(&name).map_err(|_| MALFORMED)?),
    })
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: Bytes, limit: usize) -> Result<(), HeadError> {
    if is_of_connection(&name) || (name == header::TE && value != "trailers") {
        return Err(MALFORMED);
    }
    if headers.len() >= limit {
        return Err(HeadError::Refused(Reason::HeaderTooLarge));
    }
    let value = HeaderValue::from_maybe_shared(value).map_err(|_| MALFORMED)?;
    headers.append(name, value);
    Ok(())
}

/// The path of the request. `CONNECT` without a protocol has none, and is refused further on.
fn uri(method: &Method, pseudo: &PseudoFields) -> Result<Uri, HeadError> {
    if pseudo.protocol.is_some() && (*method != Method::CONNECT || pseudo.authority.is_none()) {
        return Err(MALFORMED);
    }
    if *method == Method::CONNECT && pseudo.protocol.is_none() {
        return match (&pseudo.scheme, &pseudo.path, &pseudo.authority) {
            (None, None, Some(_)) => Ok(Uri::from_static("/")),
            _ => Err(MALFORMED),
        };
    }
    let scheme = pseudo.scheme.as_ref().ok_or(MALFORMED)?;
    let known = [&b"https"[..], b"http"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let path = pseudo.path.clone().ok_or(MALFORMED)?;
    let sound = (path.starts_with(b"/") && !path.contains(&b'#')) || path == "*";
    if !known || !sound {
        return Err(MALFORMED);
    }
    Uri::from_maybe_shared(path).map_err(|_| MALFORMED)
}

/// `:authority` and `Host` must agree where both are there (RFC 9114, section 4.3.1).
fn host(authority: Bytes, headers: &mut HeaderMap) -> Result<(), HeadError> {
    let authority = HeaderValue::from_maybe_shared(authority).map_err(|_| MALFORMED)?;
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => {
            headers.insert(header::HOST, authority);
            Ok(())
        }
        (Some(host), None) if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => Ok(()),
        _ => Err(HeadError::Refused(Reason::BadHost)),
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    validate::single_content_length(headers).map_err(HeadError::Refused)?;
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    length.map(Some).ok_or(HeadError::Refused(Reason::AmbiguousFraming))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 1024, headers: 3 };
    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y")];

    /// Every field as a literal with a literal name.
    fn section(fields: &[(&str, &str)]) -> Bytes {
        let mut section = BytesMut::from(&[0, 0][..]);
        for (name, value) in fields {
            assert!(name.len() < 7 + 128 && value.len() < 127);
            match name.len() {
                short @ 0..7 => section.put_u8(0x20 | short as u8),
                long => section.put_slice(&[0x27, (long - 7) as u8]),
            }
            section.put_slice(name.as_bytes());
            section.put_u8(value.len() as u8);
            section.put_slice(value.as_bytes());
        }
        section.freeze()
    }

    fn decode(fields: &[(&str, &str)]) -> Result<Head, HeadError> {
        Head::decode(section(fields), LIMITS)
    }

    fn with(added: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        [&GET[..], added].concat()
    }

    #[test]
    fn a_head_is_read() {
        let head = decode(&with(&[("content-length", "7"), ("x-a", "1")])).unwrap();
        assert_eq!((head.method, head.uri.to_string(), head.content_length), (Method::GET, "/x?y".into(), Some(7)));
        assert_eq!(head.headers[header::HOST], "a.example");
        assert_eq!(head.headers["x-a"], "1");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let (method, scheme, path) = (GET[0], GET[1], GET[3]);
        let cases: Vec<Vec<(&str, &str)>> = vec![
            vec![],
            vec![scheme, path],
            vec![method, path],
            vec![method, scheme],
            vec![method, scheme, (":path", "")],
            vec![method, scheme, (":path", "x")],
            vec![method, scheme, (":path", "/a b")],
            vec![method, scheme, (":path", "/a#b")],
            vec![method, scheme, (":path", "/\r\nx: y")],
            vec![method, (":scheme", "ftp"), path],
            vec![(":method", "GE T"), scheme, path],
            vec![(":method", ""), scheme, path],
            vec![method, method, scheme, path],
            with(&[(":unknown", "x")]),
            with(&[(":status", "200")]),
            with(&[(":protocol", "websocket")]),
            with(&[("x-a", "1"), (":path", "/")]),
            with(&[("X-A", "1")]),
            with(&[("", "1")]),
            with(&[("x a", "1")]),
            with(&[("x\"a", "1")]),
            with(&[("x:a", "1")]),
            with(&[("x-a", "1\r\nx-b: 2")]),
            with(&[("x-a", "1\n")]),
            with(&[("x-a", "\0")]),
            with(&[("x-a", " 1")]),
            with(&[("x-a", "1\t")]),
            with(&[("connection", "close")]),
            with(&[("keep-alive", "1")]),
            with(&[("proxy-connection", "close")]),
            with(&[("transfer-encoding", "chunked")]),
            with(&[("upgrade", "h2c")]),
            with(&[("te", "gzip")]),
            vec![(":method", "CONNECT"), scheme, path, (":authority", "a")],
            vec![(":method", "CONNECT")],
        ];
        for fields in cases {
            assert_eq!(decode(&fields).unwrap_err(), MALFORMED, "{fields:?}");
        }
    }

    #[test]
    fn other_refusals_have_their_own_reasons() {
        let refused = |fields: &[_]| decode(&with(fields)).unwrap_err();
        assert_eq!(refused(&[("host", "b.example")]), HeadError::Refused(Reason::BadHost));
        for twice in [&[("content-length", "1"), ("content-length", "1")][..], &[("content-length", "+1")]] {
            assert_eq!(refused(twice), HeadError::Refused(Reason::AmbiguousFraming));
        }
        let many = [("x-a", "1"), ("x-b", "1"), ("x-c", "1"), ("x-d", "1")];
        assert_eq!(refused(&many), HeadError::Refused(Reason::HeaderTooLarge));
        let cut = section(&GET).slice(..20);
        assert_eq!(Head::decode(cut, LIMITS).unwrap_err(), HeadError::Decompression);
    }

    #[test]
    fn connect_is_read_for_a_proper_refusal() {
        let head = decode(&[(":method", "CONNECT"), (":authority", "a.example:443")]).unwrap();
        assert_eq!((head.method, head.protocol), (Method::CONNECT, None));
    }

    #[test]
    fn connect_with_a_protocol_has_all_that_other_requests_have() {
        let connect = [&[(":method", "CONNECT")], &GET[1..], &[(":protocol", "websocket")]].concat();
        let head = decode(&connect).unwrap();
        assert_eq!((head.method, head.protocol.as_deref()), (Method::CONNECT, Some(&b"websocket"[..])));
        assert_eq!(
            (head.uri.to_string(), &head.headers[header::HOST]),
            ("/x?y".into(), &"a.example".parse().unwrap())
        );
        for missing in 1..connect.len() - 1 {
            let mut fields = connect.clone();
            let (name, _) = fields.remove(missing);
            assert_eq!(decode(&fields).unwrap_err(), MALFORMED, "without {name}");
        }
        let with_a_body = [&connect[..], &[("content-length", "1")]].concat();
        assert_eq!(decode(&with_a_body).unwrap_err(), MALFORMED);
    }

    #[test]
    fn trailers_have_no_pseudo_fields() {
        assert_eq!(decode_trailers(section(&[("x-a", "1")]), LIMITS).unwrap()["x-a"], "1");
        assert_eq!(decode_trailers(section(&[(":path", "/")]), LIMITS), Err(MALFORMED));
    }
}
