//! Which endpoint serves a request.
//!
//! Every balancer walks a table of endpoint numbers that is laid out once, when the configuration is built: a smooth
//! weighted order for round robin and least request, a Maglev table (Eisenbud et al., NSDI 2016) for hashing. A choice
//! costs the same for two endpoints as for two hundred, and a few steps more while some that keys hash to are not used.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::{BalancerConfig, EndpointConfig};

/// Longest weighted order; larger sums of weights are scaled down to it.
const MAX_ORDER: u32 = 4096;

/// How often it is drawn for a turn that cannot be had, before the order is gone through.
const DRAWS: u64 = 8;

/// Slots of a Maglev table (a prime): the share of each of 100 endpoints is off by 1 % at most.
const MAGLEV_SLOTS: usize = 10_007;

/// Less than one in so many is few, by weight.
const FEW: u64 = 4;

#[derive(Debug)]
pub struct Balancer {
    kind: Kind,
    table: Box<[u16]>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    RoundRobin,
    LeastRequest,
    Hash,
}

/// A worker's place in the order. On a cache line of its own: the other workers' are no business of this one.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cursor {
    first: usize,
    passed: AtomicUsize,
}

impl Cursor {
    /// Workers begin at different places, so that they do not all go to the first endpoint first.
    pub fn starting_at(first: usize) -> Self {
        Self { first, passed: AtomicUsize::new(0) }
    }

    /// The place of one more request or relay.
    pub fn next(&self) -> usize {
        self.first.wrapping_add(self.passed.fetch_add(1, Ordering::Relaxed))
    }

    /// Requests and relays so far.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed) as u64
    }
}

impl Balancer {
    pub fn new(config: &BalancerConfig, endpoints: &[EndpointConfig]) -> Self {
        let order = || smooth_order(&endpoints.iter().map(EndpointConfig::share).collect::<Vec<_>>());
        match config {
            BalancerConfig::RoundRobin => Self { kind: Kind::RoundRobin, table: order() },
            BalancerConfig::LeastRequest => Self { kind: Kind::LeastRequest, table: order() },
            BalancerConfig::Hash { .. } => Self { kind: Kind::Hash, table: maglev(endpoints) },
        }
    }

    /// Whether a key always has the same endpoint.
    pub fn is_sticky(&self) -> bool {
        matches!(self.kind, Kind::Hash)
    }

    /// An endpoint's number; none when there is nothing left to try.
    ///
    /// `place`: of [`Cursor::next`]. `hash`: of the request's key. `load`: requests in progress at an endpoint, by its
    /// weight. `usable`: whether an endpoint may be chosen.
    pub fn pick(
        &self,
        place: usize,
        hash: u64,
        load: impl Fn(usize) -> u64,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let length = self.table.len();
        let at = |place: usize| usize::from(self.table[place % length]);
        let from =
            |place: usize| (0..length).map(|step| at(place.wrapping_add(step))).find(|&endpoint| usable(endpoint));
        // What cannot have its turn leaves it to all others, not to the one behind it.
        let near = |place: usize| match at(place) {
            endpoint if usable(endpoint) => Some(endpoint),
            _ => {
                let draws = (0..DRAWS).map(|draw| at(scramble((place as u64).wrapping_add(draw << 32)) as usize));
                draws.into_iter().find(|&endpoint| usable(endpoint)).or_else(|| from(place))
            }
        };
        match self.kind {
            _ if self.table.is_empty() => None,
            Kind::RoundRobin => near(place),
            Kind::Hash => from((hash % length as u64) as usize),
            Kind::LeastRequest => {
                // Two random choices, the less busy one wins (Mitzenmacher, 2001).
                let random = scramble(place as u64);
                let first = near(random as u32 as usize)?;
                let second = near((random >> 32) as usize)?;
                Some(if load(second) < load(first) { second } else { first })
            }
        }
    }
}

/// The order in which smooth weighted round robin (nginx's) visits the endpoints.
fn smooth_order(weights: &[u32]) -> Box<[u16]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|weight| u64::from(weight / divisor)).collect();
    let sum: u64 = weights.iter().sum();
    if sum > u64::from(MAX_ORDER) {
        for weight in weights.iter_mut().filter(|weight| **weight > 0) {
            *weight = (*weight * u64::from(MAX_ORDER) / sum).max(1);
        }
    }
    let total: i64 = weights.iter().sum::<u64>().try_into().unwrap_or(i64::MAX);
    let mut credit = vec![0_i64; weights.len()];
    (0..total)
        .filter_map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += *weight as i64;
            }
            let best =
                (0..credit.len()).filter(|&at| weights[at] > 0).max_by_key(|&at| (credit[at], usize::MAX - at))?;
            credit[best] -= total;
            u16::try_from(best).ok()
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// With slots for those that are not used, too: the other keys stay where they are while they come and go. Not where the
/// used ones are few: what would be left of the slots for them says little of their weights.
fn maglev(endpoints: &[EndpointConfig]) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    let sum = |weight: fn(&EndpointConfig) -> u32| endpoints.iter().map(|one| u64::from(weight(one))).sum::<u64>();
    let few = sum(EndpointConfig::share) * FEW < sum(|endpoint| endpoint.weight);
    let weight = |endpoint: &EndpointConfig| if few { endpoint.share() } else { endpoint.weight };
    let weights: Vec<u32> = endpoints.iter().map(weight).collect();
    let heaviest = weights.iter().copied().max().unwrap_or(0);
    if heaviest == 0 {
        return Box::default();
    }
    let slots = MAGLEV_SLOTS as u64;
    let steps: Vec<(u64, u64)> = endpoints
        .iter()
        .map(|endpoint| {
            let hash = hash(endpoint.address.as_bytes());
            (hash % slots, scramble(hash) % (slots - 1) + 1)
        })
        .collect();
    let mut table = vec![FREE; MAGLEV_SLOTS];
    let mut next = vec![0_u64; endpoints.len()];
    let mut credit = vec![0_u64; endpoints.len()];
    let mut filled = 0;
    while filled < MAGLEV_SLOTS {
        for (endpoint, &(offset, skip)) in steps.iter().enumerate() {
            // The heaviest endpoint takes a slot in each round, the others in proportion.
            credit[endpoint] += u64::from(weights[endpoint]);
            if credit[endpoint] < u64::from(heaviest) || filled == MAGLEV_SLOTS {
                continue;
            }
            credit[endpoint] -= u64::from(heaviest);
            let slot = loop {
                let slot = ((offset + next[endpoint] * skip) % slots) as usize;
                next[endpoint] += 1;
                if table[slot] == FREE {
                    break slot;
                }
            };
            table[slot] = endpoint as u16;
            filled += 1;
        }
    }
    table.into()
}

/// A hash that is the same on every node and in every release: FNV-1a, finished so that all its bits are mixed.
pub fn hash(bytes: &[u8]) -> u64 {
    let folded = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    scramble(folded)
}

/// SplitMix64's output function (Steele, Lea and Flood, 2014).
pub fn scramble(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::HashKey;

    fn balancer(kind: BalancerConfig, weights: &[u32]) -> Balancer {
        let endpoints: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(at, &weight)| EndpointConfig { address: format!("10.0.0.{at}:80"), weight, used: true })
            .collect();
        Balancer::new(&kind, &endpoints)
    }

    fn hashing() -> BalancerConfig {
        BalancerConfig::Hash { on: HashKey::Path }
    }

    fn counts(balancer: &Balancer, endpoints: usize, picks: u64, load: impl Fn(usize) -> u64) -> Vec<u64> {
        let cursor = Cursor::default();
        let mut counts = vec![0; endpoints];
        for number in 0..picks {
            counts[balancer.pick(cursor.next(), scramble(number), &load, |_| true).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_interleaves_by_weight() {
        let balancer = balancer(BalancerConfig::RoundRobin, &[5, 1, 1]);
        let cursor = Cursor::default();
        let picks: Vec<_> = (0..7).map(|_| balancer.pick(cursor.next(), 0, |_| 0, |_| true).unwrap()).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(counts(&balancer, 3, 700, |_| 0), [500, 100, 100]);
    }

    #[test]
    fn weights_of_zero_are_never_chosen_and_huge_ones_are_scaled() {
        assert_eq!(counts(&balancer(BalancerConfig::RoundRobin, &[0, 2]), 2, 10, |_| 0), [0, 10]);
        assert_eq!(counts(&balancer(hashing(), &[0, 2]), 2, 10, |_| 0), [0, 10]);
        let huge = balancer(BalancerConfig::RoundRobin, &[u32::MAX, u32::MAX - 1, 1]);
        assert!(huge.table.len() <= MAX_ORDER as usize + 2);
        assert!(counts(&huge, 3, 10_000, |_| 0).iter().all(|&count| count > 0));
    }

    #[test]
    fn nothing_usable_is_nothing() {
        for kind in [BalancerConfig::RoundRobin, BalancerConfig::LeastRequest, hashing()] {
            assert_eq!(balancer(kind.clone(), &[]).pick(0, 7, |_| 0, |_| true), None);
            assert_eq!(balancer(kind.clone(), &[0]).pick(0, 7, |_| 0, |_| true), None);
            assert_eq!(balancer(kind.clone(), &[1, 1]).pick(0, 7, |_| 0, |_| false), None);
            assert_eq!(balancer(kind, &[1, 1]).pick(0, 7, |_| 0, |at| at == 1), Some(1));
        }
    }

    #[test]
    fn a_turn_that_cannot_be_had_is_everybodys() {
        let balancer = balancer(BalancerConfig::RoundRobin, &[1, 1, 1, 3]);
        let cursor = Cursor::default();
        let mut counts = [0_u32; 4];
        for _ in 0..6_000 {
            counts[balancer.pick(cursor.next(), 0, |_| 0, |at| at != 1).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        for (at, share) in [(0, 1_200_u32), (2, 1_200), (3, 3_600)] {
            assert!(counts[at].abs_diff(share) < 150, "{counts:?}");
        }
    }

    #[test]
    fn least_request_prefers_the_idle_and_reaches_everyone() {
        let counts = counts(&balancer(BalancerConfig::LeastRequest, &[1; 4]), 4, 10_000, |at| u64::from(at == 0));
        // The busy one is chosen when it is drawn twice, in one of sixteen.
        assert!((400..900).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|count| (2_800..3_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn hashing_follows_weights_and_is_stable() {
        let before = balancer(hashing(), &[1, 1, 2]);
        let counts = counts(&before, 3, 40_000, |_| 0);
        for (count, share) in counts.iter().zip([10_000_u64, 10_000, 20_000]) {
            assert!(count.abs_diff(share) < share / 10, "{counts:?}");
        }
        let after = balancer(hashing(), &[1, 1, 2, 1]);
        let pick = |balancer: &Balancer, hash| balancer.pick(0, hash, |_| 0, |_| true).unwrap();
        let moved = (0..10_000).map(scramble).filter(|&hash| {
            let now = pick(&after, hash);
            now != pick(&before, hash) && now != 3
        });
        assert!(moved.count() < 1_000, "an added endpoint must move few keys between the others");
    }

    #[test]
    fn a_few_that_are_used_have_keys_by_their_weights() {
        let mut endpoints: Vec<_> = (0..17)
            .map(|at| EndpointConfig { address: format!("10.0.0.{at}:80"), weight: 1000, used: false })
            .collect();
        for (endpoint, weight) in endpoints.iter_mut().zip([1, 2]) {
            *endpoint = EndpointConfig { weight, used: true, ..endpoint.clone() };
        }
        let counts = counts(&Balancer::new(&hashing(), &endpoints), 17, 30_000, |_| 0);
        assert!(counts[0].abs_diff(10_000) < 500 && counts[1].abs_diff(20_000) < 500, "{counts:?}");
    }

    #[test]
    fn the_hash_is_what_it_was() {
        assert_eq!(hash(b"192.0.2.1"), 0xd307_492f_ba64_da08);
    }
}
