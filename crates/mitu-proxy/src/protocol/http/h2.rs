//! HTTP/2 towards the client, gRPC included: hyper's server, with this gateway's limits, draining and idle time.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, header};
use hyper::body::Incoming as HyperBody;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mitu_telemetry::http::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::account::Account;
use super::body::{RequestBody, ResponseBody};
use super::exchange::{Incoming, exchange, refuse};
use super::h1::head::Expect;
use super::timer::LazyTimer;
use super::{Downstream, DownstreamError, validate};
use crate::config::Limits;
use crate::respond::Audience;

/// Streams that a client may reset before they are looked at, and errors it may cause, before the connection is closed
/// (CVE-2023-44487, CVE-2025-8671).
const MAX_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 128;

/// How much the client may send ahead over all streams, in streams.
const CONNECTION_WINDOW: u32 = 4;

/// How busy the connection is, as its streams tell.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    streams: AtomicUsize,
    /// Milliseconds from `opened` to when the last stream ended.
    quiet_since: AtomicU64,
}

/// A stream in progress.
#[derive(Debug)]
pub struct Stream(Arc<Activity>);

impl Drop for Stream {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.quiet_since.store(now, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Stream(self.clone())
    }

    /// When the connection will have been quiet for `idle`, if nothing more happens.
    fn deadline(&self, idle: Duration) -> Instant {
        let quiet_since = if self.streams.load(Ordering::Relaxed) > 0 {
            Instant::now()
        } else {
            self.opened + Duration::from_millis(self.quiet_since.load(Ordering::Relaxed))
        };
        quiet_since + idle
    }
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let window = u32::try_from(limits.buffer_bytes.clamp(16 * 1024, 1 << 30)).unwrap_or(1 << 30);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .max_concurrent_streams(limits.http2_concurrent_streams)
        .max_header_list_size(u32::try_from(limits.request_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(window)
        .initial_connection_window_size(window.saturating_mul(CONNECTION_WINDOW).max(65_535))
        .max_send_buf_size(limits.buffer_bytes)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    builder
}

pub async fn serve<S>(stream: S, downstream: Arc<Downstream>) -> Result<(), DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let listener = downstream.connection.listener.clone();
    let idle = Duration::from_millis(listener.timeouts.idle_ms);
    let activity =
        Arc::new(Activity { opened: Instant::now(), streams: AtomicUsize::new(0), quiet_since: AtomicU64::new(0) });
    let mut drain = downstream.connection.drain.clone();
    let service = service_fn({
        let activity = activity.clone();
        move |request| {
            let (downstream, stream) = (downstream.clone(), activity.begin());
            async move { Ok::<_, Infallible>(serve_stream(&downstream, request, stream).await) }
        }
    });
    let mut connection = pin!(builder(&listener.limits).serve_connection(TokioIo::new(stream), service));
    let mut draining = pin!(drain.started());
    let mut closing = false;
    let mut timer = LazyTimer::default();
    let served = poll_fn(|context| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            if closing {
                return Poll::Pending;
            }
            let idle_for_long = timer.poll(context, activity.deadline(idle)).is_ready();
            if !idle_for_long && draining.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // GOAWAY; streams in progress are finished.
            closing = true;
            connection.as_mut().graceful_shutdown();
        }
    })
    .await;
    served.map_err(DownstreamError::from)
}

async fn serve_stream(
    downstream: &Arc<Downstream>,
    request: Request<HyperBody>,
    stream: Stream,
) -> Response<ResponseBody> {
    let limits = &downstream.connection.listener.limits;
    let (parts, body) = request.into_parts();
    let audience = Audience::of(&parts.headers);
    let refusal = if parts.headers.len() > limits.request_headers {
        Some(Reason::HeaderTooLarge)
    } else {
        validate::single_content_length(&parts.headers).err()
    };
    let mut response = if let Some(reason) = refusal {
        refuse(reason, audience, Account::open(downstream, &parts.method, &parts.uri, &parts.headers))
    } else {
        let mut headers = parts.headers;
        let expect = match headers.remove(header::EXPECT) {
            Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Expect::Other,
            _ => Expect::Nothing,
        };
        let body = RequestBody::h2(body, limits.request_body_bytes);
        let incoming = Incoming { method: parts.method, uri: parts.uri, headers, body, expect, needs_host: true };
        exchange(downstream, incoming, &mut LazyTimer::default()).await
    };
    response.body_mut().during(stream);
    response
}
