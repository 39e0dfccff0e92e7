//! Relays bytes between two streams, both ways at once, until both sides have finished.
//!
//! An idle relay holds no buffer. Bytes are read into a scratch buffer that all relays of a thread share; only what
//! the other side does not take at once is kept, and while something is kept nothing more is read: back-pressure
//! reaches the sender. A side that finishes (FIN, `close_notify`) is passed on as that, and the other direction goes on.
//!
//! A relay that has to leave ([`crate::relays`]) finishes in the upstream's stead: its client is told that nothing more
//! comes, and what it still sends is passed on until it finishes as well.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};

use mitu_telemetry::connections::{RelayEnd, RelayMetrics};

use super::http::timer::LazyTimer;
use super::mqtt::{self, ConnectError};
use crate::connection::Connection;
use crate::relays::Stay;
use crate::upstream::{Upstream, UpstreamStream};

/// How long a client that was told to leave may take to finish its side.
const LINGER: Duration = Duration::from_secs(1);

/// How a relay ended, and what it moved.
#[derive(Debug)]
pub struct RelayOutcome {
    /// Bytes from the first stream to the second.
    pub sent: u64,
    /// Bytes from the second stream to the first.
    pub received: u64,
    pub end: RelayEnd,
    /// None: it ended in good order.
    pub error: Option<io::Error>,
}

impl RelayOutcome {
    /// It has not begun.
    fn nothing(end: RelayEnd, error: Option<io::Error>) -> Self {
        Self { sent: 0, received: 0, end, error }
    }
}

/// What bounds a relay.
#[derive(Debug)]
pub struct Terms<'a> {
    /// For how long nothing may move.
    pub idle: Duration,
    /// Bytes read at once, and so the most that one direction keeps while its receiver is slow.
    pub buffer: usize,
    pub stay: Stay<'a>,
}

impl<'a> Terms<'a> {
    pub fn of(connection: &'a Connection, up: &UpstreamStream) -> Self {
        let (drain, removal) = (connection.drain.relays(), up.removal().clone());
        Self {
            idle: Duration::from_millis(connection.listener.timeouts.relay_idle_ms),
            buffer: connection.listener.limits.buffer_bytes,
            stay: connection.relays.stay(connection.id, drain, removal),
        }
    }
}

/// Dials `upstream` and relays a connection to it.
pub async fn serve<S>(
    mut stream: S,
    connection: &Connection,
    upstream: &Upstream,
    metrics: &RelayMetrics,
) -> RelayOutcome
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.requests.fetch_add(1, Ordering::Relaxed);
    // Boxed, so that an open relay does not carry the room that connecting needed.
    let mut begun = Box::pin(dial(&mut stream, connection, upstream)).await.map(|(up, first)| {
        let terms = Terms::of(connection, &up);
        relay(stream, first, up, terms)
    });
    // By reference, since what is moved into an await is kept twice.
    let outcome = match begun {
        Ok(ref mut relay) => relay.await,
        Err(outcome) => outcome,
    };
    metrics.sent.inc_by(outcome.sent);
    metrics.received.inc_by(outcome.received);
    metrics.ended(outcome.end);
    outcome
}

/// Connects to an endpoint. Where that depends on what an MQTT client calls itself, its first bytes are read before.
async fn dial<S>(
    stream: &mut S,
    connection: &Connection,
    upstream: &Upstream,
) -> Result<(UpstreamStream, Vec<u8>), RelayOutcome>
where
    S: AsyncRead + Unpin,
{
    let mut first = Vec::new();
    let mut client = None;
    if upstream.knows_mqtt_clients() {
        let patience = Duration::from_millis(connection.listener.timeouts.handshake_ms);
        let mut drain = connection.drain.clone();
        let read = tokio::select! {
            biased;
            read = timeout(patience, mqtt::read_connect(stream, &mut first)) => read,
            // A drain does not wait for a client that says nothing.
            () = drain.lingered() => return Err(RelayOutcome::nothing(RelayEnd::Drain, None)),
        };
        let read = read.map_err(|late| RelayOutcome::nothing(RelayEnd::MqttTimeout, Some(late.into())))?;
        client = Some(read.map_err(|error| match error {
            ConnectError::Io(error) => RelayOutcome::nothing(RelayEnd::Failed, Some(error)),
            error => RelayOutcome::nothing(RelayEnd::NotMqtt, Some(io::Error::other(error))),
        })?);
    }
    let connected = upstream.connect(connection, client).await;
    let up = connected.map_err(|error| RelayOutcome::nothing(RelayEnd::Unreachable, Some(io::Error::other(error))))?;
    Ok((up, first))
}

/// Relays until both directions are done, one fails, or the relay has to leave by its terms. `first`: what was read from
/// `a` already.
pub fn relay<'a, A, B>(
    a: A,
    first: Vec<u8>,
    b: B,
    terms: Terms<'a>,
) -> impl Future<Output = RelayOutcome> + Unpin + use<'a, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_unless(a, first, |_: &mut A, _: &mut Context<'_>| Poll::Pending, b, terms)
}

/// The same, which ends as well when `taken_back` has an error for `a`, even if nothing is to be read from it or written
/// to it.
pub fn relay_unless<A, B, T>(a: A, first: Vec<u8>, taken_back: T, b: B, terms: Terms<'_>) -> Relay<'_, A, B, T>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    T: FnMut(&mut A, &mut Context<'_>) -> Poll<io::Error> + Unpin,
{
    let Terms { idle, buffer, stay } = terms;
    let forward = Direction { moved: first.len() as u64, kept: first, ..Direction::default() };
    let (backward, timer) = (Direction::default(), Timer::new(idle));
    Relay { a, b, taken_back, forward, backward, buffer, timer, stay, leaving: None }
}

/// A relay under way. It is written out, since an `async fn` would keep its arguments twice.
#[must_use]
pub struct Relay<'a, A, B, T> {
    a: A,
    b: B,
    taken_back: T,
    forward: Direction,
    backward: Direction,
    buffer: usize,
    timer: Timer,
    stay: Stay<'a>,
    /// How long its client may take at most, and why it has to leave.
    leaving: Option<(Instant, RelayEnd)>,
}

impl<A, B, T> Relay<'_, A, B, T>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    T: FnMut(&mut A, &mut Context<'_>) -> Poll<io::Error> + Unpin,
{
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<RelayEnd>> {
        loop {
            let sent = self.forward.poll(context, &mut self.a, &mut self.b, self.buffer)?;
            let received = self.backward.poll(context, &mut self.b, &mut self.a, self.buffer)?;
            if sent.is_ready() && received.is_ready() {
                return Poll::Ready(Ok(RelayEnd::Finished));
            }
            if let Poll::Ready(error) = (self.taken_back)(&mut self.a, context) {
                return Poll::Ready(Err(error));
            }
            let last = self.leaving.or_else(|| self.stay.end(context.waker()));
            let moved = self.forward.moved + self.backward.moved;
            match ready!(self.timer.poll(context, moved, last.map(|(moment, _)| moment))) {
                Expired::Idle => return Poll::Ready(Ok(RelayEnd::Idle)),
                Expired::Last if self.leaving.is_some() => return Poll::Ready(Ok(RelayEnd::Finished)),
                Expired::Last => {
                    self.leaving = last.map(|(_, why)| (Instant::now() + LINGER, why));
                    self.backward.finish();
                }
            }
        }
    }
}

impl<A, B, T> Future for Relay<'_, A, B, T>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    T: FnMut(&mut A, &mut Context<'_>) -> Poll<io::Error> + Unpin,
{
    type Output = RelayOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<RelayOutcome> {
        let relay = self.get_mut();
        let result = ready!(relay.poll_end(context));
        let refused = relay.forward.refused.take().or(relay.backward.refused.take());
        let (end, error) = match (result, relay.leaving) {
            // However its sides take it.
            (_, Some((_, why))) => (why, None),
            (Ok(RelayEnd::Idle), None) => {
                (RelayEnd::Idle, Some(io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long")))
            }
            (Err(error), None) => (RelayEnd::Failed, Some(error)),
            (Ok(end), None) => (if refused.is_some() { RelayEnd::Failed } else { end }, refused),
        };
        Poll::Ready(RelayOutcome { sent: relay.forward.moved, received: relay.backward.moved, end, error })
    }
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
    /// Nothing more is taken from the sender.
    fn finish(&mut self) {
        if self.state == State::Open {
            self.state = State::Finishing;
        }
    }

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

/// Expires when nothing has moved for its duration, or a last moment has come. It is set once for each duration, not once
/// for each byte.
struct Timer {
    timer: LazyTimer,
    duration: Duration,
    moved: u64,
    since: Instant,
}

enum Expired {
    Idle,
    Last,
}

impl Timer {
    fn new(duration: Duration) -> Self {
        Self { timer: LazyTimer::default(), duration, moved: 0, since: Instant::now() }
    }

    fn poll(&mut self, context: &mut Context<'_>, moved: u64, last: Option<Instant>) -> Poll<Expired> {
        if moved != self.moved {
            self.moved = moved;
            self.since = Instant::now();
        }
        let idle = self.since + self.duration;
        let (deadline, expired) = match last {
            Some(last) if last < idle => (last, Expired::Last),
            _ => (idle, Expired::Idle),
        };
        self.timer.poll(context, deadline).map(|()| expired)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::relays::{Notice, Relays};
    use std::sync::{Arc, LazyLock};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LONG: Duration = Duration::from_secs(60);

    static RELAYS: LazyLock<Relays> = LazyLock::new(Relays::default);
    static NEVER: LazyLock<Notice> = LazyLock::new(Notice::default);

    fn terms(idle: Duration, buffer: usize) -> Terms<'static> {
        Terms { idle, buffer, stay: RELAYS.stay(1, &NEVER, Arc::default()) }
    }

    fn until(removal: &Arc<Notice>) -> Terms<'static> {
        Terms { idle: LONG, buffer: 64, stay: RELAYS.stay(1, &NEVER, removal.clone()) }
    }

    #[tokio::test]
    async fn carries_both_ways_and_passes_each_end_on() {
        let (mut client, a) = duplex(16);
        let (b, mut server) = duplex(16);
        let relay = tokio::spawn(relay(a, Vec::new(), b, terms(LONG, 8)));
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
        tokio::spawn(relay(a, Vec::new(), b, terms(LONG, 2048)));
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
        let relay = tokio::spawn(relay(a, Vec::new(), b, terms(Duration::from_secs(10), 64)));
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
        let relay = tokio::spawn(relay(a, Vec::new(), b, terms(LONG, 64)));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"refused: too long");
        assert_eq!(relay.await.unwrap().error.unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
    #[tokio::test]
    async fn what_was_read_before_goes_first() {
        let (mut client, a) = duplex(64);
        let (b, mut server) = duplex(4);
        let relay = tokio::spawn(relay(a, b"CONNECT".to_vec(), b, terms(LONG, 64)));
        client.write_all(b", and more").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"CONNECT, and more");
        drop(server);
        assert_eq!(relay.await.unwrap().sent, 17);
    }

    #[tokio::test]
    async fn one_that_has_to_leave_lets_its_client_finish() {
        let (mut client, a) = duplex(64);
        let (b, mut server) = duplex(64);
        let removal = Arc::new(Notice::default());
        let relay = tokio::spawn(relay(a, Vec::new(), b, until(&removal)));
        server.write_all(b"last message").await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        removal.give(Duration::ZERO);
        RELAYS.wake_removed();
        assert_eq!(client.read(&mut answer).await.unwrap(), 0, "it is told that nothing more comes");
        client.write_all(b"goodbye").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
        let outcome = relay.await.unwrap();
        assert_eq!((outcome.end, outcome.sent, outcome.received), (RelayEnd::Removal, 7, 12));
        assert!(outcome.error.is_none());
    }

    #[tokio::test]
    async fn one_that_has_to_leave_does_not_wait_for_its_client() {
        let (mut client, a) = duplex(64);
        let (b, _server) = duplex(64);
        let removal = Arc::new(Notice::default());
        removal.give(Duration::ZERO);
        let begun = Instant::now();
        let relay = tokio::spawn(relay(a, Vec::new(), b, until(&removal)));
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(relay.await.unwrap().end, RelayEnd::Removal);
        assert!((LINGER..LONG).contains(&begun.elapsed()));
    }

    #[tokio::test]
    async fn one_that_may_stay_after_all_stays() {
        let (mut client, a) = duplex(64);
        let (b, mut server) = duplex(64);
        let removal = Arc::new(Notice::default());
        removal.give(Duration::from_millis(300));
        let relay = tokio::spawn(relay(a, Vec::new(), b, until(&removal)));
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        removal.take_back();
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.write_all(b"y").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'y');
        drop((client, server));
        assert_eq!(relay.await.unwrap().end, RelayEnd::Finished);
    }
}
