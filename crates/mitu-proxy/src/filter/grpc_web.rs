//! gRPC-Web (`PROTOCOL-WEB.md` of the gRPC project): what browsers can send and read, for upstreams that speak gRPC. Messages are
//! framed alike; trailers, which scripts cannot see, are a last frame of the body, and all of it may be in base64.

use bytes::{BufMut, Bytes, BytesMut};
use data_encoding::BASE64;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;

const GRPC: &str = "application/grpc";
const WEB: &str = "application/grpc-web";
const TEXT: &str = "application/grpc-web-text";

/// The bit in a frame's first byte that says that trailers follow.
const TRAILERS: u8 = 0x80;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Binary,
    Base64,
}

impl Form {
    /// Of a media type, and what follows `application/grpc-web` in it; None: it is another.
    fn of(value: &HeaderValue) -> Option<(Self, &str)> {
        let value = value.to_str().ok()?;
        let after = |name: &str| {
            let (begin, rest) = value.split_at_checked(name.len())?;
            let whole = rest.is_empty() || rest.starts_with(['+', ';', ' ', ',']);
            (begin.eq_ignore_ascii_case(name) && whole).then_some(rest)
        };
        after(TEXT).map(|rest| (Self::Base64, rest)).or_else(|| after(WEB).map(|rest| (Self::Binary, rest)))
    }
}

/// What was found out about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcWeb {
    pub request: Form,
    pub response: Form,
}

impl GrpcWeb {
    /// Makes gRPC of a request's headers. None, and nothing changed, where it is no gRPC-Web.
    pub fn from_request(headers: &mut HeaderMap) -> Option<Self> {
        let (request, rest) = Form::of(headers.get(CONTENT_TYPE)?)?;
        let content_type = HeaderValue::try_from(format!("{GRPC}{rest}")).ok()?;
        let response = headers.get(ACCEPT).and_then(Form::of).map_or(request, |(form, _)| form);
        headers.insert(CONTENT_TYPE, content_type);
        headers.remove(ACCEPT);
        headers.remove(CONTENT_LENGTH);
        Some(Self { request, response })
    }

    /// Makes gRPC-Web of a response's headers. False, and nothing changed, where it is no gRPC.
    pub fn to_response(self, headers: &mut HeaderMap) -> bool {
        let of_grpc = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()?.strip_prefix(GRPC));
        let Some(rest) = of_grpc.filter(|rest| rest.is_empty() || rest.starts_with(['+', ';'])) else { return false };
        let name = if self.response == Form::Base64 { TEXT } else { WEB };
        let Ok(content_type) = HeaderValue::try_from(format!("{name}{rest}")) else { return false };
        headers.insert(CONTENT_TYPE, content_type);
        headers.remove(CONTENT_LENGTH);
        true
    }
}

/// A piece of a response's body of gRPC as gRPC-Web has it. In base64 each piece is padded by itself, since clients read
/// what has come without waiting for the next.
pub fn frame(form: Form, frame: Frame<Bytes>) -> Frame<Bytes> {
    let data = frame.into_data().unwrap_or_else(|frame| trailers(&frame.into_trailers().unwrap_or_default()));
    Frame::data(match form {
        Form::Binary => data,
        Form::Base64 => BASE64.encode(&data).into(),
    })
}

/// Trailers as the last frame of a body.
fn trailers(trailers: &HeaderMap) -> Bytes {
    let mut block = BytesMut::new();
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            block.put_slice(part);
        }
    }
    let mut frame = BytesMut::with_capacity(5 + block.len());
    frame.put_u8(TRAILERS);
    // A header list that long is not accepted from an upstream.
    frame.put_u32(block.len() as u32);
    frame.put_slice(&block);
    frame.freeze()
}

/// Reads base64 as it comes: pieces of any size, padded wherever a client has thought that it was done.
#[derive(Debug, Default)]
pub struct Base64Reader {
    /// The beginning of a group of four characters.
    kept: Vec<u8>,
}

impl Base64Reader {
    /// None: it is no base64.
    pub fn decode(&mut self, data: &[u8]) -> Option<Bytes> {
        self.kept.extend_from_slice(data);
        let rest = self.kept.split_off(self.kept.len() / 4 * 4);
        let decoded = BASE64.decode(&self.kept).ok();
        self.kept = rest;
        decoded.map(Bytes::from)
    }

    /// Whether what has come so far is whole.
    pub fn is_whole(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_becomes_one_of_grpc() {
        for (content_type, accept, expected, becomes) in [
            ("application/grpc-web", None, (Form::Binary, Form::Binary), "application/grpc"),
            ("application/grpc-web+proto", Some("*/*"), (Form::Binary, Form::Binary), "application/grpc+proto"),
            ("Application/gRPC-Web-Text", None, (Form::Base64, Form::Base64), "application/grpc"),
            (
                "application/grpc-web+proto",
                Some("application/grpc-web-text"),
                (Form::Binary, Form::Base64),
                "application/grpc+proto",
            ),
        ] {
            let mut headers = map(&[("content-type", content_type), ("content-length", "7")]);
            headers.extend(accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept))));
            let found = GrpcWeb::from_request(&mut headers).unwrap();
            assert_eq!((found.request, found.response), expected, "{content_type}");
            assert_eq!(headers, map(&[("content-type", becomes)]));
        }
        for other in ["application/grpc", "application/grpc-webby", "text/html", "application/grpc-web-textual"] {
            let mut headers = map(&[("content-type", other), ("content-length", "7")]);
            assert_eq!(GrpcWeb::from_request(&mut headers), None, "{other}");
            assert_eq!(headers.len(), 2);
        }
    }

    #[test]
    fn a_response_of_grpc_becomes_one_for_the_client() {
        let text = GrpcWeb { request: Form::Base64, response: Form::Base64 };
        let mut headers = map(&[("content-type", "application/grpc+proto"), ("grpc-status", "0")]);
        assert!(text.to_response(&mut headers));
        assert_eq!(headers, map(&[("content-type", "application/grpc-web-text+proto"), ("grpc-status", "0")]));
        let mut headers = map(&[("content-type", "text/html"), ("content-length", "7")]);
        assert!(!text.to_response(&mut headers));
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn trailers_are_a_frame() {
        let frame = trailers(&map(&[("grpc-status", "5"), ("grpc-message", "no such thing")]));
        assert_eq!(frame[..5], [0x80, 0, 0, 0, 45]);
        assert_eq!(&frame[5..], b"grpc-status: 5\r\ngrpc-message: no such thing\r\n");
    }

    #[test]
    fn base64_is_read_in_pieces_of_any_size() {
        // Two messages, each padded, as some clients write them.
        let text = [BASE64.encode(b"hello"), BASE64.encode(b"worlds!")].concat().into_bytes();
        for size in 1..text.len() {
            let mut reader = Base64Reader::default();
            let read: Vec<_> = text.chunks(size).map(|piece| reader.decode(piece).unwrap()).collect();
            assert_eq!(read.concat(), b"helloworlds!", "in pieces of {size}");
            assert!(reader.is_whole());
        }
        let mut reader = Base64Reader::default();
        assert_eq!(reader.decode(b"aGVsbG8").unwrap(), &b"hel"[..]);
        assert!(!reader.is_whole());
        for bad in [&b"a-b_"[..], b"aG=V", b"====", b"aGV\n"] {
            assert_eq!(Base64Reader::default().decode(bad), None, "{bad:?}");
        }
    }
}
