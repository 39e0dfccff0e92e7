//! Session tickets that are stateless: what a session needs is sealed, and the client keeps it.
//!
//! Keys are derived from a secret, what the ticket is bound to, and the time, so that every node with the secret
//! resumes every node's sessions, and nothing is sent around when keys change (docs/adr/0009). Without a secret they
//! are random, live in the process, and are kept through reloads.
//!
//! ```text
//! ticket = version (1) | epoch (8) | nonce (12) | AES-256-GCM-SIV(session | issued (8)) | tag (16)
//! ```
//!
//! When a ticket was issued is sealed with the session: in the clear it would tell an onlooker which connection it came
//! from. rustls compares it with nothing, so that is done here.

mod keys;
mod scope;
mod sessions;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{Aad, MAX_TAG_LEN, NONCE_LEN, Nonce};
use aws_lc_rs::rand;
use rustls::server::{ProducesTickets, StoresServerSessions};

pub use scope::TicketScope;

use crate::config::TicketsConfig;
use crate::error::{Secrets, TlsConfigError};
use keys::{ScopeKeys, Settings};
use sessions::Sessions;

/// Of the ticket, and of the session in it, whose encoding is that of rustls 0.23. Keys depend on it as well.
const VERSION: u8 = 1;
const EPOCH_LEN: usize = 8;
const ISSUED_LEN: usize = 8;
const HEADER_LEN: usize = 1 + EPOCH_LEN;
const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + ISSUED_LEN + MAX_TAG_LEN;

/// A larger ticket is neither made nor looked at. What is large in a session is the client's certificate chain.
const MAX_LEN: usize = 16 * 1024;

/// How far in the future, by this node's clock, another node may have issued a ticket.
const MAX_SKEW_MS: u64 = 60_000;

/// The ticketers of a configuration, by scope.
#[derive(Debug)]
pub struct Ticketers {
    settings: Arc<Settings>,
    by_scope: HashMap<TicketScope, Arc<dyn ProducesTickets>>,
    sessions: HashMap<TicketScope, Arc<dyn StoresServerSessions>>,
}

/// What clients are given to resume with.
#[derive(Debug, Clone)]
pub enum Resumption {
    /// Their session, sealed.
    Tickets(Arc<dyn ProducesTickets>),
    /// A name for it, which is good once: what early data takes, of which they may send so much, in bytes.
    Sessions { kept: Arc<dyn StoresServerSessions>, early_data: u32 },
}

impl Ticketers {
    pub fn new(config: &TicketsConfig, secrets: &Secrets) -> Result<Self, TlsConfigError> {
        Ok(Self::under(Settings::new(config, secrets)?))
    }

    fn under(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), by_scope: HashMap::new(), sessions: HashMap::new() }
    }

    /// The ticketer of `scope`: the one that `previous` had under the same settings, or a new one.
    pub fn get(&mut self, scope: TicketScope, previous: Option<&Self>) -> Arc<dyn ProducesTickets> {
        let previous = previous.filter(|previous| previous.settings == self.settings);
        find(&mut self.by_scope, previous.map(|previous| &previous.by_scope), scope, |scope| {
            Arc::new(Ticketer { keys: ScopeKeys::new(self.settings.clone(), scope) })
        })
    }

    /// The sessions of `scope` that are kept here, found in the same way.
    pub fn sessions(&mut self, scope: TicketScope, previous: Option<&Self>) -> Arc<dyn StoresServerSessions> {
        let previous = previous.filter(|previous| previous.settings == self.settings);
        find(&mut self.sessions, previous.map(|previous| &previous.sessions), scope, |_| {
            Arc::new(Sessions::new(self.settings.lifetime_ms))
        })
    }
}

/// What `own` has for `scope`: what is there, or what was there before, or what is made.
fn find<T: ?Sized>(
    own: &mut HashMap<TicketScope, Arc<T>>,
    before: Option<&HashMap<TicketScope, Arc<T>>>,
    scope: TicketScope,
    make: impl FnOnce(&TicketScope) -> Arc<T>,
) -> Arc<T> {
    let kept = before.and_then(|before| before.get(&scope)).cloned();
    own.entry(scope).or_insert_with_key(|scope| kept.unwrap_or_else(|| make(scope))).clone()
}

/// Seals and opens the tickets of one scope.
struct Ticketer {
    keys: ScopeKeys,
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// What the client is told, in seconds.
    fn lifetime(&self) -> u32 {
        u32::try_from(self.keys.settings().lifetime_ms / 1000).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session, now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, now())
    }
}

impl Ticketer {
    /// `now`, and every other time here: milliseconds since 1970.
    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        if session.len() > MAX_LEN - OVERHEAD {
            return None;
        }
        let epoch = self.keys.settings().epoch(now);
        let window = self.keys.at(now)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(OVERHEAD + session.len());
        ticket.push(VERSION);
        ticket.extend_from_slice(&epoch.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(session);
        ticket.extend_from_slice(&now.to_be_bytes());
        let (clear, sealed) = ticket.split_at_mut(HEADER_LEN + NONCE_LEN);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = window.keys(epoch)?.first()?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&clear[..HEADER_LEN]), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// None for whatever is not a ticket of this scope, or not one any more: that makes a full handshake.
    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        if ticket.len() > MAX_LEN {
            return None;
        }
        let (header, rest) = ticket.split_first_chunk::<HEADER_LEN>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (sealed, tag) = rest.split_last_chunk::<MAX_TAG_LEN>()?;
        let (version, epoch) = header.split_first_chunk::<1>()?;
        if *version != [VERSION] {
            return None;
        }
        let epoch = u64::from_be_bytes(epoch.try_into().ok()?);
        let window = self.keys.at(now)?;
        let mut session = vec![0; sealed.len()];
        window.keys(epoch)?.iter().find_map(|key| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            key.open_separate_gather(nonce, Aad::from(header), sealed, tag, &mut session).ok()
        })?;
        let issued = u64::from_be_bytes(*session.last_chunk::<ISSUED_LEN>()?);
        session.truncate(session.len() - ISSUED_LEN);
        let begun = issued <= now.saturating_add(MAX_SKEW_MS);
        (begun && now < issued.saturating_add(self.keys.settings().lifetime_ms)).then_some(session)
    }
}

/// Read without a system call: the kernel maps the clock into the process.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
