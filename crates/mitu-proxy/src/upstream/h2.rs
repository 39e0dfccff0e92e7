//! Requests on an HTTP/2 connection to an endpoint, which many share.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mitu_telemetry::http::{Reason, Retry};

use super::connector::Io;
use super::error::UpstreamError;
use crate::protocol::http::body::RequestBody;

/// Sent when a connection has been silent for this long; it is closed when no answer comes within [`PING_TIMEOUT`].
const PING: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What is accepted of a response's headers.
const HEADER_LIST: u32 = 128 * 1024;

/// As large as it can be. What a connection holds is bounded by its streams' windows; with a smaller one, a few clients
/// that do not read would stop everybody's responses.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

#[derive(Debug)]
pub struct H2Connection {
    sender: SendRequest<RequestBody>,
    streams: AtomicUsize,
    /// As the endpoint's settings have it.
    max_streams: Arc<AtomicUsize>,
    opened: Instant,
    /// Milliseconds from `opened` to the last request's end.
    used: AtomicU64,
}

/// A request's place on the connection.
#[derive(Debug)]
pub struct StreamGuard(Arc<H2Connection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let connection = &self.0;
        let now = u64::try_from(connection.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        connection.used.store(now, Ordering::Relaxed);
        connection.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that was not answered, and which may have come back.
#[derive(Debug)]
pub struct Unanswered {
    pub error: UpstreamError,
    /// The endpoint has not looked at the request: it can be sent again for this reason, whatever its method.
    pub unprocessed: Option<Retry>,
    /// The request, where it never left.
    pub request: Option<Request<RequestBody>>,
}

impl H2Connection {
    /// Speaks the preface and spawns what drives the connection. `window`: bytes a stream may have under way.
    pub async fn handshake(io: Io, window: u32) -> Result<Arc<Self>, UpstreamError> {
        let (sender, mut driver) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| UpstreamError::because(Reason::ConnectFailed, error))?;
        let max_streams = Arc::new(AtomicUsize::new(driver.current_max_send_streams()));
        let settings = max_streams.clone();
        tokio::spawn(poll_fn(move |context| {
            // Its requests learn of a failure themselves.
            let ended = Pin::new(&mut driver).poll(context).map(drop);
            settings.store(driver.current_max_send_streams(), Ordering::Relaxed);
            ended
        }));
        let (streams, used) = Default::default();
        Ok(Arc::new(Self { sender, streams, max_streams, opened: Instant::now(), used }))
    }

    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub fn has_room(&self) -> bool {
        self.streams.load(Ordering::Relaxed) < self.max_streams.load(Ordering::Relaxed)
    }

    /// Zero while it serves a request.
    pub fn idle_for(&self) -> Duration {
        if self.streams.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.opened.elapsed().saturating_sub(Duration::from_millis(self.used.load(Ordering::Relaxed)))
    }

    /// Sends a request and waits for the head of its response.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, StreamGuard), Unanswered> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let guard = StreamGuard(self.clone());
        match self.sender.clone().try_send_request(request).await {
            Ok(response) => Ok((response, guard)),
            Err(mut failed) => {
                let request = failed.take_message();
                let error = failed.into_error();
                let unprocessed = if request.is_some() { Some(Retry::Stale) } else { was_refused(&error) };
                Err(Unanswered {
                    error: UpstreamError::because(Reason::ResetBeforeResponse, error),
                    unprocessed,
                    request,
                })
            }
        }
    }
}

/// REFUSED_STREAM, or a GOAWAY that left the stream out, which is the end of the connection alone (RFC 9113, sections
/// 8.7 and 6.8).
fn was_refused(error: &hyper::Error) -> Option<Retry> {
    let error = error.source().and_then(|source| source.downcast_ref::<h2::Error>())?;
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return Some(Retry::RefusedStream);
    }
    let left = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    left.then_some(Retry::Stale)
}
