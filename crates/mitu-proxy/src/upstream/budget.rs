//! How often an upstream's requests may be sent once more.
//!
//! Retries help against an endpoint that fails and harm an upstream that does. So they are paid for: each request puts a
//! part of a retry into the upstream's budget, which is forgotten after a while, and so does time, for upstreams that
//! have few requests. (Finagle's retry budget.)

use parking_lot::Mutex;

use super::chance::clock;
use crate::config::RetriesConfig;

/// Milliseconds for which what was not spent is kept.
const KEPT: u64 = 10_000;

/// What an upstream has for retries.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    per_millisecond: f64,
    balance: Mutex<Balance>,
}

#[derive(Debug)]
struct Balance {
    retries: f64,
    /// Requests up to when it was last looked at.
    requests: u64,
    /// When, on [`clock`].
    at: u64,
}

impl Budget {
    pub fn new(config: &RetriesConfig) -> Self {
        let per_millisecond = f64::from(config.min_per_second) / 1000.0;
        let retries = per_millisecond * KEPT as f64;
        Self {
            share: config.budget,
            per_millisecond,
            balance: Mutex::new(Balance { retries, requests: 0, at: clock() }),
        }
    }

    /// Pays for a retry, if there is enough. `requests`: all that there have been.
    pub fn withdraw(&self, requests: u64) -> bool {
        self.withdraw_at(clock(), requests)
    }

    fn withdraw_at(&self, now: u64, requests: u64) -> bool {
        let mut balance = self.balance.lock();
        let passed = now.saturating_sub(balance.at);
        let new = requests.saturating_sub(balance.requests) as f64 * self.share;
        // Requests are taken to have come evenly; what came before the time that is kept is forgotten, as is what was
        // there, by and by.
        let kept = KEPT as f64 / passed.max(KEPT) as f64;
        let left = 1.0 - passed.min(KEPT) as f64 / KEPT as f64;
        balance.retries = balance.retries * left + new * kept + self.per_millisecond * passed.min(KEPT) as f64;
        balance.requests = balance.requests.max(requests);
        balance.at = balance.at.max(now);
        let enough = balance.retries >= 1.0;
        if enough {
            balance.retries -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(share: f64, min_per_second: u32) -> (Budget, u64) {
        let config = RetriesConfig {
            attempts: 2,
            budget: share,
            min_per_second,
            connect: true,
            reset: true,
            refused_stream: true,
            statuses: Vec::new(),
        };
        let budget = Budget::new(&config);
        let at = budget.balance.lock().at;
        (budget, at)
    }

    /// Retries within `seconds`, when each of `rate` requests a second wants one.
    fn granted(budget: &Budget, from: u64, requests: &mut u64, rate: u64, seconds: u64) -> u64 {
        let mut granted = 0;
        for number in 0..rate * seconds {
            *requests += 1;
            granted += u64::from(budget.withdraw_at(from + number * 1000 / rate, *requests));
        }
        granted
    }

    #[test]
    fn a_dead_upstream_gets_a_share_more_and_no_storm() {
        let (budget, start) = budget(0.2, 10);
        let mut requests = 0;
        // What there is at first is soon gone.
        let first = granted(&budget, start, &mut requests, 1000, 1);
        assert!((250..=310).contains(&first), "{first}");
        let later = granted(&budget, start + 1000, &mut requests, 1000, 20);
        let expected = 20 * (1000 / 5 + 10);
        assert!(later.abs_diff(expected) < expected / 20, "{later} of {expected}");
    }

    #[test]
    fn few_requests_may_all_be_sent_again() {
        let (budget, start) = budget(0.2, 10);
        let mut requests = 0;
        assert_eq!(granted(&budget, start, &mut requests, 5, 60), 300);
    }

    #[test]
    fn what_is_not_used_is_not_saved_up() {
        let (budget, start) = budget(0.2, 0);
        // A million requests long ago, and ten thousand in the last ten seconds.
        assert!(budget.withdraw_at(start + 100_000, 1_000_000));
        assert!(budget.withdraw_at(start + 200_000, 1_010_000));
        let left = (0..10_000).filter(|_| budget.withdraw_at(start + 200_000, 1_010_000)).count();
        assert!(left < 210, "{left}");
    }

    #[test]
    fn nothing_is_nothing() {
        let (budget, start) = budget(0.0, 0);
        assert_eq!(granted(&budget, start, &mut 0, 100, 100), 0);
    }
}
