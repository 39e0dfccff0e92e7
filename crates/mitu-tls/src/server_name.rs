//! Server names (SNI, RFC 6066 §3): from the name in the ClientHello to the site that serves it.
//!
//! An exact name wins over a wildcard; `*.example.com` stands for one label in front of `example.com`.

use std::collections::HashMap;

use crate::config::SiteConfig;
use crate::error::TlsConfigError;

#[derive(Debug)]
pub struct ServerNameTable {
    exact: HashMap<Box<str>, usize>,
    /// By what follows the wildcard label: `.example.com`.
    wildcard: HashMap<Box<str>, usize>,
    default: Option<usize>,
}

impl ServerNameTable {
    /// `default`: index of the site for an unknown or missing name; none: such clients are refused.
    pub fn new(sites: &[SiteConfig], default: Option<usize>) -> Result<Self, TlsConfigError> {
        let mut table = Self { exact: HashMap::new(), wildcard: HashMap::new(), default };
        for (site, config) in sites.iter().enumerate() {
            for name in &config.names {
                let taken = match name.strip_prefix('*') {
                    Some(suffix) => table.wildcard.insert(suffix.into(), site),
                    None => table.exact.insert(name.as_str().into(), site),
                };
                if taken.is_some() {
                    return Err(TlsConfigError::DuplicateServerName(name.clone()));
                }
            }
        }
        Ok(table)
    }

    /// The index of the site for `name`, which must be lower case.
    pub fn find(&self, name: Option<&str>) -> Option<usize> {
        name.and_then(|name| self.named(name)).or(self.default)
    }

    /// The same, but none for a name that no site has.
    pub fn named(&self, name: &str) -> Option<usize> {
        let wildcard = || name.find('.').and_then(|dot| self.wildcard.get(&name[dot..]));
        self.exact.get(name).or_else(wildcard).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{AlpnMode, AlpnPolicy};

    fn site(names: &[&str]) -> SiteConfig {
        let alpn = AlpnPolicy { mode: AlpnMode::Lenient, protocols: vec![], no_alpn: None, ranking: None };
        SiteConfig { names: names.iter().map(ToString::to_string).collect(), certificates: vec![], alpn }
    }

    #[test]
    fn exact_then_wildcard_then_default() {
        let sites = [site(&["a.example.com"]), site(&["*.example.com"]), site(&["other.test"])];
        let table = ServerNameTable::new(&sites, Some(2)).unwrap();
        assert_eq!(table.find(Some("a.example.com")), Some(0));
        assert_eq!(table.find(Some("b.example.com")), Some(1));
        assert_eq!(table.find(Some("b.c.example.com")), Some(2));
        assert_eq!(table.find(Some("example.com")), Some(2));
        assert_eq!(table.find(None), Some(2));
    }

    #[test]
    fn without_a_default_unknown_names_are_refused() {
        let table = ServerNameTable::new(&[site(&["a.test"])], None).unwrap();
        assert_eq!(table.find(Some("b.test")), None);
        assert_eq!(table.find(None), None);
    }

    #[test]
    fn a_name_belongs_to_one_site() {
        let refused = ServerNameTable::new(&[site(&["a.test"]), site(&["a.test"])], None);
        assert!(matches!(refused, Err(TlsConfigError::DuplicateServerName(name)) if name == "a.test"));
    }
}
