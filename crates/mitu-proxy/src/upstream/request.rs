//! A request's way to an endpoint: choose, reuse or connect, send; again where that is safe.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use mitu_telemetry::http::Reason;

use super::endpoint::{Active, Endpoint};
use super::h1::{H1Body, H1Connection, H1Response};
use super::h2::{H2Connection, StreamGuard};
use super::pool::Pool;
use super::relay::UpstreamStream;
use super::{MAX_TRIES, Shard, Upstream, UpstreamError};
use crate::config::UpstreamProtocol;
use crate::connection::Connection;
use crate::protocol::http::body::{BodyError, RequestBody};
use crate::protocol::http::upgrade::{Rewound, Upgrade};
use crate::proxy_protocol;

/// Sent again, at most, because a pooled connection turned out to be closed.
const MAX_STALE: usize = 2;

/// A request as the endpoint is to see it.
#[derive(Debug)]
pub struct Outbound<'a> {
    pub connection: &'a Connection,
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// `Host` among them; nothing that belongs to a connection.
    pub headers: &'a HeaderMap,
    /// The client can take trailers; in `headers` as `TE`, too.
    pub te_trailers: bool,
    /// The protocol that the client wants to change to; in `headers` as `Upgrade`, too.
    pub upgrade: bool,
    /// The client waits for `100 Continue`.
    pub expect_continue: bool,
}

impl Outbound<'_> {
    /// The value of `Connection` on an h1 connection.
    pub fn connection_options(&self) -> &'static str {
        match (self.upgrade, self.te_trailers) {
            (true, _) => "upgrade",
            (false, true) => "te",
            (false, false) => "",
        }
    }

    /// Whether sending it twice does what sending it once does (RFC 9110, section 9.2.2).
    fn is_idempotent(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
    }
}

/// The head of an endpoint's response, and what brings its body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: UpstreamBody,
}

/// The body of a response; its request counts as active until this is dropped.
#[derive(Debug)]
pub struct UpstreamBody {
    kind: Kind,
    active: Active,
    /// What may still come.
    left: u64,
}

#[derive(Debug)]
enum Kind {
    H1(H1Body),
    H2 { incoming: Incoming, _stream: StreamGuard },
}

impl UpstreamBody {
    fn new(kind: Kind, active: Active) -> Self {
        Self { kind, active, left: u64::MAX }
    }

    /// Holds it to so many bytes. `Err`: it announces more.
    pub fn limit(&mut self, bytes: u64) -> Result<(), Reason> {
        self.left = bytes;
        if self.size_hint().exact().is_some_and(|length| length > bytes) {
            self.active.endpoint().metrics.response_failed(Reason::ResponseTooLarge);
            return Err(Reason::ResponseTooLarge);
        }
        Ok(())
    }

    pub fn endpoint(&self) -> &Arc<str> {
        &self.active.endpoint().address
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.kind {
            Kind::H1(body) => body.poll_frame(context),
            Kind::H2 { incoming, .. } => std::pin::Pin::new(incoming).poll_frame(context).map_err(BodyError::from),
        };
        match frame {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(self.admit(frame))),
            Poll::Ready(Some(Err(_))) => {
                self.active.endpoint().metrics.response_failed(Reason::ResponseIncomplete);
                frame
            }
            _ => frame,
        }
    }

    fn admit(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => {
                self.active.endpoint().metrics.response_failed(Reason::ResponseTooLarge);
                Err(BodyError::TooLarge)
            }
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::H1(body) => body.is_end_stream(),
            Kind::H2 { incoming, .. } => incoming.is_end_stream(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::H1(body) => body.size_hint(),
            Kind::H2 { incoming, .. } => incoming.size_hint(),
        }
    }

    /// The upstream's side after `101`. None on h2, which has no such status.
    pub fn into_upgrade(self, protocol: HeaderValue) -> Option<Upgrade> {
        match self.kind {
            Kind::H2 { .. } => None,
            Kind::H1(body) => {
                let (io, first) = body.into_upgraded()?;
                Some(Upgrade { protocol, stream: Rewound::new(first, UpstreamStream::new(io, self.active)) })
            }
        }
    }
}

/// A connection to send on.
enum Link {
    H1(Box<H1Connection>),
    H2(Arc<H2Connection>),
}

impl Upstream {
    /// Sends a request and waits for the head of its response.
    ///
    /// Another endpoint is tried when one cannot be connected to. A request that met a pooled connection which the
    /// endpoint had closed is sent again on a fresh one, unless that might do its work twice.
    pub async fn request(&self, request: &Outbound<'_>, body: &mut RequestBody) -> Result<Answer, UpstreamError> {
        let shard = self.shard(request.connection);
        let hash = self.hash(request.connection, Some(request.target), Some(request.headers));
        let mut tried = Vec::new();
        let mut stale = 0;
        let mut index = self.choose(shard, hash, &tried)?;
        loop {
            let endpoint = &self.endpoints[index];
            let active = Active::new(endpoint);
            let link = match self.link(shard, index, request, stale > 0).await {
                Ok(link) => link,
                Err(error) => {
                    endpoint.failed(&error);
                    tried.push(index);
                    match self.choose(shard, hash, &tried) {
                        Ok(next) if tried.len() < MAX_TRIES => index = next,
                        _ => return Err(error.at(&endpoint.address)),
                    }
                    continue;
                }
            };
            let error = match self.send(link, active, &shard.pools[index], request, body).await {
                Ok(answer) => return Ok(answer),
                Err(unanswered) if unanswered.again && stale < MAX_STALE => {
                    stale += 1;
                    endpoint.metrics.retries.inc();
                    continue;
                }
                Err(unanswered) => unanswered.error,
            };
            endpoint.metrics.response_failed(error.reason);
            return Err(error.at(&endpoint.address));
        }
    }

    /// A pooled connection, or a new one. `fresh`: h1 connections from the pool are not to be trusted.
    async fn link(
        &self,
        shard: &Shard,
        index: usize,
        request: &Outbound<'_>,
        fresh: bool,
    ) -> Result<Link, UpstreamError> {
        let (pool, endpoint) = (&shard.pools[index], &self.endpoints[index]);
        // A connection that was announced as one client's cannot serve another's.
        if self.config.proxy_protocol {
            return self.open(endpoint, request, pool).await;
        }
        let h2 = self.config.protocol != UpstreamProtocol::Http1 && !request.upgrade;
        if h2 && let Some(connection) = pool.shared() {
            endpoint.metrics.reused.inc();
            return Ok(Link::H2(connection));
        }
        if !fresh
            && self.config.protocol != UpstreamProtocol::Http2
            && let Some(connection) = pool.take()
        {
            endpoint.metrics.reused.inc();
            return Ok(Link::H1(connection));
        }
        if self.config.protocol == UpstreamProtocol::Http2 {
            let first = pool.opening.try_lock();
            let waited = first.is_err();
            let _opening = match first {
                Ok(opening) => opening,
                Err(_) => pool.opening.lock().await,
            };
            if let Some(connection) = pool.shared() {
                endpoint.metrics.reused.inc();
                return Ok(Link::H2(connection));
            }
            // Whoever was waited for has failed: trying again one by one would take everybody's time.
            if waited && endpoint.is_resting() {
                return Err(UpstreamError::new(Reason::ConnectFailed));
            }
            return self.open(endpoint, request, pool).await;
        }
        self.open(endpoint, request, pool).await
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        request: &Outbound<'_>,
        pool: &Arc<Pool>,
    ) -> Result<Link, UpstreamError> {
        let preamble = self.config.proxy_protocol.then(|| proxy_protocol::header(request.connection));
        let offered = self.alpn(request.upgrade);
        // Boxed, so that a request that finds a connection does not carry the room for making one.
        let io = self.connector.connect(&endpoint.target, endpoint.server_name.as_ref(), offered, preamble);
        let io = Box::pin(io).await?;
        let h2 = match (self.config.protocol, io.alpn()) {
            (UpstreamProtocol::Http2, None) if self.connector.tls.is_some() => {
                return Err(UpstreamError::new(Reason::ProtocolMismatch));
            }
            (UpstreamProtocol::Http2, _) => true,
            (_, alpn) => alpn == Some(b"h2"),
        };
        endpoint.connected();
        if !h2 {
            return Ok(Link::H1(H1Connection::new(io)));
        }
        let window = request.connection.listener.limits.buffer_bytes.clamp(65_535, 1 << 30) as u32;
        let connection = H2Connection::handshake(io, window).await?;
        if !self.config.proxy_protocol {
            pool.share(connection.clone());
        }
        Ok(Link::H2(connection))
    }

    async fn send(
        &self,
        link: Link,
        active: Active,
        pool: &Arc<Pool>,
        request: &Outbound<'_>,
        body: &mut RequestBody,
    ) -> Result<Answer, Unanswered> {
        match link {
            Link::H1(connection) => {
                let pool = (!self.config.proxy_protocol).then_some(pool);
                match connection.send(request, body, pool).await {
                    Ok(H1Response { status, headers, body }) => {
                        Ok(Answer { status, headers, body: UpstreamBody::new(Kind::H1(body), active) })
                    }
                    Err(failed) => {
                        let again = failed.stale && request.is_idempotent() && !body.is_started();
                        Err(Unanswered { error: failed.error, again })
                    }
                }
            }
            Link::H2(connection) => {
                let empty = body.is_empty();
                let message = h2_request(request, body.take(), self.connector.tls.is_some())?;
                match connection.send(message).await {
                    Ok((response, stream)) => {
                        let (parts, incoming) = response.into_parts();
                        let kind = Kind::H2 { incoming, _stream: stream };
                        Ok(Answer {
                            status: parts.status,
                            headers: parts.headers,
                            body: UpstreamBody::new(kind, active),
                        })
                    }
                    Err(failed) => {
                        let whole = failed.request.is_some() || empty;
                        if let Some(message) = failed.request {
                            *body = message.into_body();
                        }
                        let again = failed.unprocessed && whole && !body.is_started();
                        Err(Unanswered { error: failed.error, again })
                    }
                }
            }
        }
    }
}

/// A request that got no response.
struct Unanswered {
    error: UpstreamError,
    /// It can be sent again without doing its work twice.
    again: bool,
}

/// The request in h2's terms: an authority in place of `Host`.
fn h2_request(request: &Outbound<'_>, body: RequestBody, tls: bool) -> Result<Request<RequestBody>, Unanswered> {
    let refuse =
        |error: http::Error| Unanswered { error: UpstreamError::because(Reason::BadRequest, error), again: false };
    let mut headers = request.headers.clone();
    headers.remove(header::UPGRADE);
    headers.remove(header::EXPECT);
    let authority = headers.remove(header::HOST).unwrap_or(HeaderValue::from_static(""));
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(Authority::try_from(authority.as_bytes()).map_err(|error| refuse(error.into()))?)
        .path_and_query(PathAndQuery::try_from(request.target).map_err(|error| refuse(error.into()))?)
        .build()
        .map_err(refuse)?;
    let mut message = Request::new(body);
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri;
    *message.version_mut() = http::Version::HTTP_2;
    *message.headers_mut() = headers;
    Ok(message)
}
