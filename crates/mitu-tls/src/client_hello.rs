//! Reads the ClientHello, and no byte more than its flight, before any decision is made.

use std::io::{self, Read};

use rustls::server::{Accepted, Acceptor};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::handshake::HandshakeError;

/// Waits for the whole ClientHello. rustls bounds its size (64 KiB); the caller bounds the time.
pub async fn read(tcp: &mut TcpStream) -> Result<Accepted, HandshakeError> {
    let mut acceptor = Acceptor::default();
    loop {
        tcp.readable().await?;
        match acceptor.read_tls(&mut Readable(tcp)) {
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
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

/// What has arrived on a socket, without waiting.
struct Readable<'a>(&'a TcpStream);

impl Read for Readable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}
