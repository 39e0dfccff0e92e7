//! Reads the ClientHello, and no byte more than its flight, before any decision is made.

mod offer;

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

pub use offer::Offer;

use crate::handshake::HandshakeError;

/// A ClientHello, whole.
pub struct Hello {
    /// As rustls has read it, to decide by.
    pub accepted: Accepted,
    pub offer: Offer,
    /// As it came, for the connection that answers it.
    pub bytes: Vec<u8>,
}

/// Waits for the whole ClientHello. rustls bounds its size (64 KiB); the caller bounds the time.
///
/// `unless`: resolves when a client that has not sent a byte of it yet is not waited for any longer.
pub async fn read(tcp: &mut TcpStream, unless: impl Future<Output = HandshakeError>) -> Result<Hello, HandshakeError> {
    let mut unless = pin!(unless);
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    loop {
        let read = poll_fn(|context| {
            let read = acceptor.read_tls(&mut Arrived { tcp, context, bytes: &mut bytes });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !bytes.is_empty() => Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => unless.as_mut().poll(context).map(Err),
                read => Poll::Ready(read.map_err(HandshakeError::from)),
            }
        });
        if read.await? == 0 {
            return Err(HandshakeError::Closed);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello { accepted, offer: Offer::of(&bytes), bytes }),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write_all(&mut bytes)?;
                tcp.write_all(&bytes).await?;
                return Err(HandshakeError::Tls(error));
            }
        }
    }
}

/// What has arrived on a socket, which is kept in `bytes` as well. `WouldBlock`: nothing yet, and the task will be woken.
struct Arrived<'a, 'b> {
    tcp: &'a mut TcpStream,
    context: &'a mut Context<'b>,
    bytes: &'a mut Vec<u8>,
}

impl Read for Arrived<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.tcp).poll_read(self.context, &mut buffer) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(read) => read.map(|()| {
                self.bytes.extend_from_slice(buffer.filled());
                buffer.filled().len()
            }),
        }
    }
}
