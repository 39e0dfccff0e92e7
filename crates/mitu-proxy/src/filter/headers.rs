//! Headers that belong to one connection (RFC 9110, section 7.6.1), and the changes a route makes to the others.

use http::header::{self, Entry};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::HeaderOps;
use crate::router::BuildError;

/// Names that a filter must not touch: they frame the message or belong to the connection.
const RESERVED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Compiled [`HeaderOps`].
#[derive(Debug)]
pub struct HeaderChanges {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderChanges {
    pub fn build(ops: &HeaderOps) -> Result<Self, BuildError> {
        let pairs = |pairs: &[(String, String)]| {
            pairs
                .iter()
                .map(|(name, value)| Ok((changeable(name)?, parse_value(name, value)?)))
                .collect::<Result<Vec<_>, BuildError>>()
        };
        Ok(Self {
            remove: ops.remove.iter().map(|name| changeable(name)).collect::<Result<_, _>>()?,
            set: pairs(&ops.set)?,
            add: pairs(&ops.add)?,
        })
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

fn changeable(name: &str) -> Result<HeaderName, BuildError> {
    let name = parse_name(name)?;
    match RESERVED.contains(&name.as_str()) {
        true => Err(BuildError::ReservedHeader(name.as_str().to_owned())),
        false => Ok(name),
    }
}

pub fn parse_name(name: &str) -> Result<HeaderName, BuildError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| BuildError::HeaderName(name.to_owned()))
}

pub fn parse_value(name: &str, value: &str) -> Result<HeaderValue, BuildError> {
    HeaderValue::from_str(value).map_err(|_| BuildError::HeaderValue(name.to_owned()))
}

/// What a message's connection headers asked for, before they were removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// `TE` lists `trailers`.
    pub te_trailers: bool,
    /// The `Upgrade` header, where `Connection` nominates it.
    pub upgrade: Option<HeaderValue>,
    /// What else it nominates: none of that may come in trailers either.
    pub nominated: Vec<HeaderName>,
}

/// Removes the headers that belong to the connection, those that `Connection` nominates among them.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Hop {
    let mut present = Present::default();
    for name in headers.keys() {
        match name.as_str() {
            "connection" => present.connection = true,
            "te" => present.te = true,
            "upgrade" => present.upgrade = true,
            "keep-alive" | "proxy-connection" | "transfer-encoding" | "http2-settings" => present.others = true,
            _ => {}
        }
    }
    let mut hop = Hop::default();
    if present.te {
        hop.te_trailers = headers
            .get_all(header::TE)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        headers.remove(header::TE);
    }
    if present.connection {
        let nominates_upgrade = strip_nominated(headers, &mut hop.nominated);
        if nominates_upgrade && present.upgrade {
            hop.upgrade = headers.get(header::UPGRADE).cloned();
        }
    }
    if present.upgrade {
        headers.remove(header::UPGRADE);
    }
    if present.others {
        for name in ["keep-alive", "proxy-connection", "transfer-encoding", "http2-settings"] {
            headers.remove(name);
        }
    }
    hop
}

#[derive(Default)]
struct Present {
    connection: bool,
    te: bool,
    upgrade: bool,
    others: bool,
}

/// Removes `Connection` and what it nominates; tells whether that includes `Upgrade`.
fn strip_nominated(headers: &mut HeaderMap, nominated: &mut Vec<HeaderName>) -> bool {
    let mut upgrade = false;
    let Entry::Occupied(connection) = headers.entry(header::CONNECTION) else { return false };
    let (_, values) = connection.remove_entry_mult();
    let values: Vec<HeaderValue> = values.collect();
    for token in values.iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b',')) {
        let token = token.trim_ascii();
        if token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive") {
            continue;
        }
        if token.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
            continue;
        }
        // Fields that the message cannot do without are not the client's to take away.
        if let Ok(name) = HeaderName::from_bytes(token)
            && name != header::HOST
            && name != header::CONTENT_LENGTH
            && name != header::TE
            && !super::forwarded::claims_proxy(&name)
        {
            headers.remove(&name);
            nominated.push(name);
        }
    }
    upgrade
}

/// Whether a trailer field may be passed on (RFC 9110, section 6.5.1): not framing, routing, or the connection's.
pub fn allowed_in_trailers(name: &HeaderName) -> bool {
    !RESERVED.contains(&name.as_str())
        && !matches!(name.as_str(), "authorization" | "cookie" | "set-cookie" | "content-type" | "content-encoding")
        && !super::forwarded::claims_proxy(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (parse_name(name).unwrap(), parse_value(name, value).unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn connection_headers_are_removed() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "keep-alive, X-Secret , Content-Length, Host"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
            ("x-secret", "1"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        let hop = strip_hop_by_hop(&mut headers);
        assert_eq!(
            hop,
            Hop { te_trailers: true, upgrade: None, nominated: vec![HeaderName::from_static("x-secret")] }
        );
        let mut left = names(&headers);
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn an_upgrade_must_be_nominated() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut headers).upgrade.unwrap(), "websocket");
        assert!(headers.is_empty());
        assert_eq!(strip_hop_by_hop(&mut map(&[("upgrade", "websocket")])).upgrade, None);
    }

    #[test]
    fn nominations_in_every_connection_header_count() {
        let mut headers =
            map(&[("connection", "x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["x-c"]);
    }

    #[test]
    fn changes_remove_then_set_then_add() {
        let changes = HeaderChanges::build(&HeaderOps {
            remove: vec!["X-A".into()],
            set: vec![("x-b".into(), "2".into())],
            add: vec![("x-a".into(), "3".into()), ("x-a".into(), "4".into())],
        })
        .unwrap();
        let mut headers = map(&[("x-a", "1"), ("x-b", "1"), ("x-b", "1")]);
        changes.apply(&mut headers);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["3", "4"]);
        assert_eq!(headers.get_all("x-b").iter().collect::<Vec<_>>(), ["2"]);
    }

    #[test]
    fn framing_cannot_be_changed_by_a_filter() {
        for name in RESERVED.iter().chain(["Content-Length", "HOST"].iter()) {
            let ops = HeaderOps { remove: vec![(*name).to_owned()], ..HeaderOps::default() };
            assert!(matches!(HeaderChanges::build(&ops), Err(BuildError::ReservedHeader(_))), "{name}");
        }
    }

    #[test]
    fn trailers_carry_no_routing() {
        for (name, allowed) in [
            ("grpc-status", true),
            ("x-checksum", true),
            ("content-length", false),
            ("host", false),
            ("x-client-verified", false),
            ("x_forwarded_for", false),
            ("set-cookie", false),
        ] {
            assert_eq!(allowed_in_trailers(&parse_name(name).unwrap()), allowed, "{name}");
        }
    }
}
