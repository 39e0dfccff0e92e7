//! Which routes may apply to a host, found with at most two look-ups however many hosts are configured.

use std::collections::{BTreeSet, HashMap};

use crate::config::RouteConfig;

/// Indices of routes, in the configured order.
type Routes = Box<[u32]>;

#[derive(Debug)]
pub struct HostIndex {
    exact: HashMap<Box<str>, Routes>,
    /// By what follows the `*.`, which stands for one label.
    wildcard: HashMap<Box<str>, Routes>,
    /// Routes for any host.
    any: Routes,
}

impl HostIndex {
    pub fn build(routes: &[RouteConfig]) -> Self {
        let mut exact: HashMap<&str, BTreeSet<u32>> = HashMap::new();
        let mut wildcard: HashMap<&str, BTreeSet<u32>> = HashMap::new();
        let mut any = BTreeSet::new();
        for (index, route) in (0..).zip(routes) {
            if route.matcher.hosts.is_empty() {
                any.insert(index);
            }
            for host in &route.matcher.hosts {
                match host.strip_prefix("*.") {
                    Some(suffix) => wildcard.entry(suffix).or_default().insert(index),
                    None => exact.entry(host).or_default().insert(index),
                };
            }
        }
        // Each list holds every route that may apply, so that one list is enough for a request.
        let with_any = |own: &BTreeSet<u32>| own.union(&any).copied().collect::<BTreeSet<u32>>();
        let exact = exact
            .into_iter()
            .map(|(host, own)| {
                let mut routes = with_any(&own);
                if let Some(wild) = parent(host).and_then(|suffix| wildcard.get(suffix)) {
                    routes.extend(wild);
                }
                (host.into(), routes.into_iter().collect())
            })
            .collect();
        let wildcard =
            wildcard.iter().map(|(suffix, own)| ((*suffix).into(), with_any(own).into_iter().collect())).collect();
        Self { exact, wildcard, any: any.into_iter().collect() }
    }

    /// The routes that may apply to `host`: lower case, without a port.
    pub fn candidates(&self, host: &str) -> &[u32] {
        if let Some(routes) = (!self.exact.is_empty()).then(|| self.exact.get(host)).flatten() {
            return routes;
        }
        if !self.wildcard.is_empty()
            && let Some(routes) = parent(host).and_then(|suffix| self.wildcard.get(suffix))
        {
            return routes;
        }
        &self.any
    }

    /// Whether the host makes a difference at all.
    pub fn needs_host(&self) -> bool {
        !self.exact.is_empty() || !self.wildcard.is_empty()
    }
}

/// What follows the first label.
fn parent(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ActionConfig, MatchConfig};

    fn index(hosts: &[&[&str]]) -> HostIndex {
        let routes: Vec<_> = hosts
            .iter()
            .map(|hosts| RouteConfig {
                name: String::new(),
                matcher: MatchConfig {
                    hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                    ..MatchConfig::default()
                },
                filters: Vec::new(),
                rate_limits: Vec::new(),
                request_body_bytes: None,
                response_body_bytes: None,
                early_data: false,
                compress: None,
                action: ActionConfig::Respond { status: 200, headers: Vec::new(), body: String::new() },
            })
            .collect();
        HostIndex::build(&routes)
    }

    #[test]
    fn candidates_keep_the_configured_order() {
        let index = index(&[&["b.example.com"], &[], &["*.example.com"], &["a.example.com", "b.example.com"], &[]]);
        assert_eq!(index.candidates("b.example.com"), [0, 1, 2, 3, 4]);
        assert_eq!(index.candidates("a.example.com"), [1, 2, 3, 4]);
        assert_eq!(index.candidates("c.example.com"), [1, 2, 4]);
        assert_eq!(index.candidates("example.com"), [1, 4]);
        assert_eq!(index.candidates(""), [1, 4]);
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let index = index(&[&["*.example.com"]]);
        assert_eq!(index.candidates("a.example.com"), [0]);
        assert!(index.candidates("a.b.example.com").is_empty());
    }
}
