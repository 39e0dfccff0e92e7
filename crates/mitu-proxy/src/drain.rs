//! Draining: how connections are asked to finish, and in which order.
//!
//! An idle keep-alive connection must not be closed at once: a request may be on the wire already. So draining has two
//! phases. In the first, responses say `Connection: close` (h2: GOAWAY) and idle connections are left alone for
//! [`LINGER`]; in the second, those still idle are closed, and so are those that have not begun a handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// How long an idle h1 connection may still bring a request, and a silent one a handshake, after draining has begun.
pub const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Lingered,
}

/// The sending side: one for each listener.
#[derive(Debug)]
pub struct DrainSignal {
    phase: watch::Sender<Phase>,
    begun: Arc<AtomicBool>,
}

impl DrainSignal {
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), begun: Arc::default() }
    }

    pub fn subscribe(&self) -> Drain {
        Drain { phase: self.phase.subscribe(), begun: self.begun.clone() }
    }

    /// Begins the first phase; it must be followed by [`Self::end_linger`] after [`LINGER`].
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
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
    /// Asked for each accept and each response, for which the channel would take its lock.
    begun: Arc<AtomicBool>,
}

impl Drain {
    /// Whether responses should announce the connection's end.
    pub fn draining(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Resolves when draining begins.
    pub async fn started(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when idle connections are to be closed.
    pub async fn lingered(&mut self) {
        self.reached(Phase::Lingered).await;
    }

    async fn reached(&mut self, wanted: Phase) {
        // A signal dropped without draining belongs to a listener that nobody will drain.
        if self.phase.wait_for(|phase| *phase >= wanted).await.is_err() {
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
}
