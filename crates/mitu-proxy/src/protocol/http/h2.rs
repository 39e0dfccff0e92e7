//! HTTP/2 towards the client, gRPC included: hyper's server, with this gateway's limits, draining and idle time.

mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Empty};
use hyper::body::Incoming as HyperBody;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mitu_telemetry::http::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use self::tunnel::{Expected, Tasks};
use super::account::Account;
use super::activity::{Activity, Stream};
use super::body::{RequestBody, ResponseBody};
use super::exchange::{Incoming, exchange, refuse};
use super::timer::LazyTimer;
use super::{Downstream, DownstreamError, validate};
use crate::config::{Limits, Timeouts};
use crate::respond::Audience;

/// Streams that a client may reset before they are looked at, and errors it may cause, before the connection is closed
/// (CVE-2023-44487, CVE-2025-8671).
const MAX_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 128;

/// What hyper sends: nothing, where a tunnel begins.
type Sent = Either<ResponseBody, Empty<Bytes>>;

/// How much the client may send ahead over all streams, in streams.
const CONNECTION_WINDOW: u32 = 4;

fn builder(limits: &Limits, timeouts: &Timeouts) -> Builder<Tasks> {
    let window = u32::try_from(limits.buffer_bytes.clamp(16 * 1024, 1 << 30)).unwrap_or(1 << 30);
    let mut builder = Builder::new(Tasks { patience: Duration::from_millis(timeouts.idle_ms) });
    builder
        .max_concurrent_streams(limits.concurrent_streams)
        .max_header_list_size(u32::try_from(limits.request_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(window)
        .initial_connection_window_size(window.saturating_mul(CONNECTION_WINDOW).max(65_535))
        .max_send_buf_size(limits.buffer_bytes)
        .enable_connect_protocol()
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    builder
}

pub async fn serve<S>(stream: S, downstream: Arc<Downstream>) -> Result<(), DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let listener = downstream.connection.listener.clone();
    let activity = Activity::new();
    let client = downstream.connection.clone();
    let mut drain = client.drain.clone();
    let service = service_fn({
        let activity = activity.clone();
        move |request| {
            let (downstream, mut stream) = (downstream.clone(), activity.begin());
            // Boxed: this is kilobytes, and hyper and tokio move it from hand to hand before it runs.
            Box::pin(async move {
                // The client may send it again, elsewhere.
                if downstream.connection.refuses_requests() {
                    stream.settled();
                    return Err(h2::Error::from(h2::Reason::REFUSED_STREAM));
                }
                Ok(serve_stream(&downstream, request, stream).await)
            })
        }
    });
    let mut connection =
        pin!(builder(&listener.limits, &listener.timeouts).serve_connection(TokioIo::new(stream), service));
    let idle = || client.has_served() && activity.is_idle();
    let mut asked = pin!(drain.started_or_released(|| idle().then_some(client.id)));
    let mut closing = false;
    let mut timer = LazyTimer::default();
    poll_fn(|context| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(context) {
                return Poll::Ready(result.map_err(DownstreamError::from));
            }
            if activity.is_abused() {
                return Poll::Ready(Err(DownstreamError::Abused));
            }
            // Streams move without waking the connection, so it looks again before a longer deadline than this.
            let deadline = activity.deadline(&listener.timeouts);
            let look = Instant::now() + Duration::from_millis(listener.timeouts.idle_ms);
            let expired = timer.poll(context, deadline.min(look)).is_ready();
            if expired && activity.deadline(&listener.timeouts) > Instant::now() {
                continue;
            }
            if expired && (closing || !activity.is_idle()) {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            }
            let asked = !closing && (asked.as_mut().poll(context).is_ready() || (client.is_pressed() && idle()));
            if closing || !(expired || asked) {
                return Poll::Pending;
            }
            if asked {
                client.let_go();
            }
            // GOAWAY; streams in progress are finished.
            closing = true;
            activity.mark();
            connection.as_mut().graceful_shutdown();
        }
    })
    .await
}

async fn serve_stream(
    downstream: &Arc<Downstream>,
    mut request: Request<HyperBody>,
    stream: Stream,
) -> Response<Sent> {
    let limits = &downstream.connection.listener.limits;
    let tunnel = Expected::of(&mut request);
    let (parts, body) = request.into_parts();
    let audience = Audience::of(&parts.headers);
    let refusal = if parts.headers.len() > limits.request_headers {
        Some(Reason::HeaderTooLarge)
    } else {
        validate::fields(&parts.headers).and_then(|()| validate::single_content_length(&parts.headers)).err()
    };
    let mut response = if let Some(reason) = refusal {
        let account = Account::open(downstream, &parts.method, &parts.uri, &parts.headers);
        refuse(reason, audience, &parts.method, account)
    } else {
        let body = RequestBody::h2(body, limits.request_body_bytes);
        let protocol = tunnel.as_ref().map(|tunnel| tunnel.protocol.clone());
        let incoming = Incoming::in_frames(parts.method, parts.uri, parts.headers, protocol, body);
        exchange(downstream, incoming, &mut LazyTimer::default()).await
    };
    if let (Some(tunnel), Some(upgrade)) = (tunnel, response.body_mut().take_upgrade()) {
        let (parts, body) = response.into_parts();
        tunnel.relay(downstream.clone(), *upgrade, body.into_account(), stream);
        return Response::from_parts(parts, Sent::Right(Empty::new()));
    }
    response.body_mut().during(stream);
    response.map(Sent::Left)
}
