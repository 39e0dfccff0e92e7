//! What is changed in a request on its way to the upstream, and in the response on its way back.
//!
//! The order is fixed: headers of the connection are removed ([`headers`]), claims that only a proxy may make are
//! replaced ([`forwarded`]), and then the route's own filters run. Last of all, a response is compressed where its route
//! says so ([`compression`]).

pub mod compression;
pub mod forwarded;
pub mod grpc_web;
pub mod headers;
pub mod rewrite;

use http::{HeaderMap, HeaderValue};

use crate::config::FilterConfig;
use crate::router::BuildError;
use grpc_web::GrpcWeb;
use headers::{HeaderChanges, parse_value};
use rewrite::Rewrite;

/// A route's filters, compiled.
#[derive(Debug, Default)]
pub struct Filters {
    request: Vec<HeaderChanges>,
    response: Vec<HeaderChanges>,
    rewrites: Vec<Rewrite>,
    /// The `Host` that the upstream sees.
    host: Option<HeaderValue>,
    grpc_web: bool,
}

impl Filters {
    /// `prefix`: what the route's path condition matches as a prefix.
    pub fn build(configs: &[FilterConfig], prefix: Option<&str>) -> Result<Self, BuildError> {
        let mut filters = Self::default();
        for config in configs {
            match config {
                FilterConfig::RequestHeaders(ops) => filters.request.push(HeaderChanges::build(ops)?),
                FilterConfig::ResponseHeaders(ops) => filters.response.push(HeaderChanges::build(ops)?),
                FilterConfig::RewritePrefix { to } => {
                    let from = prefix.ok_or(BuildError::RewriteWithoutPrefix)?;
                    filters.rewrites.push(Rewrite::prefix(from, to));
                }
                FilterConfig::RewriteRegex { pattern, to } => filters.rewrites.push(Rewrite::regex(pattern, to)?),
                FilterConfig::Host { to } => filters.host = Some(parse_value("host", to)?),
                FilterConfig::GrpcWeb => filters.grpc_web = true,
            }
        }
        Ok(filters)
    }

    pub fn apply_request(&self, headers: &mut HeaderMap) {
        self.request.iter().for_each(|changes| changes.apply(headers));
    }

    pub fn apply_response(&self, headers: &mut HeaderMap) {
        self.response.iter().for_each(|changes| changes.apply(headers));
    }

    /// The path that the upstream sees, when it differs. `path`: without its query, in its normal spelling.
    pub fn rewrite(&self, path: &str) -> Option<String> {
        let (first, others) = self.rewrites.split_first()?;
        let first = first.apply(path);
        Some(others.iter().fold(first, |path, rewrite| rewrite.apply(&path)))
    }

    /// Makes gRPC of a request that is gRPC-Web, where the route does that.
    pub fn grpc_web(&self, headers: &mut HeaderMap) -> Option<GrpcWeb> {
        self.grpc_web.then(|| GrpcWeb::from_request(headers)).flatten()
    }

    pub fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::HeaderOps;

    #[test]
    fn rewrites_run_one_after_the_other() {
        let filters = Filters::build(
            &[
                FilterConfig::RewritePrefix { to: "/v2".into() },
                FilterConfig::RewriteRegex { pattern: "/user/([0-9]+)".into(), to: "/account/$1".into() },
            ],
            Some("/api"),
        )
        .unwrap();
        assert_eq!(filters.rewrite("/api/user/7").as_deref(), Some("/v2/account/7"));
        assert_eq!(Filters::default().rewrite("/api"), None);
    }

    #[test]
    fn a_prefix_rewrite_needs_a_prefix() {
        let config = [FilterConfig::RewritePrefix { to: "/".into() }];
        assert!(matches!(Filters::build(&config, None), Err(BuildError::RewriteWithoutPrefix)));
    }

    #[test]
    fn header_changes_apply_in_their_order() {
        let ops =
            |name: &str, value: &str| HeaderOps { set: vec![(name.into(), value.into())], ..HeaderOps::default() };
        let filters = Filters::build(
            &[FilterConfig::ResponseHeaders(ops("x-a", "1")), FilterConfig::ResponseHeaders(ops("x-a", "2"))],
            None,
        )
        .unwrap();
        let mut headers = HeaderMap::new();
        filters.apply_response(&mut headers);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["2"]);
    }
}
