//! Why a request failed: one word for the access log and the metrics, the same in every release.

/// Which side a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client sent something that is refused, or went away.
    Downstream,
    Upstream,
    /// This gateway: its configuration, or a defect.
    Internal,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $word:literal, $side:ident;)+) => {
        /// Why this gateway answered with an error of its own, or could not finish an exchange.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant,)+
        }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Self::$variant,)+];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            pub fn side(self) -> Side {
                match self {
                    $(Self::$variant => Side::$side,)+
                }
            }
        }
    };
}

reasons! {
    /// The request line or a header could not be parsed.
    BadRequest => "bad_request", Downstream;
    /// `Content-Length` and `Transfer-Encoding` contradict each other or themselves.
    AmbiguousFraming => "ambiguous_framing", Downstream;
    /// `Host` is missing, repeated, malformed, or differs from `:authority`.
    BadHost => "bad_host", Downstream;
    /// The host belongs to a site that this connection could not have been made to.
    Misdirected => "misdirected", Downstream;
    /// The path climbs above the root, has a broken escape, or was rewritten to one with dot segments.
    BadPath => "bad_path", Downstream;
    /// The body's chunks or trailers are malformed.
    BadBody => "bad_body", Downstream;
    /// The head was not complete in time.
    HeaderTimeout => "header_timeout", Downstream;
    /// The client had not sent its body when the route's time was over.
    BodyTimeout => "body_timeout", Downstream;
    HeaderTooLarge => "header_too_large", Downstream;
    UriTooLong => "uri_too_long", Downstream;
    BodyTooLarge => "body_too_large", Downstream;
    MethodNotAllowed => "method_not_allowed", Downstream;
    /// What CONNECT asks for is no protocol of this route.
    ProtocolNotSupported => "protocol_not_supported", Downstream;
    UnsupportedVersion => "unsupported_version", Downstream;
    ExpectationFailed => "expectation_failed", Downstream;
    NoRoute => "no_route", Downstream;
    /// The client has made as many requests of the route as it may.
    RateLimited => "rate_limited", Downstream;
    /// The client's handshake was not done in time for a request that may not be a replay.
    TooEarly => "too_early", Downstream;
    /// The client went away before it had its response.
    ClientClosed => "client_closed", Downstream;
    /// The upstream has no endpoint to try.
    NoEndpoint => "no_endpoint", Upstream;
    /// Every endpoint has as many requests as it may.
    Overflow => "overflow", Upstream;
    /// The endpoint's name was not resolved.
    ResolveFailed => "resolve_failed", Upstream;
    ConnectRefused => "connect_refused", Upstream;
    ConnectTimeout => "connect_timeout", Upstream;
    ConnectFailed => "connect_failed", Upstream;
    TlsFailed => "tls_failed", Upstream;
    /// The endpoint agreed to another protocol than the one configured.
    ProtocolMismatch => "protocol_mismatch", Upstream;
    /// The connection ended before the first byte of a response.
    ResetBeforeResponse => "reset_before_response", Upstream;
    /// The response's head could not be parsed.
    BadResponse => "bad_response", Upstream;
    ResponseTimeout => "response_timeout", Upstream;
    /// The response's body is larger than the route allows.
    ResponseTooLarge => "response_too_large", Upstream;
    /// The response's body was cut short; its head had been sent already.
    ResponseIncomplete => "response_incomplete", Upstream;
    /// The gateway has not the memory that it takes.
    Overloaded => "overloaded", Internal;
    Internal => "internal", Internal;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_distinct() {
        let words: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
