//! Which endpoint is chosen, by what has become of the ones before.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use mitu_telemetry::Telemetry;
use mitu_telemetry::http::Reason;
use serde_json::{Value, json};

use super::balancer::Cursor;
use super::endpoint::{Active, Endpoint};
use super::endpoints::Endpoints;
use super::outlier::Outliers;
use super::{Budget, UpstreamError};
use crate::config::{EndpointConfig, UpstreamConfig};

const SHORT: u64 = 500;

/// An upstream with these settings in place of the usual ones.
fn upstream(settings: Value) -> UpstreamConfig {
    let mut config = json!({
        "name": "app", "endpoints": [], "balancer": {"kind": "round_robin"}, "protocol": "http/1.1", "tls": null,
        "proxy_protocol": false, "connect_timeout_ms": 1000, "idle_timeout_ms": 60000, "max_idle": 64,
        "drain_ms": 30000,
        "outlier_detection": {"consecutive_failures": 3, "statuses": [503], "ejection_ms": SHORT,
                              "max_ejection_ms": 100_000, "max_ejected": 0.5},
        "slow_start_ms": null, "hedge_after_ms": null,
        "limits": {"connections": null, "pending": 100, "requests": null},
        "retries": {"attempts": 2, "budget": 0.2, "min_per_second": 10, "connect": true, "reset": true,
                    "refused_stream": true, "statuses": []},
    });
    for (name, value) in settings.as_object().unwrap() {
        config[name] = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

struct Set {
    config: UpstreamConfig,
    telemetry: Arc<Telemetry>,
    outliers: Arc<Outliers>,
    endpoints: Endpoints,
    cursor: Cursor,
}

impl Set {
    fn new(weights: &[u32], settings: Value) -> Self {
        let (config, telemetry) = (upstream(settings), Telemetry::new().unwrap());
        let outliers = Outliers::new(config.outlier_detection.as_ref());
        let endpoints = build(&config, evenly_used(weights), &outliers, &telemetry, None);
        Self { config, telemetry, outliers, endpoints, cursor: Cursor::default() }
    }

    fn change(&mut self, weights: &[u32]) {
        self.become_those(evenly_used(weights));
    }

    fn become_those(&mut self, configs: Vec<EndpointConfig>) {
        self.endpoints = build(&self.config, configs, &self.outliers, &self.telemetry, Some(&self.endpoints));
    }

    /// Where so many keys go.
    fn keys(&self, number: u64) -> Vec<usize> {
        let hashes = (0..number).map(super::balancer::scramble);
        hashes.map(|hash| self.endpoints.choose(self.cursor.next(), hash, &[], true).unwrap()).collect()
    }

    fn endpoint(&self, index: usize) -> &Arc<Endpoint> {
        &self.endpoints.member(index).endpoint
    }

    fn fail(&self, index: usize, times: usize) {
        (0..times).for_each(|_| self.endpoint(index).response_failed(Reason::ResetBeforeResponse));
    }

    fn is_ejected(&self, index: usize) -> bool {
        self.endpoint(index).standing.record().ejected_for.is_some()
    }

    fn choose(&self) -> Result<usize, UpstreamError> {
        self.endpoints.choose(self.cursor.next(), 7, &[], true)
    }

    /// How often each is chosen.
    fn shares(&self, picks: usize) -> Vec<usize> {
        let mut shares = vec![0; self.endpoints.members().len()];
        (0..picks).for_each(|_| shares[self.choose().unwrap()] += 1);
        shares
    }

    /// Waits for the time of the longest ejection to be over.
    fn outlast(&self) {
        let left = |member: &super::endpoints::Member| member.endpoint.standing.record().ejected_for;
        while self.endpoints.members().iter().any(|member| left(member).is_some()) {
            sleep(Duration::from_millis(5));
        }
    }
}

fn evenly_used(weights: &[u32]) -> Vec<EndpointConfig> {
    let address = |at| format!("10.0.0.{at}:80");
    let endpoint = |(at, &weight)| EndpointConfig { address: address(at), weight, used: true };
    weights.iter().enumerate().map(endpoint).collect()
}

fn build(
    config: &UpstreamConfig,
    configs: Vec<EndpointConfig>,
    outliers: &Arc<Outliers>,
    telemetry: &Telemetry,
    previous: Option<&Endpoints>,
) -> Endpoints {
    let endpoints = Endpoints::build(config, configs, 1, outliers, &telemetry.http, previous, &[]).unwrap();
    endpoints.begin(outliers);
    endpoints
}

#[test]
fn failures_in_a_row_eject_and_successes_forgive() {
    let set = Set::new(&[1, 1], json!({}));
    set.fail(0, 2);
    set.endpoint(0).succeeded();
    set.fail(0, 2);
    assert_eq!(set.shares(10), [5, 5]);
    set.fail(0, 1);
    assert!(set.is_ejected(0));
    assert_eq!(set.shares(10), [0, 10]);
    let record = set.endpoint(0).standing.record();
    assert_eq!((record.successes, record.failures, record.ejections), (1, 5, 1));
    assert!(record.causes.iter().all(|cause| cause.to_string() == "reset_before_response"));
}

#[test]
fn what_was_under_way_does_not_bring_it_back() {
    let set = Set::new(&[1, 1], json!({}));
    set.fail(0, 3);
    set.endpoint(0).succeeded();
    assert_eq!(set.shares(10), [0, 10]);
}

#[test]
fn one_request_at_a_time_finds_out_whether_it_is_well() {
    let set = Set::new(&[1, 1], json!({}));
    set.fail(0, 3);
    set.outlast();
    assert_eq!(set.shares(100)[0], 1);
    // It fails: the next ejection is longer, and one failure was enough.
    set.fail(0, 1);
    let record = set.endpoint(0).standing.record();
    assert_eq!(record.ejections, 2);
    assert!(record.ejected_for.unwrap().get() > SHORT, "{record:?}");
    set.outlast();
    assert_eq!(set.shares(100)[0], 1);
    set.endpoint(0).succeeded();
    assert!(!set.is_ejected(0));
    assert_eq!(set.shares(100), [50, 50]);
}

#[test]
fn well_behaved_for_long_enough_it_begins_from_the_beginning() {
    let set = Set::new(&[1, 1], json!({}));
    for _ in 0..2 {
        set.fail(0, 3);
        set.outlast();
    }
    set.endpoint(0).succeeded();
    // Two ejections are forgiven after twice the time of the first.
    sleep(Duration::from_millis(2 * SHORT + 20));
    set.fail(0, 3);
    let left = set.endpoint(0).standing.record().ejected_for.unwrap().get();
    assert!(left <= SHORT * 11 / 10, "{left}");
}

#[test]
fn ejections_have_a_longest() {
    let detection = json!({"consecutive_failures": 1, "statuses": [], "ejection_ms": 10_000,
                           "max_ejection_ms": 10_000, "max_ejected": 0.5});
    let set = Set::new(&[1, 1], json!({"outlier_detection": detection}));
    set.fail(0, 1);
    let left = set.endpoint(0).standing.record().ejected_for.unwrap().get();
    assert!((8_900..=11_000).contains(&left), "{left}");
}

#[test]
fn more_ejections_than_make_it_longer_are_forgiven_as_soon() {
    let detection = json!({"consecutive_failures": 1, "statuses": [], "ejection_ms": 100,
                           "max_ejection_ms": 200, "max_ejected": 0.5});
    let set = Set::new(&[1, 1], json!({"outlier_detection": detection}));
    for _ in 0..6 {
        set.fail(0, 1);
        set.outlast();
    }
    set.endpoint(0).succeeded();
    sleep(Duration::from_millis(2 * 100 + 20));
    set.fail(0, 1);
    let left = set.endpoint(0).standing.record().ejected_for.unwrap().get();
    assert!(left <= 110, "{left}");
}

#[test]
fn not_all_are_ejected() {
    // Of one none, of two one, and of each number the share, rounded down.
    for (endpoints, ejected) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let set = Set::new(&vec![1; endpoints], json!({}));
        (0..endpoints).for_each(|index| set.fail(index, 30));
        let out = (0..endpoints).filter(|&index| set.is_ejected(index)).count();
        assert_eq!(out, ejected, "of {endpoints}");
        assert_eq!(set.shares(100).iter().filter(|&&share| share > 0).count(), endpoints - ejected);
    }
    // Those without weight are none of them.
    let set = Set::new(&[1, 0, 0, 0], json!({}));
    set.fail(0, 30);
    assert!(!set.is_ejected(0));
}

#[test]
fn those_that_lose_their_share_by_it_stay_among_them() {
    let mut set = Set::new(&[1; 4], json!({}));
    set.fail(0, 3);
    set.fail(1, 3);
    set.change(&[0, 0, 1, 1]);
    set.fail(2, 3);
    assert!(!set.is_ejected(2));
    // With time over and no share they count no more.
    set.outlast();
    set.fail(2, 3);
    assert!(set.is_ejected(2));
}

#[test]
fn one_that_left_makes_room_for_another() {
    let mut set = Set::new(&[1, 1, 1], json!({}));
    set.fail(2, 3);
    set.fail(1, 3);
    assert!(set.is_ejected(2) && !set.is_ejected(1));
    set.change(&[1, 1]);
    set.fail(1, 3);
    assert!(set.is_ejected(1));
}

#[test]
fn without_detection_only_connections_count() {
    let set = Set::new(&[1, 1], json!({"outlier_detection": null}));
    set.fail(0, 100);
    assert!(set.endpoint(0).answered(http::StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(set.shares(10), [5, 5]);
    set.endpoint(0).connect_failed(&UpstreamError::new(Reason::ConnectRefused));
    assert_eq!(set.shares(10), [0, 10]);
}

#[test]
fn statuses_fail_where_they_are_listed() {
    let set = Set::new(&[1, 1], json!({}));
    for _ in 0..3 {
        assert!(set.endpoint(0).answered(http::StatusCode::INTERNAL_SERVER_ERROR));
        assert!(!set.endpoint(0).answered(http::StatusCode::SERVICE_UNAVAILABLE));
    }
    assert!(set.is_ejected(0));
    assert_eq!(set.endpoint(0).standing.record().causes[0].to_string(), "503");
}

#[test]
fn what_this_gateway_lacks_is_no_endpoints_failure() {
    let set = Set::new(&[1, 1], json!({}));
    for _ in 0..10 {
        let error = std::io::Error::from(nix::errno::Errno::EMFILE);
        set.endpoint(0).connect_failed(&UpstreamError::because(Reason::ConnectFailed, error));
    }
    assert_eq!(set.shares(10), [5, 5]);
    assert_eq!(set.endpoint(0).standing.record().failures, 0);
}

#[test]
fn a_connection_ends_a_rest_and_no_ejection() {
    let set = Set::new(&[1, 1], json!({}));
    set.endpoint(0).connect_failed(&UpstreamError::new(Reason::ConnectRefused));
    assert_eq!(set.shares(10), [0, 10]);
    set.endpoint(0).connected();
    assert_eq!(set.shares(10), [5, 5]);
    set.fail(0, 3);
    set.endpoint(0).connected();
    assert_eq!(set.shares(10), [0, 10]);
}

#[test]
fn those_that_are_out_are_better_than_nothing() {
    let set = Set::new(&[1, 1], json!({}));
    set.fail(0, 3);
    set.endpoint(1).connect_failed(&UpstreamError::new(Reason::ConnectRefused));
    assert_eq!(set.shares(10), [5, 5]);
    assert_eq!(set.endpoints.choose(set.cursor.next(), 7, &[1], true).unwrap(), 0);
}

#[test]
fn the_new_one_gets_a_growing_share() {
    let mut set = Set::new(&[1, 1], json!({"slow_start_ms": 4_000}));
    // At the start all are new.
    assert_eq!(set.shares(100), [50, 50]);
    set.change(&[1, 1, 1]);
    let mut last = 0;
    for (at, (low, high)) in [(0, (50, 450)), (1_000, (700, 1_500)), (2_500, (1_500, 2_500))] {
        set.endpoint(2).warmth.begun_ago(at);
        let shares = set.shares(9_000);
        // A third, were it warm; what it does not get is spread evenly.
        assert!((low..=high).contains(&shares[2]), "after {at} ms: {shares:?}");
        assert!(shares[0].abs_diff(shares[1]) < 300 && shares[2] > last, "{shares:?}");
        last = shares[2];
    }
    set.endpoint(2).warmth.begun_ago(4_000);
    assert_eq!(set.shares(9_000)[2].abs_diff(3_000) / 10, 0);
    assert!(set.endpoint(2).warmth.is_warm());
}

#[test]
fn what_comes_back_warms_up_too() {
    let mut set = Set::new(&[1, 1, 1], json!({"slow_start_ms": 60_000}));
    set.change(&[1, 1, 0]);
    assert!(set.endpoint(2).warmth.is_warm());
    set.change(&[1, 1, 1]);
    assert!(!set.endpoint(2).warmth.is_warm());
    set.fail(0, 3);
    set.outlast();
    assert_eq!(set.shares(20)[0], 1);
    set.endpoint(0).succeeded();
    assert!(!set.endpoint(0).warmth.is_warm() && set.endpoint(1).warmth.is_warm());
}

#[test]
fn a_hash_knows_no_slow_start() {
    let hashing = json!({"balancer": {"kind": "hash", "on": {"kind": "path"}}, "slow_start_ms": 60_000});
    let mut set = Set::new(&[1], hashing);
    set.change(&[1, 1]);
    let new = set.keys(1_000).iter().filter(|&&index| index == 1).count();
    assert!((400..600).contains(&new), "{new}");
}

#[test]
fn keys_move_once_when_one_is_ejected_and_found_out() {
    let mut set = Set::new(&[1; 4], json!({"balancer": {"kind": "hash", "on": {"kind": "path"}}}));
    let before = set.keys(1_000);
    set.fail(2, 3);
    let ejected = set.keys(1_000);
    assert!(before.iter().zip(&ejected).all(|(before, after)| before == after || *before == 2));
    assert!((0..4).all(|index| (ejected.iter().filter(|&&found| found == index).count() > 200) == (index != 2)));
    let mut known = evenly_used(&[1; 4]);
    known[2].used = false;
    set.become_those(known.clone());
    assert_eq!(set.keys(1_000), ejected);
    // Without any there is nothing to look through.
    known.iter_mut().for_each(|endpoint| endpoint.used = false);
    set.become_those(known);
    assert_eq!(set.choose().unwrap_err().reason, Reason::NoEndpoint);
    set.outlast();
    set.change(&[1; 4]);
    set.endpoint(2).succeeded();
    assert_eq!(set.keys(1_000), before);
}

#[test]
fn full_endpoints_are_passed_over_until_all_are() {
    let limits = json!({"limits": {"connections": null, "pending": 0, "requests": 2}});
    let set = Set::new(&[1, 1], limits);
    let mut active: Vec<_> = (0..2).map(|_| Active::begin(set.endpoint(0)).unwrap()).collect();
    assert!(Active::begin(set.endpoint(0)).is_none());
    assert_eq!(set.shares(10), [0, 10]);
    active.extend((0..2).map(|_| Active::begin(set.endpoint(1)).unwrap()));
    assert_eq!(set.choose().unwrap_err().reason, Reason::Overflow);
    // Those that had no place took none.
    active[0].end();
    assert_eq!(set.shares(10), [10, 0]);
    drop(active);
    assert_eq!(set.shares(10), [5, 5]);
}

#[test]
fn it_is_waited_for_a_connection_where_there_is_none_elsewhere() {
    let set = Set::new(&[1, 1], json!({"limits": {"connections": 1, "pending": 5, "requests": null}}));
    let busy = |index: usize| {
        let mut active = Active::begin(set.endpoint(index)).unwrap();
        active.keep(set.endpoint(index).breaker.try_connection().unwrap());
        active
    };
    let first = busy(0);
    assert_eq!(set.shares(10), [0, 10]);
    let second = busy(1);
    assert_eq!(set.shares(10), [5, 5]);
    assert_eq!(set.endpoints.choose(set.cursor.next(), 7, &[], false).unwrap_err().reason, Reason::Overflow);
    drop(first);
    assert_eq!(set.shares(10), [10, 0]);
    drop(second);
    assert_eq!(set.shares(10), [5, 5]);
}

#[test]
fn a_budget_is_made_of_the_settings() {
    let config = upstream(json!({"retries": {"attempts": 2, "budget": 1.0, "min_per_second": 0, "connect": true,
                                             "reset": true, "refused_stream": true, "statuses": []}}));
    let budget = Budget::new(&config.retries);
    assert!(!budget.withdraw(0));
    assert!(budget.withdraw(1) && !budget.withdraw(1));
}
