//! Which group the keys are exchanged in: rustls takes the client's first, this one what costs the least of what the
//! client can do at once (docs/adr/0005).

use rustls::NamedGroup;
use rustls::crypto::SupportedKxGroup;

use crate::client_hello::ClientHello;
use crate::config::PostQuantum;

/// X25519 with ML-KEM-768, for TLS 1.3 alone.
const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;

/// The groups of a policy, most preferred first.
#[derive(Debug)]
pub struct Groups {
    pub all: Vec<&'static dyn SupportedKxGroup>,
    post_quantum: PostQuantum,
    tls13: bool,
}

impl Groups {
    /// `tls13`: whether the policy allows it.
    pub fn new(all: Vec<&'static dyn SupportedKxGroup>, post_quantum: PostQuantum, tls13: bool) -> Self {
        Self { all, post_quantum, tls13 }
    }

    /// The place of the group to use with a client. Where nothing fits it is the first, and rustls says so to the client.
    ///
    /// What the client has sent a key for comes before what it has not: asking for another key takes a round trip. The
    /// hybrid is worth that to those who `prefer` it only.
    pub fn choose(&self, hello: &ClientHello<'_>) -> usize {
        let tls13 = self.tls13 && hello.tls13;
        let rank = |name: NamedGroup| match (name == HYBRID, tls13) {
            (true, false) => None,
            (true, true) if self.post_quantum == PostQuantum::Prefer => Some(0),
            (_, true) if hello.has_key_for(name) => Some(1),
            (false, _) => Some(2),
            (true, true) => Some(3),
        };
        let fitting = self.all.iter().enumerate().filter(|(_, group)| hello.has_group(group.name()));
        let ranked = fitting.filter_map(|(at, group)| Some((rank(group.name())?, at)));
        ranked.min().map_or(0, |(_, at)| at)
    }

    /// Whether the client is asked for another key (HelloRetryRequest).
    pub fn retries(&self, chosen: usize, hello: &ClientHello<'_>) -> bool {
        self.tls13 && hello.tls13 && !hello.has_key_for(self.all[chosen].name())
    }
}

/// `groups` with the cheapest first. The hybrid costs more than X25519, but who sends a key for it, twenty times the
/// size of others, wants it.
pub fn cheapest_first(mut groups: Vec<&'static dyn SupportedKxGroup>) -> Vec<&'static dyn SupportedKxGroup> {
    groups.sort_by_key(|group| match group.name() {
        HYBRID => 0,
        NamedGroup::X25519 => 1,
        NamedGroup::secp256r1 => 2,
        NamedGroup::secp384r1 => 3,
        _ => 4,
    });
    groups
}

/// Whether a policy of `setting` has a use for this group.
pub fn is_allowed(group: NamedGroup, setting: PostQuantum) -> bool {
    group != HYBRID || setting != PostQuantum::Off
}
