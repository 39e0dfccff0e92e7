//! A byte stream with what was read ahead and what waits to be written; the same for both sides of the gateway.
//!
//! An idle connection holds no buffer: they are made when bytes arrive and given back when all is done.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Bytes waiting to be written beyond which no more are queued.
const FULL: usize = 32 * 1024;

/// Read at once while a head is expected.
pub const HEAD_READ: usize = 4 * 1024;

#[derive(Debug)]
pub struct Transport<S> {
    pub io: S,
    pub input: BytesMut,
    pub out: Outgoing,
    /// The peer has finished sending.
    pub ended: bool,
}

/// What waits to be written: `head`, then `body`, then `tail`.
#[derive(Debug, Default)]
pub struct Outgoing {
    pub head: Vec<u8>,
    written: usize,
    /// A piece too large to be copied.
    body: Bytes,
    tail: &'static [u8],
    unflushed: bool,
    total: u64,
}

impl Outgoing {
    pub fn has_room(&self) -> bool {
        self.body.is_empty() && self.head.len() - self.written < FULL
    }

    pub fn is_empty(&self) -> bool {
        self.written == self.head.len() && self.body.is_empty()
    }

    /// Queues a large piece without copying it; nothing can follow until it is written.
    pub(super) fn set_body(&mut self, body: Bytes, tail: &'static [u8]) {
        debug_assert!(self.body.is_empty());
        self.body = body;
        self.tail = tail;
    }

    /// Bytes written so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn consume(&mut self, written: usize) {
        self.total += written as u64;
        let head = (self.head.len() - self.written).min(written);
        self.written += head;
        if written > head {
            self.body.advance(written - head);
            if self.body.is_empty() {
                // An empty piece would still hold its buffer, idle or not.
                self.body = Bytes::new();
            }
        }
        if self.written == self.head.len() {
            self.head.clear();
            self.written = 0;
            if self.body.is_empty() {
                self.head.extend_from_slice(std::mem::take(&mut self.tail));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    pub fn new(io: S) -> Self {
        Self { io, input: BytesMut::new(), out: Outgoing::default(), ended: false }
    }

    /// Reads once, `room` bytes at most. Ready(0): the peer has finished.
    pub fn poll_fill(&mut self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        // Small pieces share what is left of a buffer; each in one of its own would hold many times its size.
        if self.input.capacity() - self.input.len() < room / 4 {
            self.input.reserve(room);
        }
        let read = pin!(self.io.read_buf(&mut self.input)).poll(context);
        match read {
            Poll::Pending => {
                if self.input.is_empty() {
                    self.input = BytesMut::new();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(length)) => {
                self.ended = length == 0;
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Writes all that waits.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let out = &self.out;
            let head = &out.head[out.written..];
            let written = if out.body.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(context, head))?
            } else {
                let slices = [IoSlice::new(head), IoSlice::new(&out.body)];
                let slices = if head.is_empty() { &slices[1..] } else { &slices[..] };
                ready!(Pin::new(&mut self.io).poll_write_vectored(context, slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.unflushed = true;
            self.out.consume(written);
        }
        if self.out.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.out.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives back what an idle connection does not need.
    pub fn release(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.out.is_empty() {
            self.out.head = Vec::new();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::encode::Encoder;
    use super::super::head::Framing;
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn large_pieces_keep_their_place() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut transport = Transport::new(near);
        let mut encoder = Encoder::new(Framing::Chunked);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let large = Bytes::from(vec![b'x'; 100_000]);
        for piece in [Bytes::from_static(b"ab"), large.clone(), Bytes::from_static(b"cd")] {
            while !transport.out.has_room() {
                poll_fn(|context| transport.poll_flush(context)).await.unwrap();
            }
            encoder.data(&mut transport.out, piece).unwrap();
        }
        poll_fn(|context| transport.poll_flush(context)).await.unwrap();
        encoder.end(&mut transport.out, None).unwrap();
        poll_fn(|context| transport.poll_flush(context)).await.unwrap();
        transport.io.shutdown().await.unwrap();
        drop(transport);
        let mut expected = b"2\r\nab\r\n186a0\r\n".to_vec();
        expected.extend_from_slice(&large);
        expected.extend_from_slice(b"\r\n2\r\ncd\r\n0\r\n\r\n");
        assert_eq!(reader.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn an_idle_transport_holds_no_buffer() {
        let (near, _far) = tokio::io::duplex(1000);
        let mut transport = Transport::new(near);
        poll_fn(|context| {
            assert!(transport.poll_fill(context, HEAD_READ).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(transport.input.capacity(), 0);
    }

    #[tokio::test]
    async fn a_written_piece_is_let_go() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut transport = Transport::new(near);
        let large = Bytes::from(vec![b'x'; 100_000]);
        Encoder::new(Framing::Length(100_000)).data(&mut transport.out, large.clone()).unwrap();
        assert!(!large.is_unique());
        poll_fn(|context| transport.poll_flush(context)).await.unwrap();
        assert!(large.is_unique());
        far.read_exact(&mut vec![0; 100_000]).await.unwrap();
    }

    #[tokio::test]
    async fn small_pieces_share_a_buffer() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut transport = Transport::new(near);
        let mut pieces = Vec::new();
        for _ in 0..1000 {
            far.write_all(b"12345678").await.unwrap();
            poll_fn(|context| transport.poll_fill(context, 64 * 1024)).await.unwrap();
            pieces.push(transport.input.split().freeze());
        }
        for two in pieces.windows(2) {
            assert_eq!(two[0].as_ptr() as usize + two[0].len(), two[1].as_ptr() as usize);
        }
    }
}
