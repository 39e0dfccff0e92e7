//! The TLS part of the runtime configuration (`mitu-proxy/src/config.rs` holds the rest).

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// One chain with its key, both named by their identifiers among the secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    pub id: String,
    /// PEM chain, leaf first.
    pub chain: String,
    /// PEM private key (PKCS#8, PKCS#1 or SEC1).
    pub key: String,
}

/// Server names that share their certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// Lower-case exact names, `*.example.com` for one label in front, or IP addresses (never matched by SNI).
    pub names: Vec<String>,
    /// Certificate identifiers, the preferred one for each key type first.
    pub certificates: Vec<String>,
    pub alpn: AlpnPolicy,
}

/// Which protocols clients of a site get, and what becomes of those that do not ask for any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlpnPolicy {
    pub mode: AlpnMode,
    /// Indices into the listener's protocols: those that are allowed, most preferred first.
    pub protocols: Vec<usize>,
    /// Likewise: what clients without ALPN get; none: they are refused.
    pub no_alpn: Option<usize>,
    /// Under which name the order of `protocols` is learned from what is known of the upstreams; none: it stays.
    #[serde(default)]
    pub ranking: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlpnMode {
    /// What the others refuse is counted, and served if there is a way to.
    Observe,
    /// Clients without ALPN get `no_alpn`.
    Lenient,
    /// They are refused.
    Strict,
}

impl AlpnMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Lenient => "lenient",
            Self::Strict => "strict",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPolicy {
    pub provider: Provider,
    pub min_version: Version,
    pub max_version: Version,
    /// IANA names (`TLS_AES_128_GCM_SHA256`), most preferred first; empty:
    /// every suite the versions allow, in the order that is cheapest on this CPU.
    pub cipher_suites: Vec<String>,
    /// Named groups (`X25519MLKEM768`, `X25519`, `secp256r1`, `secp384r1`) that are allowed, most preferred first among
    /// those that the client has sent a key for; empty: every group, the cheapest first.
    pub groups: Vec<String>,
    pub post_quantum: PostQuantum,
    pub client_auth: ClientAuthConfig,
    /// TLS 1.3 tickets sent after a full handshake; 0: no resumption, in TLS 1.2 neither.
    pub tickets: usize,
    /// Whether clients that resume may send early data; their sessions are then kept here, in place of tickets that any
    /// node opens.
    pub early_data: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Provider {
    #[serde(rename = "aws-lc")]
    AwsLc,
    #[serde(rename = "boringssl")]
    BoringSsl,
    #[serde(rename = "aws-lc-fips")]
    AwsLcFips,
}

impl Provider {
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc",
            Self::BoringSsl => "boringssl",
            Self::AwsLcFips => "aws-lc-fips",
        }
    }
}

/// When the keys are exchanged in X25519MLKEM768.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostQuantum {
    /// Wherever the client can, if need be after asking it for its key, which takes a round trip.
    Prefer,
    /// Where the client has sent its key for it.
    Allow,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientAuthConfig {
    None,
    /// `ca`: identifier of the PEM bundle of trusted roots.
    Optional {
        ca: String,
    },
    Required {
        ca: String,
    },
}

/// How session tickets are sealed, on every listener alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketsConfig {
    /// Identifiers of the secrets that keys are derived from: the first seals, all of them open. Empty: random keys,
    /// which live in the process.
    pub secrets: Vec<String>,
    /// How long one key seals.
    pub rotation_ms: NonZeroU64,
    /// How long a ticket is good.
    pub lifetime_ms: u64,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTlsConfig {
    /// Sent as SNI and verified; none: the endpoint's host.
    pub server_name: Option<String>,
    /// Identifier of the PEM bundle of trusted roots; none: the system's.
    pub ca: Option<String>,
    /// Identifier of the certificate this gateway identifies itself with.
    pub client_certificate: Option<String>,
    /// False accepts any certificate.
    pub verify: bool,
}
