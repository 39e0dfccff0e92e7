//! One request and its response on an HTTP/1.1 connection to an endpoint.
//!
//! Nothing runs beside the request: whoever reads the response also moves what is left of the request's body, so a
//! client that goes away takes the whole exchange with it, and no task switch stands between the two connections.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use mitu_telemetry::http::Reason;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Duration, Sleep, sleep};

use super::Outbound;
use super::connector::Io;
use super::error::UpstreamError;
use super::pool::Pool;
use crate::protocol::http::body::{BodyError, RequestBody};
use crate::protocol::http::h1::decode::{Decoded, Decoder};
use crate::protocol::http::h1::encode::{self, Encoder};
use crate::protocol::http::h1::head::{Framing, HeadLimits, ResponseHead, find_end, parse_response};
use crate::protocol::http::h1::transport::{HEAD_READ, Transport};

/// What is accepted of a response's head.
const LIMITS: HeadLimits = HeadLimits { bytes: 128 * 1024, headers: 100 };

/// Read at once from a response's body.
const BODY_READ: usize = 64 * 1024;

/// How long an upstream may take to say `100 Continue` before the body is sent anyway (RFC 9110, section 10.1.1).
const CONTINUE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct H1Connection {
    transport: Transport<Io>,
    /// Requests answered on it.
    served: u64,
}

/// The head of a response, and what brings its body.
#[derive(Debug)]
pub struct H1Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: H1Body,
}

/// A request that was not answered.
#[derive(Debug)]
pub struct Unanswered {
    pub error: UpstreamError,
    /// The connection had been idle and brought not a byte of a response: the endpoint may have closed it before the
    /// request came.
    pub stale: bool,
}

impl H1Connection {
    pub fn new(io: Io) -> Box<Self> {
        Box::new(Self { transport: Transport::new(io), served: 0 })
    }

    pub fn is_reused(&self) -> bool {
        self.served > 0
    }

    /// Whether an idle connection can be used: neither closed, nor saying something nobody has asked for.
    pub fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(&mut self.transport.io).poll_read(&mut context, &mut buffer).is_pending()
    }

    /// Sends a request and waits for the head of its response. The body is taken once any of it is needed.
    pub async fn send(
        mut self: Box<Self>,
        request: &Outbound<'_>,
        body: &mut RequestBody,
        pool: Option<&Arc<Pool>>,
    ) -> Result<H1Response, Unanswered> {
        let framing = match body.length() {
            _ if body.is_empty() => Framing::Length(0),
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        let out = &mut self.transport.out.head;
        encode::request(out, request.method, request.target, request.headers, framing, request.connection_options());
        let mut upload = Upload::new(body, framing, request.expect_continue);
        let mut scanned = 0;
        let mut answering = false;
        let reused = self.is_reused();
        let mut exchange = UnderWay(Some(self));
        let head = poll_fn(|context| {
            let Some(H1Connection { transport, .. }) = exchange.0.as_deref_mut() else { return Poll::Pending };
            upload.poll(context, transport);
            if let Some(reason) = upload.refused() {
                return Poll::Ready(Err(UpstreamError::new(reason)));
            }
            loop {
                match next_head(&mut transport.input, &mut scanned, request.method) {
                    Err(reason) => return Poll::Ready(Err(UpstreamError::new(reason))),
                    Ok(Some(head)) if is_interim(&head) => {
                        answering = true;
                        if head.status == StatusCode::CONTINUE {
                            upload.proceed();
                            upload.poll(context, transport);
                        }
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                }
                match ready!(transport.poll_fill(context, HEAD_READ)) {
                    Ok(0) => return Poll::Ready(Err(UpstreamError::new(Reason::ResetBeforeResponse))),
                    Ok(_) => answering = true,
                    Err(error) => {
                        return Poll::Ready(Err(UpstreamError::because(Reason::ResetBeforeResponse, error)));
                    }
                }
            }
        })
        .await;
        match head {
            Ok(head) => Ok(exchange.respond(head, upload, pool)),
            Err(error) => {
                let stale = reused && !answering && error.reason == Reason::ResetBeforeResponse;
                // Given back whatever became of it: a body that was begun cannot be sent again, and must say so.
                *body = upload.body.take();
                Err(Unanswered { error, stale })
            }
        }
    }
}

/// A connection amid a request. Dropped, it is reset: the endpoint learns at once that nobody waits for it any more, and no
/// port is kept for what it might still say.
#[derive(Debug)]
struct UnderWay(Option<Box<H1Connection>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.transport.io.reset_when_closed();
        }
    }
}

impl UnderWay {
    fn respond(mut self, head: ResponseHead, upload: Upload, pool: Option<&Arc<Pool>>) -> H1Response {
        if let Some(connection) = &mut self.0 {
            connection.served += 1;
        }
        let ResponseHead { status, headers, framing, keep_alive } = head;
        let mut body = H1Body {
            connection: self,
            decoder: Decoder::new(framing, LIMITS),
            upload: (!upload.is_done()).then(|| Box::new(upload)),
            pool: pool.filter(|_| keep_alive).cloned(),
        };
        if body.decoder.is_done() && status != StatusCode::SWITCHING_PROTOCOLS {
            body.release();
        }
        H1Response { status, headers, body }
    }
}

/// `1xx`, but for the one that ends HTTP on the connection.
fn is_interim(head: &ResponseHead) -> bool {
    head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
}

fn next_head(input: &mut BytesMut, scanned: &mut usize, method: &Method) -> Result<Option<ResponseHead>, Reason> {
    let end = find_end(input, scanned, false).map_err(|_| Reason::BadResponse)?;
    if end.unwrap_or(input.len()) > LIMITS.bytes {
        return Err(Reason::BadResponse);
    }
    let Some(end) = end else { return Ok(None) };
    *scanned = 0;
    parse_response(&input.split_to(end).freeze(), LIMITS, method).map(Some)
}

/// The request's body on its way.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    encoder: Encoder,
    state: UploadState,
}

#[derive(Debug)]
enum UploadState {
    /// For `100 Continue`.
    Waiting(Pin<Box<Sleep>>),
    Sending,
    Flushing,
    Done,
    /// The endpoint does not take any more; it may have answered all the same.
    Broken,
    /// The client's fault.
    Refused(Reason),
}

impl Upload {
    fn new(body: &mut RequestBody, framing: Framing, expect_continue: bool) -> Self {
        let state = if body.is_empty() {
            UploadState::Flushing
        } else if expect_continue {
            UploadState::Waiting(Box::pin(sleep(CONTINUE)))
        } else {
            UploadState::Sending
        };
        Self { body: body.take(), encoder: Encoder::new(framing), state }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, UploadState::Done)
    }

    fn refused(&self) -> Option<Reason> {
        match self.state {
            UploadState::Refused(reason) => Some(reason),
            _ => None,
        }
    }

    fn proceed(&mut self) {
        if matches!(self.state, UploadState::Waiting(_)) {
            self.state = UploadState::Sending;
        }
    }

    /// Moves what can be moved.
    fn poll(&mut self, context: &mut Context<'_>, transport: &mut Transport<Io>) {
        loop {
            match &mut self.state {
                UploadState::Done | UploadState::Broken | UploadState::Refused(_) => return,
                UploadState::Waiting(timer) => {
                    if timer.as_mut().poll(context).is_ready() {
                        self.state = UploadState::Sending;
                        continue;
                    }
                    if let Poll::Ready(Err(_)) = transport.poll_flush(context) {
                        self.state = UploadState::Broken;
                    }
                    return;
                }
                UploadState::Flushing => {
                    self.state = match transport.poll_flush(context) {
                        Poll::Pending => return,
                        Poll::Ready(Ok(())) => UploadState::Done,
                        Poll::Ready(Err(_)) => UploadState::Broken,
                    }
                }
                UploadState::Sending => {
                    if !transport.out.has_room() {
                        match transport.poll_flush(context) {
                            Poll::Pending => return,
                            Poll::Ready(Ok(())) => {}
                            Poll::Ready(Err(_)) => {
                                self.state = UploadState::Broken;
                                return;
                            }
                        }
                    }
                    match self.poll_body(context, transport) {
                        Poll::Ready(state) => self.state = state,
                        Poll::Pending => {
                            if let Poll::Ready(Err(_)) = transport.poll_flush(context) {
                                self.state = UploadState::Broken;
                            }
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Takes one frame of the body.
    fn poll_body(&mut self, context: &mut Context<'_>, transport: &mut Transport<Io>) -> Poll<UploadState> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let out = &mut transport.out;
        let written = match frame {
            None => self.encoder.end(out, None).map(|()| UploadState::Flushing),
            Some(Err(_)) => {
                let failed = self.body.progress().and_then(|progress| progress.failed());
                return Poll::Ready(UploadState::Refused(failed.unwrap_or(Reason::ClientClosed)));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.encoder.data(out, data).map(|()| UploadState::Sending),
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    self.encoder.end(out, trailers.as_ref()).map(|()| UploadState::Flushing)
                }
            },
        };
        Poll::Ready(written.unwrap_or(UploadState::Refused(Reason::BadBody)))
    }
}

/// The body of a response. Its connection goes back to the pool as soon as the body's last byte has come.
#[derive(Debug)]
pub struct H1Body {
    connection: UnderWay,
    decoder: Decoder,
    upload: Option<Box<Upload>>,
    /// None: the connection cannot be used again.
    pool: Option<Arc<Pool>>,
}

impl H1Body {
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(connection) = &mut self.connection.0 else { return Poll::Ready(None) };
        let transport = &mut connection.transport;
        if let Some(upload) = &mut self.upload {
            upload.poll(context, transport);
            if upload.refused().is_some() {
                // The endpoint waits for what will not come.
                return Poll::Ready(Some(Err(BodyError::Over)));
            }
            if upload.is_done() {
                self.upload = None;
            }
        }
        loop {
            let decoded = match self.decoder.decode(&mut transport.input) {
                Ok(decoded) => decoded,
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            };
            let frame = match decoded {
                Decoded::Data(data) => Some(Ok(Frame::data(data))),
                Decoded::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                Decoded::End => None,
                Decoded::More => {
                    if ready!(transport.poll_fill(context, BODY_READ))? == 0
                        && let Err(error) = self.decoder.end_of_input()
                    {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    continue;
                }
            };
            if self.decoder.is_done() {
                self.release();
            }
            return Poll::Ready(frame);
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.connection.0.is_none()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.decoder.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// The stream and what was read ahead, after `101`.
    pub fn into_upgraded(mut self) -> Option<(Io, Bytes)> {
        let connection = self.connection.0.take()?;
        Some((connection.transport.io, connection.transport.input.freeze()))
    }

    /// Parts with the connection: back to the pool where it is fit for it, or closed.
    fn release(&mut self) {
        let Some(mut connection) = self.connection.0.take() else { return };
        let transport = &mut connection.transport;
        let clean =
            self.upload.is_none() && transport.input.is_empty() && transport.out.is_empty() && !transport.ended;
        if let Some(pool) = self.pool.take()
            && clean
        {
            transport.release();
            pool.put(connection);
        }
    }
}
