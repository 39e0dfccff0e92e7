//! Reads the ClientHello, and no byte more than its flight, before any decision is made.
//!
//! rustls parses it again when it answers, and checks what decisions do not need: only what it accepts is ever served.
//! Its own way to look at a ClientHello first, `Acceptor`, makes a whole connection for that, with 4 KiB of buffers.

mod message;
mod view;

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

pub use view::ClientHello;

use crate::handshake::HandshakeError;
use message::{Message, Progress};

/// Bytes read at once: more than nearly all clients send.
const READ: usize = 4 * 1024;

/// A ClientHello as it came, or what is none.
#[derive(Debug)]
pub struct Hello {
    records: Vec<u8>,
    message: Message,
}

impl Hello {
    /// What it says; None, when it is malformed: [`crate::handshake::refuse_malformed`] says how.
    pub fn view(&self) -> Option<ClientHello<'_>> {
        ClientHello::parse(self.message.body()?)
    }

    /// For the connection that answers it, or says what is wrong with it.
    pub fn into_records(self) -> Vec<u8> {
        self.records
    }
}

/// Waits for the whole ClientHello, 64 KiB at most, or for what cannot be one. The caller bounds the time.
///
/// `unless`: resolves when a client that has not sent a byte of it yet is not waited for any longer.
pub async fn read(tcp: &mut TcpStream, unless: impl Future<Output = HandshakeError>) -> Result<Hello, HandshakeError> {
    let mut unless = pin!(unless);
    let (mut records, mut message) = (Vec::new(), Message::default());
    while message.advance(&records) == Progress::Waits {
        let read = poll_fn(|context| match poll_read(tcp, context, &mut records) {
            Poll::Pending if records.is_empty() => unless.as_mut().poll(context).map(Err),
            read => read,
        });
        if read.await? == 0 {
            return Err(HandshakeError::Closed);
        }
    }
    Ok(Hello { records, message })
}

/// Reads once, and keeps no more room than what has come takes: in a storm, many wait with it.
fn poll_read(
    tcp: &mut TcpStream,
    context: &mut Context<'_>,
    records: &mut Vec<u8>,
) -> Poll<Result<usize, HandshakeError>> {
    let mut room = [const { MaybeUninit::uninit() }; READ];
    let mut read = ReadBuf::uninit(&mut room);
    ready!(Pin::new(tcp).poll_read(context, &mut read))?;
    records.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}
