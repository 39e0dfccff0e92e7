//! When a request is sent once more, and where: at another endpoint, as often as the upstream's [`super::budget`] allows,
//! and only where its work cannot be done twice by that.

use std::time::Duration;

use mitu_telemetry::http::{Reason, Retry};
use tokio::time::Instant;

use super::balancer::{Cursor, scramble};
use super::chance::random;
use super::endpoint::Active;
use super::endpoints::Endpoints;
use super::{Upstream, UpstreamError};
use crate::config::RetriesConfig;

/// Sent again, at most, because a pooled connection turned out to be closed.
const MAX_STALE: usize = 2;

/// The longest wait before the first retry; before the next, twice as long.
const BACKOFF: Duration = Duration::from_millis(25);
const MAX_DOUBLINGS: u32 = 4;

/// A request that was not answered.
#[derive(Debug)]
pub struct Failed {
    pub error: UpstreamError,
    pub again: Again,
}

/// Whether it can be sent once more without doing its work twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Never,
    /// It was not sent at all, as the endpoint turned out to have no room.
    Elsewhere,
    Retry(Retry),
}

impl Failed {
    /// It stays like that.
    pub fn for_good(error: UpstreamError) -> Self {
        Self { error, again: Again::Never }
    }

    pub fn overflow() -> Self {
        Self { error: UpstreamError::new(Reason::Overflow), again: Again::Elsewhere }
    }

    /// `safe`: it may be sent once more.
    pub fn because(error: UpstreamError, retry: Retry, safe: bool) -> Self {
        Self { error, again: if safe { Again::Retry(retry) } else { Again::Never } }
    }
}

/// Which failures are followed by a retry.
fn is_wanted(config: &RetriesConfig, retry: Retry) -> bool {
    match retry {
        Retry::Connect => config.connect,
        Retry::Reset => config.reset,
        Retry::RefusedStream => config.refused_stream,
        // Whoever sets a time for a try, or a status, wants them.
        Retry::Status | Retry::Timeout | Retry::Stale | Retry::Hedge => true,
    }
}

/// How long to wait before retry number `retry`, from 0.
fn backoff(retry: u32) -> Duration {
    (BACKOFF * (1 << retry.min(MAX_DOUBLINGS))).mul_f64(random())
}

/// The way of one request or relay from endpoint to endpoint.
#[derive(Debug)]
pub struct Journey<'a> {
    upstream: &'a Upstream,
    pub endpoints: &'a Endpoints,
    /// In the balancer's order.
    place: usize,
    hash: u64,
    /// It may wait for a connection.
    patient: bool,
    tried: Vec<usize>,
    stale: usize,
    retries: u32,
}

/// Where it goes next.
#[derive(Debug)]
pub struct Next {
    pub index: usize,
    pub active: Active,
    /// None: at once.
    pub not_before: Option<Instant>,
}

impl<'a> Journey<'a> {
    pub fn new(
        upstream: &'a Upstream,
        endpoints: &'a Endpoints,
        cursor: &'a Cursor,
        hash: u64,
        patient: bool,
    ) -> Self {
        let (tried, stale, retries) = Default::default();
        Self { upstream, endpoints, place: cursor.next(), hash, patient, tried, stale, retries }
    }

    /// Whether what is kept of connections is not to be trusted.
    pub fn needs_fresh(&self) -> bool {
        self.stale > 0
    }

    /// An endpoint that has not been tried, and a place at it.
    pub fn enter(&mut self) -> Result<(usize, Active), UpstreamError> {
        loop {
            let index = self.choose(&self.tried)?;
            match Active::begin(&self.endpoints.member(index).endpoint) {
                Some(active) => return Ok((index, active)),
                None => self.tried.push(index),
            }
        }
    }

    /// Where to go after `again` at the endpoint `index`, if anywhere.
    pub fn next(&mut self, index: usize, again: Again, deadline: Option<Instant>) -> Option<Next> {
        let endpoint = &self.endpoints.member(index).endpoint;
        let at_once = |(index, active)| Next { index, active, not_before: None };
        match again {
            Again::Never => None,
            Again::Elsewhere => {
                self.tried.push(index);
                self.enter().ok().map(at_once)
            }
            // That is no retry in the upstream's eyes.
            Again::Retry(Retry::Stale) => {
                if self.stale == MAX_STALE {
                    endpoint.response_failed(Reason::ResetBeforeResponse);
                    return None;
                }
                self.stale += 1;
                endpoint.metrics.retried(Retry::Stale);
                Active::begin(endpoint).map(|active| at_once((index, active)))
            }
            Again::Retry(retry) => self.retry(index, retry, deadline),
        }
    }

    fn retry(&mut self, index: usize, retry: Retry, deadline: Option<Instant>) -> Option<Next> {
        let config = &self.upstream.config.retries;
        self.tried.push(index);
        if self.retries == config.attempts || !is_wanted(config, retry) {
            return None;
        }
        if retry == Retry::Connect && !self.has_others() {
            return None;
        }
        // Elsewhere a connection may be made at once; whatever else went wrong may be too much load.
        let wait = if retry == Retry::Connect { Duration::ZERO } else { backoff(self.retries) };
        let not_before = Instant::now() + wait;
        // Before an endpoint is chosen: one that waits for somebody to try it is not to wait in vain.
        if deadline.is_some_and(|deadline| not_before >= deadline) || !self.pay() {
            return None;
        }
        let other = self.choose(&self.tried);
        // Who has just not let in one connection will not let in another.
        let next = if retry == Retry::Connect { other } else { other.or_else(|_| self.choose(&[])) }.ok()?;
        self.endpoints.member(index).endpoint.metrics.retried(retry);
        self.retries += 1;
        let active = Active::begin(&self.endpoints.member(next).endpoint)?;
        Some(Next { index: next, active, not_before: (!wait.is_zero()).then_some(not_before) })
    }

    /// A place at a second endpoint for what a first one, `index`, has not answered yet.
    pub fn hedge(&mut self, index: usize) -> Option<(usize, Active)> {
        self.tried.push(index);
        if !self.has_others() || !self.pay() {
            return None;
        }
        let other = self.endpoints.choose(self.place(), self.hash, &self.tried, false).ok()?;
        let active = Active::begin(&self.endpoints.member(other).endpoint)?;
        self.endpoints.member(index).endpoint.metrics.retried(Retry::Hedge);
        self.tried.push(other);
        Some((other, active))
    }

    /// Whether there are endpoints that it has not been to.
    fn has_others(&self) -> bool {
        (0..self.endpoints.members().len()).any(|index| !self.tried.contains(&index))
    }

    fn choose(&self, tried: &[usize]) -> Result<usize, UpstreamError> {
        self.endpoints.choose(self.place(), self.hash, tried, self.patient)
    }

    /// Its own at first; then any, as the turns that come are those of other requests.
    fn place(&self) -> usize {
        if self.tried.is_empty() { self.place } else { scramble((self.place + self.tried.len()) as u64) as usize }
    }

    fn pay(&self) -> bool {
        let requests = self.upstream.cursors.iter().map(Cursor::passed).sum();
        let paid = self.upstream.budget.withdraw(requests);
        if !paid {
            self.upstream.families.retry_refused(&self.upstream.name);
        }
        paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_drawn() {
        for retry in 0..10 {
            let most = BACKOFF * (1 << retry.min(MAX_DOUBLINGS));
            let waits: Vec<_> = (0..100).map(|_| backoff(retry)).collect();
            assert!(waits.iter().all(|&wait| wait < most));
            assert!(waits.iter().any(|&wait| wait > most / 2) && waits.iter().any(|&wait| wait < most / 2));
        }
    }
}
