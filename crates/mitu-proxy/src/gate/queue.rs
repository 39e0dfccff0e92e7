//! Who is next: fair between sources, and in a source what is nearest to its end first.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) over measured time: each source has a clock that advances by
//! what its jobs cost, and the source whose clock is furthest behind is next. One that has been away starts at the
//! clock of whoever is served now, so that nobody saves up time by being silent.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// What a job is about to do, in the order of serving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The client's last flight: what it cost to come so far would be lost.
    Finish,
    /// Reading a ClientHello, which costs little and tells which of the next two it is.
    Hello,
    /// Answering a ClientHello that offers to resume a session.
    Resumed,
    /// Answering any other: the signature.
    Full,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Finish, Self::Hello, Self::Resumed, Self::Full];
}

/// When there are more sources without jobs than that, what they owe is forgotten.
const IDLE_SOURCES: usize = 1024;

/// Jobs by source (the network that a client is in) and kind.
#[derive(Debug)]
pub struct FairQueue<Job> {
    sources: HashMap<IpAddr, Source<Job>>,
    /// The sources that have jobs, by their clocks. A clock may have advanced since.
    order: BinaryHeap<Reverse<(u64, IpAddr)>>,
    /// The clock of the source that was served last, in nanoseconds.
    now: u64,
    jobs: usize,
}

#[derive(Debug)]
struct Source<Job> {
    clock: u64,
    jobs: [VecDeque<Job>; Kind::ALL.len()],
}

impl<Job> Source<Job> {
    /// Jobs up to `kind`, in the order of serving.
    fn waiting(&self, kind: Kind) -> usize {
        self.jobs[..=kind as usize].iter().map(VecDeque::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.jobs.iter().all(VecDeque::is_empty)
    }

    fn pop(&mut self) -> Option<(Kind, Job)> {
        Kind::ALL.into_iter().find_map(|kind| Some((kind, self.jobs[kind as usize].pop_front()?)))
    }
}

impl<Job> Default for FairQueue<Job> {
    fn default() -> Self {
        Self { sources: HashMap::new(), order: BinaryHeap::new(), now: 0, jobs: 0 }
    }
}

impl<Job> FairQueue<Job> {
    pub fn len(&self) -> usize {
        self.jobs
    }

    pub fn is_empty(&self) -> bool {
        self.jobs == 0
    }

    /// Jobs of `source` that are before a new one of `kind`.
    pub fn ahead(&self, source: IpAddr, kind: Kind) -> usize {
        self.sources.get(&source).map_or(0, |source| source.waiting(kind))
    }

    /// Sources that have jobs.
    pub fn sources(&self) -> usize {
        self.order.len()
    }

    pub fn push(&mut self, source: IpAddr, kind: Kind, job: Job) {
        let now = self.now;
        let known = self.sources.entry(source).or_insert_with(|| Source { clock: now, jobs: Default::default() });
        if known.is_empty() {
            known.clock = known.clock.max(now);
            self.order.push(Reverse((known.clock, source)));
        }
        known.jobs[kind as usize].push_back(job);
        self.jobs += 1;
    }

    /// The next job; `cost`: what one of its kind is expected to take, which `charge` corrects.
    pub fn pop(&mut self, cost: impl Fn(Kind) -> Duration) -> Option<(IpAddr, Kind, Job)> {
        loop {
            let Reverse((clock, name)) = self.order.pop()?;
            let source = self.sources.get_mut(&name)?;
            // It has been charged, or has got something back, since.
            if source.clock != clock {
                self.order.push(Reverse((source.clock, name)));
                continue;
            }
            let (kind, job) = source.pop()?;
            self.now = self.now.max(clock);
            source.clock = clock.saturating_add(nanoseconds(cost(kind)));
            if !source.is_empty() {
                self.order.push(Reverse((source.clock, name)));
            }
            self.jobs -= 1;
            self.forget();
            return Some((name, kind, job));
        }
    }

    /// A job of `source` that was expected to take `expected` took `actual`.
    pub fn charge(&mut self, source: IpAddr, expected: Duration, actual: Duration) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.clock = (source.clock + nanoseconds(actual)).saturating_sub(nanoseconds(expected));
        }
    }

    /// Nobody competes any more: nobody owes anything.
    pub fn clear(&mut self) {
        self.sources.clear();
        self.order.clear();
        (self.now, self.jobs) = (0, 0);
    }

    fn forget(&mut self) {
        if self.sources.len() > 2 * self.order.len() + IDLE_SOURCES {
            self.sources.retain(|_, source| !source.is_empty());
        }
    }
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const COST: Duration = Duration::from_micros(100);

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    fn pop(queue: &mut FairQueue<u32>) -> Option<u32> {
        queue.pop(|_| COST).map(|(_, _, job)| job)
    }

    #[test]
    fn a_source_waits_for_others_and_not_for_all_their_jobs() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|job| queue.push(source(1), Kind::Full, job));
        assert_eq!(pop(&mut queue), Some(0));
        (100..103).for_each(|job| queue.push(source(2), Kind::Full, job));
        queue.push(source(3), Kind::Full, 103);
        let next: Vec<_> = (0..7).map_while(|_| pop(&mut queue)).collect();
        assert_eq!(next, [100, 103, 1, 101, 2, 102, 3]);
        assert_eq!(queue.len(), 96);
    }

    #[test]
    fn in_a_source_the_nearest_to_its_end_is_first() {
        let mut queue = FairQueue::default();
        for (job, kind) in [(0, Kind::Full), (1, Kind::Resumed), (2, Kind::Finish), (3, Kind::Hello), (4, Kind::Full)]
        {
            queue.push(source(1), kind, job);
        }
        assert_eq!((queue.ahead(source(1), Kind::Resumed), queue.ahead(source(1), Kind::Full)), (3, 5));
        let order: Vec<_> = (0..6).map_while(|_| pop(&mut queue)).collect();
        assert_eq!(order, [2, 3, 1, 0, 4]);
        assert!(queue.is_empty());
    }

    /// Time is shared, not turns: whose jobs take four times as long gets a quarter of the turns.
    #[test]
    fn what_jobs_cost_is_what_counts() {
        // Whatever was expected of both.
        for expected in [COST, 4 * COST, 10 * COST] {
            let mut queue = FairQueue::default();
            (0..1000).for_each(|_| queue.push(source(1), Kind::Full, 1));
            (0..1000).for_each(|_| queue.push(source(2), Kind::Full, 2));
            let mut turns = [0_i32; 2];
            for _ in 0..500 {
                let (name, _, job) = queue.pop(|_| expected).unwrap();
                turns[job as usize - 1] += 1;
                queue.charge(name, expected, if job == 1 { COST } else { 4 * COST });
            }
            assert!(turns[0].abs_diff(400) <= 2, "{turns:?} of {expected:?}");
        }
    }

    #[test]
    fn silence_saves_nothing_up() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|_| queue.push(source(1), Kind::Full, 1));
        assert_eq!((0..50).map_while(|_| pop(&mut queue)).count(), 50);
        (0..50).for_each(|_| queue.push(source(2), Kind::Full, 2));
        let later: Vec<_> = (0..20).map_while(|_| pop(&mut queue)).collect();
        assert_eq!(later.iter().filter(|job| **job == 1).count(), 10);
    }

    #[test]
    fn sources_that_are_gone_are_forgotten() {
        let mut queue = FairQueue::default();
        for number in 0..100_000 {
            queue.push(source(number), Kind::Full, number);
            assert_eq!(pop(&mut queue), Some(number));
        }
        assert!(queue.sources.len() <= IDLE_SOURCES + 1, "{}", queue.sources.len());
    }
}
