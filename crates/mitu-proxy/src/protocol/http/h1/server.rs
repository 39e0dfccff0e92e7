//! The client's side of HTTP/1.1: one request after the other, until either side wants the connection closed.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Method, Response, StatusCode, Version as HttpVersion, header};
use http_body::{Body, Frame};
use mitu_telemetry::http::Reason;
use mitu_tls::early_data;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::super::account::Account;
use super::super::body::{BodyError, LINGER, LINGER_BYTES, RequestBody, RequestSource, ResponseBody};
use super::super::exchange::{Incoming, exchange, refuse};
use super::super::timer::LazyTimer;
use super::super::upgrade::{self, Rewound};
use super::super::{Downstream, DownstreamError};
use super::decode::{Decoded, Decoder};
use super::encode::{self, Encoder, Persistence};
use super::head::{Expect, Framing, HeadLimits, RequestHead, find_end, parse_request};
use super::transport::{HEAD_READ, Transport};
use crate::config::{Limits, Timeouts};
use crate::drain;
use crate::respond::{self, Audience};

/// More than can come before the end of a handshake.
const EARLY: usize = early_data::MAX_TCP as usize + HEAD_READ;

pub async fn serve<S>(stream: S, downstream: Arc<Downstream>) -> Result<(), DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = downstream.connection.clone();
    let limits = &connection.listener.limits;
    let head_limits = HeadLimits { bytes: limits.request_header_bytes, headers: limits.request_headers };
    let mut drain = connection.drain.clone();
    let mut lingered = pin!(drain.lingered_or_released(|| connection.has_served().then_some(connection.id)));
    let mut timer = LazyTimer::default();
    let mut transport = Transport::new(stream);
    loop {
        let head = match read_head(&mut transport, &mut timer, &downstream, lingered.as_mut(), head_limits).await? {
            Arrived::Nothing => return Box::pin(close(transport, false)).await,
            Arrived::Head(head) => Ok(head),
            Arrived::Refused(reason) => Err(reason),
        };
        // Boxed, as is the end, so that a connection between two requests does not carry the room that they need.
        let turn = Box::pin(answer(transport, &downstream, head, head_limits, &mut timer)).await?;
        transport = match turn {
            Turn::Next(transport) => transport,
            Turn::Close { transport, unread } => return Box::pin(close(transport, unread)).await,
            Turn::Upgraded { stream, upgrade, account } => {
                return Ok(Box::pin(upgrade::run(stream, |_, _| Poll::Pending, *upgrade, account, &connection)).await?);
            }
            Turn::Gone => return Ok(()),
        };
    }
}

/// What came where a request was awaited.
enum Arrived {
    Head(Bytes),
    /// The client has closed, was idle for too long, or the listener is drained.
    Nothing,
    Refused(Reason),
}

async fn read_head<S: AsyncRead + AsyncWrite + Unpin>(
    transport: &mut Transport<S>,
    timer: &mut LazyTimer,
    downstream: &Downstream,
    mut lingered: Pin<&mut impl Future<Output = ()>>,
    limits: HeadLimits,
) -> io::Result<Arrived> {
    let timeouts = &downstream.connection.listener.timeouts;
    // A client whose last response did not announce the end, because draining began later, has its own time to linger.
    let draining = downstream.connection.drain.draining();
    let patience = if draining { drain::LINGER } else { Duration::from_millis(timeouts.idle_ms) };
    let idle = Instant::now() + patience;
    let mut complete = None;
    let mut scanned = 0;
    poll_fn(|context| {
        loop {
            match find_end(&transport.input, &mut scanned, true) {
                Err(reason) => return Poll::Ready(Ok(Arrived::Refused(reason))),
                Ok(end) if end.unwrap_or(transport.input.len()) > limits.bytes => {
                    let in_headers = transport.input.iter().take(limits.bytes).any(|&byte| byte == b'\n');
                    let reason = if in_headers { Reason::HeaderTooLarge } else { Reason::UriTooLong };
                    return Poll::Ready(Ok(Arrived::Refused(reason)));
                }
                // An empty line before a request is ignored (RFC 9112, section 2.2).
                Ok(Some(2)) => {
                    transport.input.advance(2);
                    scanned = 0;
                    continue;
                }
                Ok(Some(end)) => return Poll::Ready(Ok(Arrived::Head(transport.input.split_to(end).freeze()))),
                Ok(None) => {}
            }
            match transport.poll_fill(context, HEAD_READ) {
                Poll::Ready(Ok(0)) if transport.input.is_empty() => return Poll::Ready(Ok(Arrived::Nothing)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(_)) if transport.input.is_empty() => return Poll::Ready(Ok(Arrived::Nothing)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if transport.input.is_empty() => {
                    transport.release();
                    if timer.poll(context, idle).is_ready() {
                        return Poll::Ready(Ok(Arrived::Nothing));
                    }
                    if !draining && lingered.as_mut().poll(context).is_ready() {
                        downstream.connection.let_go();
                        return Poll::Ready(Ok(Arrived::Nothing));
                    }
                    return Poll::Pending;
                }
                Poll::Pending => {
                    let limit = Duration::from_millis(timeouts.request_header_ms);
                    let deadline = *complete.get_or_insert_with(|| Instant::now() + limit);
                    return timer.poll(context, deadline).map(|()| Ok(Arrived::Refused(Reason::HeaderTimeout)));
                }
            }
        }
    })
    .await
}

/// What the connection does after a request.
enum Turn<S> {
    Next(Transport<S>),
    /// `unread`: some of the request's body may still be on its way.
    Close {
        transport: Transport<S>,
        unread: bool,
    },
    Upgraded {
        stream: Rewound<S>,
        upgrade: Box<upgrade::Upgrade>,
        account: Account,
    },
    /// The client has gone.
    Gone,
}

/// The transport while a request is served: shared with the request's body, where there is one.
enum Held<S> {
    Own(Transport<S>),
    Shared(Arc<SharedBody<S>>),
}

/// A request's body and the transport that brings it.
struct SharedBody<S>(Mutex<Option<BodyState<S>>>);

struct BodyState<S> {
    transport: Transport<S>,
    decoder: Decoder,
    /// The client waits for `100 Continue`.
    expects: bool,
    room: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> BodyState<S> {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.expects {
            self.expects = false;
            self.transport.out.head.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // What is not written at once goes out with the response.
            if let Poll::Ready(Err(error)) = self.transport.poll_flush(context) {
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        loop {
            return Poll::Ready(match self.decoder.decode(&mut self.transport.input) {
                Err(error) => Some(Err(error.into())),
                Ok(Decoded::End) => None,
                Ok(Decoded::Data(data)) => Some(Ok(Frame::data(data))),
                Ok(Decoded::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Ok(Decoded::More) => match ready!(self.transport.poll_fill(context, self.room)) {
                    Ok(0) => match self.decoder.end_of_input() {
                        Ok(()) => None,
                        Err(error) => Some(Err(error.into())),
                    },
                    Ok(_) => continue,
                    Err(error) => Some(Err(error.into())),
                },
            });
        }
    }

    /// Reads past what has arrived already, so that a body nobody wants does not cost the connection.
    fn skip_buffered(&mut self) {
        while let Ok(Decoded::Data(_) | Decoded::Trailers(_)) = self.decoder.decode(&mut self.transport.input) {}
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> RequestSource for SharedBody<S> {
    fn poll_frame(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self.0.lock() {
            Some(state) => state.poll_frame(context),
            None => Poll::Ready(Some(Err(BodyError::Over))),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Held<S> {
    fn with<R>(&mut self, gone: R, act: impl FnOnce(&mut Transport<S>) -> R) -> R {
        match self {
            Self::Own(transport) => act(transport),
            Self::Shared(shared) => shared.0.lock().as_mut().map_or(gone, |state| act(&mut state.transport)),
        }
    }

    /// Ready when the client has closed the connection while it waits for its response. `unconfirmed`: the end of its
    /// handshake is still to come, behind all that it has sent before.
    fn poll_gone(&mut self, context: &mut Context<'_>, unconfirmed: bool) -> Poll<()> {
        let mut watch = |transport: &mut Transport<S>| {
            // What comes now belongs to the next request; one buffer of it is enough.
            let enough = if unconfirmed { EARLY } else { 1 };
            while transport.input.len() < enough {
                match ready!(transport.poll_fill(context, HEAD_READ)) {
                    Ok(0) | Err(_) => return Poll::Ready(()),
                    Ok(_) => {}
                }
            }
            Poll::Pending
        };
        match self {
            Self::Own(transport) => watch(transport),
            Self::Shared(shared) => match &mut *shared.0.lock() {
                Some(state) if state.decoder.is_done() || unconfirmed => watch(&mut state.transport),
                _ => Poll::Pending,
            },
        }
    }

    /// Whether the request's body has been read to its end. From here on `100 Continue` is not said any more.
    fn finish_body(&mut self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Shared(shared) => {
                let nobody_reads = Arc::strong_count(shared) == 1;
                match &mut *shared.0.lock() {
                    None => false,
                    Some(state) => {
                        let unsent = std::mem::take(&mut state.expects);
                        if nobody_reads && !unsent {
                            state.skip_buffered();
                        }
                        state.decoder.is_done()
                    }
                }
            }
        }
    }

    /// The transport, and whether the request's body has been read to its end.
    fn into_transport(self) -> Option<(Transport<S>, bool)> {
        match self {
            Self::Own(transport) => Some((transport, true)),
            Self::Shared(shared) => {
                let mut state = shared.0.lock().take()?;
                state.skip_buffered();
                Some((state.transport, state.decoder.is_done()))
            }
        }
    }
}

/// What the response's form depends on.
struct Client {
    method: Method,
    http11: bool,
    keep_alive: bool,
}

/// Answers what was read where a request was awaited.
async fn answer<S>(
    transport: Transport<S>,
    downstream: &Arc<Downstream>,
    head: Result<Bytes, Reason>,
    head_limits: HeadLimits,
    timer: &mut LazyTimer,
) -> Result<Turn<S>, DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match head.and_then(|head| parse_request(&head, head_limits)) {
        Ok(head) => serve_request(transport, downstream, head, head_limits, timer).await,
        Err(reason) => {
            let response = refuse(reason, Audience::Text, &Method::GET, Account::open_unparsed(downstream));
            let client = Client { method: Method::GET, http11: true, keep_alive: false };
            let turn = write_response(Held::Own(transport), downstream, response, &client, timer).await?;
            Ok(match turn {
                // What was refused may still be on its way.
                Turn::Close { transport, .. } => Turn::Close { transport, unread: true },
                turn => turn,
            })
        }
    }
}

async fn serve_request<S>(
    transport: Transport<S>,
    downstream: &Arc<Downstream>,
    head: RequestHead,
    head_limits: HeadLimits,
    timer: &mut LazyTimer,
) -> Result<Turn<S>, DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let RequestHead { method, uri, headers, version, framing, keep_alive, expect } = head;
    let http11 = version == HttpVersion::HTTP_11;
    let client = Client { method: method.clone(), http11, keep_alive };
    let limits = &downstream.connection.listener.limits;
    let (mut held, body) = hold(transport, framing, expect == Expect::Continue && http11, head_limits, limits);
    let request = Incoming { method, uri, headers, body, expect, http10: !http11, protocol: None };
    let response = {
        let mut exchange = pin!(exchange(downstream, request, timer));
        poll_fn(|context| match exchange.as_mut().poll(context) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => {
                let unconfirmed = downstream.connection.unconfirmed().is_some();
                held.poll_gone(context, unconfirmed).map(|()| None)
            }
        })
        .await
    };
    match response {
        Some(response) => write_response(held, downstream, response, &client, timer).await,
        None => Ok(Turn::Gone),
    }
}

fn hold<S>(
    transport: Transport<S>,
    framing: Framing,
    expects: bool,
    head_limits: HeadLimits,
    limits: &Limits,
) -> (Held<S>, RequestBody)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let length = match framing {
        Framing::Length(0) => return (Held::Own(transport), RequestBody::empty()),
        Framing::Length(length) => Some(length),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let decoder = Decoder::new(framing, head_limits);
    let room = limits.buffer_bytes.min(64 * 1024);
    let shared = Arc::new(SharedBody(Mutex::new(Some(BodyState { transport, decoder, expects, room }))));
    let body = RequestBody::h1(shared.clone(), length, limits.request_body_bytes);
    (Held::Shared(shared), body)
}

async fn write_response<S>(
    mut held: Held<S>,
    downstream: &Downstream,
    response: Response<ResponseBody>,
    client: &Client,
    timer: &mut LazyTimer,
) -> Result<Turn<S>, DownstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut parts, mut body) = response.into_parts();
    if let Some(upgrade) = body.take_upgrade() {
        held.with((), |transport| encode::switching(&mut transport.out.head, &parts.headers, &upgrade.protocol));
        let patience = Duration::from_millis(downstream.connection.listener.timeouts.idle_ms);
        let flush = poll_fn(|context| held.with(gone(), |transport| transport.poll_flush(context)));
        let flushed = timer.limit(Instant::now() + patience, flush).await;
        flushed.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
        let Some((transport, _)) = held.into_transport() else { return Ok(Turn::Gone) };
        let stream = Rewound::new(transport.input.freeze(), transport.io);
        return Ok(Turn::Upgraded { stream, upgrade, account: body.into_account() });
    }
    let body_read = held.finish_body();
    let framing = response_framing(&mut parts, &body, client);
    let keep = client.keep_alive
        && body_read
        && !body.failure().is_some_and(respond::is_malformed)
        // What follows is meant for the tunnel that there is not (RFC 9110, section 9.3.6).
        && client.method != Method::CONNECT
        && framing != Some(Framing::UntilClose)
        && downstream.connection.keeps_alive();
    let persistence = match (keep, client.http11) {
        (true, true) => Persistence::Implied,
        (true, false) => Persistence::KeepAlive,
        (false, _) => Persistence::Close,
    };
    held.with((), |transport| {
        encode::response(&mut transport.out.head, parts.status, &parts.headers, framing, persistence);
    });
    send_body(&mut held, body, framing, timer, &downstream.connection.listener.timeouts).await?;
    let Some((transport, body_read)) = held.into_transport() else { return Ok(Turn::Gone) };
    Ok(if keep && body_read { Turn::Next(transport) } else { Turn::Close { transport, unread: !body_read } })
}

fn gone() -> Poll<io::Result<()>> {
    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
}

/// How the body is framed for this client; none where there can be none.
fn response_framing(parts: &mut http::response::Parts, body: &ResponseBody, client: &Client) -> Option<Framing> {
    if client.method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED {
        return None;
    }
    if parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(header::CONTENT_LENGTH);
        return None;
    }
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    let announced = match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.to_str().ok().and_then(|length| length.parse().ok()),
        _ => None,
    };
    if announced.is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Some(match announced.or_else(|| body.size_hint().exact()) {
        Some(length) => Framing::Length(length),
        None if client.http11 => Framing::Chunked,
        None => Framing::UntilClose,
    })
}

/// Writes head and body; what is there at once goes out at once.
async fn send_body<S: AsyncRead + AsyncWrite + Unpin>(
    held: &mut Held<S>,
    mut body: ResponseBody,
    framing: Option<Framing>,
    timer: &mut LazyTimer,
    timeouts: &Timeouts,
) -> Result<(), DownstreamError> {
    let mut encoder = Encoder::new(framing.unwrap_or(Framing::Length(0)));
    let mut ended = framing.is_none();
    let mut failed = None;
    let mut moved = true;
    let mut written = 0;
    let mut since = Instant::now();
    let result = poll_fn(|context| {
        loop {
            let room = held.with(false, |transport| transport.out.has_room());
            let mut waiting = false;
            if room && !ended {
                match Pin::new(&mut body).poll_frame(context) {
                    Poll::Pending => waiting = true,
                    Poll::Ready(frame) => {
                        moved = true;
                        match queue(held, &mut encoder, frame) {
                            Ok(end) => ended = end,
                            // What has come is passed on; that there is no more shows in how the connection ends.
                            Err(error) => (failed, ended) = (Some(error), true),
                        }
                        continue;
                    }
                }
            }
            match held.with(gone(), |transport| transport.poll_flush(context)) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if ended => return Poll::Ready(failed.take().map_or(Ok(()), Err)),
                Poll::Ready(Ok(())) if !waiting => continue,
                Poll::Ready(Ok(())) => {
                    if held.poll_gone(context, false).is_ready() {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                }
                Poll::Pending => waiting = false,
            }
            let now_written = held.with(written, |transport| transport.out.total());
            if std::mem::take(&mut moved) || now_written != written {
                written = now_written;
                since = Instant::now();
            }
            // A client that does not read is given up sooner than an upstream that streams now and then.
            let patience = if waiting { timeouts.relay_idle_ms } else { timeouts.idle_ms };
            return timer
                .poll(context, since + Duration::from_millis(patience))
                .map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
    })
    .await;
    if framing.is_none() && result.is_ok() {
        body.delivered();
    }
    Ok(result?)
}

/// Queues one frame of the response's body; whether that was its end.
fn queue<S: AsyncRead + AsyncWrite + Unpin>(
    held: &mut Held<S>,
    encoder: &mut Encoder,
    frame: Option<Result<Frame<Bytes>, BodyError>>,
) -> io::Result<bool> {
    let frame = frame.transpose().map_err(io::Error::other)?;
    held.with(Err(io::ErrorKind::BrokenPipe.into()), |transport| {
        let out = &mut transport.out;
        let (queued, ended) = match frame.map(Frame::into_data) {
            None => (encoder.end(out, None), true),
            Some(Ok(data)) => (encoder.data(out, data), false),
            Some(Err(frame)) => (encoder.end(out, frame.into_trailers().ok().as_ref()), true),
        };
        queued.map(|()| ended).map_err(io::Error::other)
    })
}

/// Closes in good order: all is written, the client is told, and what it was still sending is read for a while.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut transport: Transport<S>,
    unread: bool,
) -> Result<(), DownstreamError> {
    let shut = async {
        poll_fn(|context| transport.poll_flush(context)).await?;
        poll_fn(|context| Pin::new(&mut transport.io).poll_shutdown(context)).await?;
        let mut skipped = 0;
        while unread && skipped < LINGER_BYTES {
            transport.input.clear();
            match poll_fn(|context| transport.poll_fill(context, HEAD_READ)).await? {
                0 => break,
                length => skipped += length,
            }
        }
        io::Result::Ok(())
    };
    // A client that does not follow gets what is left of the good order: a reset.
    match tokio::time::timeout(LINGER, shut).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotConnected => Err(error.into()),
        _ => Ok(()),
    }
}
