//! The endpoints that an upstream has at one time. Discovery makes a new set, which takes over from the last one what
//! they have in common: endpoints with their connections and what is known of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mitu_telemetry::http::{Families, Limit, Reason};

use super::balancer::Balancer;
use super::endpoint::Endpoint;
use super::h1::H1Connection;
use super::outlier::Outliers;
use super::pool::Pool;
use super::{BuildError, UpstreamError};
use crate::config::{EndpointConfig, UpstreamConfig};

/// Most that a table of the balancer can tell apart.
const MAX_ENDPOINTS: usize = u16::MAX as usize;

#[derive(Debug)]
pub struct Endpoints {
    configs: Vec<EndpointConfig>,
    members: Box<[Member]>,
    balancer: Balancer,
}

/// An endpoint, and the connections to it that each worker keeps.
#[derive(Debug, Clone)]
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    pools: Arc<[Arc<Pool>]>,
}

impl Member {
    fn new(upstream: &UpstreamConfig, endpoint: Arc<Endpoint>, workers: usize) -> Self {
        let idle = Duration::from_millis(upstream.idle_timeout_ms);
        let pool = |_| Arc::new(Pool::new(upstream.max_idle, idle));
        Self { endpoint, pools: (0..workers).map(pool).collect() }
    }

    /// The connections that a worker keeps.
    pub fn pool(&self, worker: usize) -> &Arc<Pool> {
        // A worker started after a reload to fewer workers has none of its own.
        &self.pools[worker % self.pools.len()]
    }

    /// A connection that nobody uses: the worker's own or, where their number is limited, anybody's.
    pub fn idle(&self, worker: usize) -> Option<Box<H1Connection>> {
        let own = self.pool(worker);
        own.take().or_else(|| {
            let others = self.endpoint.breaker.limits_connections().then_some(&*self.pools).into_iter().flatten();
            others.filter(|pool| !Arc::ptr_eq(pool, own)).find_map(|pool| pool.take())
        })
    }
}

impl Endpoints {
    /// `previous`: the set before this one, which stays as it is until [`Self::begin`]; `leaving`: endpoints of earlier
    /// ones, at which something is still under way.
    pub fn build(
        upstream: &UpstreamConfig,
        configs: Vec<EndpointConfig>,
        workers: usize,
        outliers: &Arc<Outliers>,
        families: &Families,
        previous: Option<&Self>,
        leaving: &[Arc<Endpoint>],
    ) -> Result<Self, BuildError> {
        if configs.len() > MAX_ENDPOINTS {
            return Err(BuildError::TooManyEndpoints { upstream: upstream.name.clone(), max: MAX_ENDPOINTS });
        }
        let known: HashMap<&str, &Member> =
            previous.iter().flat_map(|set| &*set.members).map(|member| (&*member.endpoint.address, member)).collect();
        // Where all are new, there is nobody who could serve what they are not to have yet.
        let joins = known.values().any(|member| member.endpoint.weight() > 0);
        let member = |config: &EndpointConfig| match known.get(config.address.as_str()) {
            Some(member) => Ok((*member).clone()),
            None => {
                let back = leaving.iter().find(|endpoint| *endpoint.address == *config.address).cloned();
                let new = || Endpoint::build(upstream, config, outliers, families);
                let endpoint = back.map_or_else(new, Ok)?;
                if joins {
                    endpoint.warmth.cool();
                }
                Ok(Member::new(upstream, endpoint, workers))
            }
        };
        let members = configs.iter().map(member).collect::<Result<_, BuildError>>()?;
        Ok(Self { balancer: Balancer::new(&upstream.balancer, &configs), members, configs })
    }

    /// Whether they are as `configs` has them.
    pub fn are(&self, configs: &[EndpointConfig]) -> bool {
        self.configs == configs
    }

    /// They are the ones that are chosen from now.
    pub fn begin(&self, outliers: &Outliers) {
        outliers.watch(self.members.iter().map(|member| &member.endpoint));
        for (member, config) in self.members.iter().zip(&self.configs) {
            member.endpoint.weigh(config.share());
            member.endpoint.removal.take_back();
        }
    }

    pub fn addresses(&self) -> HashSet<&str> {
        self.members.iter().map(|member| &*member.endpoint.address).collect()
    }

    pub fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// An endpoint that is not among `tried`, by its number. `place`: of the balancer's order. `patient`: it may wait for
    /// a connection there.
    ///
    /// One that is out, or has just refused a connection, is the last choice, and one where it would have to wait comes
    /// behind those where it would not.
    pub fn choose(&self, place: usize, hash: u64, tried: &[usize], patient: bool) -> Result<usize, UpstreamError> {
        let untried = |index: usize| !tried.contains(&index);
        let is_here = |index: usize| self.endpoint(index).standing.is_here();
        let has_room = |index: usize, patient| self.endpoint(index).is_full(patient).is_none();
        let ready = |index: usize| untried(index) && is_here(index) && has_room(index, false);
        let mut picked = self.pick(place, hash, ready);
        if let Some(index) = picked
            && !self.endpoint(index).standing.claim()
        {
            // Somebody else is finding out about that one.
            picked = self.pick(place, hash, ready);
        }
        picked
            .or_else(|| self.pick(place, hash, |index| untried(index) && is_here(index) && has_room(index, patient)))
            .or_else(|| self.pick(place, hash, |index| untried(index) && has_room(index, false)))
            .or_else(|| self.pick(place, hash, |index| untried(index) && has_room(index, patient)))
            .ok_or_else(|| UpstreamError::new(self.nothing_left()))
    }

    fn pick(&self, place: usize, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let usable = |index: usize| self.configs[index].used && usable(index);
        let load = |index: usize| self.endpoint(index).load();
        let picked = self.balancer.pick(place, hash, load, usable)?;
        let warmth = &self.endpoint(picked).warmth;
        if warmth.is_warm() || self.balancer.is_sticky() || warmth.admits() {
            return Some(picked);
        }
        let warm = |index: usize| usable(index) && self.endpoint(index).warmth.is_warm();
        self.balancer.pick(place, hash, load, warm).or(Some(picked))
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        &self.members[index].endpoint
    }

    /// Why no endpoint can be chosen.
    fn nothing_left(&self) -> Reason {
        if self.limits().next().is_some() { Reason::Overflow } else { Reason::NoEndpoint }
    }

    /// Which limit is in the way of a request that no endpoint has room for.
    pub fn limit(&self) -> Limit {
        // None any more: a moment ago it was the one that others wait at.
        self.limits().next().unwrap_or(Limit::Connections)
    }

    fn limits(&self) -> impl Iterator<Item = Limit> {
        let weighty = self.members.iter().map(|member| &member.endpoint).filter(|endpoint| endpoint.weight() > 0);
        weighty.filter_map(|endpoint| endpoint.is_full(false))
    }
}
