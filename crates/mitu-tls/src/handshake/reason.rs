//! Why a handshake did not finish: one word for the access log and the metrics, the same in every release.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $word:literal;)+) => {
        /// Why a handshake did not finish, as it is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        }
    };
}

reasons! {
    ClientClosed => "client_closed";
    ClientReset => "client_reset";
    Timeout => "timeout";
    /// The listener drained, and the client had not begun.
    Draining => "draining";
    /// It would have waited for its turn for longer than a client does.
    Shed => "shed";
    /// Its source, or its server name, has had its part.
    RateLimited => "rate_limited";
    /// A trusted peer's PROXY header is malformed.
    ProxyProtocol => "proxy_protocol";
    /// What came is no TLS, or out of place.
    NotTls => "not_tls";
    NoApplicationProtocol => "no_application_protocol";
    /// The server name is not served here.
    UnrecognizedName => "unrecognized_name";
    /// No version, suite, or group in common.
    PeerIncompatible => "peer_incompatible";
    PeerMisbehaved => "peer_misbehaved";
    /// The client gave up, and said so.
    AlertReceived => "alert_received";
    ClientCertificateMissing => "client_certificate_missing";
    ClientCertificateInvalid => "client_certificate_invalid";
    DecryptError => "decrypt_error";
    /// The selection failed for another reason.
    Refused => "refused";
    /// TLS failed for another reason.
    Tls => "tls";
    /// QUIC failed around it.
    Quic => "quic";
    Io => "io";
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
