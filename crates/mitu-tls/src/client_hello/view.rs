//! What a ClientHello says (RFC 8446, section 4.1.2), as far as decisions need it, where it lies.

use std::borrow::Cow;

use rustls::{CipherSuite, NamedGroup, SignatureScheme};
use rustls_pki_types::ServerName;

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
const RENEGOTIATION_INFO: u16 = 0xff01;

const HOST_NAME: u8 = 0;
const TLS13: u16 = 0x0304;

/// Key shares that are looked at; clients send one to three.
const SHARES: usize = 8;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ClientHello<'a> {
    /// A DNS name, in lower case (RFC 4343). An address in its place counts as none.
    pub server_name: Option<Cow<'a, str>>,
    alpn: Option<&'a [u8]>,
    suites: &'a [u8],
    schemes: &'a [u8],
    groups: &'a [u8],
    /// The groups that it has sent a key for: a server that chooses one of them answers at once, and one that chooses
    /// another asks again (HelloRetryRequest) and waits for a round trip. Zero is none's code.
    shares: [u16; SHARES],
    /// Whether the client speaks TLS 1.3 at all.
    pub tls13: bool,
    /// Whether it has a ticket, which may or may not open. One that does spares a signature.
    pub resumes: bool,
}

impl<'a> ClientHello<'a> {
    /// Reads the body of the handshake message; None, where it cannot be read. Whatever rustls accepts is read here, and
    /// means the same, but for a renegotiation's.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let mut hello = Self::default();
        let mut body = Reader(body);
        body.take(2 + 32)?; // version and random
        body.vector8()?; // session id
        hello.suites = body.vector16()?.0;
        body.vector8()?; // compression methods
        if body.0.is_empty() {
            return Some(hello);
        }
        let mut extensions = body.vector16()?;
        while !extensions.0.is_empty() {
            let kind = extensions.number()?;
            hello.extension(kind, extensions.vector16()?)?;
        }
        Some(hello)
    }

    fn extension(&mut self, kind: u16, mut body: Reader<'a>) -> Option<()> {
        match kind {
            SERVER_NAME => self.server_name = host_name(body.vector16()?),
            ALPN => {
                let names = body.vector16()?.0;
                let mut rest = Reader(names);
                while !rest.0.is_empty() {
                    rest.vector8().filter(|name| !name.0.is_empty())?;
                }
                self.alpn = Some(names);
            }
            SUPPORTED_GROUPS => self.groups = body.vector16()?.0,
            SIGNATURE_ALGORITHMS => self.schemes = body.vector16()?.0,
            SUPPORTED_VERSIONS => self.tls13 = contains(body.vector8()?.0, TLS13),
            PRE_SHARED_KEY => self.resumes = true,
            // An empty one, in TLS 1.2, asks for a ticket.
            SESSION_TICKET => self.resumes |= !body.0.is_empty(),
            // Nothing comes before a first handshake (RFC 5746, section 3.6), which rustls takes for granted.
            RENEGOTIATION_INFO => (body.0 == [0]).then_some(())?,
            KEY_SHARE => {
                let mut entries = body.vector16()?;
                for share in &mut self.shares {
                    let (Some(group), Some(_)) = (entries.number(), entries.vector16()) else { break };
                    *share = group;
                }
            }
            _ => {}
        }
        Some(())
    }

    /// The protocols that it offers; None: it has no ALPN extension.
    pub fn alpn(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let mut names = Reader(self.alpn?);
        Some(std::iter::from_fn(move || names.vector8().map(|name| name.0)))
    }

    pub fn has_suite(&self, suite: CipherSuite) -> bool {
        contains(self.suites, suite.into())
    }

    pub fn has_scheme(&self, scheme: SignatureScheme) -> bool {
        contains(self.schemes, scheme.into())
    }

    pub fn has_group(&self, group: NamedGroup) -> bool {
        contains(self.groups, group.into())
    }

    pub fn has_key_for(&self, group: NamedGroup) -> bool {
        self.shares.contains(&group.into())
    }
}

/// The one host name of the list. What rustls refuses in it is left to it.
fn host_name(mut list: Reader<'_>) -> Option<Cow<'_, str>> {
    let name = (list.take(1)? == [HOST_NAME]).then(|| list.vector16())??.0;
    let Ok(ServerName::DnsName(_)) = ServerName::try_from(name) else { return None };
    // The root's dot, which RFC 6066 does not allow, is no part of it.
    let name = str::from_utf8(name.strip_suffix(b".").unwrap_or(name)).ok()?;
    let lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if lower { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) })
}

/// Whether a list of numbers has this one.
fn contains(numbers: &[u8], number: u16) -> bool {
    numbers.chunks_exact(2).any(|one| one == number.to_be_bytes())
}

/// What has not been read yet.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = self.take(1)?[0];
        self.take(length.into()).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.number()?;
        self.take(length.into()).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
