//! Handshakes are a class of their own, and this is its scheduler: one for each worker.
//!
//! A handshake computes for as long as several requests take. In a storm hundreds are ready at once, and a request on
//! an open connection would wait behind all of them in the event loop's queue. So a handshake runs in turns: while there
//! is time left in this turn of the event loop it goes on at once, and beyond that it waits here. Between two turns the
//! loop sees to everything else that is ready. Who waits is served fairly by source ([`queue`]), and who would wait for
//! longer than clients do is reset before anything is computed for it (docs/internals/storm-gate.md).

mod queue;
mod rate;

use std::borrow::Borrow;
use std::future::poll_fn;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::task::yield_now;

use crate::config::{HandshakesConfig, SourcePrefix};
pub use queue::Kind;
use queue::{FairQueue, nanoseconds};
use rate::Rate;

/// What handshakes may take of one turn of the event loop, at least. Established connections wait no longer than that
/// for them, and one computation more.
const TURN: Duration = Duration::from_micros(100);

/// The same while nothing has been heard of established connections for [`SILENCE`]: every turn costs the worker some
/// system calls, which is a tenth of a handshake when it has room for one alone.
const TURN_IN_SILENCE: Duration = Duration::from_micros(500);
const SILENCE: Duration = Duration::from_secs(1);

/// What they take at most, however much there is to do for others.
const LONGEST_TURN: Duration = Duration::from_millis(2);

/// The least that a piece counts for when turns are given out, so that clients who make cheap ones by the dozen do not
/// make room in a turn for as many dear ones.
const LEAST: Duration = Duration::from_micros(10);

/// Taking one out of the queue that is there no more.
const GONE_COST: Duration = Duration::from_micros(1);

/// For how long there must have been more to do than a turn has room for, before that is told as a storm: what comes
/// together waits for a turn or two at any load.
const BEHIND: Duration = Duration::from_millis(100);

/// How much a new measurement weighs.
const WEIGHT: u32 = 16;

/// The handshakes of one worker.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    /// Whether established connections have had something to do since the last turn.
    heard: AtomicBool,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    waiting: FairQueue<Waiting>,
    /// How many wait, as the metrics tell.
    gauge: IntGauge,
    /// Since when every turn has left some for the next.
    behind: Option<Instant>,
    /// How many have been shed.
    shed: u64,
    /// Whether turns are given out: everybody waits for one.
    pumping: bool,
    /// When something was last heard of established connections.
    heard: Instant,
    /// What handshakes have taken of this turn, or window.
    spent: Duration,
    since: Instant,
    /// What one poll takes, by kind.
    costs: [Duration; Kind::ALL.len()],
    /// How often one that waits has its turn.
    interval: Duration,
}

/// What is configured, for this worker.
#[derive(Debug)]
struct Settings {
    patience: Duration,
    queue: usize,
    prefix: SourcePrefix,
    source_rate: Option<Rate<IpAddr>>,
    server_name_rate: Option<Rate<String>>,
}

impl Settings {
    /// For one of so many workers.
    fn new(config: &HandshakesConfig, workers: usize) -> Self {
        Self {
            patience: Duration::from_millis(config.patience_ms),
            queue: config.queue.unwrap_or(usize::MAX),
            prefix: config.source_prefix,
            source_rate: config.source_rate.map(|rate| Rate::new(rate, workers)),
            server_name_rate: config.server_name_rate.map(|rate| Rate::new(rate, workers)),
        }
    }
}

impl State {
    fn new(settings: Settings, gauge: IntGauge) -> Self {
        Self {
            settings,
            gauge,
            behind: None,
            shed: 0,
            waiting: FairQueue::default(),
            pumping: false,
            heard: Instant::now(),
            spent: Duration::ZERO,
            since: Instant::now(),
            costs: [20, 20, 60, 120].map(Duration::from_micros),
            interval: Duration::from_micros(100),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    handshake: Arc<Shared>,
    waker: Waker,
    since: Instant,
    /// Whether it may be shed: nothing has been computed for it yet.
    sheddable: bool,
}

/// Why a handshake is not gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It would wait for longer than its client does, or there are too many.
    Shed,
    /// Its source, or its server name, has had its part.
    RateLimited,
}

/// One handshake, as the gate sees it.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    source: Mutex<IpAddr>,
    kind: AtomicU8,
    /// Whether the handshake waits for a turn of its own asking.
    asked: AtomicBool,
    /// Whether the client's first ClientHello is answered by asking for another.
    retries: AtomicBool,
    shared: Arc<Shared>,
}

/// What the handshake and its place in the queue have in common.
#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    /// Nanoseconds, in the queue.
    waited: AtomicU64,
    /// Nanoseconds that its source has been charged for the turn that it has.
    charged: AtomicU64,
}

const RUNNING: u8 = 0;
const QUEUED: u8 = 1;
const GRANTED: u8 = 2;
const SHED: u8 = 3;
const GONE: u8 = 4;

impl Gate {
    /// The gate of one of so many `workers`.
    pub fn new(config: &HandshakesConfig, workers: usize, waiting: IntGauge) -> Self {
        let state = State::new(Settings::new(config, workers), waiting);
        Self { state: Mutex::new(state), heard: AtomicBool::new(false) }
    }

    /// Goes by another configuration from now on. Token buckets are full again.
    pub fn configure(&self, config: &HandshakesConfig, workers: usize) {
        let settings = Settings::new(config, workers);
        // The old buckets are dropped when the lock is free again.
        let _old = std::mem::replace(&mut self.state.lock().settings, settings);
    }

    /// An established connection has something to do.
    pub fn hears(&self) {
        // A store would take the line from other threads each time, with `work_stealing`.
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// How many wait because there are more than there is time for, and how many have been shed so far.
    pub fn pressure(&self) -> (usize, u64) {
        let state = self.state.lock();
        let behind = state.behind.is_some_and(|since| since.elapsed() > BEHIND);
        (if behind { state.waiting.len() } else { 0 }, state.shed)
    }

    pub fn pass(self: &Arc<Self>) -> Pass {
        Pass {
            gate: self.clone(),
            source: Mutex::new(Ipv4Addr::UNSPECIFIED.into()),
            kind: AtomicU8::new(Kind::Hello as u8),
            asked: AtomicBool::new(false),
            retries: AtomicBool::new(false),
            shared: Arc::default(),
        }
    }

    /// Whether a handshake may go on at once.
    fn free(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        self.state.lock().free(heard)
    }

    /// One turn. False: nobody waits any more.
    fn turn(&self, now: Instant) -> bool {
        let heard = self.heard.swap(false, Ordering::Relaxed);
        self.state.lock().turn(now, heard)
    }

    /// Gives out turns until nobody waits.
    async fn pump(self: Arc<Self>) {
        while self.turn(Instant::now()) {
            // Everything else that is ready, and what the kernel has, comes before the next.
            yield_now().await;
        }
    }
}

impl State {
    /// Whether a handshake may go on at once. `heard`: something, of established connections.
    fn free(&mut self, heard: bool) -> bool {
        if !self.waiting.is_empty() {
            return false;
        }
        if self.spent < TURN || !heard && self.spent < self.length(self.since) {
            return true;
        }
        if self.pumping {
            return false;
        }
        // The loop says nothing of its turns while nobody waits here: half of the time is free.
        let now = Instant::now();
        let over = now - self.since >= 2 * self.spent;
        if over {
            (self.since, self.spent) = (now, Duration::ZERO);
        }
        over
    }

    /// The least that handshakes have of a turn.
    fn length(&self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.heard) < SILENCE { TURN } else { TURN_IN_SILENCE }
    }

    /// One turn. False: nobody waits any more. `heard`: something, of established connections, since the last one.
    fn turn(&mut self, now: Instant, heard: bool) -> bool {
        if heard {
            self.heard = now;
        }
        let lasted = now - self.since;
        let others = lasted.saturating_sub(self.spent);
        (self.since, self.spent) = (now, Duration::ZERO);
        // A fifth of the time, however much there is to do for others. More would feed itself: of what is done for others,
        // the first request of each new connection is a part.
        let share = (others / 4).clamp(self.length(now), LONGEST_TURN);
        let costs = self.costs;
        let (mut granted, mut expected) = (0_u32, Duration::ZERO);
        while expected < share
            && let Some((source, kind, next)) = self.waiting.pop(|kind| costs[kind as usize])
        {
            let cost = costs[kind as usize];
            next.handshake.charged.store(nanoseconds(cost), Ordering::Relaxed);
            let this = nanoseconds(now - next.since);
            let waited = this + next.handshake.waited.fetch_add(this, Ordering::Relaxed);
            let late = next.sheddable && waited > nanoseconds(self.settings.patience);
            let verdict = if late { SHED } else { GRANTED };
            if next.handshake.state.compare_exchange(QUEUED, verdict, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                self.waiting.charge(source, cost, Duration::ZERO);
                expected += GONE_COST;
                continue;
            }
            next.waker.wake();
            granted += u32::from(!late);
            self.shed += u64::from(late);
            // Closing costs about what a ClientHello does.
            expected += costs[if late { Kind::Hello } else { kind } as usize].max(LEAST);
        }
        if granted > 0 {
            average(&mut self.interval, lasted / granted);
        }
        self.gauge.set(self.waiting.len() as i64);
        self.behind = if self.waiting.is_empty() { None } else { self.behind.or(Some(now)) };
        self.pumping = granted > 0 || !self.waiting.is_empty();
        if !self.pumping {
            self.waiting.clear();
        }
        self.pumping
    }

    /// Whether there is room for one more of `source`, and time, when it has `waited` before.
    fn admits(&self, source: IpAddr, kind: Kind, waited: Duration) -> bool {
        let (ahead, sources) = (self.waiting.ahead(source, kind), self.waiting.sources().max(1));
        // Of a full queue, each source may have its part.
        if self.waiting.len() >= self.settings.queue && ahead >= (self.settings.queue / sources).max(1) {
            return false;
        }
        let before = (ahead + 1).saturating_mul(sources).min(self.waiting.len());
        let wait = self.interval.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX));
        waited.saturating_add(wait) <= self.settings.patience
    }
}

impl Pass {
    /// Runs `handshake` in turns.
    pub async fn run<T>(&self, handshake: impl Future<Output = T>) -> T {
        let mut handshake = pin!(handshake);
        let mut begun = false;
        poll_fn(|context| {
            // What comes before the first turn is not worth one.
            if begun && !self.may_run(context) {
                return Poll::Pending;
            }
            begun = true;
            let (before, since) = (self.kind(), Instant::now());
            let polled = handshake.as_mut().poll(context);
            let took = since.elapsed();
            if self.asked.swap(false, Ordering::Relaxed) {
                self.ran(before, took);
                self.queue(context, true);
            } else {
                self.ran(self.kind(), took);
            }
            polled
        })
        .await
    }

    /// Says where the client is, and takes one of the tokens of its network.
    pub fn comes_from(&self, client: IpAddr) -> Result<(), Refused> {
        let mut state = self.gate.state.lock();
        let source = network(client, state.settings.prefix);
        *self.source.lock() = source;
        taken(state.settings.source_rate.as_mut(), &source)
    }

    /// Takes one of the tokens of a server name.
    pub fn asks_for(&self, server_name: &str) -> Result<(), Refused> {
        taken(self.gate.state.lock().settings.server_name_rate.as_mut(), server_name)
    }

    /// The answer that is next asks the client for another ClientHello, whose answer is as dear as one.
    pub fn retries(&self) {
        self.retries.store(true, Ordering::Relaxed);
    }

    /// Waits for the turn to do what is dear, or not to do it. Who is refused has cost a ClientHello, and no more.
    pub async fn turn(&self, kind: Kind) -> Result<(), Refused> {
        {
            let mut state = self.gate.state.lock();
            let free = state.free(self.gate.heard.load(Ordering::Relaxed));
            if !free && !state.admits(*self.source.lock(), kind, self.waited()) {
                state.shed += 1;
                return Err(Refused::Shed);
            }
            self.kind.store(kind as u8, Ordering::Relaxed);
            if free {
                return Ok(());
            }
        }
        let mut asked = false;
        poll_fn(|_| {
            if !asked {
                asked = true;
                self.asked.store(true, Ordering::Relaxed);
                return Poll::Pending;
            }
            if self.shared.state.load(Ordering::Acquire) != SHED {
                return Poll::Ready(Ok(()));
            }
            self.kind.store(Kind::Hello as u8, Ordering::Relaxed);
            Poll::Ready(Err(Refused::Shed))
        })
        .await
    }

    /// How long this handshake has waited for its turns.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed))
    }

    fn may_run(&self, context: &mut Context<'_>) -> bool {
        match self.shared.state.load(Ordering::Acquire) {
            GRANTED => {
                self.shared.state.store(RUNNING, Ordering::Relaxed);
                true
            }
            QUEUED => false,
            RUNNING if self.gate.free() => true,
            RUNNING => {
                self.queue(context, false);
                false
            }
            _ => true,
        }
    }

    fn ran(&self, kind: Kind, took: Duration) {
        // What comes after the answer to a ClientHello is the client's last flight, unless another was asked for.
        let answered = matches!(kind, Kind::Resumed | Kind::Full) && self.kind() == kind;
        if answered && !self.retries.swap(false, Ordering::Relaxed) {
            self.kind.store(Kind::Finish as u8, Ordering::Relaxed);
        }
        let charged = Duration::from_nanos(self.shared.charged.swap(0, Ordering::Relaxed));
        let mut state = self.gate.state.lock();
        state.spent += took;
        if state.pumping {
            state.waiting.charge(*self.source.lock(), charged, took);
        }
        average(&mut state.costs[kind as usize], took);
    }

    fn queue(&self, context: &mut Context<'_>, sheddable: bool) {
        self.shared.state.store(QUEUED, Ordering::Release);
        let now = Instant::now();
        let (handshake, waker) = (self.shared.clone(), context.waker().clone());
        let mut state = self.gate.state.lock();
        state.waiting.push(*self.source.lock(), self.kind(), Waiting { handshake, waker, since: now, sheddable });
        if !state.pumping {
            state.pumping = true;
            (state.since, state.spent) = (now, Duration::ZERO);
            tokio::spawn(self.gate.clone().pump());
        }
    }

    fn kind(&self) -> Kind {
        Kind::ALL[usize::from(self.kind.load(Ordering::Relaxed))]
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.shared.state.store(GONE, Ordering::Release);
    }
}

fn average(mean: &mut Duration, new: Duration) {
    *mean = (*mean * (WEIGHT - 1) + new) / WEIGHT;
}

fn taken<Key, Known>(rate: Option<&mut Rate<Key>>, key: &Known) -> Result<(), Refused>
where
    Key: Eq + Hash + Borrow<Known>,
    Known: ?Sized + Eq + Hash + ToOwned<Owned = Key>,
{
    let left = rate.is_none_or(|rate| rate.take(key, Instant::now()));
    if left { Ok(()) } else { Err(Refused::RateLimited) }
}

/// The network that a client is in: what one owner of addresses has.
pub(crate) fn network(client: IpAddr, prefix: SourcePrefix) -> IpAddr {
    match client {
        IpAddr::V4(v4) => {
            let rest = 32_u32.saturating_sub(prefix.ipv4.into());
            Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(rest).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            let rest = 128_u32.saturating_sub(prefix.ipv6.into());
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(rest).unwrap_or(0)).into()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::thread;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn gate(patience_ms: u64) -> Arc<Gate> {
        let source_prefix = SourcePrefix { ipv4: 24, ipv6: 48 };
        let (queue, source_rate, server_name_rate) = (None, None, None);
        let config = HandshakesConfig { patience_ms, queue, source_prefix, source_rate, server_name_rate };
        let waiting = IntGauge::new("waiting", "Handshakes.").unwrap();
        Arc::new(Gate::new(&config, 1, waiting))
    }

    fn waiting() -> Waiting {
        Waiting { handshake: Arc::default(), waker: Waker::noop().clone(), since: Instant::now(), sheddable: true }
    }

    /// Computes for `took` in one turn.
    async fn handshake(gate: Arc<Gate>, client: IpAddr, took: Duration) -> Result<(), Refused> {
        let pass = gate.pass();
        pass.run(async {
            pass.comes_from(client)?;
            pass.turn(Kind::Full).await?;
            thread::sleep(took);
            Ok(())
        })
        .await
    }

    /// While handshakes wait, whatever else is ready has its turn between those of two.
    #[tokio::test]
    async fn other_work_comes_between_handshakes() {
        let (gate, order) = (gate(5000), Arc::new(Mutex::new(String::new())));
        // As if it had learnt what these take; until then a thread that was away for long lets in many.
        gate.state.lock().costs = [LONGEST_TURN; Kind::ALL.len()];
        let handshakes: Vec<_> = (0..10)
            .map(|_| {
                let (gate, order) = (gate.clone(), order.clone());
                tokio::spawn(async move {
                    handshake(gate, CLIENT, LONGEST_TURN).await.unwrap();
                    order.lock().push('h');
                })
            })
            .collect();
        let other = tokio::spawn({
            let order = order.clone();
            async move {
                for _ in 0..20 {
                    order.lock().push('o');
                    yield_now().await;
                }
            }
        });
        for handshake in handshakes {
            handshake.await.unwrap();
        }
        other.await.unwrap();
        let order = order.lock();
        assert!(!order.contains("hhhhh"), "{order}");
    }

    #[tokio::test]
    async fn who_would_wait_for_too_long_is_shed_and_others_are_not() {
        let gate = gate(10);
        let flood: Vec<_> = (0..200).map(|_| tokio::spawn(handshake(gate.clone(), CLIENT, TURN))).collect();
        yield_now().await;
        let honest = tokio::spawn(handshake(gate.clone(), Ipv4Addr::new(192, 0, 2, 1).into(), TURN));
        let mut shed = 0;
        for handshake in flood {
            shed += usize::from(handshake.await.unwrap().is_err());
        }
        assert!((1..200).contains(&shed), "{shed}");
        assert!(honest.await.unwrap().is_ok());
    }

    /// In the storm that the gate is for, most are refused: they are no measure of what a signature takes.
    #[tokio::test]
    async fn who_is_refused_is_no_measure() {
        let gate = gate(0);
        gate.state.lock().waiting.push(CLIENT, Kind::Full, waiting());
        let before = gate.state.lock().costs[Kind::Full as usize];
        for _ in 0..50 {
            assert_eq!(handshake(gate.clone(), CLIENT, TURN).await, Err(Refused::Shed));
        }
        assert_eq!(gate.state.lock().costs[Kind::Full as usize], before);
    }

    #[tokio::test]
    async fn who_is_asked_for_another_hello_is_answered_twice() {
        let gate = gate(5000);
        let pass = gate.pass();
        let kinds = pass.run(async {
            pass.turn(Kind::Full).await.unwrap();
            pass.retries();
            yield_now().await;
            let second = pass.kind();
            yield_now().await;
            (second, pass.kind())
        });
        assert_eq!(kinds.await, (Kind::Full, Kind::Finish));
    }

    #[tokio::test]
    async fn patience_is_for_the_whole_handshake() {
        let gate = gate(1000);
        let mut state = gate.state.lock();
        state.interval = Duration::from_millis(400);
        (0..2).for_each(|_| state.waiting.push(CLIENT, Kind::Full, waiting()));
        assert!(state.admits(CLIENT, Kind::Full, Duration::ZERO));
        assert!(!state.admits(CLIENT, Kind::Full, Duration::from_millis(300)));
    }

    #[tokio::test]
    async fn one_that_gives_up_leaves_nothing_behind() {
        let gate = gate(5000);
        let waiting: Vec<_> = (0..10).map(|_| tokio::spawn(handshake(gate.clone(), CLIENT, 2 * TURN))).collect();
        yield_now().await;
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::time::timeout(Duration::from_secs(5), handshake(gate.clone(), CLIENT, TURN)).await.unwrap().unwrap();
        while gate.state.lock().pumping {
            yield_now().await;
        }
        assert!(gate.state.lock().waiting.is_empty());
    }

    #[test]
    fn a_network_is_what_one_owner_has() {
        let prefix = SourcePrefix { ipv4: 24, ipv6: 48 };
        for (client, source) in [("192.0.2.77", "192.0.2.0"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1::")] {
            assert_eq!(network(client.parse().unwrap(), prefix), source.parse::<IpAddr>().unwrap());
        }
        let whole = SourcePrefix { ipv4: 32, ipv6: 128 };
        let none = SourcePrefix { ipv4: 0, ipv6: 0 };
        let client = "2001:db8::1".parse().unwrap();
        assert_eq!((network(client, whole), network(client, none)), (client, Ipv6Addr::UNSPECIFIED.into()));
    }
}
