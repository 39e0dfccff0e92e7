//! How relays are asked to leave: when their listener drains, and when their endpoint has been removed.
//!
//! Nothing in what a relay carries could say so, and whoever is behind it comes back as soon as it has ended. So each one
//! leaves at a moment of its own, and together they are spread evenly over the time that there is: ten thousand devices
//! do not come back at once.
//!
//! What an idle relay keeps for this is a place in its worker's table, no timer and no subscription.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use mitu_telemetry::connections::RelayEnd;
use parking_lot::Mutex;
use slab::Slab;
use tokio::time::Instant;

use crate::upstream::balancer;

/// Bits of a notice that are its length in milliseconds: four and a half hours at most.
const LENGTH_BITS: u32 = 24;

/// That everybody under it is to leave within some time. Asked for each time that a relay has something to do.
#[derive(Debug, Default)]
pub struct Notice(AtomicU64);

impl Notice {
    /// Gives it, from now on. One that is over sooner stays as it is.
    pub fn give(&self, within: Duration) {
        let length = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).min((1 << LENGTH_BITS) - 1);
        let begin = clock();
        let given = (begin << LENGTH_BITS) | length;
        let sooner = |now| (now == 0 || begin + length < end(now)).then_some(given);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sooner);
    }

    /// Who has not left yet stays.
    pub fn take_back(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// When somebody leaves who has drawn this `lot`; none: not at all.
    fn moment(&self, lot: u32) -> Option<Instant> {
        let now = self.0.load(Ordering::Relaxed);
        if now == 0 {
            return None;
        }
        let (begin, length) = (now >> LENGTH_BITS, now & ((1 << LENGTH_BITS) - 1));
        Some(origin() + Duration::from_millis(begin + ((length * u64::from(lot)) >> 32)))
    }
}

/// In milliseconds on [`clock`].
fn end(notice: u64) -> u64 {
    (notice >> LENGTH_BITS) + (notice & ((1 << LENGTH_BITS) - 1))
}

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // A millisecond ago, so that no notice is 0.
    *ORIGIN.get_or_init(|| Instant::from_std(std::time::Instant::now()) - Duration::from_millis(1))
}

/// Milliseconds since shortly before the first call.
fn clock() -> u64 {
    u64::try_from(Instant::now().saturating_duration_since(origin()).as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The relays of one worker, to wake them when notice is given: by themselves they might not look for hours.
#[derive(Debug, Default)]
pub struct Relays {
    places: Mutex<Slab<Place>>,
    /// Relays so far.
    count: AtomicU64,
}

#[derive(Debug)]
struct Place {
    removal: Arc<Notice>,
    waker: Waker,
}

impl Relays {
    /// Wakes everybody.
    pub fn wake(&self) {
        self.wake_those(|_| true);
    }

    /// Wakes those whose endpoints have been removed.
    pub fn wake_removed(&self) {
        self.wake_those(|place| place.removal.is_given());
    }

    fn wake_those(&self, wanted: impl Fn(&Place) -> bool) {
        let places = self.places.lock();
        let wanted = places.iter().filter(|(_, place)| wanted(place));
        let wakers: Vec<_> = wanted.map(|(_, place)| place.waker.clone()).collect();
        drop(places);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// For a relay of connection `id`.
    pub fn stay<'a>(&'a self, id: u64, drain: &'a Notice, removal: Arc<Notice>) -> Stay<'a> {
        // Tunnels in HTTP/2 have their connection in common.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let drawn = balancer::hash([id.to_le_bytes(), count.to_le_bytes()].as_flattened());
        Stay { relays: self, drain, removal, lot: (drawn >> 32) as u32, place: None }
    }
}

/// How long a relay stays.
#[derive(Debug)]
pub struct Stay<'a> {
    relays: &'a Relays,
    drain: &'a Notice,
    removal: Arc<Notice>,
    lot: u32,
    place: Option<u32>,
}

impl Stay<'_> {
    /// When it has to leave, and why; none: it may stay. From the first time on it is woken when that changes. `waker`:
    /// its task's, which is always the same.
    pub fn end(&mut self, waker: &Waker) -> Option<(Instant, RelayEnd)> {
        if self.place.is_none() {
            let place = Place { removal: self.removal.clone(), waker: waker.clone() };
            self.place = u32::try_from(self.relays.places.lock().insert(place)).ok();
        }
        let drain = self.drain.moment(self.lot).map(|moment| (moment, RelayEnd::Drain));
        let removal = self.removal.moment(self.lot).map(|moment| (moment, RelayEnd::Removal));
        match (drain, removal) {
            (Some(drain), Some(removal)) => Some(if removal.0 < drain.0 { removal } else { drain }),
            (drain, removal) => drain.or(removal),
        }
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            drop(self.relays.places.lock().try_remove(place as usize));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everybody_leaves_at_a_moment_of_their_own() {
        const SECOND: Duration = Duration::from_secs(1);
        let (relays, drain) = (Relays::default(), Notice::default());
        let mut stays: Vec<_> = (0..10_000).map(|id| relays.stay(id, &drain, Arc::default())).collect();
        assert!(stays.iter_mut().all(|stay| stay.end(Waker::noop()).is_none()));
        let begun = Instant::now();
        drain.give(100 * SECOND);
        let mut slices = [0; 10];
        for stay in &mut stays {
            let (moment, why) = stay.end(Waker::noop()).unwrap();
            assert_eq!(why, RelayEnd::Drain);
            let after = moment.saturating_duration_since(begun);
            slices[(after.as_millis() / 10_000).min(9) as usize] += 1;
        }
        assert!(slices.iter().all(|count| (850..1_150).contains(count)), "{slices:?}");
    }

    #[test]
    fn the_sooner_notice_counts_and_may_be_taken_back() {
        let (relays, drain, removal) = (Relays::default(), Notice::default(), Arc::new(Notice::default()));
        let mut stay = relays.stay(7, &drain, removal.clone());
        let mut end = || stay.end(Waker::noop());
        drain.give(Duration::from_secs(3600));
        let later = end().unwrap();
        assert_eq!(later.1, RelayEnd::Drain);
        removal.give(Duration::from_secs(10));
        let sooner = end().unwrap();
        assert!(sooner.0 < later.0 && sooner.1 == RelayEnd::Removal);
        removal.give(Duration::from_secs(3600));
        assert_eq!(end(), Some(sooner), "what is sooner stays");
        removal.take_back();
        assert_eq!(end(), Some(later));
        drain.give(Duration::MAX);
        assert_eq!(end(), Some(later));
        drain.give(Duration::ZERO);
        assert!(end().unwrap().0 <= Instant::now());
    }

    #[test]
    fn those_are_woken_who_have_reason_to() {
        let (relays, drain) = (Relays::default(), Notice::default());
        let (gone, stays) = (Arc::new(Notice::default()), Arc::new(Notice::default()));
        let counters: [Arc<Counter>; 3] = Default::default();
        let wakers = counters.clone().map(Waker::from);
        let places = [gone.clone(), gone.clone(), stays].map(|removal| relays.stay(1, &drain, removal));
        let [left, _removed, _kept] = {
            let mut wakers = wakers.iter();
            places.map(|mut place| {
                assert!(place.end(wakers.next().unwrap()).is_none());
                place
            })
        };
        let woken = || counters.each_ref().map(|counter| counter.0.load(Ordering::Relaxed));
        drop(left);
        relays.wake_removed();
        assert_eq!(woken(), [0, 0, 0]);
        gone.give(Duration::from_secs(1));
        relays.wake_removed();
        assert_eq!(woken(), [0, 1, 0]);
        relays.wake();
        assert_eq!(woken(), [0, 2, 1]);
    }
}
