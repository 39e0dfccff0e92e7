//! The ALPN decision (RFC 7301): from the list a client offers to the protocol this listener prefers.
//!
//! [`AlpnTable`] is immutable but for its cache, so a reload swaps it whole. A list that was seen before costs one
//! keyed hash and one atomic load. A new list is parsed into a bit set through a hashed index, one look-up for each
//! name offered, and the bit that comes first in the [`Preference`] is the answer: the cost depends on the client's
//! list alone, never on how many protocols are configured.
//!
//! Preferences come and go with what is known of the upstreams. Each has an identity of its own, which the cache knows
//! decisions by, so that a new one needs no new table.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, RandomState};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::TlsConfigError;

/// The protocols that one listener can have: the lower half of the bit set.
pub const MAX_PROTOCOLS: usize = 64;

/// Registered names (IANA) that are told apart in [`OfferedSet`] even when nobody serves them here.
const WELL_KNOWN: [&str; 24] = [
    "h2",
    "http/1.1",
    "h3",
    "http/1.0",
    "h2c",
    "mqtt",
    "acme-tls/1",
    "spdy/3.1",
    "grpc-exp",
    "stun.turn",
    "webrtc",
    "c-webrtc",
    "ftp",
    "imap",
    "pop3",
    "managesieve",
    "coap",
    "xmpp-client",
    "xmpp-server",
    "dot",
    "smb",
    "irc",
    "postgresql",
    "doq",
];

/// The bit of every name that is neither configured nor well known.
const OTHER: u32 = 127;

/// Cache slots: 64 KiB, one 8-byte word each.
const CACHE_SLOTS: usize = 8192;

/// Distinct sets of offered protocols that are counted apart on one listener; further ones share [`OFFERED_OVERFLOW`].
pub const OFFERED_SETS: usize = 128;

/// The set number of lists beyond the first [`OFFERED_SETS`] kinds.
pub const OFFERED_OVERFLOW: usize = OFFERED_SETS;

/// In which order clients of a site get a listener's protocols, and which of them at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    /// By a protocol's index in the listener's order: one bit each.
    allowed: u64,
    /// By index: the place in this order, in which what is not allowed comes last.
    ranks: [u8; MAX_PROTOCOLS],
    /// Tells its decisions in the cache from those of others.
    id: u64,
}

impl Preference {
    /// `order`: the indices of those that are allowed, most preferred first.
    pub fn new(order: impl IntoIterator<Item = usize>) -> Self {
        let (mut allowed, mut ranks, mut next) = (0, [0; MAX_PROTOCOLS], 0);
        let mut place = |index: usize| {
            ranks[index] = next;
            next += 1;
        };
        for index in order.into_iter().filter(|&index| index < MAX_PROTOCOLS) {
            if allowed & 1 << index == 0 {
                allowed |= 1 << index;
                place(index);
            }
        }
        (0..MAX_PROTOCOLS).filter(|&index| allowed & 1 << index == 0).for_each(place);
        let mut hasher = DefaultHasher::new();
        (allowed, ranks).hash(&mut hasher);
        Self { allowed, ranks, id: hasher.finish() }
    }

    pub fn contains(&self, index: usize) -> bool {
        index < MAX_PROTOCOLS && self.allowed & 1 << index != 0
    }

    /// The index of the most preferred one of these protocols.
    fn first(&self, protocols: u64) -> Option<usize> {
        let mut left = protocols;
        let each = std::iter::from_fn(|| {
            let index = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(index)
        });
        each.min_by_key(|&index| self.ranks[index])
    }
}

/// All of them, in the listener's order.
impl Default for Preference {
    fn default() -> Self {
        Self::new(0..MAX_PROTOCOLS)
    }
}

/// What a client's list came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Index of the chosen protocol in the listener's order: the most preferred one that is allowed, or else the first of
    /// all; none: nothing in common.
    pub chosen: Option<usize>,
    /// The kind of list, for counting: see [`AlpnTable::offered_label`].
    pub offered: usize,
    /// Whether the decision came from the cache.
    pub cached: bool,
}

/// How a client and the server name that it asked for stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Verdict {
    /// They have a protocol in common.
    #[default]
    Agreed,
    /// The client has no ALPN extension.
    Absent,
    /// It has, and nothing in common with the listener.
    Mismatch,
    /// All that it has in common with the listener is not for this server name.
    NotAllowed,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Agreed, Self::Absent, Self::Mismatch, Self::NotAllowed];

    /// On a decision by `preference`; none: the client has no ALPN extension.
    pub fn on(decision: Option<Decision>, preference: &Preference) -> Self {
        match decision.map(|decision| decision.chosen) {
            None => Self::Absent,
            Some(None) => Self::Mismatch,
            Some(Some(chosen)) if preference.contains(chosen) => Self::Agreed,
            Some(Some(_)) => Self::NotAllowed,
        }
    }

    /// For metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agreed => "agreed",
            Self::Absent => "absent",
            Self::Mismatch => "mismatch",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// On what terms a connection has its protocol, or has none.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub verdict: Verdict,
    /// What the client has offered, as a metric's label, where that did not simply lead to an agreement.
    pub offered: Option<Arc<str>>,
}

impl fmt::Display for Terms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offered = self.offered.as_deref().unwrap_or("nothing");
        match self.verdict {
            Verdict::Agreed => formatter.write_str("agreed"),
            Verdict::Absent => formatter.write_str("the client has no ALPN"),
            Verdict::Mismatch => write!(formatter, "nothing in common with what the client offers: {offered}"),
            Verdict::NotAllowed => write!(formatter, "not for this server name: {offered}"),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct AlpnTable {
    index: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<str>>,
    hasher: RandomState,
    cache: Box<[AtomicU64]>,
    offered: Box<[OnceLock<OfferedSet>]>,
}

/// The protocols of a client's list, as far as they are told apart.
#[derive(Debug)]
struct OfferedSet {
    bits: u128,
    label: Arc<str>,
}

impl AlpnTable {
    /// `protocols`: ALPN names, most preferred first.
    pub fn new<'a>(protocols: impl IntoIterator<Item = &'a str>) -> Result<Self, TlsConfigError> {
        let names: Vec<Box<str>> = protocols.into_iter().map(Box::from).collect();
        if names.len() > MAX_PROTOCOLS {
            return Err(TlsConfigError::TooManyProtocols { found: names.len(), max: MAX_PROTOCOLS });
        }
        let mut index = HashMap::with_capacity(2 * (names.len() + WELL_KNOWN.len()));
        for (rank, name) in names.iter().enumerate() {
            let valid = (1..=255).contains(&name.len());
            if !valid || index.insert(Box::from(name.as_bytes()), rank as u32).is_some() {
                return Err(TlsConfigError::ProtocolName(name.to_string()));
            }
        }
        for (position, name) in WELL_KNOWN.iter().enumerate() {
            index.entry(Box::from(name.as_bytes())).or_insert((MAX_PROTOCOLS + position) as u32);
        }
        Ok(Self {
            index,
            names,
            hasher: RandomState::new(),
            cache: (0..CACHE_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            offered: (0..OFFERED_SETS).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Decides for a client's list by `preference`. `list` gives its names in the client's order, each time it is called.
    pub fn decide<'a, I: Iterator<Item = &'a [u8]>>(&self, preference: &Preference, list: impl Fn() -> I) -> Decision {
        let hash = self.hash(preference, list());
        let slot = &self.cache[hash as usize % CACHE_SLOTS];
        if let Some(decision) = Entry(slot.load(Ordering::Relaxed)).decision(hash) {
            return decision;
        }
        let bits = self.bits(list());
        // The lower half: what is configured.
        let decision =
            Decision { chosen: preference.first(bits as u64), offered: self.offered_set(bits), cached: false };
        slot.store(Entry::new(hash, decision).0, Ordering::Relaxed);
        decision
    }

    /// The names of the `offered`-th kind of list, for a metric's label: known names by rank, then `other`.
    pub fn offered_label(&self, offered: usize) -> Arc<str> {
        self.offered.get(offered).and_then(OnceLock::get).map_or_else(|| "overflow".into(), |set| set.label.clone())
    }

    /// A keyed hash (SipHash), so that nobody outside can aim two lists at one entry. Names are delimited by length.
    fn hash<'a>(&self, preference: &Preference, list: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(preference.id);
        for name in list {
            hasher.write_u8(name.len() as u8);
            hasher.write(name);
        }
        hasher.finish()
    }

    fn bits<'a>(&self, list: impl Iterator<Item = &'a [u8]>) -> u128 {
        list.fold(0, |bits, name| bits | 1 << self.index.get(name).copied().unwrap_or(OTHER))
    }

    /// The number of the set with these bits: found or added by linear probing, without a lock.
    fn offered_set(&self, bits: u128) -> usize {
        let start = (bits ^ (bits >> 61)) as usize;
        for step in 0..OFFERED_SETS {
            let number = start.wrapping_add(step) % OFFERED_SETS;
            let set = self.offered[number].get_or_init(|| OfferedSet { bits, label: self.label(bits) });
            if set.bits == bits {
                return number;
            }
        }
        OFFERED_OVERFLOW
    }

    fn label(&self, bits: u128) -> Arc<str> {
        let has = |bit: usize| bits & (1 << bit) != 0;
        let configured = self.names.iter().enumerate().filter(|(rank, _)| has(*rank)).map(|(_, name)| &**name);
        let known = WELL_KNOWN.iter().enumerate().filter(|(at, _)| has(MAX_PROTOCOLS + at)).map(|(_, name)| *name);
        let other = has(OTHER as usize).then_some("other");
        configured.chain(known).chain(other).collect::<Vec<_>>().join(",").into()
    }
}

/// A cached decision in one word: 48 bits of the list's hash, 8 of the set's number, 8 of the choice.
///
/// Two lists with the same slot and the same 48 bits would share an entry. The hash is keyed, so this cannot be
/// provoked, and it is harmless: the handshake checks the client's list once more against the one protocol chosen.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    const NOTHING: u64 = 0xff;
    /// Added to the choice, so that no entry equals the empty word.
    const PRESENT: u64 = 1;

    fn new(hash: u64, decision: Decision) -> Self {
        let choice = decision.chosen.map_or(Self::NOTHING, |chosen| chosen as u64 + Self::PRESENT);
        Self(hash & !0xffff | (decision.offered as u64) << 8 | choice)
    }

    fn decision(self, hash: u64) -> Option<Decision> {
        let choice = self.0 & 0xff;
        if choice == 0 || self.0 >> 16 != hash >> 16 {
            return None;
        }
        let chosen = (choice != Self::NOTHING).then_some((choice.wrapping_sub(Self::PRESENT)) as usize);
        Some(Decision { chosen, offered: (self.0 >> 8 & 0xff) as usize, cached: true })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn decide(table: &AlpnTable, list: &[&str]) -> Decision {
        table.decide(&Preference::default(), || list.iter().map(|name| name.as_bytes()))
    }

    #[test]
    fn what_is_allowed_goes_before_what_is_preferred() {
        let table = AlpnTable::new(["h2", "http/1.1", "mqtt"]).unwrap();
        let judge = |allowed: &[usize], list: &[&str]| {
            let preference = Preference::new(allowed.iter().copied());
            let decide = || table.decide(&preference, || list.iter().map(|name| name.as_bytes()));
            let (first, second) = (decide(), decide());
            assert_eq!((first.chosen, first.cached, second.cached), (second.chosen, false, true));
            (first.chosen, Verdict::on(Some(first), &preference))
        };
        // The same list under several rules: none is taken for another's.
        assert_eq!(judge(&[0, 1, 2], &["mqtt", "h2"]), (Some(0), Verdict::Agreed));
        assert_eq!(judge(&[1, 2], &["mqtt", "h2"]), (Some(2), Verdict::Agreed));
        assert_eq!(judge(&[1], &["mqtt", "h2"]), (Some(0), Verdict::NotAllowed));
        assert_eq!(judge(&[1], &["mqtt"]), (Some(2), Verdict::NotAllowed));
        assert_eq!(judge(&[1], &["ftp"]), (None, Verdict::Mismatch));
        assert_eq!(Verdict::on(None, &Preference::default()), Verdict::Absent);
    }

    #[test]
    fn a_preference_is_an_order_and_no_other_ones_decision_is_taken_for_it() {
        let table = AlpnTable::new(["h2", "http/1.1", "mqtt"]).unwrap();
        let chosen = |order: &[usize], list: &[&str]| {
            let preference = Preference::new(order.iter().copied());
            table.decide(&preference, || list.iter().map(|name| name.as_bytes())).chosen
        };
        let browser = ["h2", "http/1.1"];
        for _ in 0..2 {
            assert_eq!(chosen(&[0, 1, 2], &browser), Some(0));
            assert_eq!(chosen(&[1, 0], &browser), Some(1));
            assert_eq!(chosen(&[2, 1, 0], &["h2", "http/1.1", "mqtt"]), Some(2));
            assert_eq!(chosen(&[1], &["h2"]), Some(0), "in common, though not allowed");
        }
        assert_eq!(Preference::new([1, 1, 0, 70]), Preference::new([1, 0]));
        assert!(!Preference::new([1, 0]).contains(2) && !Preference::default().contains(MAX_PROTOCOLS));
    }

    #[test]
    fn the_listeners_order_decides() {
        let table = AlpnTable::new(["h2", "http/1.1", "mqtt"]).unwrap();
        for list in [["http/1.1", "h2"], ["h2", "http/1.1"]] {
            assert_eq!(decide(&table, &list).chosen, Some(0));
        }
        assert_eq!(decide(&table, &["mqtt"]).chosen, Some(2));
        assert_eq!(decide(&table, &["x", "y", "http/1.1"]).chosen, Some(1));
    }

    #[test]
    fn nothing_in_common_is_no_choice_cached_or_not() {
        let table = AlpnTable::new(["h2"]).unwrap();
        let first = decide(&table, &["spdy/3.1", "private/9"]);
        let second = decide(&table, &["spdy/3.1", "private/9"]);
        assert_eq!((first.chosen, first.cached), (None, false));
        assert_eq!((second.chosen, second.cached), (None, true));
        assert_eq!(&*table.offered_label(second.offered), "spdy/3.1,other");
    }

    #[test]
    fn a_cached_decision_equals_the_first() {
        let names: Vec<String> = (0..MAX_PROTOCOLS).map(|n| format!("p/{n}")).collect();
        let table = AlpnTable::new(names.iter().map(String::as_str)).unwrap();
        for (rank, name) in names.iter().enumerate() {
            let first = decide(&table, &["unknown", name]);
            let second = decide(&table, &["unknown", name]);
            assert_eq!(first.chosen, Some(rank));
            assert_eq!((second.chosen, second.offered, second.cached), (first.chosen, first.offered, true));
        }
    }

    #[test]
    fn names_are_told_apart_by_length() {
        let table = AlpnTable::new(["ab", "abc"]).unwrap();
        assert_eq!(decide(&table, &["a", "bc"]).chosen, None);
        assert_eq!(decide(&table, &["abc"]).chosen, Some(1));
        assert_eq!(decide(&table, &["ab", "c"]).chosen, Some(0));
    }

    #[test]
    fn offered_sets_are_bounded() {
        let names: Vec<String> = (0..MAX_PROTOCOLS).map(|n| format!("p/{n}")).collect();
        let table = AlpnTable::new(names.iter().map(String::as_str)).unwrap();
        let mut overflowed = false;
        for first in &names {
            for second in &names {
                let decision = decide(&table, &[first, second]);
                overflowed |= decision.offered == OFFERED_OVERFLOW;
                assert!(decision.offered <= OFFERED_OVERFLOW);
                assert_eq!(decision.chosen, names.iter().position(|name| name == first || name == second));
            }
        }
        assert!(overflowed);
        assert_eq!(&*table.offered_label(OFFERED_OVERFLOW), "overflow");
    }

    #[test]
    fn refuses_names_that_cannot_be_sent() {
        let long = "x".repeat(256);
        for names in [vec![""], vec![&long], vec!["h2", "h2"]] {
            assert!(matches!(AlpnTable::new(names), Err(TlsConfigError::ProtocolName(_))));
        }
        let many: Vec<String> = (0..=MAX_PROTOCOLS).map(|n| n.to_string()).collect();
        let refused = AlpnTable::new(many.iter().map(String::as_str));
        assert!(matches!(refused, Err(TlsConfigError::TooManyProtocols { found: 65, .. })));
    }
}
