//! HTTP/3 towards the client (RFC 9114), over a QUIC connection: its streams, its settings, its end. Requests go the way of
//! all others.

pub mod body;
mod control;
pub mod error;
mod frame;
mod head;
mod qpack;
mod request;
mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use self::control::Opened;
use self::error::{Code, Violation};
use self::head::HeadLimits;
use super::activity::Activity;
use super::timer::LazyTimer;
use super::{Downstream, DownstreamError};

/// The stream of no request that a client could make: a first GOAWAY says that this side is about to go, and nothing more.
const LAST_STREAM: u64 = (1 << 62) - 4;

/// How long this side waits for its last words to arrive, and for the client to close.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many milliseconds after its last request a client that has said GOAWAY may still change its mind.
const FAREWELL: u64 = 1_000;

/// What all streams of a connection share.
struct Shared {
    downstream: Arc<Downstream>,
    quic: quinn::Connection,
    activity: Arc<Activity>,
    limits: HeadLimits,
    opened: Opened,
    violation: OnceLock<Violation>,
    /// The end has been announced, by either side, and whoever leaves no stream behind tells of it.
    closing: AtomicBool,
    quiet: Notify,
}

impl Shared {
    fn new(quic: quinn::Connection, downstream: Arc<Downstream>, limits: HeadLimits) -> Self {
        Self {
            downstream,
            quic,
            activity: Activity::new(),
            limits,
            opened: Opened::default(),
            violation: OnceLock::new(),
            closing: AtomicBool::new(false),
            quiet: Notify::new(),
        }
    }

    /// Reads a stream that the client has opened for itself.
    async fn read(&self, stream: RecvStream) {
        if let Err(violation) = control::read(stream, self).await {
            self.violated(violation);
        }
    }

    /// Ends the connection: what the client says is no HTTP/3.
    fn violated(&self, violation: Violation) {
        let violation = self.violation.get_or_init(|| violation);
        self.quic.close(violation.code.into(), violation.reason.as_bytes());
    }

    /// The client has said GOAWAY: it makes no further requests, and some wait for this side to close.
    fn leaves(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.quiet.notify_one();
    }

    /// A request is over, in whatever way.
    fn ended(&self) {
        if self.activity.is_abused() {
            self.violated(Violation { code: Code::EXCESSIVE_LOAD, reason: "too many requests were cancelled" });
        }
        let closing = self.closing.load(Ordering::Relaxed) || self.downstream.connection.is_pressed();
        if closing && self.activity.is_idle() {
            self.quiet.notify_one();
        }
    }

    fn end(&self, error: ConnectionError) -> Result<(), DownstreamError> {
        match (self.violation.get(), error) {
            (Some(violation), _) => Err(DownstreamError::H3(*violation)),
            (None, ConnectionError::ApplicationClosed(close)) if is_calm(close.error_code) => Ok(()),
            (None, ConnectionError::LocallyClosed) => Ok(()),
            (None, error) => Err(DownstreamError::Quic(error)),
        }
    }
}

/// Whether a client that closes with this code has nothing to complain of. Some say nothing at all.
fn is_calm(code: VarInt) -> bool {
    code == Code::NO_ERROR.into() || code == VarInt::from_u32(0)
}

/// How far the end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    No,
    /// The client was told to make no further requests; those on their way are served.
    Announced,
    /// Requests that come now are refused in a way that lets the client make them elsewhere.
    Refusing,
}

/// A connection ends with its service, as a stream does, whatever requests still hold on to it.
struct Closed(quinn::Connection);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.close(Code::NO_ERROR.into(), b"");
    }
}

pub async fn serve(quic: quinn::Connection, downstream: Arc<Downstream>) -> Result<(), DownstreamError> {
    let listener = downstream.connection.listener.clone();
    let limits = HeadLimits { bytes: listener.limits.request_header_bytes, headers: listener.limits.request_headers };
    let client = downstream.connection.clone();
    let (mut draining, mut lingering) = (client.drain.clone(), client.drain.clone());
    let shared = Arc::new(Shared::new(quic.clone(), downstream, limits));
    let _closed = Closed(quic.clone());
    let mut timeouts = listener.timeouts.clone();
    let patience = Duration::from_millis(timeouts.idle_ms);
    let mut control = match timeout(patience, open_control(&quic, limits)).await {
        Ok(Ok(control)) => control,
        Ok(Err(error)) => return shared.end(error),
        Err(_) => return Err(timed_out()),
    };

    let (mut requests, mut streams) = (pin!(quic.accept_bi()), pin!(quic.accept_uni()));
    let idle = || client.has_served() && shared.activity.is_idle();
    let mut asked = pin!(draining.started_or_released(|| idle().then_some(client.id)));
    let mut lingered = pin!(lingering.lingered());
    let (mut closing, mut next_stream) = (Closing::No, 0);
    let mut timer = LazyTimer::default();
    let end = loop {
        // Streams move without waking this task, so it looks again before a longer deadline than this.
        let deadline = shared.activity.deadline(&timeouts).min(Instant::now() + patience);
        tokio::select! {
            biased;
            request = &mut requests => match request {
                Ok((send, recv)) if closing == Closing::Refusing || client.refuses_requests() => {
                    requests.set(quic.accept_bi());
                    reject(send, recv);
                }
                Ok((send, recv)) => {
                    requests.set(quic.accept_bi());
                    next_stream = u64::from(VarInt::from(send.id())) + 4;
                    // Boxed, since it is kilobytes, which tokio would move from hand to hand.
                    tokio::spawn(Box::pin(request::serve(shared.clone(), send, recv, shared.activity.begin())));
                }
                Err(error) => break error,
            },
            stream = &mut streams => match stream {
                Ok(stream) => {
                    streams.set(quic.accept_uni());
                    let shared = shared.clone();
                    tokio::spawn(async move { shared.read(stream).await });
                }
                Err(error) => break error,
            },
            () = &mut asked, if closing == Closing::No => {
                shared.closing.store(true, Ordering::Relaxed);
                let last = if client.drain.draining() { LAST_STREAM } else { next_stream };
                closing = if last == LAST_STREAM { Closing::Announced } else { Closing::Refusing };
                client.let_go();
                goaway(&mut control, last).await;
            }
            () = &mut lingered, if closing == Closing::Announced => {
                closing = Closing::Refusing;
                goaway(&mut control, next_stream).await;
            }
            () = shared.quiet.notified() => {
                if closing == Closing::No && client.is_pressed() && idle() {
                    // What came to be idle under overload goes as well.
                    shared.closing.store(true, Ordering::Relaxed);
                    closing = Closing::Refusing;
                    client.let_go();
                    goaway(&mut control, next_stream).await;
                } else if closing == Closing::No && shared.closing.load(Ordering::Relaxed) {
                    timeouts.idle_ms = timeouts.idle_ms.min(FAREWELL);
                }
            }
            () = poll_fn(|context| timer.poll(context, deadline)) => {
                if shared.activity.deadline(&timeouts) <= Instant::now() {
                    if closing == Closing::Refusing || !shared.activity.is_idle() {
                        return if shared.activity.is_idle() { Ok(()) } else { Err(timed_out()) };
                    }
                    closing = Closing::Refusing;
                    goaway(&mut control, next_stream).await;
                }
            }
        }
        if closing == Closing::Refusing && shared.activity.is_idle() {
            break last_words(&quic).await;
        }
    };
    shared.end(end)
}

async fn open_control(quic: &quinn::Connection, limits: HeadLimits) -> Result<SendStream, ConnectionError> {
    let mut control = quic.open_uni().await?;
    // A client that does not take it is found out by what comes next.
    let _ = control.write_chunk(control::settings(limits.bytes)).await;
    Ok(control)
}

/// Requests on `stream` and later ones will not be served.
async fn goaway(control: &mut SendStream, stream: u64) {
    // A client that leaves no room for it, or has left, cannot be told.
    let _ = timeout(LAST_WORDS, control.write_chunk(control::goaway(stream))).await;
}

/// A request that came behind what GOAWAY has said: the client may make it again, elsewhere.
fn reject(mut send: SendStream, mut recv: RecvStream) {
    let _ = send.reset(Code::REQUEST_REJECTED.into());
    let _ = recv.stop(Code::REQUEST_REJECTED.into());
}

/// Leaves the client to close, for a while: what is on its way to it would be lost with the connection.
async fn last_words(quic: &quinn::Connection) -> ConnectionError {
    timeout(LAST_WORDS, quic.closed()).await.unwrap_or(ConnectionError::LocallyClosed)
}

fn timed_out() -> DownstreamError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}
