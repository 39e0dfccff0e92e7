//! Bodies in both directions: streamed piece by piece, counted and limited on the way.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use mitu_telemetry::http::Reason;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::account::Account;
use super::activity::{self, Stream};
use super::compressed::Compressed;
use super::h1::decode::DecodeError;
use super::h3::body::H3Body;
use super::h3::error::StreamError;
use super::upgrade::Upgrade;
use super::validate;
use crate::filter::grpc_web::{self, Base64Reader, Form};
use crate::filter::headers::allowed_in_trailers;
use crate::upstream::UpstreamBody;

/// How long, and how much of, an unwanted request body is read before its connection or its stream is closed: a client
/// that is still sending would otherwise meet a reset before it has read the response.
pub const LINGER: Duration = Duration::from_secs(2);
pub const LINGER_BYTES: usize = 1024 * 1024;

/// A body that could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    H2(#[from] hyper::Error),
    #[error(transparent)]
    H3(#[from] StreamError),
    #[error("the body is not as long as its content-length says")]
    Length,
    #[error("the body is no base64")]
    Base64,
    /// This side gave up on the body before.
    #[error("the exchange is over")]
    Over,
}

impl BodyError {
    /// As the failure of a request's body.
    fn reason(&self) -> Reason {
        match self {
            Self::TooLarge => Reason::BodyTooLarge,
            Self::H3(StreamError::Broken(_) | StreamError::Malformed) | Self::Length | Self::Base64 => Reason::BadBody,
            Self::Malformed(DecodeError::Incomplete) | Self::Io(_) | Self::H2(_) | Self::H3(_) | Self::Over => {
                Reason::ClientClosed
            }
            Self::Malformed(_) => Reason::BadBody,
        }
    }
}

/// A request's body on an h1 connection, whose bytes the connection shares.
pub trait RequestSource: Send + Sync {
    fn poll_frame(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;
}

/// What is known of a request's body while others read it.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    /// The reason it failed, plus one.
    failed: AtomicU8,
    over: AtomicBool,
    /// The client owes the next piece.
    awaited: AtomicBool,
    /// Of the task that reads it, which may be another than the one that answers.
    reader: Mutex<Option<Waker>>,
}

impl Progress {
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Why the body could not be read.
    pub fn failed(&self) -> Option<Reason> {
        let failed = usize::from(self.failed.load(Ordering::Relaxed));
        Reason::ALL.get(failed.checked_sub(1)?).copied()
    }

    /// Whether the client is the one that is waited for.
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    /// The exchange is over: nobody is to wait for the rest.
    pub fn abandon(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(reader) = self.reader.lock().take() {
            reader.wake();
        }
    }

    /// Whether it is over; if not, the reader will be told.
    fn is_over(&self, context: &Context<'_>) -> bool {
        self.reader.lock().replace(context.waker().clone());
        self.over.load(Ordering::Acquire)
    }

    fn fail(&self, error: &BodyError) {
        self.failed.store(error.reason() as u8 + 1, Ordering::Relaxed);
    }
}

/// The body of a request on its way to the upstream.
pub struct RequestBody {
    source: Source,
    /// What may still come.
    left: u64,
    length: Option<u64>,
    progress: Option<Arc<Progress>>,
    started: bool,
    /// Trailers that are not passed on, beside those that never are.
    refused: Vec<HeaderName>,
    /// What comes is in base64, and is not to go on like that.
    base64: Option<Base64Reader>,
}

enum Source {
    Empty,
    H1(Arc<dyn RequestSource>),
    H2(Incoming),
    H3(Box<H3Body>),
}

async fn skip(mut body: Incoming) {
    let mut skipped = 0;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        && skipped < LINGER_BYTES
    {
        skipped += frame.data_ref().map_or(0, Bytes::len);
    }
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RequestBody").field("length", &self.length).finish_non_exhaustive()
    }
}

impl RequestBody {
    pub fn empty() -> Self {
        Self {
            source: Source::Empty,
            left: 0,
            length: Some(0),
            progress: None,
            started: false,
            refused: Vec::new(),
            base64: None,
        }
    }

    /// `length`: none when it is not known beforehand. `limit`: bytes that may come.
    pub fn h1(source: Arc<dyn RequestSource>, length: Option<u64>, limit: Option<u64>) -> Self {
        Self::new(Source::H1(source), length, limit)
    }

    pub fn h2(incoming: Incoming, limit: Option<u64>) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let length = incoming.size_hint().exact();
        Self::new(Source::H2(incoming), length, limit)
    }

    /// `length`: as its head announces it.
    pub fn h3(body: H3Body, length: Option<u64>, limit: Option<u64>) -> Self {
        Self::new(Source::H3(Box::new(body)), length, limit)
    }

    fn new(source: Source, length: Option<u64>, limit: Option<u64>) -> Self {
        let (progress, left) = (Some(Arc::default()), limit.unwrap_or(u64::MAX));
        Self { source, left, length, progress, started: false, refused: Vec::new(), base64: None }
    }

    /// Holds it to another limit, before any of it is read.
    pub fn limit(&mut self, bytes: u64) {
        self.left = bytes;
    }

    /// Whether it announces more than may come.
    pub fn is_too_large(&self) -> bool {
        self.length.is_some_and(|length| length > self.left)
    }

    /// Trailers with these names are not passed on.
    pub fn refuse_trailers(&mut self, names: Vec<HeaderName>) {
        self.refused = names;
    }

    /// Reads base64 from here on. How long that is nobody has announced.
    pub fn decode_base64(&mut self) {
        if !self.is_empty() {
            self.length = None;
            self.base64 = Some(Base64Reader::default());
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    /// Whether any of it has been asked for: if so, it cannot be sent a second time.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// As announced by the client.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// None for an empty body.
    pub fn progress(&self) -> Option<&Arc<Progress>> {
        self.progress.as_ref()
    }

    /// Takes the body out, leaving an empty one.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::empty())
    }

    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::H1(source) => source.poll_frame(context),
            Source::H2(incoming) => Pin::new(incoming).poll_frame(context).map_err(BodyError::from),
            Source::H3(body) => body.poll_frame(context),
        }
    }

    /// Gives the body up. On h2, what nobody reads is still taken for a while: a response may come before the request
    /// has ended, and a client whose stream is reset while it sends (curl is one) never looks at the response. h3 has a
    /// way to say that the rest is not wanted.
    fn give_up(&mut self) {
        match std::mem::replace(&mut self.source, Source::Empty) {
            Source::H2(incoming) if !incoming.is_end_stream() => {
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(timeout(LINGER, skip(incoming)));
                }
            }
            Source::H3(mut body) => body.stop(),
            Source::Empty | Source::H1(_) | Source::H2(_) => {}
        }
    }

    fn admit(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            self.left = self.left.checked_sub(length).ok_or(BodyError::TooLarge)?;
            if let Some(progress) = &self.progress {
                progress.received.fetch_add(length, Ordering::Relaxed);
            }
            return match &mut self.base64 {
                Some(base64) => base64.decode(data).map(Frame::data).ok_or(BodyError::Base64),
                None => Ok(frame),
            };
        }
        if let (Source::H2(_), Some(trailers)) = (&self.source, frame.trailers_ref()) {
            validate::fields(trailers).map_err(|_| DecodeError::Trailers)?;
        }
        Ok(without_refused_trailers(frame, &self.refused))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.started = true;
        let polled = this.poll_source(context);
        if let Some(progress) = &this.progress {
            progress.awaited.store(polled.is_pending(), Ordering::Relaxed);
        }
        if polled.is_pending()
            && let Some(progress) = &this.progress
            && progress.is_over(context)
        {
            this.give_up();
            return Poll::Ready(Some(Err(BodyError::Over)));
        }
        let frame = match ready!(polled) {
            None if this.base64.as_ref().is_some_and(|base64| !base64.is_whole()) => Err(BodyError::Base64),
            None => {
                this.source = Source::Empty;
                return Poll::Ready(None);
            }
            Some(Ok(frame)) => this.admit(frame),
            Some(Err(error)) => Err(error),
        };
        if let (Err(error), Some(progress)) = (&frame, &this.progress) {
            progress.fail(error);
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::H1(_) => false,
            // Whether all is whole is known when it is asked for more.
            _ if self.base64.is_some() => false,
            Source::H2(incoming) => incoming.is_end_stream(),
            Source::H3(body) => body.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.length) {
            (Source::Empty, _) => SizeHint::with_exact(0),
            _ if self.base64.is_some() => SizeHint::default(),
            (Source::H2(incoming), _) => incoming.size_hint(),
            (Source::H1(_) | Source::H3(_), Some(length)) if !self.started => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}

/// Drops the trailer fields that may not be passed on.
fn without_refused_trailers(frame: Frame<Bytes>, refused: &[HeaderName]) -> Frame<Bytes> {
    let allowed = |name: &HeaderName| allowed_in_trailers(name) && !refused.contains(name);
    match frame.into_trailers() {
        Ok(trailers) if trailers.keys().all(allowed) => Frame::trailers(trailers),
        Ok(trailers) => {
            let mut kept = HeaderMap::with_capacity(trailers.len());
            for (name, value) in trailers.iter().filter(|(name, _)| allowed(name)) {
                kept.append(name, value.clone());
            }
            Frame::trailers(kept)
        }
        Err(frame) => frame,
    }
}

/// The body of a response on its way to the client. Its account is settled when it ends or is dropped.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Inner,
    account: Account,
    /// Trailers that are not passed on, beside those that never are.
    refused: Vec<HeaderName>,
    /// It is gRPC, to be written as gRPC-Web.
    form: Option<Form>,
    /// On h2: the stream is in progress for as long.
    stream: Option<Stream>,
}

#[derive(Debug)]
enum Inner {
    Empty,
    Full(Bytes),
    Upstream(UpstreamBody),
    Compressed(Box<Compressed>),
    /// `101`: no body, the connection changes its protocol.
    Upgrade(Box<Upgrade>),
}

impl ResponseBody {
    fn new(inner: Inner, account: Account) -> Self {
        let mut body = Self { inner, account, refused: Vec::new(), form: None, stream: None };
        // A body at its end is not asked for.
        if !matches!(body.inner, Inner::Upgrade(_)) && body.is_end_stream() {
            body.account.delivered();
        }
        body
    }

    /// The response is complete, with or without its body (`HEAD`, `304`).
    pub fn delivered(&mut self) {
        self.account.delivered();
        self.settled();
    }

    /// Keeps `stream` in progress until this body is done with.
    pub fn during(&mut self, mut stream: Stream) {
        if self.is_end_stream() {
            stream.settled();
        } else {
            activity::offered(stream.moved());
        }
        self.stream = Some(stream);
    }

    /// On h2: the client is owed nothing any more.
    fn settled(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.settled();
        }
    }

    pub fn empty(account: Account) -> Self {
        Self::new(Inner::Empty, account)
    }

    pub fn full(bytes: Bytes, account: Account) -> Self {
        Self::new(if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) }, account)
    }

    /// `refused`: names of trailers that are not passed on. `form`: of gRPC-Web, where it is to become that.
    pub fn upstream(body: UpstreamBody, refused: Vec<HeaderName>, form: Option<Form>, account: Account) -> Self {
        Self { refused, form, ..Self::new(Inner::Upstream(body), account) }
    }

    /// The same, compressed.
    pub fn compressed(body: Box<Compressed>, refused: Vec<HeaderName>, account: Account) -> Self {
        Self { refused, ..Self::new(Inner::Compressed(body), account) }
    }

    pub fn upgrade(upgrade: Upgrade, account: Account) -> Self {
        Self::new(Inner::Upgrade(Box::new(upgrade)), account)
    }

    /// Why this gateway answers instead of the upstream.
    pub fn failure(&self) -> Option<Reason> {
        self.account.failure()
    }

    /// The other side of the connection's next protocol, once.
    pub fn take_upgrade(&mut self) -> Option<Box<Upgrade>> {
        match std::mem::replace(&mut self.inner, Inner::Empty) {
            Inner::Upgrade(upgrade) => Some(upgrade),
            inner => {
                self.inner = inner;
                None
            }
        }
    }

    /// The account, for what comes after the response.
    pub fn into_account(self) -> Account {
        self.account
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.stream.is_some() {
            activity::taken();
        }
        let frame = match &mut this.inner {
            Inner::Empty | Inner::Upgrade(_) => None,
            Inner::Full(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Inner::Upstream(body) => ready!(body.poll_frame(context)),
            Inner::Compressed(body) => ready!(body.poll_frame(context)),
        };
        if matches!(this.inner, Inner::Full(_)) {
            this.inner = Inner::Empty;
        }
        Poll::Ready(match frame {
            None => {
                this.delivered();
                None
            }
            Some(Ok(frame)) => {
                if let Some(stream) = &this.stream {
                    activity::offered(stream.moved());
                }
                let frame = match this.form {
                    Some(form) => grpc_web::frame(form, without_refused_trailers(frame, &this.refused)),
                    None => frame,
                };
                if let Some(data) = frame.data_ref() {
                    this.account.sent(data.len() as u64);
                    if this.is_end_stream() {
                        this.delivered();
                    }
                    Some(Ok(frame))
                } else {
                    // Nothing comes behind trailers, and nobody asks.
                    this.delivered();
                    Some(Ok(without_refused_trailers(frame, &this.refused)))
                }
            }
            Some(Err(error)) => {
                let reason = this.account.body_failed().unwrap_or(match error {
                    BodyError::TooLarge => Reason::ResponseTooLarge,
                    _ => Reason::ResponseIncomplete,
                });
                this.account.fail(reason);
                this.settled();
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty | Inner::Upgrade(_) => true,
            Inner::Full(bytes) => bytes.is_empty(),
            Inner::Upstream(body) => body.is_end_stream(),
            Inner::Compressed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty | Inner::Upgrade(_) => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Upstream(body) if self.form.is_some() && !body.is_end_stream() => SizeHint::default(),
            Inner::Upstream(body) => body.size_hint(),
            Inner::Compressed(_) => SizeHint::default(),
        }
    }
}
