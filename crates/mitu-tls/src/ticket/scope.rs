//! What a ticket is bound to.
//!
//! A ticket carries the client's verified identity past the certificate check, so it must never be accepted where other
//! rules hold. Each (listener, server names, protocol, policy, client CA) therefore has keys of its own. rustls besides
//! takes a session only for the very server name that it was made under.

use aws_lc_rs::digest;

use crate::config::{ClientAuthConfig, Provider, TlsPolicy, Version};
use crate::error::{Secrets, TlsConfigError, secret};

/// Changes with the encoding below, which every node of a fleet must share.
const ENCODING: &[u8] = b"mitu ticket scope v1";

/// What a ticket is bound to, digested. It is the same on every node with the same configuration, whatever its folders
/// are called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TicketScope([u8; 32]);

impl TicketScope {
    pub fn new(
        listener: &str,
        names: &[String],
        alpn: &str,
        policy: &TlsPolicy,
        secrets: &Secrets,
    ) -> Result<Self, TlsConfigError> {
        // How many tickets are sent is no rule that a session is under, and each TLS 1.3 connection chooses its group anew.
        // Sessions that allow early data are not in tickets.
        let TlsPolicy {
            provider,
            min_version,
            max_version,
            cipher_suites,
            groups,
            post_quantum: _,
            client_auth,
            tickets: _,
            early_data: _,
        } = policy;
        let (mode, ca) = match client_auth {
            ClientAuthConfig::None => ("none", &[][..]),
            ClientAuthConfig::Optional { ca } => ("optional", secret(secrets, ca)?),
            ClientAuthConfig::Required { ca } => ("required", secret(secrets, ca)?),
        };
        let mut names: Vec<_> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        let mut encoder = Encoder(digest::Context::new(&digest::SHA256));
        encoder.part(ENCODING);
        encoder.part(listener.as_bytes());
        encoder.list(names.into_iter());
        encoder.part(alpn.as_bytes());
        encoder.part(provider_name(*provider).as_bytes());
        encoder.part(version_name(*min_version).as_bytes());
        encoder.part(version_name(*max_version).as_bytes());
        encoder.list(cipher_suites.iter().map(String::as_str));
        encoder.list(groups.iter().map(String::as_str));
        encoder.part(mode.as_bytes());
        encoder.part(ca);
        let mut scope = [0; 32];
        scope.copy_from_slice(encoder.0.finish().as_ref());
        Ok(Self(scope))
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Every part is preceded by its length, and every list by its number of parts, so no two inputs look alike.
struct Encoder(digest::Context);

impl Encoder {
    fn part(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn list<'a>(&mut self, parts: impl ExactSizeIterator<Item = &'a str>) {
        self.0.update(&(parts.len() as u64).to_be_bytes());
        parts.for_each(|part| self.part(part.as_bytes()));
    }
}

// Spelt out, so that no renaming in this program changes what a fleet agrees on.

fn provider_name(provider: Provider) -> &'static str {
    match provider {
        Provider::AwsLc => "aws-lc",
        Provider::BoringSsl => "boringssl",
        Provider::AwsLcFips => "aws-lc-fips",
    }
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::Tls12 => "1.2",
        Version::Tls13 => "1.3",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::PostQuantum;

    struct Ingredients {
        listener: &'static str,
        names: Vec<String>,
        alpn: &'static str,
        policy: TlsPolicy,
        secrets: Secrets,
    }

    fn ingredients() -> Ingredients {
        Ingredients {
            listener: "edge",
            names: vec!["a.test".to_owned(), "b.test".to_owned()],
            alpn: "mqtt",
            policy: TlsPolicy {
                provider: Provider::AwsLc,
                min_version: Version::Tls12,
                max_version: Version::Tls13,
                cipher_suites: vec!["TLS_AES_128_GCM_SHA256".to_owned()],
                groups: vec!["X25519".to_owned()],
                post_quantum: PostQuantum::Allow,
                client_auth: ClientAuthConfig::Optional { ca: "one".to_owned() },
                tickets: 1,
                early_data: false,
            },
            secrets: Secrets::from([("one".to_owned(), b"one".to_vec()), ("two".to_owned(), b"two".to_vec())]),
        }
    }

    fn scope(change: impl Fn(&mut Ingredients)) -> TicketScope {
        let mut it = ingredients();
        change(&mut it);
        TicketScope::new(it.listener, &it.names, it.alpn, &it.policy, &it.secrets).unwrap()
    }

    #[test]
    fn every_rule_is_part_of_it() {
        let changes: [fn(&mut Ingredients); 15] = [
            |_| {},
            |it| it.listener = "other",
            |it| it.names = vec!["a.test".to_owned()],
            |it| it.names = vec!["a.testb.test".to_owned()],
            |it| it.alpn = "h2",
            |it| it.policy.provider = Provider::BoringSsl,
            |it| it.policy.provider = Provider::AwsLcFips,
            |it| it.policy.min_version = Version::Tls13,
            |it| it.policy.max_version = Version::Tls12,
            |it| it.policy.cipher_suites = vec![],
            |it| it.policy.groups.push("secp256r1".to_owned()),
            |it| it.policy.client_auth = ClientAuthConfig::None,
            |it| it.policy.client_auth = ClientAuthConfig::Required { ca: "one".to_owned() },
            |it| it.policy.client_auth = ClientAuthConfig::Optional { ca: "two".to_owned() },
            |it| it.policy.client_auth = ClientAuthConfig::Required { ca: "two".to_owned() },
        ];
        let scopes: std::collections::HashSet<_> = changes.iter().map(scope).collect();
        assert_eq!(scopes.len(), changes.len());
    }

    #[test]
    fn what_is_no_rule_is_no_part_of_it() {
        assert_eq!(scope(|_| {}), scope(|it| it.policy.tickets = 4));
        assert_eq!(scope(|_| {}), scope(|it| it.policy.post_quantum = PostQuantum::Off));
        assert_eq!(scope(|_| {}), scope(|it| it.names.reverse()));
        let moved = scope(|it| {
            it.secrets.insert("elsewhere/one".to_owned(), b"one".to_vec());
            it.policy.client_auth = ClientAuthConfig::Optional { ca: "elsewhere/one".to_owned() };
        });
        assert_eq!(scope(|_| {}), moved);
    }

    /// Nodes of two versions resume each other's sessions only while this holds: change `ENCODING` with it.
    #[test]
    fn the_encoding_is_the_same_in_every_version() {
        let hex: String = scope(|_| {}).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ebcd6523f28e5a5a3d3d0249f69767944c3fc9298feb6dd84fa396df4b198ced");
    }
}
