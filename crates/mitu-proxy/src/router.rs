//! Routes: the first one, in the configured order, whose conditions all hold.

mod hosts;
mod limiter;
mod matcher;
pub mod path;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use mitu_telemetry::http::{Families, RequestMetrics};

use crate::config::{ActionConfig, RateLimitConfig, RouteConfig};
use crate::filter::Filters;
use crate::filter::compression::Compression;
use crate::filter::headers::{parse_name, parse_value};
use crate::upstream::{Upstream, Upstreams};
use hosts::HostIndex;
use limiter::Limiter;
use matcher::Matcher;

/// What can be wrong with a route.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("route '{route}': {source}")]
    Route { route: String, source: Box<BuildError> },
    #[error("no upstream is named '{0}'")]
    UnknownUpstream(String),
    #[error("'{0}' is not a method")]
    Method(String),
    #[error("'{0}' is not a header name")]
    HeaderName(String),
    #[error("header '{0}': the value has characters that a header cannot carry")]
    HeaderValue(String),
    #[error("header '{0}' belongs to the connection and cannot be changed by a filter")]
    ReservedHeader(String),
    #[error("regular expression '{pattern}': {reason}")]
    Regex { pattern: String, reason: String },
    #[error("a prefix can be rewritten only where the route matches by prefix")]
    RewriteWithoutPrefix,
    #[error("{0} is not a status that can be answered with")]
    Status(u16),
    #[error("redirect: {0}")]
    Redirect(&'static str),
}

impl BuildError {
    pub(crate) fn regex(pattern: &str, error: &regex::Error) -> Self {
        Self::Regex { pattern: pattern.to_owned(), reason: error.to_string() }
    }
}

/// The routes of one listener.
#[derive(Debug)]
pub struct Router {
    routes: Box<[Route]>,
    hosts: HostIndex,
    asks_for_claims: bool,
    /// Counts what no route matched.
    unmatched: RouteMetrics,
}

#[derive(Debug)]
pub struct Route {
    pub name: String,
    matcher: Matcher,
    pub filters: Filters,
    pub limiters: Vec<Arc<Limiter>>,
    /// In place of the listener's.
    pub request_body_bytes: Option<u64>,
    pub response_body_bytes: Option<u64>,
    /// Whether safe requests are served that come in early data.
    pub early_data: bool,
    pub compression: Option<Compression>,
    pub action: Action,
    pub metrics: RouteMetrics,
}

/// One set of handles for each version of HTTP.
#[derive(Debug)]
pub struct RouteMetrics {
    pub h1: RequestMetrics,
    pub h2: RequestMetrics,
    pub h3: RequestMetrics,
}

#[derive(Debug)]
pub enum Action {
    Upstream { upstream: Arc<Upstream>, timeout: Duration, try_timeout: Option<Duration> },
    Respond(FixedResponse),
    Redirect(Redirect),
}

#[derive(Debug)]
pub struct FixedResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What is left out is taken from the request.
#[derive(Debug)]
pub struct Redirect {
    pub status: StatusCode,
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub path: Option<String>,
}

impl Router {
    /// Compiles the routes of the listener named `listener`. Rate limits that are those of `previous` go on counting.
    pub fn build(
        listener: &str,
        routes: &[RouteConfig],
        upstreams: &Upstreams,
        families: &Families,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let metrics = |route: &str| RouteMetrics {
            h1: families.request(listener, route, "h1"),
            h2: families.request(listener, route, "h2"),
            h3: families.request(listener, route, "h3"),
        };
        let compiled = routes
            .iter()
            .map(|config| {
                let previous =
                    previous.and_then(|router| router.routes.iter().find(|route| route.name == config.name));
                Route::build(config, upstreams, metrics(&config.name), previous)
                    .map_err(|source| BuildError::Route { route: config.name.clone(), source: Box::new(source) })
            })
            .collect::<Result<Box<[Route]>, _>>()?;
        let asks_for_claims = compiled.iter().any(Route::asks_for_claims);
        Ok(Self { routes: compiled, asks_for_claims, hosts: HostIndex::build(routes), unmatched: metrics("") })
    }

    /// The first route that matches, by its number. `host`: as the request gives it; `path`: in its normal spelling.
    pub fn find(&self, host: &str, path: &str, method: &Method, headers: &HeaderMap) -> Option<usize> {
        let candidates = if self.hosts.needs_host() {
            let name = host_name(host);
            if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                self.hosts.candidates(&name.to_ascii_lowercase())
            } else {
                self.hosts.candidates(name)
            }
        } else {
            self.hosts.candidates("")
        };
        candidates
            .iter()
            .map(|&index| index as usize)
            .find(|&index| self.routes[index].matcher.matches(path, method, headers))
    }

    /// Whether a route depends on what only a proxy may claim.
    pub fn asks_for_claims(&self) -> bool {
        self.asks_for_claims
    }

    /// A route by the number that [`Self::find`] gave.
    pub fn route(&self, index: usize) -> &Route {
        &self.routes[index]
    }

    /// The handles of a route, or of the requests that no route matched.
    pub fn metrics(&self, route: Option<usize>) -> &RouteMetrics {
        route.map_or(&self.unmatched, |index| &self.routes[index].metrics)
    }
}

impl Route {
    fn build(
        config: &RouteConfig,
        upstreams: &Upstreams,
        metrics: RouteMetrics,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let matcher = Matcher::build(&config.matcher)?;
        let filters = Filters::build(&config.filters, matcher.prefix())?;
        let action = match &config.action {
            ActionConfig::Upstream { upstream, timeout_ms, try_timeout_ms } => Action::Upstream {
                upstream: upstreams.get(upstream).ok_or_else(|| BuildError::UnknownUpstream(upstream.clone()))?,
                timeout: Duration::from_millis(*timeout_ms),
                try_timeout: try_timeout_ms.map(Duration::from_millis),
            },
            ActionConfig::Respond { status, headers, body } => {
                Action::Respond(FixedResponse::build(*status, headers, body)?)
            }
            ActionConfig::Redirect { status, scheme, host, path } => {
                Action::Redirect(Redirect::build(*status, scheme, host, path)?)
            }
        };
        let limiter = |config: &RateLimitConfig| match previous.and_then(|route| route.limiter(config)) {
            Some(limiter) => Ok(limiter.clone()),
            None => Limiter::build(config).map(Arc::new),
        };
        Ok(Self {
            name: config.name.clone(),
            matcher,
            filters,
            limiters: config.rate_limits.iter().map(limiter).collect::<Result<_, _>>()?,
            request_body_bytes: config.request_body_bytes,
            response_body_bytes: config.response_body_bytes,
            early_data: config.early_data,
            compression: config.compress.as_ref().map(Compression::build),
            action,
            metrics,
        })
    }

    fn limiter(&self, config: &RateLimitConfig) -> Option<&Arc<Limiter>> {
        self.limiters.iter().find(|limiter| limiter.config == *config)
    }

    /// Whether it depends on a header that only a proxy may set.
    fn asks_for_claims(&self) -> bool {
        self.matcher.asks_for_claims() || self.limiters.iter().any(|limiter| limiter.asks_for_claims())
    }
}

impl FixedResponse {
    fn build(status: u16, headers: &[(String, String)], body: &str) -> Result<Self, BuildError> {
        let code = final_status(status)?;
        let bodiless = matches!(code, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut map = HeaderMap::with_capacity(headers.len() + 1);
        for (name, value) in headers {
            map.append(parse_name(name)?, parse_value(name, value)?);
        }
        let body = if bodiless { Bytes::new() } else { Bytes::from(body.to_owned()) };
        if !bodiless {
            map.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Ok(Self { status: code, headers: map, body })
    }
}

impl Redirect {
    fn build(
        status: u16,
        scheme: &Option<String>,
        host: &Option<String>,
        path: &Option<String>,
    ) -> Result<Self, BuildError> {
        let code = final_status(status)?;
        if !code.is_redirection() {
            return Err(BuildError::Status(status));
        }
        if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(BuildError::Redirect("the path must begin with '/'"));
        }
        for part in [scheme, host, path].into_iter().flatten() {
            parse_value("location", part)?;
        }
        Ok(Self { status: code, scheme: scheme.clone(), host: host.clone(), path: path.clone() })
    }

    /// The `Location` for a request to `host` and `path_and_query`.
    pub fn location(&self, host: &str, path_and_query: &str) -> String {
        let scheme = self.scheme.as_deref().unwrap_or("https");
        let host = self.host.as_deref().unwrap_or(host);
        let path = self.path.as_deref().unwrap_or(path_and_query);
        format!("{scheme}://{host}{path}")
    }
}

fn final_status(status: u16) -> Result<StatusCode, BuildError> {
    StatusCode::from_u16(status).ok().filter(|code| !code.is_informational()).ok_or(BuildError::Status(status))
}

/// The host without port and without the root's dot.
pub fn host_name(authority: &str) -> &str {
    let name = match authority.rfind(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{MatchConfig, PathMatch};

    fn router(routes: &[(&[&str], Option<PathMatch>)]) -> Router {
        let configs: Vec<_> = (0..)
            .zip(routes)
            .map(|(number, (hosts, path)): (usize, _)| RouteConfig {
                name: number.to_string(),
                matcher: MatchConfig {
                    hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                    path: path.clone(),
                    ..MatchConfig::default()
                },
                filters: Vec::new(),
                rate_limits: Vec::new(),
                request_body_bytes: None,
                response_body_bytes: None,
                early_data: false,
                compress: None,
                action: ActionConfig::Respond { status: 200, headers: Vec::new(), body: "x".into() },
            })
            .collect();
        let telemetry = mitu_telemetry::Telemetry::new().unwrap();
        Router::build("edge", &configs, &Upstreams::default(), &telemetry.http, None).unwrap()
    }

    fn find(router: &Router, host: &str, path: &str) -> Option<usize> {
        router.find(host, path, &Method::GET, &HeaderMap::new())
    }

    #[test]
    fn the_first_match_wins() {
        let router = router(&[
            (&[], Some(PathMatch::Exact("/health".into()))),
            (&["a.example"], Some(PathMatch::Prefix("/".into()))),
            (&[], Some(PathMatch::Prefix("/".into()))),
        ]);
        assert_eq!(find(&router, "a.example", "/health"), Some(0));
        assert_eq!(find(&router, "a.example", "/x"), Some(1));
        assert_eq!(find(&router, "b.example", "/x"), Some(2));
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_root_dot() {
        let router = router(&[(&["a.example"], None), (&["[2001:db8::1]"], None)]);
        for host in ["a.example", "A.Example", "a.example:8443", "a.example.", "A.EXAMPLE.:1"] {
            assert_eq!(find(&router, host, "/"), Some(0), "{host}");
        }
        assert_eq!(find(&router, "[2001:db8::1]:443", "/"), Some(1));
        assert_eq!(find(&router, "[2001:db8::1]", "/"), Some(1));
        assert_eq!(find(&router, "b.example", "/"), None);
    }

    #[test]
    fn redirects_keep_what_they_do_not_name() {
        let redirect = |scheme: Option<&str>, host: Option<&str>, path: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Redirect::build(308, &owned(scheme), &owned(host), &owned(path))
                .unwrap()
                .location("a.example:8443", "/x?y=1")
        };
        assert_eq!(redirect(None, None, None), "https://a.example:8443/x?y=1");
        assert_eq!(redirect(Some("http"), Some("b.example"), None), "http://b.example/x?y=1");
        assert_eq!(redirect(None, None, Some("/new")), "https://a.example:8443/new");
    }

    #[test]
    fn bad_routes_are_refused() {
        assert!(matches!(FixedResponse::build(101, &[], ""), Err(BuildError::Status(101))));
        assert!(matches!(FixedResponse::build(99, &[], ""), Err(BuildError::Status(99))));
        assert!(matches!(Redirect::build(200, &None, &None, &None), Err(BuildError::Status(200))));
        let header = [("x".to_owned(), "a\r\nb".to_owned())];
        assert!(matches!(FixedResponse::build(200, &header, ""), Err(BuildError::HeaderValue(_))));
    }
}
