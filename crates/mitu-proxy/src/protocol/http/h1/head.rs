//! Message heads (RFC 9112): found, parsed, and asked how their body is framed.
//!
//! Requests are held to the letter: lines end with CR LF, and whatever could be read in two ways is refused
//! (section 11.2, request smuggling). Responses come from servers that were configured, and are read as leniently as
//! section 2.2 allows.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use httparse::{Header, ParserConfig, Status};
use mitu_telemetry::http::Reason;

/// Header lines that are parsed without allocating room for them.
const INLINE_HEADERS: usize = 100;

/// Room for the headers that are added on the way.
const ADDED_HEADERS: usize = 8;

/// How much of a head is accepted.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub bytes: usize,
    pub headers: usize,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// Responses only.
    UntilClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Nothing,
    Continue,
    /// Something this gateway does not know.
    Other,
}

#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub version: Version,
    pub framing: Framing,
    /// Whether the client wants the connection kept.
    pub keep_alive: bool,
    pub expect: Expect,
}

#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub framing: Framing,
    pub keep_alive: bool,
}

/// Looks for the empty line that ends a head.
///
/// `scanned`: how far an earlier call got; kept by the caller between calls on a growing buffer.
pub fn find_end(buffer: &[u8], scanned: &mut usize, strict: bool) -> Result<Option<usize>, Reason> {
    while let Some(found) = memchr::memchr(b'\n', &buffer[*scanned..]) {
        let newline = *scanned + found;
        *scanned = newline + 1;
        let line = &buffer[..newline];
        let line = match line.split_last() {
            Some((b'\r', line)) => line,
            _ if strict => return Err(Reason::BadRequest),
            _ => line,
        };
        if matches!(line.last(), None | Some(b'\n')) {
            return Ok(Some(newline + 1));
        }
    }
    *scanned = buffer.len();
    Ok(None)
}

/// Parses a whole head, its last empty line included.
pub fn parse_request(head: &Bytes, limits: HeadLimits) -> Result<RequestHead, Reason> {
    let mut room;
    let mut large;
    let slots: &mut [MaybeUninit<Header<'_>>] = if limits.headers <= INLINE_HEADERS {
        room = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
        &mut room[..limits.headers]
    } else {
        large = vec![MaybeUninit::uninit(); limits.headers];
        &mut large
    };
    let mut parsed = httparse::Request::new(&mut []);
    match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(Reason::BadRequest),
        Err(error) => return Err(refusal(error, head)),
    }
    let (Some(method), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Reason::BadRequest);
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Reason::BadRequest)?;
    let uri = Uri::from_maybe_shared(head.slice_ref(path.as_bytes())).map_err(|_| Reason::BadRequest)?;
    let http11 = version == 1;
    let mut fields = Fields::new(http11);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + ADDED_HEADERS);
    for line in parsed.headers.iter() {
        let (name, value) = header(head, line)?;
        if fields.read(&name, &value)? {
            headers.append(name, value);
        }
    }
    // Either of two framings could be the one the next server believes (RFC 9112, section 6.3).
    let framing = match (fields.transfer_encoding, fields.content_length) {
        (Some(_), Some(_)) => return Err(Reason::AmbiguousFraming),
        (Some(coding), None) if coding == Coding::Chunked && http11 => Framing::Chunked,
        (Some(_), None) => return Err(Reason::AmbiguousFraming),
        (None, length) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(RequestHead {
        method,
        uri,
        headers,
        version: if http11 { Version::HTTP_11 } else { Version::HTTP_10 },
        framing,
        keep_alive: fields.keep_alive(),
        expect: fields.expect,
    })
}

/// Parses a whole head. `method`: of the request that it answers.
pub fn parse_response(head: &Bytes, limits: HeadLimits, method: &Method) -> Result<ResponseHead, Reason> {
    let mut room;
    let mut large;
    let slots: &mut [MaybeUninit<Header<'_>>] = if limits.headers <= INLINE_HEADERS {
        room = [const { MaybeUninit::uninit() }; INLINE_HEADERS];
        &mut room[..limits.headers]
    } else {
        large = vec![MaybeUninit::uninit(); limits.headers];
        &mut large
    };
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    match config.parse_response_with_uninit_headers(&mut parsed, head, slots) {
        Ok(Status::Complete(_)) => {}
        _ => return Err(Reason::BadResponse),
    }
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else { return Err(Reason::BadResponse) };
    let status = StatusCode::from_u16(code).map_err(|_| Reason::BadResponse)?;
    let mut fields = Fields::new(version == 1);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + ADDED_HEADERS);
    for line in parsed.headers.iter() {
        let (name, value) = header(head, line).map_err(|_| Reason::BadResponse)?;
        if fields.read(&name, &value).map_err(|_| Reason::BadResponse)? {
            headers.append(name, value);
        }
    }
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (fields.transfer_encoding, fields.content_length) {
        _ if bodiless => Framing::Length(0),
        (Some(Coding::Chunked), None) => Framing::Chunked,
        // Two framings may be an attempt at splitting responses (RFC 9112, section 6.3); a coding that nobody asked for
        // cannot be undone here.
        (Some(_), _) => return Err(Reason::BadResponse),
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    };
    Ok(ResponseHead { status, headers, framing, keep_alive: fields.keep_alive() && framing != Framing::UntilClose })
}

fn header(head: &Bytes, line: &Header<'_>) -> Result<(HeaderName, HeaderValue), Reason> {
    let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Reason::BadRequest)?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(line.value)).map_err(|_| Reason::BadRequest)?;
    Ok((name, value))
}

fn refusal(error: httparse::Error, head: &[u8]) -> Reason {
    match error {
        httparse::Error::TooManyHeaders => Reason::HeaderTooLarge,
        httparse::Error::Version if has_version(head) => Reason::UnsupportedVersion,
        _ => Reason::BadRequest,
    }
}

/// Whether the request line ends with a version, be it one that is not spoken here: with a space in its path it ends
/// with something else.
fn has_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    words.next().is_some_and(|version| version.starts_with(b"HTTP/")) && words.next().is_none()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    Other,
}

/// What header fields say of framing and of the connection.
struct Fields {
    http11: bool,
    close: bool,
    keep: bool,
    content_length: Option<u64>,
    transfer_encoding: Option<Coding>,
    expect: Expect,
}

impl Fields {
    fn new(http11: bool) -> Self {
        Self {
            http11,
            close: false,
            keep: false,
            content_length: None,
            transfer_encoding: None,
            expect: Expect::Nothing,
        }
    }

    /// Takes note of one field, and tells whether it is worth keeping.
    fn read(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<bool, Reason> {
        match *name {
            header::CONTENT_LENGTH => {
                let length = content_length(value.as_bytes()).ok_or(Reason::AmbiguousFraming)?;
                if let Some(other) = self.content_length.replace(length) {
                    return if other == length { Ok(false) } else { Err(Reason::AmbiguousFraming) };
                }
            }
            header::TRANSFER_ENCODING => {
                // `chunked, chunked` and lists over several lines are not worth telling apart from an attack.
                let chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked") && self.transfer_encoding.is_none();
                self.transfer_encoding = Some(if chunked { Coding::Chunked } else { Coding::Other });
            }
            header::CONNECTION => {
                for token in value.as_bytes().split(|&byte| byte == b',') {
                    let token = token.trim_ascii();
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => {
                let known = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
                self.expect = if known && self.expect != Expect::Other { Expect::Continue } else { Expect::Other };
            }
            _ => {}
        }
        Ok(true)
    }

    fn keep_alive(&self) -> bool {
        !self.close && (self.http11 || self.keep)
    }
}

/// Digits and nothing else: no sign, no list, no blank.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.iter().try_fold(0_u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}
