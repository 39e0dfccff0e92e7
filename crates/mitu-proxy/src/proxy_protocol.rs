//! PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt): read from trusted peers, written to upstreams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mitu_tls::handshake::HandshakeError;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connection::Connection;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_LOCAL: u8 = 0x20;
const VERSION_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Type-length-value entries, section 2.2.
mod tlv {
    pub const ALPN: u8 = 0x01;
    pub const AUTHORITY: u8 = 0x02;
    pub const SSL: u8 = 0x20;
    pub const SSL_VERSION: u8 = 0x21;
    pub const SSL_CN: u8 = 0x22;
    pub const SSL_CIPHER: u8 = 0x23;
    pub const CLIENT_SSL: u8 = 0x01;
    pub const CLIENT_CERT_CONN: u8 = 0x02;
    pub const CLIENT_CERT_SESS: u8 = 0x04;
}

/// Longest header accepted, addresses and TLVs together.
const MAX_BODY: usize = 4096;

/// The two ends of a connection as its first gateway saw them.
#[derive(Debug, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Reads one header and not a byte more. None: a LOCAL header (a health check), whose own addresses count.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Addresses>, HandshakeError> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).await?;
    if head[..12] != SIGNATURE {
        return Err(HandshakeError::ProxyProtocol("no version 2 signature"));
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > MAX_BODY {
        return Err(HandshakeError::ProxyProtocol("too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    match (head[12], head[13]) {
        (VERSION_LOCAL, _) => Ok(None),
        (VERSION_PROXY, TCP_OVER_IPV4) => addresses::<4, Ipv4Addr>(&body).map(Some),
        (VERSION_PROXY, TCP_OVER_IPV6) => addresses::<16, Ipv6Addr>(&body).map(Some),
        (VERSION_PROXY, _) => Err(HandshakeError::ProxyProtocol("neither TCP over IPv4 nor over IPv6")),
        _ => Err(HandshakeError::ProxyProtocol("neither LOCAL nor PROXY")),
    }
}

/// Both addresses, then both ports; TLVs may follow.
fn addresses<const N: usize, Ip: From<[u8; N]> + Into<IpAddr>>(body: &[u8]) -> Result<Addresses, HandshakeError> {
    let cut_short = || HandshakeError::ProxyProtocol("addresses cut short");
    let (source, rest) = body.split_first_chunk::<N>().ok_or_else(cut_short)?;
    let (destination, rest) = rest.split_first_chunk::<N>().ok_or_else(cut_short)?;
    let ports = rest.first_chunk::<4>().ok_or_else(cut_short)?;
    let address = |ip: [u8; N], high, low| SocketAddr::new(Ip::from(ip).into(), u16::from_be_bytes([high, low]));
    Ok(Addresses {
        source: address(*source, ports[0], ports[1]),
        destination: address(*destination, ports[2], ports[3]),
    })
}

/// The header that tells an upstream whose connection this is: addresses, ALPN, server name, and TLS.
pub fn header(connection: &Connection) -> Vec<u8> {
    let mut body = Vec::with_capacity(160);
    let family = match (connection.peer, connection.local) {
        (SocketAddr::V4(peer), SocketAddr::V4(local)) => {
            body.extend_from_slice(&peer.ip().octets());
            body.extend_from_slice(&local.ip().octets());
            TCP_OVER_IPV4
        }
        (peer, local) => {
            body.extend_from_slice(&v6(peer).octets());
            body.extend_from_slice(&v6(local).octets());
            TCP_OVER_IPV6
        }
    };
    body.extend_from_slice(&connection.peer.port().to_be_bytes());
    body.extend_from_slice(&connection.local.port().to_be_bytes());
    push(&mut body, tlv::ALPN, connection.alpn.as_bytes());
    if let Some(name) = &connection.server_name {
        push(&mut body, tlv::AUTHORITY, name.as_bytes());
    }
    push(&mut body, tlv::SSL, &ssl(connection));

    let mut header = Vec::with_capacity(16 + body.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[VERSION_PROXY, family]);
    header.extend_from_slice(&(body.len() as u16).to_be_bytes());
    header.extend_from_slice(&body);
    header
}

fn ssl(connection: &Connection) -> Vec<u8> {
    let mut client = tlv::CLIENT_SSL;
    if connection.identity.is_some() {
        client |= tlv::CLIENT_CERT_SESS;
        if !connection.resumed {
            client |= tlv::CLIENT_CERT_CONN;
        }
    }
    // A certificate that is here was verified; without one the specification wants non-zero.
    let verify = u32::from(connection.identity.is_none());
    let mut ssl = vec![client];
    ssl.extend_from_slice(&verify.to_be_bytes());
    push(&mut ssl, tlv::SSL_VERSION, connection.version.as_bytes());
    push(&mut ssl, tlv::SSL_CIPHER, connection.cipher.as_bytes());
    if let Some(name) = connection.identity.as_ref().and_then(|identity| identity.common_name.as_ref()) {
        push(&mut ssl, tlv::SSL_CN, name.as_bytes());
    }
    ssl
}

/// Appends one entry; a value is cut at what keeps the header far below its 16-bit length.
fn push(into: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = &value[..value.len().min(1024)];
    into.push(kind);
    into.extend_from_slice(&(value.len() as u16).to_be_bytes());
    into.extend_from_slice(value);
}

fn v6(address: SocketAddr) -> Ipv6Addr {
    match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mitu_tls::handshake::Reason;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn reads_the_source_and_nothing_beyond() {
        let mut v4 = header(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x01, 0xbb, 0xee, 0, 1, 9]);
        v4.extend_from_slice(b"\x16\x03\x01");
        let mut stream = &v4[..];
        let both = |source: &str, destination: &str| {
            Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
        };
        assert_eq!(read(&mut stream).await.unwrap(), both("192.0.2.7:8080", "10.0.0.1:443"));
        assert_eq!(stream, b"\x16\x03\x01");
        let v6 = header(0x21, 0x21, &[&[0x20, 1, 0xd, 0xb8][..], &[0; 28], &[0, 80, 1, 187]].concat());
        assert_eq!(read(&mut &v6[..]).await.unwrap(), both("[2001:db8::]:80", "[::]:443"));
    }

    #[tokio::test]
    async fn local_keeps_the_connections_own_address() {
        assert_eq!(read(&mut &header(0x20, 0, &[])[..]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn malformed_headers_are_errors() {
        let bad: [Vec<u8>; 5] = [
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
            header(0x21, 0x11, &[1, 2, 3]),
            header(0x21, 0x31, &[0; 216]),
            header(0x22, 0x11, &[0; 12]),
            header(0x21, 0x11, &vec![0; MAX_BODY + 1]),
        ];
        for header in bad {
            assert_eq!(read(&mut &header[..]).await.unwrap_err().reason(), Reason::ProxyProtocol, "{header:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_within_one_has_closed() {
        let header = header(0x21, 0x11, &[0; 12]);
        for end in [0, 7, 16, 20] {
            assert_eq!(read(&mut &header[..end]).await.unwrap_err().reason(), Reason::ClientClosed);
        }
    }
}
