//! How connections are asked to finish: when their listener drains, and when it is overloaded ([`crate::overload`]).
//!
//! An idle keep-alive connection must not be closed at once: a request may be on the wire already. So draining has two
//! phases. In the first, responses say `Connection: close` (h2: GOAWAY) and idle connections are left alone for
//! [`LINGER`]; in the second, those still idle are closed, and so are those that have not begun a handshake.
//!
//! Relays are told apart from these: each leaves at a moment of its own ([`crate::relays`]).
//!
//! An overloaded listener has no time for that. It lets idle connections go as it finds them, but not all at once: the
//! clients of a fleet are not to come back together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::overload::Step;
use crate::relays::Notice;

/// How long an idle h1 connection may still bring a request, and a silent one a handshake, after draining has begun.
pub const LINGER: Duration = Duration::from_secs(1);

/// In how many parts idle connections are let go under overload: one each time that it is looked at.
const PARTS: u8 = 8;

/// Beside the step of the overload in one byte.
const DRAINING: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// So many parts of the idle connections are to go.
    Releasing(u8),
    Draining,
    Lingered,
}

impl Phase {
    /// Whether the connection with this number, which is idle, goes.
    fn releases(self, number: u64) -> bool {
        matches!(self, Self::Releasing(parts) if number % u64::from(PARTS) < u64::from(parts))
    }
}

/// The sending side: one for each listener.
#[derive(Debug)]
pub struct DrainSignal {
    phase: watch::Sender<Phase>,
    shared: Arc<Shared>,
}

/// What its connections ask for each accept, request, response and piece of a relay, for which the channel would take its
/// lock.
#[derive(Debug, Default)]
struct Shared {
    /// [`DRAINING`], and the step of the overload.
    state: AtomicU8,
    relays: Notice,
}

impl DrainSignal {
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), shared: Arc::default() }
    }

    pub fn subscribe(&self) -> Drain {
        Drain { phase: self.phase.subscribe(), shared: self.shared.clone() }
    }

    /// Begins the first phase; it must be followed by [`Self::end_linger`] after [`LINGER`].
    pub fn begin(&self) {
        self.shared.state.fetch_or(DRAINING, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let serving = *phase < Phase::Draining;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    /// The step of the overload, as it is found each time that it is looked at.
    pub fn overload(&self, step: Step) {
        let set = |state| Some(state & DRAINING | step as u8);
        let _ = self.shared.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
        self.phase.send_if_modified(|phase| {
            let next = match (*phase, step) {
                (Phase::Serving | Phase::Releasing(_), Step::Normal) => Phase::Serving,
                (Phase::Serving, _) => Phase::Releasing(1),
                (Phase::Releasing(parts), _) => Phase::Releasing(PARTS.min(parts + 1)),
                (Phase::Draining | Phase::Lingered, _) => *phase,
            };
            std::mem::replace(phase, next) != next
        });
    }

    /// How far its overload has come.
    pub fn step(&self) -> Step {
        Step::of(self.shared.state.load(Ordering::Relaxed) & !DRAINING)
    }

    /// What relays are told; who gives it wakes them.
    pub fn relays(&self) -> &Notice {
        &self.shared.relays
    }

    pub fn end_linger(&self) {
        self.phase.send_replace(Phase::Lingered);
    }
}

impl Default for DrainSignal {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection's view of the drain of its listener.
#[derive(Debug, Clone)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    shared: Arc<Shared>,
}

impl Drain {
    /// Whether responses should announce the connection's end.
    pub fn draining(&self) -> bool {
        self.shared.state.load(Ordering::Relaxed) & DRAINING != 0
    }

    /// How far the overload of its listener has come.
    pub fn step(&self) -> Step {
        Step::of(self.shared.state.load(Ordering::Relaxed) & !DRAINING)
    }

    /// What relays are told.
    pub fn relays(&self) -> &Notice {
        &self.shared.relays
    }

    /// Resolves when draining begins.
    pub async fn started(&mut self) {
        self.reached(|phase| phase >= Phase::Draining).await;
    }

    /// Resolves when idle connections are to be closed.
    pub async fn lingered(&mut self) {
        self.reached(|phase| phase >= Phase::Lingered).await;
    }

    /// Resolves when draining begins, or the connection is to go because of overload. `idle`: its number, if it is idle.
    pub async fn started_or_released(&mut self, idle: impl Fn() -> Option<u64>) {
        self.reached(|phase| phase >= Phase::Draining || idle().is_some_and(|number| phase.releases(number))).await;
    }

    /// The same, but with [`Self::lingered`].
    pub async fn lingered_or_released(&mut self, idle: impl Fn() -> Option<u64>) {
        self.reached(|phase| phase >= Phase::Lingered || idle().is_some_and(|number| phase.releases(number))).await;
    }

    async fn reached(&mut self, wanted: impl Fn(Phase) -> bool) {
        // A signal dropped without draining belongs to a listener that nobody will drain.
        if self.phase.wait_for(|phase| wanted(*phase)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_follow_each_other() {
        let signal = DrainSignal::new();
        let mut drain = signal.subscribe();
        assert!(!drain.draining());
        signal.begin();
        assert!(drain.draining());
        drain.started().await;
        assert!(tokio::time::timeout(Duration::from_millis(10), drain.lingered()).await.is_err());
        signal.end_linger();
        drain.lingered().await;
    }

    #[tokio::test]
    async fn beginning_again_does_not_take_lingering_back() {
        let signal = DrainSignal::new();
        signal.begin();
        signal.end_linger();
        signal.begin();
        signal.subscribe().lingered().await;
    }

    #[tokio::test]
    async fn an_overload_lets_idle_connections_go_part_by_part() {
        let signal = DrainSignal::new();
        let gone = || async {
            let mut gone = 0;
            for number in 0..u64::from(2 * PARTS) {
                let mut drain = signal.subscribe();
                let released = drain.started_or_released(|| (number % 2 == 0).then_some(number));
                gone += u64::from(tokio::time::timeout(Duration::from_millis(1), released).await.is_ok());
            }
            gone
        };
        assert_eq!(gone().await, 0);
        signal.overload(Step::StopAcceptingRequests);
        assert_eq!((signal.step(), gone().await), (Step::StopAcceptingRequests, 2));
        for _ in 0..2 * PARTS {
            signal.overload(Step::DisableKeepalive);
        }
        assert_eq!((signal.subscribe().step(), gone().await), (Step::DisableKeepalive, 8));
        signal.overload(Step::Normal);
        assert_eq!((signal.step(), gone().await), (Step::Normal, 0));
    }

    #[tokio::test]
    async fn an_overload_does_not_hold_up_a_drain() {
        let signal = DrainSignal::new();
        signal.overload(Step::RejectConnections);
        signal.begin();
        signal.overload(Step::Normal);
        let mut drain = signal.subscribe();
        assert!(drain.draining());
        assert_eq!(drain.step(), Step::Normal);
        drain.started().await;
        signal.end_linger();
        signal.overload(Step::DisableKeepalive);
        drain.lingered().await;
    }
}
