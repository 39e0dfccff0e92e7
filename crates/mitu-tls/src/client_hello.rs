//! Reads the ClientHello, and no byte more than its flight, before any decision is made.
//!
//! rustls parses it again when it answers, and checks what decisions do not need: only what it accepts is ever served.
//! Its own way to look at a ClientHello first, `Acceptor`, makes a whole connection for that, with 4 KiB of buffers.

mod message;
mod view;

use std::pin::pin;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub use view::ClientHello;

use crate::handshake::HandshakeError;
use message::{Message, Progress};

/// Bytes read at once: more than nearly all clients send.
const READ: usize = 4 * 1024;

/// A ClientHello as it came, or what is none.
#[derive(Debug)]
pub struct Hello {
    /// For the connection that answers it.
    pub records: Vec<u8>,
    message: Message,
}

impl Hello {
    /// What it says; None, when it is malformed: [`crate::handshake::refuse_malformed`] says how.
    pub fn view(&self) -> Option<ClientHello<'_>> {
        ClientHello::parse(self.message.body()?)
    }
}

/// Waits for the whole ClientHello, 64 KiB at most, or for what cannot be one. The caller bounds the time.
///
/// `unless`: resolves when a client that has not sent a byte of it yet is not waited for any longer.
pub async fn read(tcp: &mut TcpStream, unless: impl Future<Output = HandshakeError>) -> Result<Hello, HandshakeError> {
    let mut unless = pin!(unless);
    let mut records = Vec::with_capacity(READ);
    let mut message = Message::default();
    while message.advance(&records) == Progress::Waits {
        let begun = !records.is_empty();
        records.reserve(READ);
        let read = tokio::select! {
            biased;
            read = tcp.read_buf(&mut records) => read?,
            error = &mut unless, if !begun => return Err(error),
        };
        if read == 0 {
            return Err(HandshakeError::Closed);
        }
    }
    Ok(Hello { records, message })
}
