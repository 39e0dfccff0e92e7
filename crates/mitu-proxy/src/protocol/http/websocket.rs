//! WebSocket's opening handshake, towards an h1 upstream, for a client of h2 or h3: there CONNECT stands in its place (RFC
//! 8441, section 5).

use aws_lc_rs::{digest, rand};
use data_encoding::BASE64;
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::{HeaderMap, HeaderValue};
use mitu_telemetry::http::Reason;

use super::validate::is_relayed;

/// What an endpoint that speaks WebSocket puts behind the key (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A handshake that this gateway has begun.
#[derive(Debug)]
pub struct Opening {
    accept: String,
}

impl Opening {
    /// Adds a key to a request, in the place of any that the client has sent.
    pub fn begin(headers: &mut HeaderMap) -> Result<Self, Reason> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| Reason::Internal)?;
        let key = BASE64.encode(&nonce);
        let accept = accept(key.as_bytes());
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).map_err(|_| Reason::Internal)?);
        Ok(Self { accept })
    }

    /// Whether the headers of a `101`, and its `Upgrade`, end the handshake well (RFC 6455, section 4.1). What is not for
    /// the client is removed.
    pub fn is_accepted(&self, headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) -> bool {
        headers.remove(CONTENT_LENGTH);
        let accept = headers.remove(SEC_WEBSOCKET_ACCEPT);
        upgrade.is_some_and(|upgrade| is_relayed(upgrade.as_bytes()))
            && accept.is_some_and(|accept| accept.as_bytes() == self.accept.as_bytes())
    }
}

fn accept(key: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    BASE64.encode(digest.as_ref())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_the_answer_to_its_own_key_is_accepted() {
        let mut request = HeaderMap::from_iter([(SEC_WEBSOCKET_KEY, HeaderValue::from_static("the client's"))]);
        let opening = Opening::begin(&mut request).unwrap();
        let keys: Vec<_> = request.get_all(SEC_WEBSOCKET_KEY).iter().collect();
        assert_eq!(keys.len(), 1);
        let right = accept(keys[0].as_bytes());
        let websocket = HeaderValue::from_static("WebSocket");
        let answered = |accept: Option<&str>, upgrade: Option<&HeaderValue>| {
            let accept = accept.map(|accept| (SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(accept).unwrap()));
            let mut headers = HeaderMap::from_iter(accept);
            let accepted = opening.is_accepted(&mut headers, upgrade);
            assert!(headers.is_empty());
            accepted
        };
        assert!(answered(Some(&right), Some(&websocket)));
        assert!(!answered(Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), Some(&websocket)));
        assert!(!answered(None, Some(&websocket)));
        assert!(!answered(Some(&right), None));
        assert!(!answered(Some(&right), Some(&HeaderValue::from_static("h2c"))));
    }
}
