//! The one place that turns a failure into a response.

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, StatusCode};
use mitu_telemetry::http::Reason;

/// Seconds after which a client may try again that met an overload: of this gateway, or of its upstream.
const RETRY_AFTER: &str = "5";
const RETRY_AFTER_OVERFLOW: &str = "1";

/// The status that tells a client of `reason`.
pub fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadRequest
        | Reason::AmbiguousFraming
        | Reason::BadHost
        | Reason::BadPath
        | Reason::BadBody
        | Reason::ClientClosed => StatusCode::BAD_REQUEST,
        Reason::HeaderTimeout | Reason::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::UriTooLong => StatusCode::URI_TOO_LONG,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Reason::ProtocolNotSupported => StatusCode::NOT_IMPLEMENTED,
        Reason::UnsupportedVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        Reason::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Reason::TooEarly => StatusCode::TOO_EARLY,
        Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Reason::NoEndpoint | Reason::Overflow | Reason::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        Reason::ResolveFailed
        | Reason::ConnectRefused
        | Reason::ConnectFailed
        | Reason::TlsFailed
        | Reason::ProtocolMismatch
        | Reason::ResetBeforeResponse
        | Reason::BadResponse
        | Reason::ResponseTooLarge
        | Reason::ResponseIncomplete => StatusCode::BAD_GATEWAY,
        Reason::ConnectTimeout | Reason::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whether a client that caused `reason` may have meant something else than what was read: what follows on its
/// connection cannot be trusted to be a request.
pub fn is_malformed(reason: Reason) -> bool {
    status(reason) == StatusCode::BAD_REQUEST
}

/// `grpc-status` for a failure (the mapping of HTTP codes in gRPC's `http-grpc-status-mapping.md`, but for those that
/// gRPC has a better word for).
fn grpc_status(reason: Reason) -> &'static str {
    match status(reason).as_u16() {
        404 | 405 | 501 => "12", // UNIMPLEMENTED
        413 | 429 | 431 => "8",  // RESOURCE_EXHAUSTED
        421 | 502 | 503 => "14", // UNAVAILABLE
        504 => "4",              // DEADLINE_EXCEEDED
        _ => "13",               // INTERNAL
    }
}

/// What the client can read: it decides the form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Text,
    Json,
    Grpc,
    GrpcWeb,
}

impl Audience {
    /// By the request's `Content-Type` and `Accept`.
    pub fn of(request: &HeaderMap) -> Self {
        let begins = |name, prefix: &[u8]| {
            request.get(name).is_some_and(|value: &HeaderValue| {
                value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            })
        };
        if begins(header::CONTENT_TYPE, b"application/grpc-web") {
            Self::GrpcWeb
        } else if begins(header::CONTENT_TYPE, b"application/grpc") {
            Self::Grpc
        } else if begins(header::ACCEPT, b"application/json") {
            Self::Json
        } else {
            Self::Text
        }
    }
}

/// An answer of this gateway's own.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The answer to a request that failed for `reason`.
pub fn failure(reason: Reason, audience: Audience) -> Answer {
    let status = status(reason);
    let mut headers = HeaderMap::with_capacity(8);
    if reason == Reason::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    let retry_after = match reason {
        Reason::Overloaded => Some(RETRY_AFTER),
        Reason::Overflow => Some(RETRY_AFTER_OVERFLOW),
        _ => None,
    };
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    let (content_type, body) = match audience {
        Audience::Grpc | Audience::GrpcWeb => {
            // Trailers only: the status is all there is (gRPC over HTTP/2, "Responses").
            headers.insert("grpc-status", HeaderValue::from_static(grpc_status(reason)));
            headers.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
            let content_type =
                if audience == Audience::Grpc { "application/grpc" } else { "application/grpc-web+proto" };
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            return Answer { status: StatusCode::OK, headers, body: Bytes::new() };
        }
        Audience::Json => {
            ("application/json", format!("{{\"status\":{},\"reason\":\"{}\"}}\n", status.as_u16(), reason.as_str()))
        }
        Audience::Text => {
            let title = status.canonical_reason().unwrap_or_default();
            ("text/plain; charset=utf-8", format!("{} {title}: {}\n", status.as_u16(), reason.as_str()))
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Answer { status, headers, body: Bytes::from(body) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mitu_telemetry::http::Side;

    #[test]
    fn the_side_and_the_status_agree() {
        for &reason in Reason::ALL {
            let status = status(reason);
            match reason.side() {
                Side::Downstream => {
                    assert!(status.is_client_error() || matches!(status.as_u16(), 501 | 505), "{reason:?}")
                }
                Side::Upstream => assert!(matches!(status.as_u16(), 502..=504), "{reason:?}"),
                Side::Internal => assert_eq!(status, if reason == Reason::Overloaded { 503 } else { 500 }),
            }
        }
    }

    #[test]
    fn the_answer_suits_the_client() {
        let request = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            failure(Reason::ConnectRefused, Audience::of(&headers))
        };
        assert_eq!(request("accept", "*/*").body, "502 Bad Gateway: connect_refused\n");
        let json: serde_json::Value = serde_json::from_slice(&request("accept", "application/json").body).unwrap();
        assert_eq!(json, serde_json::json!({"status": 502, "reason": "connect_refused"}));
        let grpc = request("content-type", "application/grpc+proto");
        assert_eq!((grpc.status, grpc.body.len()), (StatusCode::OK, 0));
        assert_eq!(grpc.headers["grpc-status"], "14");
        assert_eq!(grpc_status(Reason::ResponseTimeout), "4");
    }
}
