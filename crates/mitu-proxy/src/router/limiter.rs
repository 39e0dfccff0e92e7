//! How many requests a client may make of a route.
//!
//! Clients are told apart by the hash of a key: their network, certificate or a header. Their buckets are in one table of
//! a fixed size, which all workers share: a client whose requests are many streams of one connection gets as much as one
//! whose connections are spread over the workers. The table has locks enough that two workers hardly meet, and each is
//! held for one look-up.
//!
//! A key has a few places that it may take. Where they are all taken, the bucket that is nearest to full leaves, since
//! the least is forgotten with it. So whoever makes up keys by the million pushes out clients that have hardly made a
//! request, but no client that is held back, unless as many requests are spent with as many keys: and which keys meet,
//! nobody outside can know.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, header};
use parking_lot::Mutex;

use super::{BuildError, host_name};
use crate::bucket::Bucket;
use crate::config::{ClientKey, RateLimitConfig, SourcePrefix};
use crate::connection::Connection;
use crate::filter::forwarded::claims_proxy;
use crate::filter::headers::parse_name;
use crate::gate::network;

/// Places of a limit, in all: 65,536 of 24 bytes. The memory of a shard is taken when the first of its keys comes.
const SHARDS: usize = 64;
const SETS: usize = 128;
const PLACES: usize = 8;

/// One limit of one route.
#[derive(Debug)]
pub struct Limiter {
    pub config: RateLimitConfig,
    key: Key,
    bucket: Bucket,
    hashes: RandomState,
    began: Instant,
    shards: Box<[Mutex<Vec<Set>>]>,
}

#[derive(Debug)]
enum Key {
    Source(SourcePrefix),
    ClientCertificate,
    Host,
    Header(HeaderName),
}

type Set = [Place; PLACES];

/// The bucket of one key, by its hash. One that is full is as good as none.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    key: u64,
    /// Since the limiter began.
    full_at: Duration,
}

impl Limiter {
    pub fn build(config: &RateLimitConfig) -> Result<Self, BuildError> {
        let key = match &config.key {
            ClientKey::Source(prefix) => Key::Source(*prefix),
            ClientKey::ClientCertificate => Key::ClientCertificate,
            ClientKey::Host => Key::Host,
            ClientKey::Header(name) => Key::Header(parse_name(name)?),
        };
        Ok(Self {
            config: config.clone(),
            key,
            bucket: Bucket::new(Duration::from_nanos(config.every_ns), config.burst.get()),
            hashes: RandomState::new(),
            began: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        })
    }

    /// Whether its key is a header that only a proxy may set.
    pub fn asks_for_claims(&self) -> bool {
        matches!(&self.key, Key::Header(name) if claims_proxy(name))
    }

    /// Lets a request pass, or tells how long its client has to wait. Clients without a key, such as those that leave the
    /// header out, have one bucket together.
    pub fn admit(&self, connection: &Connection, headers: &HeaderMap, now: Instant) -> Result<(), Duration> {
        let mut hasher = self.hashes.build_hasher();
        match &self.key {
            Key::Source(prefix) => network(connection.peer.ip(), *prefix).hash(&mut hasher),
            Key::ClientCertificate => {
                connection.identity.as_ref().map(|identity| &identity.fingerprint).hash(&mut hasher);
            }
            Key::Host => {
                let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
                host_name(host).bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
            }
            Key::Header(name) => headers.get_all(name).iter().for_each(|value| value.as_bytes().hash(&mut hasher)),
        }
        self.take(hasher.finish(), now.saturating_duration_since(self.began))
    }

    /// Takes a token of `key`; `Err`: how long until there is one.
    fn take(&self, key: u64, now: Duration) -> Result<(), Duration> {
        let number = key as usize;
        let mut sets = self.shards[number % SHARDS].lock();
        if sets.is_empty() {
            sets.resize(SETS, Set::default());
        }
        let set = &mut sets[number / SHARDS % SETS];
        let known = set.iter().position(|place| place.key == key);
        let free = || (0..PLACES).min_by_key(|&at| set[at].full_at).unwrap_or(0);
        let place = known.unwrap_or_else(free);
        let full_in = if known.is_some() { set[place].full_at.saturating_sub(now) } else { Duration::ZERO };
        let full_in = self.bucket.take(full_in)?;
        set[place] = Place { key, full_at: now + full_in };
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::thread;

    const SECOND: Duration = Duration::from_secs(1);

    /// Ten a second, five at once.
    fn limiter() -> Limiter {
        let burst = NonZeroU32::new(5).unwrap();
        Limiter::build(&RateLimitConfig { key: ClientKey::Host, every_ns: 100_000_000, burst }).unwrap()
    }

    fn taken(limiter: &Limiter, key: u64, now: Duration) -> usize {
        (0..100).filter(|_| limiter.take(key, now).is_ok()).count()
    }

    fn held(limiter: &Limiter) -> usize {
        limiter.shards.iter().map(|shard| shard.lock().capacity() * PLACES).sum()
    }

    #[test]
    fn each_key_has_a_burst_and_then_the_rate() {
        let limiter = limiter();
        assert_eq!(taken(&limiter, 1, SECOND), 5);
        assert_eq!(taken(&limiter, 2, SECOND), 5);
        assert_eq!(limiter.take(1, SECOND), Err(Duration::from_millis(100)));
        assert_eq!(taken(&limiter, 1, SECOND + Duration::from_millis(350)), 3);
        assert_eq!(taken(&limiter, 1, 60 * SECOND), 5);
    }

    #[test]
    fn workers_share_what_a_key_has() {
        let limiter = limiter();
        let counts: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&limiter, 7, SECOND))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(counts.iter().sum::<usize>(), 5);
    }

    #[test]
    fn made_up_keys_take_no_more_memory_and_push_out_nobody_who_is_held_back() {
        let limiter = limiter();
        assert_eq!(held(&limiter), 0);
        assert_eq!(taken(&limiter, 1, SECOND), 5);
        let random = RandomState::new();
        for number in 0..1_000_000_u32 {
            assert!(limiter.take(random.hash_one(number), SECOND).is_ok());
        }
        assert_eq!(held(&limiter), SHARDS * SETS * PLACES);
        assert_eq!(taken(&limiter, 1, SECOND), 0);
    }

    #[test]
    fn a_place_is_free_again_when_its_bucket_is_full() {
        let limiter = limiter();
        // Keys of one set.
        let key = |number: u64| number * (SHARDS * SETS) as u64;
        for number in 1..=8 {
            assert_eq!(taken(&limiter, key(number), SECOND), 5);
        }
        assert_eq!(taken(&limiter, key(9), 2 * SECOND), 5);
        assert_eq!(taken(&limiter, key(9), 2 * SECOND), 0);
    }
}
