//! What a run is to do, as Python says it in JSON. Every run is bounded in time and in number.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::LoadError;
use crate::protocol::Protocol;
use crate::tls::Offer;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub address: SocketAddr,
    /// As requests and SNI name it.
    pub host: String,
    pub path: String,
    /// None: plain TCP.
    pub tls: Option<Tls>,
    /// What is spoken where ALPN does not say.
    pub protocol: Protocol,
    pub work: Work,
    /// Nothing begins later.
    pub seconds: f64,
    /// Connections, requests or devices, at most.
    pub count: u64,
    /// Seconds from when something was due until it counts as failed.
    pub timeout: f64,
    /// Milliseconds, emulated.
    pub round_trip_ms: f64,
    pub sources: Option<IpNet>,
    pub threads: usize,
    /// Connections under way at once, over all threads; what is due beyond it fails as `not_begun`.
    pub in_flight: usize,
    pub seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub offer: Offer,
    /// ALPN lists, each with its share of the connections.
    pub alpn: Vec<AlpnList>,
    /// Share of the connections that resume a session, from 0 to 1.
    pub resumed: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlpnList {
    /// Empty: no ALPN extension.
    pub names: Vec<String>,
    pub weight: u32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Work {
    /// Connections, each closed when it is done; with or without a request on it.
    Handshakes { pace: Pace, request: bool },
    /// Requests on connections that stay open.
    Requests { connections: usize, pace: Pace },
    /// Devices that all connect within some seconds, and try again until they are in.
    Storm(Storm),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pace {
    /// The next begins when the last is done, on so many connections.
    Closed { connections: usize },
    /// Each begins when it is due: so many a second, from the first figure to the last over the time of the run.
    Open { from: f64, to: f64, arrivals: Arrivals },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Evenly spaced.
    Fixed,
    /// As from many clients that know nothing of each other.
    Poisson,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    pub devices: u64,
    /// Seconds; 0: all at once.
    pub within: f64,
    /// Devices keep their connection until the storm is over.
    pub hold: bool,
    pub retry: Retry,
}

/// After a failure a device waits anything up to `base` × 2ⁿ seconds, `cap` at most, before its next attempt.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    pub base: f64,
    pub cap: f64,
    /// Attempts in all; then the device gives up.
    pub attempts: u32,
}

impl Plan {
    /// LoadError when it is no plan, or one that cannot be carried out.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let plan: Self = serde_json::from_str(text).map_err(|error| LoadError::Usage(error.to_string()))?;
        plan.check().map_err(|what| LoadError::Usage(what.to_owned()))?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), &'static str> {
        let seconds = |value: f64, least: f64| value.is_finite() && (least..=86_400.0).contains(&value);
        let rate = |value: f64| value.is_finite() && (0.0..=10_000_000.0).contains(&value);
        let pace = |pace: &Pace| match *pace {
            Pace::Closed { connections } => connections > 0,
            Pace::Open { from, to, .. } => rate(from) && rate(to) && from + to > 0.0,
        };
        let work = match &self.work {
            Work::Handshakes { pace: given, .. } => pace(given),
            Work::Requests { connections, pace: given } => *connections > 0 && pace(given),
            Work::Storm(Storm { devices, within, retry, .. }) => {
                (1..=10_000_000).contains(devices)
                    && seconds(*within, 0.0)
                    && seconds(retry.base, 0.0)
                    && seconds(retry.cap, 0.0)
                    && retry.attempts > 0
            }
        };
        let open = match self.work {
            Work::Handshakes { pace: Pace::Closed { connections }, .. } | Work::Requests { connections, .. } => {
                connections
            }
            Work::Handshakes { .. } | Work::Storm(_) => 0,
        };
        let alpn = self.tls.as_ref().is_none_or(|tls| tls.alpn.iter().any(|list| list.weight > 0));
        let share = self.tls.as_ref().is_none_or(|tls| (0.0..=1.0).contains(&tls.resumed));
        match () {
            () if !seconds(self.seconds, f64::MIN_POSITIVE) => Err("the time must be above 0 and at most a day"),
            () if !seconds(self.timeout, f64::MIN_POSITIVE) => Err("the timeout must be above 0 and at most a day"),
            () if !(0.0..=60_000.0).contains(&self.round_trip_ms) => Err("a round trip takes 60 s at most"),
            () if self.count == 0 => Err("there is nothing to do"),
            () if !(1..=1024).contains(&self.threads) => Err("there are 1 to 1024 threads"),
            () if open > self.in_flight => Err("that many connections at once need more open files than there may be"),
            () if self.in_flight == 0 => Err("one connection must be allowed"),
            () if !alpn => Err("no ALPN list has a weight"),
            () if !share => Err("a share is from 0 to 1"),
            () if !work => Err("the work is without bounds or without anything to do"),
            () => Ok(()),
        }
    }
}
