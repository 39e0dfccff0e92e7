//! What of a ClientHello rustls knows and does not say. The groups that it has keys for already: a server that chooses
//! one of them answers at once, and one that chooses another asks again (HelloRetryRequest) and waits for a round trip.
//! And whether it comes with a session to resume, which spares a signature.

use std::borrow::Cow;

use rustls::NamedGroup;

/// Groups that are remembered; clients send keys for one to three.
const MAX: usize = 8;

const HANDSHAKE: u8 = 22;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
const TLS13: [u8; 2] = [3, 4];

/// What a client brings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Whether the client speaks TLS 1.3 at all.
    pub tls13: bool,
    /// Group codes; zero is none's.
    groups: [u16; MAX],
    /// Whether it has a ticket, which may or may not open.
    pub resumes: bool,
}

impl Offer {
    /// Reads the bytes of a ClientHello that rustls has accepted. Of one that is cut short, what is there counts.
    pub fn of(records: &[u8]) -> Self {
        let mut offer = Self::default();
        // The end of what is there ends the search.
        let _ = offer.fill(&message(records));
        offer
    }

    pub fn contains(&self, group: NamedGroup) -> bool {
        self.groups.contains(&u16::from(group))
    }

    /// RFC 8446, sections 4.1.2 and 4.2.8.
    fn fill(&mut self, message: &[u8]) -> Option<()> {
        let mut hello = Cursor(message);
        hello.take(1 + 3)?; // message type and length
        hello.take(2 + 32)?; // version and random
        hello.vector8()?; // session id
        hello.vector16()?; // cipher suites
        hello.vector8()?; // compression methods
        // Its length may reach beyond what is there.
        hello.take(2)?;
        loop {
            let kind = hello.number()?;
            let mut body = hello.vector16()?;
            match kind {
                SUPPORTED_VERSIONS => self.tls13 = body.vector8()?.0.chunks_exact(2).any(|version| version == TLS13),
                PRE_SHARED_KEY => self.resumes = true,
                // An empty one, in TLS 1.2, asks for a ticket.
                SESSION_TICKET => self.resumes |= !body.0.is_empty(),
                KEY_SHARE => self.add(body.vector16()?),
                _ => {}
            }
        }
    }

    fn add(&mut self, mut entries: Cursor<'_>) {
        for place in &mut self.groups {
            let (Some(group), Some(_)) = (entries.number(), entries.vector16()) else { return };
            *place = group;
        }
    }
}

/// The handshake message in its records, of which there is one nearly always.
fn message(records: &[u8]) -> Cow<'_, [u8]> {
    let mut rest = Cursor(records);
    let mut message = Cow::Borrowed(&[][..]);
    while let Some(&[HANDSHAKE, ..]) = rest.take(1 + 2) {
        let Some(length) = rest.number() else { break };
        let part = rest.up_to(length.into());
        if message.is_empty() {
            message = Cow::Borrowed(part);
        } else {
            message.to_mut().extend_from_slice(part);
        }
    }
    message
}

/// What has not been read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn up_to(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
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
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::{self, kx_group};
    use rustls::crypto::{CryptoProvider, SupportedKxGroup};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

    use super::*;

    /// What rustls sends as a client, whose first group it makes keys for.
    fn client(groups: &[&'static dyn SupportedKxGroup], versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
        let provider = CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), "a.test".try_into().unwrap()).unwrap();
        let mut records = Vec::new();
        client.write_tls(&mut records).unwrap();
        records
    }

    /// The same message in records of `length` bytes.
    fn cut(records: &[u8], length: usize) -> Vec<u8> {
        let parts = records[5..].chunks(length);
        parts.flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat()).collect()
    }

    #[test]
    fn the_shares_are_found_however_the_message_is_cut() {
        let records = client(&[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1], &[&TLS13]);
        for records in [cut(&records, 9), cut(&records, 700), records] {
            let offer = Offer::of(&records);
            assert!(offer.tls13);
            assert!(offer.contains(NamedGroup::X25519MLKEM768) && offer.contains(NamedGroup::X25519));
            assert!(!offer.contains(NamedGroup::secp256r1));
        }
    }

    #[test]
    fn tls_12_has_none() {
        let offer = Offer::of(&client(&[kx_group::X25519, kx_group::SECP256R1], &[&TLS12]));
        assert_eq!(offer, Offer::default());
    }

    #[test]
    fn no_prefix_and_no_garbage_makes_it_panic() {
        let records = client(&[kx_group::X25519], &[&TLS13, &TLS12]);
        for end in 0..records.len() {
            assert!(Offer::of(&records[..end]).groups.iter().filter(|group| **group != 0).count() <= 1);
            let mut wrong = records.clone();
            wrong[end] = !wrong[end];
            Offer::of(&wrong);
        }
    }
}
