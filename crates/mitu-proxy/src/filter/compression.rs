//! Which responses of a route are compressed, and what that changes in their heads (RFC 9110, section 8.4).

mod encoder;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, RANGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::config::CompressConfig;
pub use encoder::{Encoder, Encoding};

/// Responses of one route that are being compressed at once. Each takes up to 2 MiB; further ones are sent as they are.
const AT_ONCE: usize = 256;

/// Headers that say what the bytes of the body add up to.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// What a route compresses.
#[derive(Debug)]
pub struct Compression {
    /// Most preferred first.
    encodings: Vec<Encoding>,
    min_bytes: u64,
    types: Vec<TypePattern>,
    in_use: Arc<AtomicUsize>,
}

/// A media type in which one `*` may stand for anything.
#[derive(Debug)]
struct TypePattern {
    begin: String,
    end: Option<String>,
}

impl TypePattern {
    fn parse(pattern: &str) -> Self {
        let (begin, end) = pattern.split_once('*').map_or((pattern, None), |(begin, end)| (begin, Some(end)));
        Self { begin: begin.to_owned(), end: end.map(str::to_owned) }
    }

    fn matches(&self, media_type: &[u8]) -> bool {
        let Some(end) = &self.end else { return media_type.eq_ignore_ascii_case(self.begin.as_bytes()) };
        media_type.len() >= self.begin.len() + end.len()
            && media_type[..self.begin.len()].eq_ignore_ascii_case(self.begin.as_bytes())
            && media_type[media_type.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
    }
}

/// A place among those that are compressed at once.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Compression {
    pub fn build(config: &CompressConfig) -> Self {
        Self {
            encodings: config.encodings.clone(),
            min_bytes: config.min_bytes,
            types: config.types.iter().map(|pattern| TypePattern::parse(pattern)).collect(),
            in_use: Arc::default(),
        }
    }

    /// The encoding that the client likes best; among those that it likes the same, the first. None: it wants none, or
    /// what it wants is not to be changed.
    pub fn choose(&self, request: &HeaderMap) -> Option<Encoding> {
        if request.contains_key(RANGE) || lists(request, &CACHE_CONTROL, "no-transform") {
            return None;
        }
        let any = weight(request, "*").unwrap_or(0.0);
        let (mut chosen, mut best) = (None, 0.0);
        for &encoding in &self.encodings {
            let weight = weight(request, encoding.name()).unwrap_or(any);
            if weight > best {
                (chosen, best) = (Some(encoding), weight);
            }
        }
        chosen.filter(|_| weight(request, "identity").is_none_or(|plain| plain <= best))
    }

    /// Makes the head that of a response in `encoding`, where the response is one to be compressed, and gives what
    /// compresses its body. `length`: of the body, where it is known.
    pub fn apply(
        &self,
        encoding: Option<Encoding>,
        method: &Method,
        status: StatusCode,
        headers: &mut HeaderMap,
        length: Option<u64>,
    ) -> Option<(Encoder, Place)> {
        if status == StatusCode::NOT_MODIFIED {
            // It is about a response that may have been compressed.
            vary(headers);
            if encoding.is_some() {
                weaken_etag(headers);
            }
            return None;
        }
        if !self.takes(status, headers, length) {
            return None;
        }
        vary(headers);
        let encoding = encoding?;
        let compressor =
            if *method == Method::HEAD { None } else { Some((Encoder::new(encoding).ok()?, self.place()?)) };
        headers.insert(CONTENT_ENCODING, encoding.value());
        headers.remove(CONTENT_LENGTH);
        // Ranges would be of what the upstream has, not of what the client gets.
        headers.remove(ACCEPT_RANGES);
        weaken_etag(headers);
        compressor
    }

    /// Whether a response is one to be compressed, for a client that can take it.
    fn takes(&self, status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
        let bodiless =
            matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT);
        !bodiless
            && length.is_none_or(|length| length >= self.min_bytes)
            && headers.get(CONTENT_TYPE).is_some_and(|media_type| self.takes_type(media_type))
            && ![CONTENT_ENCODING, CONTENT_RANGE].iter().any(|name| headers.contains_key(name))
            && !DIGESTS.iter().any(|name| headers.contains_key(*name))
            && !lists(headers, &CACHE_CONTROL, "no-transform")
    }

    fn takes_type(&self, media_type: &HeaderValue) -> bool {
        let media_type = media_type.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        // gRPC compresses its messages by itself, and each has to arrive when it is sent.
        let grpc = media_type.get(..16).is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"));
        !grpc && self.types.iter().any(|pattern| pattern.matches(media_type))
    }

    fn place(&self) -> Option<Place> {
        let place = Place(self.in_use.clone());
        (self.in_use.fetch_add(1, Ordering::Relaxed) < AT_ONCE).then_some(place)
    }
}

/// The members of a list in `headers`.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim))
}

fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    members(headers, name).any(|found| found.eq_ignore_ascii_case(member))
}

/// How much the client likes an encoding, from 0 to 1, where it says so.
fn weight(request: &HeaderMap, encoding: &str) -> Option<f32> {
    members(request, &ACCEPT_ENCODING).find_map(|member| {
        let (name, parameter) = member.split_once(';').map_or((member, None), |(name, rest)| (name, Some(rest)));
        if !name.trim_end().eq_ignore_ascii_case(encoding) {
            return None;
        }
        let Some(parameter) = parameter else { return Some(1.0) };
        let weight = parameter.trim().strip_prefix(['q', 'Q']).and_then(|rest| rest.strip_prefix('='));
        // What cannot be read is not taken for a wish.
        Some(
            weight.and_then(|weight| weight.parse().ok()).filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(0.0),
        )
    })
}

/// Lets caches know that other clients get other bytes.
fn vary(headers: &mut HeaderMap) {
    if !lists(headers, &VARY, "*") && !lists(headers, &VARY, "accept-encoding") {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Two encodings of one thing are not the same bytes, which a strong tag would claim.
fn weaken_etag(headers: &mut HeaderMap) {
    if let Some(etag) = headers.get(ETAG).filter(|etag| !etag.as_bytes().starts_with(b"W/"))
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn compression() -> Compression {
        Compression::build(&CompressConfig {
            encodings: vec![Encoding::Zstd, Encoding::Br, Encoding::Gzip],
            min_bytes: 100,
            types: ["text/*", "application/json", "application/*+json", "application/*"].map(str::to_owned).to_vec(),
        })
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn chosen(accept: &'static str) -> &'static str {
        compression().choose(&headers(&[("accept-encoding", accept)])).map_or("", Encoding::name)
    }

    #[test]
    fn the_client_chooses() {
        assert_eq!(compression().choose(&HeaderMap::new()), None);
        for (accept, encoding) in [
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, deflate, br", "br"),
            ("gzip", "gzip"),
            ("GZIP;Q=0.5", "gzip"),
            ("gzip;q=1.0, br;q=0.9, zstd ; q=0.1", "gzip"),
            ("gzip;q=0.5, *;q=0.8", "zstd"),
            ("zstd;q=0, *", "br"),
            ("*", "zstd"),
            ("*;q=0", ""),
            ("gzip;q=0", ""),
            ("gzip;q=two", ""),
            ("gzip;q=inf, br;q=-1, zstd;q=NaN", ""),
            ("gzip;level=9", ""),
            ("identity", ""),
            ("gzip;q=0.5, identity", ""),
            ("gzip;q=0.5, identity;q=0.5", "gzip"),
            ("identity;q=0, gzip", "gzip"),
            ("deflate, compress, gzipped", ""),
            ("", ""),
        ] {
            assert_eq!(chosen(accept), encoding, "{accept}");
        }
        let range = headers(&[("accept-encoding", "gzip"), ("range", "bytes=0-9")]);
        assert_eq!(compression().choose(&range), None);
        let as_it_is = headers(&[("accept-encoding", "gzip"), ("cache-control", "no-cache, No-Transform")]);
        assert_eq!(compression().choose(&as_it_is), None);
    }

    #[test]
    fn the_head_says_what_becomes_of_the_body() {
        let plain = [("content-type", "text/html; charset=utf-8"), ("content-length", "100"), ("etag", "\"x\"")];
        let mut sent = headers(&plain);
        sent.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let compressor = compression().apply(Some(Encoding::Br), &Method::GET, StatusCode::OK, &mut sent, Some(100));
        assert!(compressor.is_some());
        let expected = [
            ("content-type", "text/html; charset=utf-8"),
            ("etag", "W/\"x\""),
            ("vary", "Accept-Encoding"),
            ("content-encoding", "br"),
        ];
        assert_eq!(sent, headers(&expected));

        // Of a HEAD it is the same.
        let mut of_head = headers(&plain);
        let compressor =
            compression().apply(Some(Encoding::Br), &Method::HEAD, StatusCode::OK, &mut of_head, Some(100));
        assert!(compressor.is_none());
        assert_eq!(of_head, headers(&expected));

        // Caches learn that it could have been another.
        let mut uncompressed = headers(&plain);
        compression().apply(None, &Method::GET, StatusCode::OK, &mut uncompressed, Some(100));
        let varied = [plain[0], plain[1], plain[2], ("vary", "Accept-Encoding")];
        assert_eq!(uncompressed, headers(&varied));

        let mut unchanged = headers(&[("etag", "\"x\""), ("vary", "accept-encoding, origin")]);
        compression().apply(Some(Encoding::Br), &Method::GET, StatusCode::NOT_MODIFIED, &mut unchanged, None);
        assert_eq!(unchanged, headers(&[("etag", "W/\"x\""), ("vary", "accept-encoding, origin")]));
    }

    #[test]
    fn what_is_not_to_be_compressed_is_left_alone() {
        let json = ("content-type", "application/json");
        type Case<'a> = (u16, Option<u64>, &'a [(&'a str, &'a str)]);
        let cases: &[Case] = &[
            (200, Some(99), &[json]),
            (204, None, &[json]),
            (205, None, &[json]),
            (206, None, &[json]),
            (200, None, &[]),
            (200, None, &[("content-type", "image/png")]),
            (200, None, &[("content-type", "application/grpc")]),
            (200, None, &[("content-type", "Application/GRPC-web+proto")]),
            (200, None, &[json, ("content-encoding", "gzip")]),
            (200, None, &[json, ("content-range", "bytes 0-99/200")]),
            (200, None, &[json, ("cache-control", "public, no-transform")]),
            (200, None, &[json, ("content-digest", "sha-256=:AA==:")]),
        ];
        for (status, length, fields) in cases {
            let fields: HeaderMap = fields
                .iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            let mut after = fields.clone();
            let status = StatusCode::from_u16(*status).unwrap();
            let compressor = compression().apply(Some(Encoding::Gzip), &Method::GET, status, &mut after, *length);
            assert!(compressor.is_none(), "{status} {fields:?}");
            assert_eq!(after, fields);
        }
    }

    #[test]
    fn types_are_matched_whole() {
        let matches = |pattern: &str, media_type: &str| TypePattern::parse(pattern).matches(media_type.as_bytes());
        assert!(matches("text/*", "Text/Event-Stream") && matches("application/*+json", "application/ld+json"));
        assert!(matches("application/json", "application/JSON") && !matches("application/json", "application/json5"));
        assert!(!matches("application/*+json", "application/json") && !matches("a*a", "a"));
    }

    #[test]
    fn no_more_than_so_many_are_compressed_at_once() {
        let compression = compression();
        let html = headers(&[("content-type", "text/html")]);
        let apply = || compression.apply(Some(Encoding::Gzip), &Method::GET, StatusCode::OK, &mut html.clone(), None);
        let places: Vec<_> = (0..AT_ONCE).map(|_| compression.place().unwrap()).collect();
        assert!(apply().is_none());
        let mut plain = html.clone();
        compression.apply(Some(Encoding::Gzip), &Method::GET, StatusCode::OK, &mut plain, None);
        assert!(!plain.contains_key(CONTENT_ENCODING));
        drop(places);
        assert!(apply().is_some());
        assert_eq!(compression.in_use.load(Ordering::Relaxed), 0);
    }
}
