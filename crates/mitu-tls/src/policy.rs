//! From a policy to what rustls runs: provider, versions, suites, groups, client authentication.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use crate::certificate::{Certificate, read_chain};
use crate::config::{ClientAuthConfig, TlsPolicy, Version};
use crate::error::{Secrets, TlsConfigError};
use crate::group::{self, Groups};
use crate::provider::base_provider;
use crate::ticket::Resumption;

/// A policy made ready: what all server configurations under it share.
#[derive(Debug)]
pub struct PreparedPolicy {
    /// One for each group, with that group alone, so that it is the one that rustls takes.
    providers: Vec<Arc<CryptoProvider>>,
    pub groups: Arc<Groups>,
    versions: Vec<&'static SupportedProtocolVersion>,
    verifier: Arc<dyn ClientCertVerifier>,
    tickets: usize,
    /// Those of the versions that the policy allows.
    pub suites: Arc<[SupportedCipherSuite]>,
}

impl PreparedPolicy {
    pub fn new(policy: &TlsPolicy, alpn: &str, secrets: &Secrets) -> Result<Self, TlsConfigError> {
        let crypto = crypto_provider(policy)?;
        let versions = versions(policy);
        let served =
            |version: &&SupportedProtocolVersion| crypto.cipher_suites.iter().any(|suite| suite.version() == *version);
        if let Some(version) = versions.iter().find(|version| !served(version)) {
            let reason = format!("no cipher suite for {:?} among those allowed", version.version);
            return Err(TlsConfigError::Policy { alpn: alpn.to_owned(), reason });
        }
        if crypto.kx_groups.is_empty() {
            let reason = "post_quantum is off, and no other group is allowed".to_owned();
            return Err(TlsConfigError::Policy { alpn: alpn.to_owned(), reason });
        }
        let of = |group: &&'static dyn SupportedKxGroup| {
            Arc::new(CryptoProvider { kx_groups: vec![*group], ..crypto.clone() })
        };
        Ok(Self {
            providers: crypto.kx_groups.iter().map(of).collect(),
            verifier: verifier(&policy.client_auth, &Arc::new(crypto.clone()), secrets)?,
            tickets: policy.tickets,
            suites: crypto.cipher_suites.iter().filter(|suite| versions.contains(&suite.version())).copied().collect(),
            groups: Arc::new(Groups::new(crypto.kx_groups, policy.post_quantum, versions.contains(&&TLS13))),
            versions,
        })
    }

    /// The configurations for one certificate and one protocol, in the order of the groups. `alpn`: none where the
    /// client's offers are passed over; `resumption`: none where there is none.
    pub fn server_configs(
        &self,
        alpn: Option<&str>,
        certificate: &Certificate,
        resumption: Option<&Resumption>,
    ) -> Result<Box<[Arc<ServerConfig>]>, TlsConfigError> {
        let resolver = Arc::new(SingleCertAndKey::from(certificate.key.clone()));
        let make = |provider| self.server_config(provider, alpn, &resolver, resumption).map(Arc::new);
        self.providers.iter().map(make).collect()
    }

    fn server_config(
        &self,
        provider: &Arc<CryptoProvider>,
        alpn: Option<&str>,
        resolver: &Arc<SingleCertAndKey>,
        resumption: Option<&Resumption>,
    ) -> Result<ServerConfig, TlsConfigError> {
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(self.verifier.clone())
            .with_cert_resolver(resolver.clone());
        config.alpn_protocols = alpn.map(|alpn| alpn.as_bytes().to_vec()).into_iter().collect();
        // The server knows which suite its machine computes fastest; clients list them all as acceptable.
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = self.tickets;
        match resumption {
            None => {}
            Some(Resumption::Tickets(ticketer)) => config.ticketer = ticketer.clone(),
            Some(Resumption::Sessions { kept, early_data }) => {
                config.session_storage = kept.clone();
                config.max_early_data_size = *early_data;
                // It is answered before the client has finished.
                config.send_half_rtt_data = true;
            }
        }
        Ok(config)
    }
}

/// The provider with the policy's suites and groups, in the policy's order.
pub fn crypto_provider(policy: &TlsPolicy) -> Result<CryptoProvider, TlsConfigError> {
    let provider = policy.provider;
    let base = base_provider(provider)?;
    let cipher_suites = if policy.cipher_suites.is_empty() {
        cheapest_first(base.cipher_suites)
    } else {
        let find = |name: &String| {
            let found = base.cipher_suites.iter().find(|suite| suite_name(suite) == name);
            found.copied().ok_or_else(|| TlsConfigError::UnknownCipherSuite { name: name.clone(), provider })
        };
        policy.cipher_suites.iter().map(find).collect::<Result<_, _>>()?
    };
    let mut kx_groups = if policy.groups.is_empty() {
        group::cheapest_first(base.kx_groups)
    } else {
        let find = |name: &String| {
            let found = base.kx_groups.iter().find(|group| group_name(**group) == name.to_ascii_lowercase());
            found.copied().ok_or_else(|| TlsConfigError::UnknownGroup { name: name.clone(), provider })
        };
        policy.groups.iter().map(find).collect::<Result<Vec<_>, _>>()?
    };
    kx_groups.retain(|group| group::is_allowed(group.name(), policy.post_quantum));
    Ok(CryptoProvider { cipher_suites, kx_groups, ..base })
}

/// The IANA name: rustls calls `TLS_AES_128_GCM_SHA256` `TLS13_AES_128_GCM_SHA256`.
pub fn suite_name(suite: &SupportedCipherSuite) -> &'static str {
    let name = suite.suite().as_str().unwrap_or("unknown");
    match name {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        name => name,
    }
}

/// `x25519`, `secp256r1`, `x25519mlkem768`: IANA names in lower case.
fn group_name(group: &dyn SupportedKxGroup) -> String {
    format!("{:?}", group.name()).to_ascii_lowercase()
}

/// AES-128 before AES-256, and the suites whose hash is SHA-256 first where only that hash is computed with instructions
/// of its own: the key schedule is a large part of a handshake's user time (docs/adr/0005).
fn cheapest_first(mut suites: Vec<SupportedCipherSuite>) -> Vec<SupportedCipherSuite> {
    let fast_sha512 = has_sha512_instructions();
    suites.sort_by_key(|suite| match suite_name(suite) {
        name if name.ends_with("AES_128_GCM_SHA256") => 0,
        name if name.ends_with("CHACHA20_POLY1305_SHA256") => 1 + u8::from(fast_sha512),
        _ => 2 - u8::from(fast_sha512),
    });
    suites
}

/// Whether SHA-512, and so SHA-384, is computed with instructions for it. Some x86-64 CPUs have them, but neither AWS-LC
/// nor the key schedule's sha2 has code for those.
fn has_sha512_instructions() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha3");
    #[cfg(not(target_arch = "aarch64"))]
    false
}

fn versions(policy: &TlsPolicy) -> Vec<&'static SupportedProtocolVersion> {
    [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)]
        .into_iter()
        .filter(|(version, _)| (policy.min_version..=policy.max_version).contains(version))
        .map(|(_, version)| version)
        .collect()
}

fn verifier(
    client_auth: &ClientAuthConfig,
    crypto: &Arc<CryptoProvider>,
    secrets: &Secrets,
) -> Result<Arc<dyn ClientCertVerifier>, TlsConfigError> {
    let (ca, required) = match client_auth {
        ClientAuthConfig::None => return Ok(WebPkiClientVerifier::no_client_auth()),
        ClientAuthConfig::Optional { ca } => (ca, false),
        ClientAuthConfig::Required { ca } => (ca, true),
    };
    let refused = |reason: String| TlsConfigError::ClientCa { id: ca.clone(), reason };
    let mut roots = RootCertStore::empty();
    for root in read_chain(secrets, ca)? {
        roots.add(root).map_err(|error| refused(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto.clone());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustls::NamedGroup;

    use super::*;
    use crate::config::{PostQuantum, Provider};
    use crate::provider::AVAILABLE;

    fn policy(provider: Provider, cipher_suites: &[&str], groups: &[&str]) -> TlsPolicy {
        TlsPolicy {
            provider,
            min_version: Version::Tls12,
            max_version: Version::Tls13,
            cipher_suites: cipher_suites.iter().map(ToString::to_string).collect(),
            groups: groups.iter().map(ToString::to_string).collect(),
            post_quantum: PostQuantum::Allow,
            client_auth: ClientAuthConfig::None,
            tickets: 1,
            early_data: false,
        }
    }

    #[test]
    fn every_suite_and_group_is_found_by_its_iana_name() {
        for &provider in AVAILABLE {
            let suites = base_provider(provider).unwrap().cipher_suites;
            assert!(suites.len() >= 6);
            for suite in suites {
                let crypto = crypto_provider(&policy(provider, &[suite_name(&suite)], &[])).unwrap();
                assert_eq!(crypto.cipher_suites, [suite]);
            }
            for name in ["X25519MLKEM768", "X25519", "secp256r1", "secp384r1"] {
                assert_eq!(crypto_provider(&policy(provider, &[], &[name])).unwrap().kx_groups.len(), 1, "{name}");
            }
        }
    }

    #[test]
    fn providers_agree_on_the_order_and_the_cheapest_comes_first() {
        let names = |provider| {
            let crypto = crypto_provider(&policy(provider, &[], &[])).unwrap();
            let suites: Vec<_> = crypto.cipher_suites.iter().map(suite_name).collect();
            (suites, crypto.kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>())
        };
        let first = names(AVAILABLE[0]);
        let tls13: Vec<_> = first.0.iter().filter(|name| !name.contains("_WITH_")).collect();
        assert_eq!(*tls13[0], "TLS_AES_128_GCM_SHA256");
        // SHA-384 before the other only where it is as cheap.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(*tls13[2], "TLS_AES_256_GCM_SHA384");
        assert_eq!(first.1[..3], [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1]);
        for &provider in AVAILABLE {
            assert_eq!(names(provider), first);
        }
    }

    #[test]
    fn off_leaves_the_hybrid_out() {
        for groups in [&[][..], &["X25519MLKEM768", "X25519"]] {
            let off = TlsPolicy { post_quantum: PostQuantum::Off, ..policy(AVAILABLE[0], &[], groups) };
            let crypto = crypto_provider(&off).unwrap();
            assert_eq!(crypto.kx_groups[0].name(), NamedGroup::X25519);
            assert!(crypto.kx_groups.iter().all(|group| group.name() != NamedGroup::X25519MLKEM768));
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for &provider in AVAILABLE {
            let refused = crypto_provider(&policy(provider, &["RC4"], &[]));
            assert!(matches!(refused, Err(TlsConfigError::UnknownCipherSuite { .. })));
            let refused = crypto_provider(&policy(provider, &[], &["ffdhe2048"]));
            assert!(matches!(refused, Err(TlsConfigError::UnknownGroup { .. })));
        }
    }

    #[test]
    fn a_provider_that_was_not_built_is_refused() {
        let every = [Provider::AwsLc, Provider::BoringSsl, Provider::AwsLcFips];
        let missing: Vec<_> = every.into_iter().filter(|provider| !AVAILABLE.contains(provider)).collect();
        assert!(!missing.is_empty());
        for provider in missing {
            let refused = crypto_provider(&policy(provider, &[], &[])).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("provider '{}' is not in this build, which has", provider.name())));
            assert!(refused.contains(AVAILABLE[0].name()));
        }
    }

    #[test]
    fn a_version_without_suites_and_a_policy_without_groups_are_refused() {
        let hybrid = policy(AVAILABLE[0], &[], &["X25519MLKEM768"]);
        let off = TlsPolicy { post_quantum: PostQuantum::Off, ..hybrid };
        for policy in [policy(AVAILABLE[0], &["TLS_AES_128_GCM_SHA256"], &[]), off] {
            let refused = PreparedPolicy::new(&policy, "h2", &Secrets::new());
            assert!(matches!(refused, Err(TlsConfigError::Policy { .. })));
        }
    }
}
