//! One connection in QUIC, and GETs over HTTP/3 on it (RFC 9114), written out by hand: one stream at a time, and no table.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, SendStream, TransportConfig};
use rustls::ClientConfig;

use crate::error::LoadError;
use crate::protocol::{Answer, one_byte_length};
use crate::target::Target;

pub const ALPN: &[u8] = b"h3";

const DATA: u64 = 0x00;
const HEADERS: u64 = 0x01;
const NO_ERROR: u32 = 0x100;

/// A control stream's type, and SETTINGS that allow nothing beyond the protocol itself.
const CONTROL: &[u8] = &[0x00, 0x04, 0x00];

/// The most that a response may take.
const RESPONSE_LIMIT: usize = 64 << 20;

pub struct Client {
    connection: Connection,
    /// The protocol ends with it.
    _control: SendStream,
}

/// The socket that a target's connections share: to the server, each is a client of its own all the same.
pub fn endpoint(server: SocketAddr) -> io::Result<Endpoint> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Endpoint::client(SocketAddr::new(any, 0))
}

impl Client {
    pub async fn open(target: &Target, tls: &Arc<ClientConfig>) -> Result<Self, LoadError> {
        let config = QuicClientConfig::try_from(tls.clone()).map_err(|error| LoadError::Usage(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(config));
        // How long a connection may be idle is the server's to say.
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(None);
        config.transport_config(Arc::new(transport));
        let connecting = target.endpoint()?.connect_with(config, target.address, &target.server_name.to_str());
        let connecting = connecting.map_err(|error| LoadError::Handshake(io::Error::other(error)))?;
        let connection = connecting.await.map_err(|error| LoadError::Handshake(error.into()))?;
        let mut control = connection.open_uni().await?;
        control.write_all(CONTROL).await.map_err(io::Error::from)?;
        Ok(Self { connection, _control: control })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, LoadError> {
        let (mut send, mut receive) = self.connection.open_bi().await?;
        send.write_all(&request(host, path)?).await.map_err(io::Error::from)?;
        send.finish().map_err(|_| LoadError::Closed)?;
        let response = receive.read_to_end(RESPONSE_LIMIT).await.map_err(|_| LoadError::Closed)?;
        Ok(Answer { status: read(&response)?, reusable: true })
    }

    /// Until the server closes.
    pub async fn hold(&self) {
        self.connection.closed().await;
    }

    pub fn close(self) {
        self.connection.close(NO_ERROR.into(), b"");
    }
}

impl From<ConnectionError> for LoadError {
    fn from(error: ConnectionError) -> Self {
        Self::Io(error.into())
    }
}

/// `GET https://host/path`: indexed fields of the static table, and literals with a name of it (RFC 9204, section 4.5).
fn request(host: &str, path: &str) -> Result<Vec<u8>, LoadError> {
    const PREFIX: [u8; 2] = [0, 0];
    const METHOD_GET: u8 = 0xc0 | 17;
    const SCHEME_HTTPS: u8 = 0xc0 | 23;
    const AUTHORITY: u8 = 0x50;
    const PATH: u8 = 0x51;
    let mut section = [PREFIX.as_slice(), &[METHOD_GET, SCHEME_HTTPS]].concat();
    for (name, value) in [(AUTHORITY, host), (PATH, path)] {
        section.extend_from_slice(&[name, one_byte_length(value)?]);
        section.extend_from_slice(value.as_bytes());
    }
    let length = u16::try_from(section.len()).unwrap_or(u16::MAX) | 0x4000;
    Ok([&[HEADERS as u8], length.to_be_bytes().as_slice(), &section].concat())
}

/// The status of a whole response.
fn read(mut response: &[u8]) -> Result<u16, LoadError> {
    let mut found = 0;
    while !response.is_empty() {
        let kind = number(&mut response)?;
        let length = usize::try_from(number(&mut response)?).unwrap_or(usize::MAX);
        let (payload, rest) = response.split_at_checked(length).ok_or(LoadError::Closed)?;
        response = rest;
        match kind {
            // Interim responses come before the one that was asked for, trailers behind it.
            HEADERS if found < 200 => found = status(payload)?,
            DATA if found < 200 => return Err(LoadError::Protocol("a body without a head")),
            _ => {}
        }
    }
    if found < 200 { Err(LoadError::Closed) } else { Ok(found) }
}

/// A number as QUIC writes it (RFC 9000, section 16).
fn number(from: &mut &[u8]) -> Result<u64, LoadError> {
    let first = *from.first().ok_or(LoadError::Closed)?;
    let (bytes, rest) = from.split_at_checked(1 << (first >> 6)).ok_or(LoadError::Closed)?;
    *from = rest;
    Ok(bytes[1..].iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte)))
}

/// `:status`, which must be the section's first field.
fn status(section: &[u8]) -> Result<u16, LoadError> {
    let found = match section.get(2..) {
        Some([index, ..]) if index & 0xc0 == 0xc0 => indexed(*index & 0x3f, &section[3..]),
        // A literal with the name of one of the entries that are `:status`: 24 to 28, or 63 to 71.
        Some([0x5f | 0x7f, 9..=13 | 48..=56, 3, value @ ..]) => {
            value.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        }
        _ => None,
    };
    found.ok_or(LoadError::Protocol("the field section does not begin with a status"))
}

/// The entries of the static table that are a `:status` (RFC 9204, appendix A).
fn indexed(index: u8, rest: &[u8]) -> Option<u16> {
    const LOW: [u16; 5] = [103, 200, 304, 404, 503];
    const HIGH: [u16; 9] = [100, 204, 206, 302, 400, 403, 421, 425, 500];
    match index {
        24..=28 => Some(LOW[usize::from(index - 24)]),
        // An index of more than six bits goes on in the next byte.
        63 => HIGH.get(usize::from(*rest.first()?)).copied(),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_to_its_status() {
        let interim = [0x01, 0x04, 0, 0, 0xff, 0x00];
        let head = [0x01, 0x03, 0, 0, 0xc0 | 25];
        let body = [0x00, 0x40, 0x02, b'o', b'k'];
        assert_eq!(read(&[interim.as_slice(), &head, &body].concat()).unwrap(), 200);
        assert_eq!(read(&[0x01, 0x04, 0, 0, 0xff, 0x04]).unwrap(), 400);
        assert_eq!(read(&[0x01, 0x08, 0, 0, 0x5f, 9, 3, b'4', b'2', b'9']).unwrap(), 429);
        assert_eq!(read(&[0x01, 0x08, 0, 0, 0xd1]).unwrap_err().kind(), "closed");
        assert_eq!(read(&[0x01, 0x03, 0, 0, 0xd1]).unwrap_err().kind(), "protocol");
        assert_eq!(read(&interim).unwrap_err().kind(), "closed");
    }

    #[test]
    fn a_request_is_a_frame_of_known_length() {
        let frame = request("h", "/").unwrap();
        assert_eq!(frame, [1, 0x40, 10, 0, 0, 0xd1, 0xd7, 0x50, 1, b'h', 0x51, 1, b'/']);
        assert_eq!(request("h", &"x".repeat(127)).unwrap_err().kind(), "usage");
    }
}
