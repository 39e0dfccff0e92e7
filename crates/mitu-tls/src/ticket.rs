//! Session tickets: one ticketer for each prepared configuration, kept through reloads.
//!
//! A ticket carries the client's verified identity past the certificate check, so it must never be accepted where
//! other rules hold. Each (listener, server names, protocol, policy, client CA) therefore has keys of its own, and a
//! reload keeps the keys of those that it leaves unchanged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

use crate::config::{ClientAuthConfig, TlsPolicy};
use crate::error::{Secrets, TlsConfigError, secret};

/// What a ticket is bound to, digested.
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
        let client_ca = match &policy.client_auth {
            ClientAuthConfig::None => &[][..],
            ClientAuthConfig::Optional { ca } | ClientAuthConfig::Required { ca } => secret(secrets, ca)?,
        };
        let mut context = digest::Context::new(&digest::SHA256);
        let described = format!("{listener:?}{names:?}{alpn:?}{policy:?}");
        for part in [described.as_bytes(), client_ca] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut scope = [0; 32];
        scope.copy_from_slice(context.finish().as_ref());
        Ok(Self(scope))
    }
}

/// The ticketers of a configuration, by scope.
#[derive(Debug, Default)]
pub struct Ticketers(HashMap<TicketScope, Arc<dyn ProducesTickets>>);

impl Ticketers {
    /// The ticketer of `scope`: the one that `previous` had, or a new one.
    pub fn get(
        &mut self,
        scope: TicketScope,
        previous: Option<&Self>,
    ) -> Result<Arc<dyn ProducesTickets>, TlsConfigError> {
        match self.0.entry(scope) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => {
                let kept = previous.and_then(|previous| previous.0.get(place.key())).cloned();
                let ticketer = kept.map_or_else(Ticketer::new, Ok)?;
                Ok(place.insert(ticketer).clone())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Provider, Version};

    fn scope(listener: &str, alpn: &str, client_auth: ClientAuthConfig, ca: &str) -> TicketScope {
        let policy = TlsPolicy {
            provider: Provider::AwsLc,
            min_version: Version::Tls12,
            max_version: Version::Tls13,
            cipher_suites: vec![],
            groups: vec![],
            client_auth,
            tickets: 1,
        };
        let secrets = Secrets::from([("ca".to_owned(), ca.as_bytes().to_vec())]);
        TicketScope::new(listener, &["a.test".to_owned()], alpn, &policy, &secrets).unwrap()
    }

    #[test]
    fn keys_survive_a_reload_and_are_never_shared() {
        let optional = || ClientAuthConfig::Optional { ca: "ca".to_owned() };
        let scopes = || {
            [
                scope("edge", "h2", ClientAuthConfig::None, ""),
                scope("edge", "mqtt", ClientAuthConfig::None, ""),
                scope("edge", "mqtt", optional(), "one"),
                scope("edge", "mqtt", optional(), "two"),
                scope("other", "h2", ClientAuthConfig::None, ""),
            ]
        };
        let mut before = Ticketers::default();
        let sealed = scopes().map(|scope| before.get(scope, None).unwrap().encrypt(b"session").unwrap());
        let mut after = Ticketers::default();
        for (reader, scope) in scopes().into_iter().enumerate() {
            let ticketer = after.get(scope, Some(&before)).unwrap();
            for (writer, ticket) in sealed.iter().enumerate() {
                assert_eq!(ticketer.decrypt(ticket).is_some(), reader == writer);
            }
        }
    }
}
