//! A connection over an emulated distance.
//!
//! What the client sends leaves at once; what the server sends is acted upon one round-trip time after it arrived.
//! Seen from either end that is a network whose way back takes the whole round trip: the server waits as long for the
//! client's next flight, and the client as long for each answer, as they would with half the time on either way. The
//! connection itself begins with such a wait, for SYN-ACK. Nothing is lost, reordered or limited in rate.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What may be on its way at once; the kernel's buffer holds the rest back.
const CHUNKS: usize = 64;
const CHUNK: usize = 16 * 1024;

/// A TCP connection, and what is on its way if that takes time.
pub struct Link {
    stream: TcpStream,
    way: Option<Box<Way>>,
}

struct Way {
    round_trip: Duration,
    arriving: VecDeque<Chunk>,
    timer: Pin<Box<Sleep>>,
    ended: bool,
}

/// What one read gave: bytes, the end (no bytes) or an error.
struct Chunk {
    due: Instant,
    content: io::Result<Vec<u8>>,
    taken: usize,
}

impl Link {
    /// Waits as long as SYN-ACK would be on its way.
    pub async fn new(stream: TcpStream, round_trip: Duration) -> Self {
        if round_trip.is_zero() {
            return Self { stream, way: None };
        }
        let arrives = Instant::now() + round_trip;
        sleep_until(arrives).await;
        let way = Way { round_trip, arriving: VecDeque::new(), timer: Box::pin(sleep_until(arrives)), ended: false };
        Self { stream, way: Some(Box::new(way)) }
    }
}

impl Way {
    /// Notes when everything that is there now will have arrived.
    fn watch(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) {
        while !self.ended && self.arriving.len() < CHUNKS {
            let mut bytes = vec![0; CHUNK];
            let mut buffer = ReadBuf::new(&mut bytes);
            let content = match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => Ok(buffer.filled().len()),
                Poll::Ready(Err(error)) => Err(error),
            };
            let content = content.map(|length| {
                bytes.truncate(length);
                bytes
            });
            self.ended = content.as_ref().map_or(true, Vec::is_empty);
            self.arriving.push_back(Chunk { due: Instant::now() + self.round_trip, content, taken: 0 });
        }
    }

    fn poll_read(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watch(stream, cx);
        let Some(first) = self.arriving.front_mut() else {
            return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        if self.timer.deadline() != first.due {
            self.timer.as_mut().reset(first.due);
        }
        ready!(self.timer.as_mut().poll(cx));
        let Ok(content) = &first.content else {
            return Poll::Ready(self.arriving.pop_front().map_or(Ok(()), |chunk| chunk.content.map(drop)));
        };
        let length = buf.remaining().min(content.len() - first.taken);
        buf.put_slice(&content[first.taken..first.taken + length]);
        first.taken += length;
        if first.taken == content.len() {
            self.arriving.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, way } = self.get_mut();
        match way {
            None => Pin::new(stream).poll_read(cx, buf),
            Some(way) => way.poll_read(stream, cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_answer_takes_a_round_trip_and_the_connection_one_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4];
            while stream.read_exact(&mut bytes).await.is_ok() {
                stream.write_all(&bytes).await.unwrap();
            }
        });
        let begun = Instant::now();
        let round_trip = Duration::from_millis(20);
        let mut link = Link::new(TcpStream::connect(address).await.unwrap(), round_trip).await;
        for word in [b"ping", b"pong"] {
            link.write_all(word).await.unwrap();
            let mut answer = [0; 4];
            link.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, word);
        }
        assert!(begun.elapsed() >= round_trip * 3);
        link.shutdown().await.unwrap();
        assert_eq!(link.read(&mut [0; 4]).await.unwrap(), 0);
        assert!(begun.elapsed() >= round_trip * 4);
        echo.await.unwrap();
    }
}
