//! The streams of a connection: what TLS writes goes out in as few packets as its order allows.
//!
//! rustls writes each part by itself: the session tickets and then the first response, `close_notify` and then the end of
//! the connection. Every write is a system call and a packet, and on a connection that asks for one thing and leaves, they
//! are a good part of its cost. [`FlightStream`] holds such a part back until the next one, but never while the peer is
//! waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::CommonState;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::early_data::EarlyData;
use crate::session::Session;

/// Slices that are written at once behind what is held.
const SLICES: usize = 16;

/// The socket below TLS.
#[derive(Debug)]
pub struct FlightStream {
    tcp: TcpStream,
    /// Written by TLS, not yet sent.
    held: Vec<u8>,
    holding: bool,
    /// The peer has said that it sends no more.
    peer_ended: bool,
}

impl FlightStream {
    /// Holds what is written until [`Self::release`].
    pub fn holding(tcp: TcpStream) -> Self {
        Self { tcp, held: Vec::new(), holding: true, peer_ended: false }
    }

    /// What is held goes out with the next write, or before the peer is waited for.
    pub fn release(&mut self) {
        self.holding = false;
    }

    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// Sends what is held.
    pub fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(context, &self.held))?;
            self.sent(sent)?;
        }
        Poll::Ready(Ok(()))
    }

    /// The same, in one packet with the FIN that follows.
    fn poll_send_last(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            ready!(self.tcp.poll_write_ready(context))?;
            let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
            let send = || SockRef::from(&self.tcp).send_with_flags(&self.held, flags);
            match self.tcp.try_io(Interest::WRITABLE, send) {
                Ok(sent) => self.sent(sent)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, count: usize) -> io::Result<()> {
        match count {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            all if all == self.held.len() => self.held = Vec::new(),
            part => drop(self.held.drain(..part)),
        }
        Ok(())
    }
}

impl AsyncRead for FlightStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tcp).poll_read(context, buffer);
        if read.is_pending() {
            ready!(self.poll_send(context))?;
        }
        read
    }
}

impl AsyncWrite for FlightStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.holding {
            slices.iter().for_each(|slice| self.held.extend_from_slice(slice));
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        while !self.held.is_empty() {
            let Self { tcp, held, .. } = &mut *self;
            let mut all = [IoSlice::new(held); SLICES];
            let count = slices.len().min(SLICES - 1);
            all[1..=count].copy_from_slice(&slices[..count]);
            let written = ready!(Pin::new(tcp).poll_write_vectored(context, &all[..=count]))?;
            let held = written.min(self.held.len());
            self.sent(held)?;
            if written > held {
                return Poll::Ready(Ok(written - held));
            }
        }
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holding { Poll::Ready(Ok(())) } else { self.poll_send(context) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_last(context))?;
        // With both sides at their end the socket is closed next, which sends the FIN as well.
        if self.peer_ended { Poll::Ready(Ok(())) } else { Pin::new(&mut self.tcp).poll_shutdown(context) }
    }
}

/// The decrypted stream of a connection. Boxed, since it is handed from stage to stage: what each of them keeps and moves
/// is a pointer.
#[derive(Debug)]
pub struct SecureStream(Box<Session>);

impl SecureStream {
    pub fn new(mut session: Box<Session>) -> Self {
        session.io.release();
        Self(session)
    }

    #[cfg(test)]
    pub(crate) fn session(&self) -> &Session {
        &self.0
    }

    /// Whether the client has finished its handshake; None: it had before this stream began.
    pub fn early_data(&self) -> Option<EarlyData> {
        self.0.early_data()
    }

    /// What the handshake has negotiated.
    pub fn tls(&self) -> &CommonState {
        self.0.tls()
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        ready!(self.0.poll_read(context, buffer))?;
        self.0.io.peer_ended |= buffer.filled().len() == before && room > 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_confirmed(context))?;
        // `close_notify` waits for the FIN, which is the next thing to be sent.
        self.0.io.holding = true;
        self.0.poll_shutdown(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    async fn pair() -> (FlightStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (FlightStream::holding(listener.accept().await.unwrap().0), client)
    }

    async fn arrives(client: &mut TcpStream, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        timeout(Duration::from_millis(50), client.read_exact(&mut bytes)).await.ok()?.unwrap();
        Some(bytes)
    }

    #[tokio::test]
    async fn what_is_held_goes_out_before_the_peer_is_waited_for() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"flight").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(arrives(&mut client, 1).await, None);
        assert!(timeout(Duration::from_millis(10), stream.read_u8()).await.is_err());
        assert_eq!(arrives(&mut client, 6).await.unwrap(), b"flight");
    }

    #[tokio::test]
    async fn what_is_held_goes_out_in_front_of_the_next_write() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"ticket,").await.unwrap();
        stream.release();
        let many = vec![b'x'; 300_000];
        let (_, received) = tokio::join!(
            async {
                stream.write_all(&many).await.unwrap();
                stream.flush().await.unwrap();
            },
            async {
                let mut received = vec![0; 300_007];
                client.read_exact(&mut received).await.unwrap();
                received
            }
        );
        assert_eq!((&received[..7], &received[7..]), (&b"ticket,"[..], &many[..]));
    }

    #[tokio::test]
    async fn what_is_held_goes_out_with_a_flush_and_with_the_end() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"one").await.unwrap();
        stream.release();
        stream.flush().await.unwrap();
        assert_eq!(arrives(&mut client, 3).await.unwrap(), b"one");
        stream.holding = true;
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
    }
}
