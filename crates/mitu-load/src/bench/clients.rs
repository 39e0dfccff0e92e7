//! Who connects: clients with different ALPN lists, some of which resume a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ClientConfig;
use rustls::client::Resumption;

use super::plan::Tls;
use crate::error::LoadError;
use crate::tls::{Gathering, Tickets};

/// Shares are exact, not drawn: of any hundred connections in a row 30 are those of a share of 0.3.
pub struct Clients {
    kinds: Vec<Kind>,
    total: u64,
    next: AtomicU64,
}

/// The clients of one ALPN list.
struct Kind {
    weight: u64,
    full: Arc<ClientConfig>,
    resuming: Arc<ClientConfig>,
    /// Makes full handshakes for the tickets that `resuming` uses.
    gathering: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
    share: f64,
    next: AtomicU64,
}

impl Clients {
    pub fn new(tls: &Tls) -> Result<Self, LoadError> {
        let mut kinds = Vec::new();
        for list in tls.alpn.iter().filter(|list| list.weight > 0) {
            let tickets = Arc::new(Tickets::default());
            let resuming = tls.offer.config(&list.names, Resumption::store(tickets.clone()))?;
            // A copy, since sessions are good for the verifier only that they were made with.
            let mut gathering = ClientConfig::clone(&resuming);
            gathering.resumption = Resumption::store(Arc::new(Gathering(tickets.clone())));
            kinds.push(Kind {
                weight: list.weight.into(),
                full: tls.offer.config(&list.names, Resumption::disabled())?,
                resuming,
                gathering: Arc::new(gathering),
                tickets,
                share: tls.resumed,
                next: AtomicU64::new(0),
            });
        }
        let total = kinds.iter().map(|kind| kind.weight).sum();
        Ok(Self { kinds, total, next: AtomicU64::new(0) })
    }

    /// The next client's configuration.
    pub fn next(&self) -> Option<&Arc<ClientConfig>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut at = number.checked_rem(self.total)?;
        for kind in &self.kinds {
            match at.checked_sub(kind.weight) {
                Some(rest) => at = rest,
                None => return Some(kind.next()),
            }
        }
        None
    }

    /// Configurations that get tickets before `connections`, and how many. `again`: another connection follows
    /// each, with the ticket that it got; then all that are under way at one moment may resume, whatever the share.
    pub fn tickets(&self, connections: usize, again: bool) -> Vec<(Arc<ClientConfig>, Arc<Tickets>, usize)> {
        let wanted = |kind: &Kind| {
            let share = if again { 1.0 } else { kind.share };
            let own = connections as f64 * kind.weight as f64 / self.total as f64 * share;
            (kind.gathering.clone(), kind.tickets.clone(), own.ceil() as usize)
        };
        self.kinds.iter().filter(|kind| kind.share > 0.0).map(wanted).collect()
    }
}

impl Kind {
    fn next(&self) -> &Arc<ClientConfig> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) as f64;
        let resumes = ((number + 1.0) * self.share).floor() > (number * self.share).floor();
        if resumes { &self.resuming } else { &self.full }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::plan::AlpnList;
    use super::*;
    use crate::tls::Offer;

    #[test]
    fn shares_are_exact() {
        let list = |name: &str, weight| AlpnList { names: vec![name.to_owned()], weight };
        let alpn = vec![list("h2", 7), list("never", 0), list("mqtt", 3)];
        let clients = Clients::new(&Tls { offer: Offer::default(), alpn, resumed: 0.5 }).unwrap();
        let mut h2 = 0;
        let mut resuming = 0;
        for _ in 0..100 {
            let config = clients.next().unwrap();
            h2 += usize::from(config.alpn_protocols == [b"h2"]);
            resuming += usize::from(clients.kinds.iter().any(|kind| Arc::ptr_eq(config, &kind.resuming)));
        }
        assert_eq!((h2, resuming), (70, 50));
        let wanted = |again| clients.tickets(100, again).iter().map(|(_, _, count)| *count).collect::<Vec<_>>();
        assert_eq!((wanted(false), wanted(true)), (vec![35, 15], vec![70, 30]));
    }
}
