use super::*;

use std::num::NonZeroU64;
use std::sync::Barrier;
use std::thread;

use crate::config::{ClientAuthConfig, PostQuantum, Provider, TlsPolicy, Version};

const HOUR: u64 = 3_600_000;
const ROTATION: u64 = 6 * HOUR;
const LIFETIME: u64 = 12 * HOUR;
/// The first millisecond of an epoch.
const START: u64 = 80_000 * ROTATION;
const SESSION: &[u8] = b"a session";

fn scope(alpn: &str) -> TicketScope {
    let policy = TlsPolicy {
        provider: Provider::AwsLc,
        min_version: Version::Tls12,
        max_version: Version::Tls13,
        cipher_suites: vec![],
        groups: vec![],
        post_quantum: PostQuantum::Allow,
        client_auth: ClientAuthConfig::None,
        tickets: 1,
        early_data: false,
    };
    TicketScope::new("edge", &["a.test".to_owned()], alpn, &policy, &Secrets::new()).unwrap()
}

/// The settings of one node, which has the secrets that are named.
fn settings(secrets: &[&str], rotation_ms: u64) -> Settings {
    let named = |name: &&str| ((*name).to_owned(), format!("{name}{}", "-".repeat(32)).into_bytes());
    let config = TicketsConfig {
        secrets: secrets.iter().map(ToString::to_string).collect(),
        rotation_ms: NonZeroU64::new(rotation_ms).unwrap(),
        lifetime_ms: LIFETIME,
    };
    Settings::new(&config, &secrets.iter().map(named).collect()).unwrap()
}

fn ticketer(secrets: &[&str], alpn: &str) -> Ticketer {
    Ticketer { keys: ScopeKeys::new(Arc::new(settings(secrets, ROTATION)), &scope(alpn)) }
}

#[test]
fn nodes_with_one_secret_open_each_others_tickets() {
    let ticket = ticketer(&["one"], "h2").seal(SESSION, START).unwrap();
    assert_eq!(ticket.len(), SESSION.len() + OVERHEAD);
    assert_eq!(ticketer(&["one"], "h2").open(&ticket, START).unwrap(), SESSION);
    assert_eq!(ticketer(&["two"], "h2").open(&ticket, START), None);
    assert_eq!(ticketer(&["one"], "mqtt").open(&ticket, START), None);
    assert_eq!(ticketer(&[], "h2").open(&ticket, START), None);
    let other_rotation = ScopeKeys::new(Arc::new(settings(&["one"], ROTATION / 2)), &scope("h2"));
    assert_eq!(Ticketer { keys: other_rotation }.open(&ticket, START), None);
}

#[test]
fn a_secret_is_replaced_while_the_old_one_opens() {
    let [old, both, reversed, new] =
        [&["old"][..], &["new", "old"], &["old", "new"], &["new"]].map(|secrets| ticketer(secrets, "h2"));
    let by_old = old.seal(SESSION, START).unwrap();
    let by_both = both.seal(SESSION, START).unwrap();
    assert_eq!(both.open(&by_old, START).unwrap(), SESSION);
    assert_eq!(new.open(&by_both, START).unwrap(), SESSION);
    assert_eq!(reversed.open(&by_both, START).unwrap(), SESSION);
    assert_eq!(old.open(&by_both, START), None);
    assert_eq!(new.open(&by_old, START), None);
}

#[test]
fn every_session_comes_back() {
    let ticketer = ticketer(&["one"], "h2");
    let lengths = (0..400).chain([4_000, MAX_LEN - OVERHEAD]);
    for length in lengths {
        let mut session = vec![0; length];
        rand::fill(&mut session).unwrap();
        let ticket = ticketer.encrypt(&session).unwrap();
        assert_eq!(ticketer.decrypt(&ticket).unwrap(), session);
    }
    assert_eq!(ticketer.encrypt(&[0; MAX_LEN - OVERHEAD + 1]), None);
    assert_eq!(ticketer.decrypt(&[VERSION; MAX_LEN + 1]), None);
}

#[test]
fn no_two_tickets_are_alike() {
    let ticketer = ticketer(&["one"], "h2");
    let [one, two] = [(); 2].map(|()| ticketer.seal(SESSION, START).unwrap());
    // Same length, same time, same session: beyond the header nothing may be common.
    assert_eq!(one[..HEADER_LEN], two[..HEADER_LEN]);
    assert_ne!(one[HEADER_LEN..][..NONCE_LEN], two[HEADER_LEN..][..NONCE_LEN]);
    assert_ne!(one[HEADER_LEN + NONCE_LEN..], two[HEADER_LEN + NONCE_LEN..]);
    let shown = String::from_utf8_lossy(&one).into_owned();
    assert!(!shown.contains("session"));
}

#[test]
fn one_changed_bit_is_one_too_many() {
    let ticketer = ticketer(&["one"], "h2");
    let ticket = ticketer.seal(SESSION, START).unwrap();
    for at in 0..ticket.len() {
        for bit in 0..8 {
            let mut changed = ticket.clone();
            changed[at] ^= 1 << bit;
            assert_eq!(ticketer.open(&changed, START), None, "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_ticket_is_whole_or_nothing() {
    let ticketer = ticketer(&["one"], "h2");
    let ticket = ticketer.seal(SESSION, START).unwrap();
    for length in 0..ticket.len() {
        assert_eq!(ticketer.open(&ticket[..length], START), None, "the first {length}");
        assert_eq!(ticketer.open(&ticket[ticket.len() - length..], START), None, "the last {length}");
    }
    assert_eq!(ticketer.open(&[&ticket[..], &[0]].concat(), START), None);
}

#[test]
fn the_epoch_of_a_ticket_is_the_one_it_was_sealed_in() {
    let ticketer = ticketer(&["one"], "h2");
    let ticket = ticketer.seal(SESSION, START).unwrap();
    // Epochs that have keys, and those at the ends of what a number can be.
    for epoch in [79_998, 79_999, 80_001, 0, u64::MAX] {
        let mut moved = ticket.clone();
        moved[1..HEADER_LEN].copy_from_slice(&u64::to_be_bytes(epoch));
        assert_eq!(ticketer.open(&moved, START), None);
    }
}

#[test]
fn a_ticket_is_good_for_its_lifetime_and_no_longer() {
    for secrets in [&["one"][..], &[]] {
        let ticketer = ticketer(secrets, "h2");
        for issued in [START, START + 1, START + ROTATION / 2, START + ROTATION - 1] {
            let ticket = ticketer.seal(SESSION, issued).unwrap();
            // With every step the ticketer is on its way through the epochs.
            for age in [0, HOUR, ROTATION - 1, ROTATION, LIFETIME - 1] {
                assert_eq!(ticketer.open(&ticket, issued + age).as_deref(), Some(SESSION), "{secrets:?} {age}");
            }
            assert_eq!(ticketer.open(&ticket, issued + LIFETIME), None);
            assert_eq!(ticketer.open(&ticket, issued + 100 * LIFETIME), None);
        }
    }
}

#[test]
fn clocks_may_differ_a_little() {
    let (ahead, behind) = (ticketer(&["one"], "h2"), ticketer(&["one"], "h2"));
    // Across the boundary of an epoch, and within one.
    for now in [START - 1, START + HOUR] {
        let ticket = ahead.seal(SESSION, now + MAX_SKEW_MS).unwrap();
        assert_eq!(behind.open(&ticket, now).unwrap(), SESSION);
        let ticket = ahead.seal(SESSION, now + MAX_SKEW_MS + 1).unwrap();
        assert_eq!(behind.open(&ticket, now), None);
    }
}

#[test]
fn a_clock_that_is_set_costs_no_more_than_full_handshakes() {
    let ticketer = ticketer(&["one"], "h2");
    for now in [START, 0, u64::MAX, START + 1000 * ROTATION, START] {
        let ticket = ticketer.seal(SESSION, now).unwrap();
        // At the end of time everything has expired.
        assert_eq!(ticketer.open(&ticket, now).is_some(), now != u64::MAX);
    }
}

#[test]
fn threads_agree_on_random_keys() {
    let ticketer = ticketer(&[], "h2");
    let together = Barrier::new(8);
    for epoch in 0..50 {
        let at = |thread: u64| START + epoch * ROTATION + thread;
        let seal = |thread| {
            together.wait();
            ticketer.seal(SESSION, at(thread)).unwrap()
        };
        let tickets: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || seal(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ticket in tickets {
            assert_eq!(ticketer.open(&ticket, at(8)).as_deref(), Some(SESSION), "epoch {epoch}");
        }
    }
}

/// What the ticketers of two configurations, of which one follows the other, open of each other's.
fn survives(before: &[&str], after: &[&str]) -> bool {
    let ticketers = |secrets: &[&str]| Ticketers::under(settings(secrets, ROTATION));
    let (mut before, mut after) = (ticketers(before), ticketers(after));
    let ticket = before.get(scope("h2"), None).encrypt(SESSION).unwrap();
    assert_eq!(before.get(scope("h2"), None).decrypt(&ticket).as_deref(), Some(SESSION));
    assert_eq!(after.get(scope("mqtt"), Some(&before)).decrypt(&ticket), None);
    after.get(scope("h2"), Some(&before)).decrypt(&ticket).is_some()
}

#[test]
fn keys_survive_a_reload_and_are_never_shared() {
    assert!(survives(&[], &[]));
    assert!(survives(&["one"], &["one"]));
    assert!(survives(&["one"], &["two", "one"]));
    assert!(!survives(&["one"], &["two"]));
    assert!(!survives(&["one"], &[]));
    assert!(!survives(&[], &["one"]));
}

#[test]
fn a_short_secret_is_refused() {
    let config = TicketsConfig {
        secrets: vec!["one".to_owned()],
        rotation_ms: NonZeroU64::new(ROTATION).unwrap(),
        lifetime_ms: LIFETIME,
    };
    let new = |length| Ticketers::new(&config, &Secrets::from([("one".to_owned(), vec![7; length])]));
    assert!(matches!(new(31), Err(TlsConfigError::TicketSecret { .. })));
    assert!(new(32).is_ok());
    assert!(matches!(Ticketers::new(&config, &Secrets::new()), Err(TlsConfigError::MissingSecret(_))));
}

/// Made by this very code once: nodes of two versions open each other's tickets only while this holds. Change
/// `VERSION` with it.
#[test]
fn the_format_is_the_same_in_every_version() {
    let ticket =
        "010000000000013880b92e9e3da035c80745bdb9e19f350823bc62386b2583f5a704f7b93de8cf6ceba7b13feec60eec0613ca1d0780";
    let bytes: Vec<_> =
        (0..ticket.len()).step_by(2).map(|at| u8::from_str_radix(&ticket[at..at + 2], 16).unwrap()).collect();
    assert_eq!(ticketer(&["one"], "h2").open(&bytes, START).as_deref(), Some(SESSION));
}

#[test]
fn nothing_that_is_printed_shows_a_key() {
    let mut ticketers = Ticketers::under(settings(&["one"], ROTATION));
    ticketers.get(scope("h2"), None).encrypt(SESSION).unwrap();
    let shown = format!("{ticketers:?}");
    assert!(shown.contains("rotation_ms: 21600000"));
    assert!(!shown.contains("prk") && !shown.contains("key"), "{shown}");
}
