//! Sessions that are kept here, each of them good once: what early data takes, since a ticket that opens again and again
//! would have it served as often as somebody sends it (RFC 8446, section 8.1). The client gets a name for its session.

use std::collections::HashMap;
use std::fmt;
use std::mem;

use parking_lot::Mutex;
use rustls::server::StoresServerSessions;

use super::{MAX_LEN, now};

/// Sessions of one scope, and their bytes, of which the older half is forgotten when there are more: their clients make a
/// full handshake.
const MOST: usize = 65_536;
const MOST_BYTES: usize = 64 << 20;

pub struct Sessions {
    kept: Mutex<Generations>,
    lifetime_ms: u64,
}

/// Two halves: when the younger one is full, the older one goes.
#[derive(Default)]
struct Generations {
    younger: HashMap<Vec<u8>, Kept>,
    older: HashMap<Vec<u8>, Kept>,
    /// Of the younger one.
    bytes: usize,
}

/// A session as rustls encodes it, and when it was put here, in milliseconds since 1970.
#[derive(Clone)]
struct Kept {
    session: Vec<u8>,
    since: u64,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sessions").field("lifetime_ms", &self.lifetime_ms).finish_non_exhaustive()
    }
}

impl Sessions {
    pub fn new(lifetime_ms: u64) -> Self {
        Self { kept: Mutex::default(), lifetime_ms }
    }

    fn fresh(&self, kept: Kept) -> Option<Vec<u8>> {
        (now() < kept.since.saturating_add(self.lifetime_ms)).then_some(kept.session)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, name: Vec<u8>, session: Vec<u8>) -> bool {
        if session.len() > MAX_LEN {
            return false;
        }
        let mut kept = self.kept.lock();
        kept.bytes += session.len();
        kept.younger.insert(name, Kept { session, since: now() });
        if kept.younger.len() >= MOST / 2 || kept.bytes >= MOST_BYTES / 2 {
            let younger = mem::replace(&mut kept.younger, HashMap::with_capacity(MOST / 2));
            let gone = mem::replace(&mut kept.older, younger);
            kept.bytes = 0;
            // Freed while others go on.
            drop(kept);
            drop(gone);
        }
        true
    }

    /// TLS 1.2 resumes a session as often as it likes: it has no early data.
    fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
        let kept = self.kept.lock();
        let found = kept.younger.get(name).or_else(|| kept.older.get(name)).cloned();
        self.fresh(found?)
    }

    fn take(&self, name: &[u8]) -> Option<Vec<u8>> {
        let mut kept = self.kept.lock();
        let found = kept.younger.remove(name).or_else(|| kept.older.remove(name));
        self.fresh(found?)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_taken_once() {
        let sessions = Sessions::new(60_000);
        assert!(sessions.put(b"name".to_vec(), b"session".to_vec()));
        assert_eq!(sessions.get(b"name").unwrap(), b"session");
        assert_eq!(sessions.take(b"name").unwrap(), b"session");
        assert_eq!(sessions.take(b"name"), None);
        assert_eq!(sessions.get(b"name"), None);
    }

    #[test]
    fn a_session_that_is_too_old_is_none() {
        let sessions = Sessions::new(0);
        sessions.put(b"name".to_vec(), b"session".to_vec());
        assert_eq!(sessions.take(b"name"), None);
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let sessions = Sessions::new(60_000);
        let name = |number: usize| number.to_be_bytes().to_vec();
        for number in 0..2 * MOST {
            sessions.put(name(number), vec![0]);
            let kept = sessions.kept.lock();
            assert!(kept.younger.len() + kept.older.len() <= MOST);
        }
        assert_eq!(sessions.take(&name(0)), None);
        assert!(sessions.take(&name(2 * MOST - 1)).is_some());
        assert!(sessions.take(&name(2 * MOST - MOST / 2)).is_some());
    }

    #[test]
    fn large_ones_are_forgotten_sooner_and_too_large_ones_at_once() {
        let sessions = Sessions::new(60_000);
        let name = |number: usize| number.to_be_bytes().to_vec();
        assert!(!sessions.put(name(0), vec![0; MAX_LEN + 1]));
        for number in 0..2 * MOST_BYTES / MAX_LEN {
            assert!(sessions.put(name(number), vec![0; MAX_LEN]));
        }
        let kept = sessions.kept.lock();
        assert!((kept.younger.len() + kept.older.len()) * MAX_LEN <= MOST_BYTES);
    }
}
