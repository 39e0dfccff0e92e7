//! Early data (RFC 8446, section 2.3): what a client sends right behind its ClientHello, under the keys of a session
//! that it resumes. Until its handshake is done, whoever recorded it may be the one who sends it.

use tokio::sync::watch;

/// The most that a client may send on TCP, in bytes. QUIC has limits of its own for it.
pub const MAX_TCP: u32 = 16 * 1024;

/// What TLS in QUIC says of it, if anything (RFC 9001, section 4.6.1).
pub const IN_QUIC: u32 = u32::MAX;

/// Whether the client of a connection that began with early data has finished its handshake by now.
#[derive(Debug, Clone)]
pub struct EarlyData(watch::Receiver<bool>);

/// The end of the handshake, which tells.
#[derive(Debug, Default)]
pub struct Confirmation(watch::Sender<bool>);

impl EarlyData {
    pub fn is_confirmed(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for it. False: the connection has ended before.
    pub async fn confirmed(&self) -> bool {
        self.0.clone().wait_for(|confirmed| *confirmed).await.is_ok()
    }
}

impl Confirmation {
    /// What the client has sent is no replay.
    pub fn confirm(self) {
        self.0.send_replace(true);
    }

    pub fn early_data(&self) -> EarlyData {
        EarlyData(self.0.subscribe())
    }
}
