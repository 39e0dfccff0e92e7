//! Outlier detection: an endpoint whose requests keep failing is left alone for a while.
//!
//! Nothing is asked of it for that; what its requests and relays come to is all that is looked at. A failure is one that
//! clients see, or would have seen: no connection, no response in time, one that is cut short, a status that says so.
//! When the time is over, one request at a time tries the endpoint, until one has gone well: the others have no part in
//! finding out.
//!
//! A success that follows a success costs one addition and two loads.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use mitu_telemetry::http::{Reason, UpstreamMetrics};
use parking_lot::Mutex;

use super::chance::{clock, random};
use super::endpoint::Endpoint;
use crate::config::OutlierConfig;

/// Milliseconds for which an endpoint that could not be connected to is left alone while there are others.
const REST: u64 = 2_000;

/// How much longer or shorter an ejection may be than its time: endpoints that fail together are not to come back
/// together.
const JITTER: f64 = 0.1;

/// Failures that are remembered.
const REMEMBERED: usize = 5;

/// What an upstream's endpoints have in common: they may not all be left alone.
#[derive(Debug)]
pub struct Outliers {
    settings: Option<OutlierConfig>,
    /// Those of the current set. Taken to eject one of them, and to change the set.
    endpoints: Mutex<Vec<Weak<Endpoint>>>,
}

impl Outliers {
    pub fn new(settings: Option<&OutlierConfig>) -> Arc<Self> {
        Arc::new(Self { settings: settings.cloned(), endpoints: Mutex::default() })
    }

    /// These are the upstream's endpoints from here on.
    pub fn watch<'a>(&self, endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) {
        *self.endpoints.lock() = endpoints.map(Arc::downgrade).collect();
    }

    pub fn is_failure(&self, status: u16) -> bool {
        self.settings.as_ref().is_some_and(|settings| settings.statuses.contains(&status))
    }
}

/// Why a request or relay failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Reason(Reason),
    Status(u16),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reason(reason) => formatter.write_str(reason.as_str()),
            Self::Status(status) => write!(formatter, "{status}"),
        }
    }
}

/// How one endpoint has been doing.
#[derive(Debug)]
pub struct Standing {
    outliers: Arc<Outliers>,
    /// Until when it is left alone, on [`clock`]; 0: it is not. Past that time, whoever puts this off may try it.
    away_until: AtomicU64,
    /// Until when it is ejected; 0: it is not. Past that time it is still out until a request has gone well.
    ejected_until: AtomicU64,
    failures_in_a_row: AtomicU32,
    successes: AtomicU64,
    failures: AtomicU64,
    ejections: AtomicU64,
    /// It is in the set, and has a share.
    counted: AtomicBool,
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    /// The last failures, oldest first.
    causes: Vec<Cause>,
    /// By how many ejections the next one will be longer than the first.
    severity: u32,
    /// When the last one was over.
    returned: u64,
}

/// What evidence is made of.
#[derive(Debug)]
pub struct Record {
    pub successes: u64,
    pub failures: u64,
    pub ejections: u64,
    /// Milliseconds; none once it waits for the request that will show whether it is well again.
    pub ejected_for: Option<NonZeroU64>,
    /// Oldest first.
    pub causes: Vec<Cause>,
}

impl Standing {
    pub fn new(outliers: &Arc<Outliers>) -> Self {
        Self {
            outliers: outliers.clone(),
            away_until: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            counted: AtomicBool::new(true),
            past: Mutex::default(),
        }
    }

    /// Whether it may be tried; if so, [`Self::claim`] says by whom.
    pub fn is_here(&self) -> bool {
        let until = self.away_until.load(Ordering::Relaxed);
        until == 0 || clock() >= until
    }

    /// Of those who find that its time is over, one may try it. The others leave it alone for another while, as does the
    /// next one if nothing comes of that.
    pub fn claim(&self) -> bool {
        let until = self.away_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = clock();
        let put_off = || self.away_until.compare_exchange(until, now + REST, Ordering::Relaxed, Ordering::Relaxed);
        now >= until && put_off().is_ok()
    }

    pub fn is_failure(&self, status: u16) -> bool {
        self.outliers.is_failure(status)
    }

    /// Requests and relays that went well so far.
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// Counts it among those of which not all may be left alone.
    pub fn count(&self, counted: bool) {
        self.counted.store(counted, Ordering::Relaxed);
    }

    /// A request or relay went well. True: that brings it back from an ejection.
    pub fn succeeded(&self, metrics: &UpstreamMetrics) -> bool {
        self.successes.fetch_add(1, Ordering::Relaxed);
        let clean = self.failures_in_a_row.load(Ordering::Relaxed) == 0;
        if clean && self.away_until.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.recover(metrics)
    }

    /// A connection was made, which says nothing of requests.
    pub fn connected(&self) {
        if self.away_until.load(Ordering::Relaxed) != 0 && self.ejected_until.load(Ordering::Relaxed) == 0 {
            self.away_until.store(0, Ordering::Relaxed);
        }
    }

    #[cold]
    fn recover(&self, metrics: &UpstreamMetrics) -> bool {
        let mut past = self.past.lock();
        let until = self.ejected_until.load(Ordering::Relaxed);
        let now = clock();
        if now < until {
            // It was under way when its endpoint was ejected.
            return false;
        }
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.ejected_until.store(0, Ordering::Relaxed);
        self.away_until.store(0, Ordering::Relaxed);
        if until != 0 {
            past.returned = now;
            metrics.ejected.set(0);
        }
        until != 0
    }

    /// No connection could be made: whoever has others takes these.
    pub fn rest(&self) {
        self.away_until.fetch_max(clock() + REST, Ordering::Relaxed);
    }

    /// A request or relay failed.
    #[cold]
    pub fn failed(&self, cause: Cause, metrics: &UpstreamMetrics) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let in_a_row = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        {
            let causes = &mut self.past.lock().causes;
            if causes.len() == REMEMBERED {
                causes.remove(0);
            }
            causes.push(cause);
        }
        let Some(settings) = &self.outliers.settings else { return };
        let until = self.ejected_until.load(Ordering::Relaxed);
        let again = until != 0 && clock() >= until;
        // Where too many are ejected already it is not looked into for each further failure.
        if again || (until == 0 && in_a_row.is_multiple_of(settings.consecutive_failures.get())) {
            self.eject(settings, metrics);
        }
    }

    fn eject(&self, settings: &OutlierConfig, metrics: &UpstreamMetrics) {
        let endpoints = self.outliers.endpoints.lock();
        let mut past = self.past.lock();
        let (now, until) = (clock(), self.ejected_until.load(Ordering::Relaxed));
        let fresh = until == 0;
        if now < until || (fresh && !may_eject(&endpoints, settings.max_ejected, now)) {
            return;
        }
        if fresh {
            // Every while that it has been well takes one ejection off.
            let forgiven = (now - past.returned) / settings.ejection_ms.max(1);
            past.severity = past.severity.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        }
        // What makes it no longer would take as much longer to be forgiven.
        let most = settings.max_ejection_ms.div_ceil(settings.ejection_ms.max(1));
        past.severity = past.severity.saturating_add(1).min(u32::try_from(most).unwrap_or(u32::MAX));
        let time = settings.ejection_ms.saturating_mul(u64::from(past.severity)).min(settings.max_ejection_ms);
        let spread = 1.0 + JITTER * (2.0 * random() - 1.0);
        let until = now + (time as f64 * spread) as u64;
        self.ejected_until.store(until, Ordering::Relaxed);
        self.away_until.store(until, Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        metrics.ejections.inc();
        metrics.ejected.set(1);
    }

    pub fn record(&self) -> Record {
        let until = self.ejected_until.load(Ordering::Relaxed);
        Record {
            successes: self.successes(),
            failures: self.failures.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
            ejected_for: NonZeroU64::new(until.saturating_sub(clock())),
            causes: self.past.lock().causes.clone(),
        }
    }
}

/// Whether one more of them may be ejected: one where there are two, and never the last.
fn may_eject(endpoints: &[Weak<Endpoint>], share: f64, now: u64) -> bool {
    let (mut all, mut out) = (0_usize, 0_usize);
    for endpoint in endpoints.iter().filter_map(Weak::upgrade) {
        let until = endpoint.standing.ejected_until.load(Ordering::Relaxed);
        // Who sees that one is ejected may take its share away.
        if endpoint.standing.counted.load(Ordering::Relaxed) || now < until {
            all += 1;
            out += usize::from(until != 0);
        }
    }
    let most = ((all as f64 * share) as usize).max(1).min(all.saturating_sub(1));
    out < most
}
