//! Circuit breakers: how much one endpoint is asked for at once.
//!
//! A permit is the right to use a connection of the kind that serves one request at a time, not the connection. Those
//! that are kept have none, so whoever gets one takes a kept connection wherever it is, another worker's among them, and
//! opens one only when there is none. Connections are put back before their permits are, so that there are never more
//! open than there are permits, and nothing is kept by one worker while a request waits on another.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::{EndpointLimits, UpstreamConfig, UpstreamProtocol};

#[derive(Debug)]
pub struct Breaker {
    requests: u64,
    connections: Option<Connections>,
}

#[derive(Debug)]
struct Connections {
    permits: Semaphore,
    waiting: AtomicUsize,
    pending: usize,
}

/// The right to use a connection; none: there are as many as anybody wants.
pub type Permit<'a> = Option<SemaphorePermit<'a>>;

/// There is no permit, and no room to wait for one.
#[derive(Debug)]
pub struct Full;

impl Breaker {
    pub fn new(upstream: &UpstreamConfig) -> Self {
        // A connection that many share is no measure of what they ask for.
        let shared = upstream.protocol == UpstreamProtocol::Http2;
        Self::limited(upstream.limits, shared)
    }

    fn limited(limits: EndpointLimits, shared: bool) -> Self {
        let connections = limits.connections.filter(|_| !shared).map(|most| Connections {
            permits: Semaphore::new(most.get() as usize),
            waiting: AtomicUsize::new(0),
            pending: limits.pending,
        });
        Self { requests: limits.requests.map_or(u64::MAX, |most| u64::from(most.get())), connections }
    }

    /// Whether one more request may begin beside so many.
    pub fn admits(&self, active: u64) -> bool {
        active < self.requests
    }

    /// Whether a connection can be had without waiting.
    pub fn has_connection(&self) -> bool {
        self.connections.as_ref().is_none_or(|connections| connections.permits.available_permits() > 0)
    }

    /// Whether one can be waited for.
    pub fn has_patience(&self) -> bool {
        self.connections
            .as_ref()
            .is_none_or(|connections| connections.waiting.load(Ordering::Relaxed) < connections.pending)
    }

    pub fn limits_connections(&self) -> bool {
        self.connections.is_some()
    }

    /// The right to use a connection, if there is one left.
    pub fn try_connection(&self) -> Result<Permit<'_>, Full> {
        let Some(connections) = &self.connections else { return Ok(None) };
        connections.permits.try_acquire().map(Some).map_err(|_| Full)
    }

    /// The same, first come, first served, for as long as the caller waits.
    pub async fn connection(&self, pending: &IntGauge) -> Result<Permit<'_>, Full> {
        let Some(connections) = &self.connections else { return Ok(None) };
        let _waiting = Waiting::begin(connections, pending)?;
        connections.permits.acquire().await.map(Some).map_err(|_| Full)
    }

    /// Takes back a permit that was forgotten.
    pub fn give_back(&self) {
        if let Some(connections) = &self.connections {
            connections.permits.add_permits(1);
        }
    }
}

/// A request that waits for a connection.
struct Waiting<'a> {
    connections: &'a Connections,
    pending: &'a IntGauge,
}

impl<'a> Waiting<'a> {
    fn begin(connections: &'a Connections, pending: &'a IntGauge) -> Result<Self, Full> {
        if connections.waiting.fetch_add(1, Ordering::Relaxed) >= connections.pending {
            connections.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        pending.inc();
        Ok(Self { connections, pending })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.connections.waiting.fetch_sub(1, Ordering::Relaxed);
        self.pending.dec();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn gauge() -> IntGauge {
        IntGauge::new("pending", "in tests").unwrap()
    }

    fn breaker(connections: Option<u32>, pending: usize, requests: Option<u32>) -> Breaker {
        let [connections, requests] = [connections, requests].map(|most| most.and_then(NonZeroU32::new));
        Breaker::limited(EndpointLimits { connections, pending, requests }, false)
    }

    #[tokio::test]
    async fn without_limits_everything_is_admitted() {
        let breaker = breaker(None, 0, None);
        assert!(breaker.admits(u64::MAX - 1) && breaker.has_connection() && breaker.has_patience());
        for _ in 0..1000 {
            assert!(breaker.connection(&gauge()).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn those_that_wait_are_served_in_turn_and_further_ones_are_not() {
        let breaker = Arc::new(breaker(Some(1), 2, Some(3)));
        assert!(breaker.admits(2) && !breaker.admits(3));
        let pending = gauge();
        let first = breaker.connection(&pending).await.unwrap();
        assert!(!breaker.has_connection() && breaker.has_patience());
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let (breaker, pending) = (breaker.clone(), pending.clone());
                tokio::spawn(async move {
                    breaker.connection(&pending).await.unwrap().unwrap().forget();
                    breaker
                })
            })
            .collect();
        while pending.get() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!breaker.has_patience());
        assert!(breaker.connection(&pending).await.is_err());
        drop(first);
        for waiter in waiters {
            let waiter = timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap();
            assert!(!breaker.has_connection(), "the permit went to the one that waited");
            waiter.give_back();
        }
        assert_eq!(pending.get(), 0);
        assert!(breaker.has_connection());
    }

    #[tokio::test]
    async fn whoever_stops_waiting_leaves_nothing_behind() {
        let (breaker, pending) = (breaker(Some(1), 1, None), gauge());
        let first = breaker.connection(&pending).await.unwrap();
        assert!(timeout(Duration::from_millis(10), breaker.connection(&pending)).await.is_err());
        assert_eq!(pending.get(), 0);
        assert!(breaker.has_patience());
        drop(first);
        assert!(breaker.has_connection());
    }
}
