//! One request and its response, on the stream that they have to themselves.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Response, StatusCode, header};
use http_body::{Body, Frame};
use mitu_telemetry::http::Reason;
use quinn::{RecvStream, SendStream, StoppedError, VarInt};
use tokio::time::Instant;

use super::Shared;
use super::body::H3Body;
use super::error::{Code, StreamError};
use super::frame::{self, FrameReader, Piece, put_data_head, put_headers};
use super::head::{Head, HeadError};
use super::qpack;
use super::tunnel::Tunnel;
use crate::protocol::http::account::Account;
use crate::protocol::http::activity::Stream;
use crate::protocol::http::body::{BodyError, RequestBody, ResponseBody};
use crate::protocol::http::exchange::{Incoming, exchange, refuse};
use crate::protocol::http::timer::LazyTimer;
use crate::respond::Audience;

/// Pieces up to this size are copied behind what waits already: larger ones are handed on as they are.
const COPIED: usize = 2 * 1024;

/// What waits is sent when it is as much as this.
const BATCH: usize = 16 * 1024;

/// A response larger than this may still be on its way long after it was written.
const IN_FLIGHT: u64 = 8 * 1024;

/// Serves the request that a client makes on this stream.
pub async fn serve(shared: Arc<Shared>, send: SendStream, recv: RecvStream, mut stream: Stream) {
    let patience = Duration::from_millis(shared.downstream.connection.listener.timeouts.idle_ms);
    let mut responder = Responder { send, stopped: None, timer: LazyTimer::default(), patience };
    match answer(&shared, &mut responder, recv, &stream).await {
        Err(StreamError::Broken(violation)) => shared.violated(violation),
        Err(StreamError::Cancelled) => {}
        // The connection's end is told elsewhere; and a response that its upstream has not finished is nobody's fault here.
        Ok(()) | Err(StreamError::Lost(_) | StreamError::Malformed) => stream.settled(),
    }
    drop(stream);
    shared.ended();
}

async fn answer(
    shared: &Shared,
    responder: &mut Responder,
    recv: RecvStream,
    stream: &Stream,
) -> Result<(), StreamError> {
    let downstream = &shared.downstream;
    let listener = &downstream.connection.listener;
    let mut timer = LazyTimer::default();
    let mut frames = FrameReader::new(recv);

    let patience = Duration::from_millis(listener.timeouts.request_header_ms);
    let read = timer.limit(Instant::now() + patience, read_head(&mut frames, shared)).await;
    let (head, next) = match read.unwrap_or(Err(Unread::Refused(Reason::HeaderTimeout))) {
        Ok(read) => read,
        Err(Unread::Failed(error)) => {
            responder.reset(Code::REQUEST_CANCELLED);
            return Err(error);
        }
        Err(Unread::Incomplete) => {
            responder.reset(Code::REQUEST_INCOMPLETE);
            return Err(StreamError::Cancelled);
        }
        Err(Unread::Refused(reason)) => {
            frames.stop(Code::MESSAGE_ERROR);
            let account = Account::open_unparsed(downstream);
            let response = refuse(reason, Audience::Text, &Method::GET, account);
            return responder.respond(shared, response, &Method::GET, stream).await;
        }
    };

    let length = head.content_length;
    let mut tunnel = None;
    let body = match next {
        next if head.protocol.is_some() => {
            tunnel = Some((frames, next));
            RequestBody::empty()
        }
        Some(Piece::End) if length.is_none_or(|length| length == 0) => RequestBody::empty(),
        next => {
            let body = H3Body::new(frames, next, length, shared.limits, shared.quic.clone());
            RequestBody::h3(body, length, listener.limits.request_body_bytes)
        }
    };
    let method = head.method.clone();
    let incoming = Incoming::in_frames(head.method, head.uri, head.headers, head.protocol, body);
    let exchange = pin!(exchange(downstream, incoming, &mut timer));
    // A client that does not want the response any more ends the work for it.
    let mut response = responder.unless_stopped(exchange).await?;
    if let Some((mut frames, next)) = tunnel {
        if let Some(upgrade) = response.body_mut().take_upgrade() {
            let tunnel = Tunnel::new(responder, frames, next, stream);
            return tunnel.run(shared, response, *upgrade).await;
        }
        frames.stop(Code::NO_ERROR);
    }
    responder.respond(shared, response, &method, stream).await
}

/// Why there is no head.
enum Unread {
    Failed(StreamError),
    /// The stream ended before.
    Incomplete,
    Refused(Reason),
}

impl From<StreamError> for Unread {
    fn from(error: StreamError) -> Self {
        Self::Failed(error)
    }
}

/// The head, and the piece that follows it, if that has come with it.
async fn read_head(frames: &mut FrameReader, shared: &Shared) -> Result<(Head, Option<Piece>), Unread> {
    // Small letters and digits take less room than they count for.
    let limit = shared.limits.bytes;
    let section = match poll_fn(|context| frames.poll_piece(context, limit)).await? {
        Piece::Whole(frame::HEADERS, section) => section,
        Piece::TooLarge(frame::HEADERS) => return Err(Unread::Refused(Reason::HeaderTooLarge)),
        Piece::End => return Err(Unread::Incomplete),
        _ => return Err(Code::FRAME_UNEXPECTED.broken("a request begins with its head").into()),
    };
    let head = Head::decode(section, shared.limits).map_err(|error| match error {
        HeadError::Decompression => Code::QPACK_DECOMPRESSION_FAILED.broken("malformed field section").into(),
        HeadError::Refused(reason) => Unread::Refused(reason),
    })?;
    let next = poll_fn(|context| Poll::Ready(frames.poll_piece(context, limit))).await;
    match next {
        Poll::Ready(next) => Ok((head, Some(next?))),
        Poll::Pending => Ok((head, None)),
    }
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// The way back to the client.
pub struct Responder {
    pub send: SendStream,
    /// Resolves when the client does not want the response any more, or has all of it; made when first waited for.
    stopped: Option<Stopped>,
    timer: LazyTimer,
    /// How long the client may leave what is written.
    patience: Duration,
}

impl Responder {
    pub fn reset(&mut self, code: Code) {
        // It may have ended already.
        let _ = self.send.reset(code.into());
    }

    /// Ready: the client is not to be served any further.
    pub fn poll_stopped(&mut self, context: &mut Context<'_>) -> Poll<StreamError> {
        let send = &self.send;
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(send.stopped()));
        stopped.as_mut().poll(context).map(|stopped| match stopped {
            Err(StoppedError::ConnectionLost(error)) => StreamError::Lost(error),
            Ok(_) | Err(_) => StreamError::Cancelled,
        })
    }

    /// Runs `work` for as long as the client wants the response.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, StreamError> {
        let mut work = pin!(work);
        let done = poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll_stopped(context).map(Err),
        });
        let done = done.await;
        if done.is_err() {
            self.reset(Code::REQUEST_CANCELLED);
        }
        done
    }

    async fn respond(
        &mut self,
        shared: &Shared,
        response: Response<ResponseBody>,
        method: &Method,
        stream: &Stream,
    ) -> Result<(), StreamError> {
        let (parts, mut body) = response.into_parts();
        let mut out = BytesMut::with_capacity(512);
        let bodiless = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
        let length = body.size_hint().exact().filter(|_| !bodiless && parts.status != StatusCode::NO_CONTENT);
        put_headers(&mut out, |to| {
            qpack::encode_head(parts.status, &parts.headers, to);
            if let Some(length) = length
                && !parts.headers.contains_key(header::CONTENT_LENGTH)
            {
                qpack::encode_field(&header::CONTENT_LENGTH, &length.into(), to);
            }
        });
        let mut sent = 0;
        if bodiless {
            body.delivered();
        } else {
            while let Some(frame) = self.next_frame(&mut body, &mut out).await? {
                stream.moved();
                match frame.into_data() {
                    Ok(data) => {
                        sent += data.len() as u64;
                        put_data_head(data.len(), &mut out);
                        if data.len() <= COPIED {
                            out.put_slice(&data);
                        } else {
                            self.write(&mut [out.split().freeze(), data]).await?;
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        put_headers(&mut out, |to| qpack::encode_trailers(&trailers, to));
                    }
                }
                if out.len() >= BATCH {
                    self.write(&mut [out.split().freeze()]).await?;
                }
                if body.is_end_stream() {
                    break;
                }
            }
        }
        if !out.is_empty() {
            self.write(&mut [out.freeze()]).await?;
        }
        // The client cannot have cancelled what it has not.
        let _ = self.send.finish();
        drop(body);
        // With the connection, all that has not arrived would be lost: it stays while there is such.
        if sent > IN_FLIGHT || shared.closing.load(Ordering::Relaxed) {
            poll_fn(|context| self.poll_stopped(context)).await;
        }
        Ok(())
    }

    /// The next frame of a response's body. What waits is sent before it is waited for.
    async fn next_frame(
        &mut self,
        body: &mut ResponseBody,
        out: &mut BytesMut,
    ) -> Result<Option<Frame<Bytes>>, StreamError> {
        let mut polled = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await;
        if polled.is_pending() {
            if !out.is_empty() {
                self.write(&mut [out.split().freeze()]).await?;
            }
            polled =
                Poll::Ready(self.unless_stopped(poll_fn(|context| Pin::new(&mut *body).poll_frame(context))).await?);
        }
        let Poll::Ready(frame) = polled else { return Ok(None) };
        frame.transpose().map_err(|_: BodyError| {
            self.reset(Code::INTERNAL_ERROR);
            StreamError::Malformed
        })
    }

    /// Writes as fast as the client takes it. One that takes nothing for too long is served no further.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        let written = self.timer.limit(Instant::now() + self.patience, self.send.write_all_chunks(chunks)).await;
        match written {
            Some(written) => written.map_err(StreamError::from),
            None => {
                self.reset(Code::REQUEST_CANCELLED);
                Err(StreamError::Cancelled)
            }
        }
    }
}
