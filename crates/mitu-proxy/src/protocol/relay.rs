//! Relays bytes between two streams, both ways at once, until both sides have finished.
//!
//! An idle relay holds no buffer. Bytes are read into a scratch buffer that all relays of a thread share; only what
//! the other side does not take at once is kept, and while something is kept nothing more is read: back-pressure
//! reaches the sender. A side that finishes (FIN, `close_notify`) is passed on as that, and the other direction goes on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use mitu_telemetry::connections::RelayMetrics;

use crate::connection::Connection;
use crate::upstream::Upstream;

/// How a relay ended, and what it moved.
#[derive(Debug, Default)]
pub struct RelayOutcome {
    /// Bytes from the first stream to the second.
    pub sent: u64,
    /// Bytes from the second stream to the first.
    pub received: u64,
    /// None: both sides finished.
    pub error: Option<io::Error>,
}

/// Dials `upstream` and relays a connection to it. The stable word of what went wrong, if anything.
pub async fn serve<S>(stream: S, connection: &Connection, upstream: &Upstream, metrics: &RelayMetrics) -> RelayOutcome
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.requests.fetch_add(1, Ordering::Relaxed);
    // Boxed, so that an open relay does not carry the room that connecting needed.
    let outcome = match Box::pin(upstream.connect(connection)).await {
        Ok(up) => {
            let idle = Duration::from_millis(connection.listener.timeouts.relay_idle_ms);
            relay(stream, up, idle, connection.listener.limits.buffer_bytes).await
        }
        Err(error) => RelayOutcome { error: Some(io::Error::other(error)), ..RelayOutcome::default() },
    };
    metrics.sent.inc_by(outcome.sent);
    metrics.received.inc_by(outcome.received);
    outcome
}

/// Relays until both directions are done, one fails, or nothing has moved for `idle`.
///
/// `buffer`: bytes read at once, and so the most that one direction keeps while its receiver is slow.
pub fn relay<A, B>(a: A, b: B, idle: Duration, buffer: usize) -> impl Future<Output = RelayOutcome>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_unless(a, |_, _| Poll::Pending, b, idle, buffer)
}

/// The same, which ends as well when `taken_back` has an error for `a`, even if nothing is to be read from it or written
/// to it.
pub async fn relay_unless<A, B>(
    mut a: A,
    mut taken_back: impl FnMut(&mut A, &mut Context<'_>) -> Poll<io::Error>,
    mut b: B,
    idle: Duration,
    buffer: usize,
) -> RelayOutcome
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forward = Direction::default();
    let mut backward = Direction::default();
    let mut idle = IdleTimer::new(idle);
    let result = poll_fn(|context| {
        let sent = forward.poll(context, &mut a, &mut b, buffer)?;
        let received = backward.poll(context, &mut b, &mut a, buffer)?;
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(error) = taken_back(&mut a, context) {
            return Poll::Ready(Err(error));
        }
        idle.poll(context, forward.moved + backward.moved)
    })
    .await;
    let error = result.err().or(forward.refused).or(backward.refused);
    RelayOutcome { sent: forward.moved, received: backward.moved, error }
}

#[derive(Default)]
struct Direction {
    /// Read but not yet taken by the receiver, from `taken` on.
    kept: Vec<u8>,
    taken: usize,
    moved: u64,
    unflushed: bool,
    state: State,
    /// Why the receiver takes nothing more. Its own last words may be on their way, so the other direction goes on.
    refused: Option<io::Error>,
}

/// Which end of a direction failed.
enum Broken {
    Sender(io::Error),
    Receiver(io::Error),
}

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Open,
    /// The sender has finished; the receiver is being told.
    Finishing,
    Finished,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        buffer: usize,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match ready!(self.poll_advance(context, from, to, buffer)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Broken::Sender(error)) => Poll::Ready(Err(error)),
            Err(Broken::Receiver(error)) => {
                (self.state, self.kept, self.taken) = (State::Finished, Vec::new(), 0);
                self.refused = Some(error);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_advance<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        buffer: usize,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Finished => return Poll::Ready(Ok(())),
                State::Finishing => {
                    ready!(self.poll_write_kept(context, to)).map_err(Broken::Receiver)?;
                    ready!(Pin::new(&mut *to).poll_shutdown(context)).map_err(Broken::Receiver)?;
                    self.state = State::Finished;
                }
                State::Open => {
                    ready!(self.poll_write_kept(context, to)).map_err(Broken::Receiver)?;
                    match self.poll_transfer(context, from, to, buffer)? {
                        Poll::Ready(0) => self.state = State::Finishing,
                        Poll::Ready(_) => {}
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *to).poll_flush(context)).map_err(Broken::Receiver)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Reads once and writes what was read; keeps what is not taken. Ready(0): the sender has finished.
    fn poll_transfer<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        buffer: usize,
    ) -> Result<Poll<usize>, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < buffer {
                scratch.resize(buffer, 0);
            }
            let mut read = ReadBuf::new(&mut scratch[..buffer]);
            match Pin::new(from).poll_read(context, &mut read) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(result) => result.map_err(Broken::Sender)?,
            }
            let mut rest = read.filled();
            let count = rest.len();
            self.moved += count as u64;
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(context, rest) {
                    Poll::Ready(Ok(0)) => return Err(Broken::Receiver(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => rest = &rest[written..],
                    Poll::Ready(Err(error)) => return Err(Broken::Receiver(error)),
                    Poll::Pending => break,
                }
            }
            self.unflushed |= count > 0;
            self.kept.extend_from_slice(rest);
            Ok(Poll::Ready(count))
        })
    }

    fn poll_write_kept<W>(&mut self, context: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.taken < self.kept.len() {
            match ready!(Pin::new(&mut *to).poll_write(context, &self.kept[self.taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.taken += written,
            }
        }
        if self.taken > 0 {
            self.kept = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

/// Fires when nothing has moved for its duration. It is set once for each duration, not once for each byte.
struct IdleTimer {
    sleep: Pin<Box<Sleep>>,
    duration: Duration,
    moved: u64,
    since: Instant,
}

impl IdleTimer {
    fn new(duration: Duration) -> Self {
        let since = Instant::now();
        Self { sleep: Box::pin(sleep_until(since + duration)), duration, moved: 0, since }
    }

    fn poll(&mut self, context: &mut Context<'_>, moved: u64) -> Poll<io::Result<()>> {
        if moved != self.moved {
            self.moved = moved;
            self.since = Instant::now();
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let deadline = self.since + self.duration;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long")));
            }
            self.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn carries_both_ways_and_passes_each_end_on() {
        let (mut client, a) = duplex(16);
        let (b, mut server) = duplex(16);
        let relay = tokio::spawn(relay(a, b, LONG, 8));
        let question = vec![7u8; 100_000];
        let sender = tokio::spawn(async move {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 100_000);
        // The client has finished and the server only answers now: half-closed, not closed.
        server.write_all(&vec![9u8; 50_000]).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(sender.await.unwrap(), vec![9u8; 50_000]);
        let outcome = relay.await.unwrap();
        assert!(outcome.error.is_none());
        assert_eq!((outcome.sent, outcome.received), (100_000, 50_000));
    }

    #[tokio::test]
    async fn a_slow_receiver_stops_the_sender() {
        let (mut client, a) = duplex(1024);
        let (b, _server) = duplex(1024);
        tokio::spawn(relay(a, b, LONG, 2048));
        let mut taken = 0;
        while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(50), client.write(&[0; 512])).await {
            taken += n;
        }
        assert!(taken <= 1024 + 2048 + 1024, "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_relay_ends_and_a_busy_one_does_not() {
        let (mut client, a) = duplex(64);
        let (b, mut server) = duplex(64);
        let relay = tokio::spawn(relay(a, b, Duration::from_secs(10), 64));
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let begun = Instant::now();
        let outcome = relay.await.unwrap();
        assert_eq!(outcome.error.unwrap().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn last_words_arrive_from_a_server_that_no_longer_listens() {
        let (mut client, a) = duplex(1024);
        let (b, mut server) = duplex(1024);
        server.write_all(b"refused: too long").await.unwrap();
        drop(server);
        client.write_all(b"still sending").await.unwrap();
        let relay = tokio::spawn(relay(a, b, LONG, 64));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"refused: too long");
        assert_eq!(relay.await.unwrap().error.unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
}
