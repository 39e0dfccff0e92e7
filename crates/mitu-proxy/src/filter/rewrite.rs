//! Changing the path on its way to the upstream.

use regex::Regex;

use crate::router::BuildError;

#[derive(Debug)]
pub enum Rewrite {
    Prefix { length: usize, to: String },
    Regex { pattern: Regex, to: String },
}

impl Rewrite {
    /// Replaces `from`, which the route has matched as whole segments, by `to`.
    pub fn prefix(from: &str, to: &str) -> Self {
        // What is cut off ends before a slash, so that what is left begins with one.
        Self::Prefix { length: from.trim_end_matches('/').len(), to: to.trim_end_matches('/').to_owned() }
    }

    /// Replaces the first match of `pattern`; `$1` in `to` refers to its groups.
    pub fn regex(pattern: &str, to: &str) -> Result<Self, BuildError> {
        let pattern = Regex::new(pattern).map_err(|error| BuildError::regex(pattern, &error))?;
        Ok(Self::Regex { pattern, to: to.to_owned() })
    }

    pub fn apply(&self, path: &str) -> String {
        let mut rewritten = match self {
            Self::Prefix { length, to } => format!("{to}{}", path.get(*length..).unwrap_or("")),
            Self::Regex { pattern, to } => pattern.replace(path, to.as_str()).into_owned(),
        };
        if !rewritten.starts_with('/') {
            rewritten.insert(0, '/');
        }
        rewritten
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_replaced_at_a_slash() {
        for (from, to, path, expected) in [
            ("/api", "/", "/api", "/"),
            ("/api", "/", "/api/", "/"),
            ("/api", "/", "/api/x", "/x"),
            ("/api", "/v1", "/api/x", "/v1/x"),
            ("/api", "/v1/", "/api/x", "/v1/x"),
            ("/api/", "/v1", "/api/x", "/v1/x"),
            ("/", "/v1", "/x", "/v1/x"),
            ("/", "/v1", "/", "/v1/"),
            ("/api", "/v1", "/api", "/v1"),
        ] {
            assert_eq!(Rewrite::prefix(from, to).apply(path), expected, "{from} -> {to}: {path}");
        }
    }

    #[test]
    fn groups_are_filled_in() {
        let rewrite = Rewrite::regex("^/u/([a-z]+)/(.*)$", "/$2?user=$1").unwrap();
        assert_eq!(rewrite.apply("/u/ann/files"), "/files?user=ann");
        assert_eq!(Rewrite::regex("^/", "").unwrap().apply("/x"), "/x");
        assert!(Rewrite::regex("(", "").is_err());
    }
}
