//! Heads and bodies as they go on the wire.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::super::date;
use super::head::Framing;
use super::transport::Outgoing;

/// Frames up to this size are copied behind what waits already: one system call, one TLS record.
const COPIED: usize = 16 * 1024;

/// Writes the head of a request. The headers hold no `Connection`; whatever `Content-Length` they hold, the length that
/// is written is the one that the body will be held to.
pub fn request(
    out: &mut Vec<u8>,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    framing: Framing,
    connection: &str,
) {
    out.reserve(256 + headers.len() * 48);
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        if name != header::CONTENT_LENGTH {
            field(out, name, value);
        }
    }
    if !connection.is_empty() {
        for part in ["connection: ", connection, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    match framing {
        Framing::Length(0) if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE) => {}
        framing => framing_field(out, framing),
    }
    out.extend_from_slice(b"\r\n");
}

/// What the connection's header says to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// The default of the client's version.
    Implied,
    /// HTTP/1.0 clients must be told.
    KeepAlive,
    Close,
}

/// Writes the head of a response. `framing`: none where a response cannot have a body.
pub fn response(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Option<Framing>,
    persistence: Persistence,
) {
    out.reserve(256 + headers.len() * 48);
    status_line(out, status);
    fields(out, headers);
    if !headers.contains_key(header::DATE) {
        date_field(out);
    }
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"connection: close\r\n"),
    }
    match framing {
        Some(Framing::Length(_)) if headers.contains_key(header::CONTENT_LENGTH) => {}
        Some(framing) => framing_field(out, framing),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of a `101` response.
pub fn switching(out: &mut Vec<u8>, headers: &HeaderMap, protocol: &HeaderValue) {
    status_line(out, StatusCode::SWITCHING_PROTOCOLS);
    fields(out, headers);
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
    out.extend_from_slice(protocol.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or(""), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn fields(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        field(out, name, value);
    }
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn framing_field(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::UntilClose => {}
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => field(out, &header::CONTENT_LENGTH, &HeaderValue::from(length)),
    }
}

fn date_field(out: &mut Vec<u8>) {
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(&date::now());
    out.extend_from_slice(b"\r\n");
}

/// The body's length does not match what the head has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body's length is not what its head announced")]
pub struct LengthMismatch;

/// Frames a body.
#[derive(Debug)]
pub struct Encoder(State);

#[derive(Debug, Clone, Copy)]
enum State {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Encoder {
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked,
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Queues a piece. The queue must have room ([`Outgoing::has_room`]).
    pub fn data(&mut self, out: &mut Outgoing, data: Bytes) -> Result<(), LengthMismatch> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.0 {
            State::UntilClose => append(out, data, b""),
            State::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(LengthMismatch)?;
                append(out, data, b"");
            }
            State::Chunked => {
                chunk_line(&mut out.head, data.len());
                append(out, data, b"\r\n");
            }
        }
        Ok(())
    }

    /// Queues the body's end.
    pub fn end(&mut self, out: &mut Outgoing, trailers: Option<&HeaderMap>) -> Result<(), LengthMismatch> {
        match self.0 {
            State::Length(0) | State::UntilClose => Ok(()),
            State::Length(_) => Err(LengthMismatch),
            State::Chunked => {
                out.head.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    fields(&mut out.head, trailers);
                }
                out.head.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn append(out: &mut Outgoing, data: Bytes, tail: &'static [u8]) {
    if data.len() <= COPIED {
        out.head.extend_from_slice(&data);
        out.head.extend_from_slice(tail);
    } else {
        out.set_body(data, tail);
    }
}

fn chunk_line(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..nibbles).rev().map(|place| DIGITS[length >> (4 * place) & 15]));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for (length, line) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (255, "ff\r\n"), (65_536, "10000\r\n")] {
            assert_eq!(text(|out| chunk_line(out, length)), line);
        }
    }

    #[test]
    fn an_empty_body_is_announced_where_one_is_expected() {
        let write =
            |method: Method| text(|out| request(out, &method, "/x?y", &HeaderMap::new(), Framing::Length(0), ""));
        assert_eq!(write(Method::GET), "GET /x?y HTTP/1.1\r\n\r\n");
        assert_eq!(write(Method::POST), "POST /x?y HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
    }

    #[test]
    fn a_requests_length_is_its_framings_and_not_its_headers() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("7"));
        headers.append(header::CONTENT_LENGTH, HeaderValue::from_static("8"));
        let write = |method: Method, framing| text(|out| request(out, &method, "/", &headers, framing, ""));
        assert_eq!(write(Method::PUT, Framing::Length(5)), "PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(write(Method::PUT, Framing::Length(0)), "PUT / HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(write(Method::PUT, Framing::Chunked), "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(write(Method::GET, Framing::Length(0)), "GET / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn a_response_is_dated_once() {
        let mut headers = HeaderMap::new();
        let write = |headers: &HeaderMap| {
            text(|out| response(out, StatusCode::NOT_FOUND, headers, Some(Framing::Chunked), Persistence::Close))
        };
        let dated = write(&headers);
        assert!(dated.starts_with("HTTP/1.1 404 Not Found\r\ndate: "), "{dated}");
        assert!(dated.ends_with(" GMT\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"), "{dated}");
        headers.insert(header::DATE, HeaderValue::from_static("then"));
        assert_eq!(write(&headers).matches("date:").count(), 1);
    }

    #[test]
    fn bodies_are_framed() {
        let encode = |framing, pieces: &[&'static [u8]]| {
            let mut out = Outgoing::default();
            let mut encoder = Encoder::new(framing);
            for piece in pieces {
                encoder.data(&mut out, Bytes::from_static(piece))?;
            }
            encoder.end(&mut out, None).map(|()| String::from_utf8(out.head).unwrap())
        };
        assert_eq!(encode(Framing::Chunked, &[b"hello", b"", b"!"]).unwrap(), "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n");
        assert_eq!(encode(Framing::Length(6), &[b"hello", b"!"]).unwrap(), "hello!");
        assert_eq!(encode(Framing::Length(5), &[b"hello", b"!"]), Err(LengthMismatch));
        assert_eq!(encode(Framing::Length(7), &[b"hello", b"!"]), Err(LengthMismatch));
        assert_eq!(encode(Framing::UntilClose, &[b"hello"]).unwrap(), "hello");
    }

    #[test]
    fn trailers_end_a_chunked_body() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let mut out = Outgoing::default();
        Encoder::new(Framing::Chunked).end(&mut out, Some(&trailers)).unwrap();
        assert_eq!(out.head, b"0\r\nx-sum: 7\r\n\r\n");
    }
}
