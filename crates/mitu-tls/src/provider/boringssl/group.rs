//! Key exchange groups.

use std::sync::LazyLock;

use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};

/// All there are, in the order that AWS-LC's have in rustls.
pub fn groups() -> &'static [&'static dyn SupportedKxGroup] {
    static GROUPS: LazyLock<Vec<&'static dyn SupportedKxGroup>> = LazyLock::new(|| {
        let known = boring_rustls_provider::provider().kx_groups;
        let order = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1, NamedGroup::X25519MLKEM768];
        let named = order.into_iter().filter_map(|name| known.iter().find(|group| group.name() == name).copied());
        named.map(uncompressed).collect()
    });
    &GROUPS
}

fn uncompressed(group: &'static dyn SupportedKxGroup) -> &'static dyn SupportedKxGroup {
    match group.name() {
        NamedGroup::secp256r1 | NamedGroup::secp384r1 => Box::leak(Box::new(Uncompressed(group))),
        _ => group,
    }
}

/// A curve on which only the uncompressed encoding of a point is taken (RFC 8446 §4.2.8.2), of all that BoringSSL reads.
#[derive(Debug)]
struct Uncompressed(&'static dyn SupportedKxGroup);

impl SupportedKxGroup for Uncompressed {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Active(self.0.start()?)))
    }

    fn start_and_complete(&self, peer: &[u8]) -> Result<CompletedKeyExchange, Error> {
        check(peer)?;
        self.0.start_and_complete(peer)
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        self.0.usable_for_version(version)
    }
}

struct Active(Box<dyn ActiveKeyExchange>);

impl ActiveKeyExchange for Active {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        check(peer)?;
        self.0.complete(peer)
    }

    fn pub_key(&self) -> &[u8] {
        self.0.pub_key()
    }

    fn group(&self) -> NamedGroup {
        self.0.group()
    }
}

fn check(point: &[u8]) -> Result<(), Error> {
    const UNCOMPRESSED: u8 = 4;
    match point.first() {
        Some(&UNCOMPRESSED) => Ok(()),
        _ => Err(PeerMisbehaved::InvalidKeyShare.into()),
    }
}
