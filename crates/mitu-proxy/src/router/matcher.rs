//! One route's conditions, compiled.

use http::{HeaderMap, HeaderName, Method};
use regex::Regex;

use crate::config::{HeaderMatch, HeaderValueMatch, MatchConfig, PathMatch};
use crate::filter::forwarded::claims_proxy;
use crate::router::BuildError;

/// Every condition but the host, which [`super::hosts`] has decided already.
#[derive(Debug)]
pub struct Matcher {
    path: Option<PathMatcher>,
    /// Empty: any.
    methods: Vec<Method>,
    headers: Vec<(HeaderName, ValueMatcher)>,
}

#[derive(Debug)]
enum PathMatcher {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum ValueMatcher {
    Present,
    Absent,
    Exact(Vec<u8>),
    Regex(regex::bytes::Regex),
}

impl Matcher {
    pub fn build(config: &MatchConfig) -> Result<Self, BuildError> {
        let path = match &config.path {
            None => None,
            Some(PathMatch::Exact(path)) => Some(PathMatcher::Exact(path.clone())),
            Some(PathMatch::Prefix(prefix)) => Some(PathMatcher::Prefix(prefix.clone())),
            Some(PathMatch::Regex(pattern)) => Some(PathMatcher::Regex(whole(pattern)?)),
        };
        let methods = config
            .methods
            .iter()
            .map(|name| Method::from_bytes(name.as_bytes()).map_err(|_| BuildError::Method(name.clone())))
            .collect::<Result<_, _>>()?;
        let headers = config.headers.iter().map(header).collect::<Result<_, _>>()?;
        Ok(Self { path, methods, headers })
    }

    /// `path` in its normal spelling.
    pub fn matches(&self, path: &str, method: &Method, headers: &HeaderMap) -> bool {
        self.path.as_ref().is_none_or(|matcher| matcher.matches(path))
            && (self.methods.is_empty() || self.methods.contains(method))
            && self.headers.iter().all(|(name, value)| value.matches(headers, name))
    }

    /// Whether a header is asked for that only a proxy may set.
    pub fn asks_for_claims(&self) -> bool {
        self.headers.iter().any(|(name, _)| claims_proxy(name))
    }

    /// The prefix that a matching path begins with.
    pub fn prefix(&self) -> Option<&str> {
        match &self.path {
            Some(PathMatcher::Prefix(prefix)) => Some(prefix),
            _ => None,
        }
    }
}

impl PathMatcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')),
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

impl ValueMatcher {
    /// A header sent several times matches when any of its values does.
    fn matches(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        match self {
            Self::Present => headers.contains_key(name),
            Self::Absent => !headers.contains_key(name),
            Self::Exact(wanted) => headers.get_all(name).iter().any(|value| value.as_bytes() == wanted.as_slice()),
            Self::Regex(pattern) => headers.get_all(name).iter().any(|value| pattern.is_match(value.as_bytes())),
        }
    }
}

fn whole(pattern: &str) -> Result<Regex, BuildError> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| BuildError::regex(pattern, &error))
}

fn header(config: &HeaderMatch) -> Result<(HeaderName, ValueMatcher), BuildError> {
    let name =
        HeaderName::from_bytes(config.name.as_bytes()).map_err(|_| BuildError::HeaderName(config.name.clone()))?;
    let value = match &config.value {
        HeaderValueMatch::Present => ValueMatcher::Present,
        HeaderValueMatch::Absent => ValueMatcher::Absent,
        HeaderValueMatch::Exact(value) => ValueMatcher::Exact(value.clone().into_bytes()),
        HeaderValueMatch::Regex(pattern) => ValueMatcher::Regex(
            regex::bytes::Regex::new(&format!("^(?:{pattern})$"))
                .map_err(|error| BuildError::regex(pattern, &error))?,
        ),
    };
    Ok((name, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn matches(path: PathMatch, candidate: &str) -> bool {
        let config = MatchConfig { path: Some(path), ..MatchConfig::default() };
        Matcher::build(&config).unwrap().matches(candidate, &Method::GET, &HeaderMap::new())
    }

    #[test]
    fn prefixes_match_whole_segments() {
        for (prefix, path, expected) in [
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/x", true),
            ("/api", "/apix", false),
            ("/api/", "/api/x", true),
            ("/api/", "/api", false),
            ("/", "/anything", true),
            ("/api", "/API", false),
        ] {
            assert_eq!(matches(PathMatch::Prefix(prefix.into()), path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn a_regex_matches_the_whole_path() {
        let regex = || PathMatch::Regex("/v[0-9]+|/latest".into());
        assert!(matches(regex(), "/v12"));
        assert!(matches(regex(), "/latest"));
        assert!(!matches(regex(), "/v12/x"));
        assert!(!matches(regex(), "/x/latest"));
    }

    #[test]
    fn headers_match_on_any_of_their_values() {
        let matcher = |value| {
            let headers = vec![HeaderMatch { name: "X-Mode".into(), value }];
            Matcher::build(&MatchConfig { headers, ..MatchConfig::default() }).unwrap()
        };
        let mut headers = HeaderMap::new();
        headers.append("x-mode", "slow".parse().unwrap());
        headers.append("x-mode", "beta-2".parse().unwrap());
        let check = |value, headers: &HeaderMap| matcher(value).matches("/", &Method::GET, headers);
        assert!(check(HeaderValueMatch::Exact("slow".into()), &headers));
        assert!(check(HeaderValueMatch::Regex("beta-[0-9]".into()), &headers));
        assert!(!check(HeaderValueMatch::Regex("beta".into()), &headers));
        assert!(check(HeaderValueMatch::Present, &headers));
        assert!(check(HeaderValueMatch::Absent, &HeaderMap::new()));
        assert!(!check(HeaderValueMatch::Absent, &headers));
    }

    #[test]
    fn methods_are_alternatives() {
        let config = MatchConfig { methods: vec!["GET".into(), "PURGE".into()], ..MatchConfig::default() };
        let matcher = Matcher::build(&config).unwrap();
        let check = |method: &str| matcher.matches("/", &method.parse().unwrap(), &HeaderMap::new());
        assert!(check("GET") && check("PURGE"));
        assert!(!check("POST"));
    }
}
