//! One try of a request at one endpoint: reuse a connection or open one, send, wait for the response's head.

use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, header};
use mitu_telemetry::http::{Reason, Retry, Side};
use tokio::time::Instant;

use super::answer::{Answer, Kind, UpstreamBody};
use super::breaker::Full;
use super::endpoint::{Active, Endpoint};
use super::endpoints::Member;
use super::h1::{H1Connection, H1Response};
use super::h2::H2Connection;
use super::pool::Pool;
use super::request::Outbound;
use super::retry::{Again, Failed};
use super::{Upstream, UpstreamError};
use crate::config::UpstreamProtocol;
use crate::protocol::http::body::RequestBody;
use crate::proxy_protocol;

/// How far a try has come, for when it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for others to leave it a connection.
    Queue,
    /// It waits for another to open the connection that they are to share.
    Opening,
    /// It has a right to a connection.
    Endpoint,
    /// The endpoint may have the request.
    Sent,
}

#[derive(Debug, Clone, Copy)]
pub struct Reached {
    pub stage: Stage,
    /// For others; none: it did not.
    waited: Option<Waited>,
}

#[derive(Debug, Clone, Copy)]
struct Waited {
    time: Duration,
    until: Instant,
    /// What went well at the endpoint before.
    successes: u64,
}

impl Reached {
    pub fn new() -> Self {
        Self { stage: Stage::Endpoint, waited: None }
    }

    /// Whether the endpoint has had as much of the time as others had before, or gave that to nobody: in the queue of one
    /// that hangs, everybody's time is almost over when it begins.
    pub fn had_time(&self, endpoint: &Endpoint) -> bool {
        let Some(Waited { time, until, successes }) = self.waited else { return true };
        match self.stage {
            Stage::Queue | Stage::Opening => false,
            Stage::Endpoint => until.elapsed() >= time,
            Stage::Sent => until.elapsed() >= time || endpoint.standing.successes() == successes,
        }
    }

    /// Waits for `others` at `endpoint`.
    async fn wait<T>(&mut self, stage: Stage, endpoint: &Endpoint, others: impl Future<Output = T>) -> T {
        let (begun, successes) = (Instant::now(), endpoint.standing.successes());
        self.stage = stage;
        let left = others.await;
        self.stage = Stage::Endpoint;
        self.waited = Some(Waited { time: begun.elapsed(), until: Instant::now(), successes });
        left
    }
}

/// A connection to send on.
enum Link {
    H1(Box<H1Connection>),
    H2(Arc<H2Connection>),
}

impl Upstream {
    /// Sends a request to an endpoint and waits for the head of its response. `fresh`: h1 connections from the pool are
    /// not to be trusted.
    pub(super) async fn attempt(
        &self,
        member: &Member,
        mut active: Active,
        request: &Outbound<'_>,
        body: &mut RequestBody,
        fresh: bool,
        reached: &mut Reached,
    ) -> Result<Answer, Failed> {
        let endpoint = &member.endpoint;
        let at = |failed: Failed| Failed { error: failed.error.at(&endpoint.address), ..failed };
        let client = body.progress().cloned();
        let link = self.link(member, &mut active, request, fresh, reached).await.map_err(at)?;
        reached.stage = Stage::Sent;
        let sent = self.send(link, active, member.pool(request.connection.worker), request, body).await;
        sent.map_err(|failed| {
            // A kept connection that was closed is nobody's failure, as long as it costs nothing but a moment.
            let stale = failed.again == Again::Retry(Retry::Stale);
            let theirs = failed.error.reason.side() == Side::Upstream;
            if theirs && !stale && client.is_none_or(|client| client.failed().is_none()) {
                endpoint.response_failed(failed.error.reason);
            }
            at(failed)
        })
    }

    /// A pooled connection, or a new one.
    async fn link(
        &self,
        member: &Member,
        active: &mut Active,
        request: &Outbound<'_>,
        fresh: bool,
        reached: &mut Reached,
    ) -> Result<Link, Failed> {
        let (endpoint, worker) = (&member.endpoint, request.connection.worker);
        let pool = member.pool(worker);
        // A connection that was announced as one client's cannot serve another's.
        let own = self.config.proxy_protocol;
        let h2 = self.config.protocol != UpstreamProtocol::Http1 && !request.upgrade;
        if h2
            && !own
            && let Some(connection) = pool.shared()
        {
            endpoint.metrics.reused.inc();
            return Ok(Link::H2(connection));
        }
        if self.config.protocol == UpstreamProtocol::Http2 {
            if own {
                return self.open(endpoint, request, pool).await;
            }
            let first = pool.opening.try_lock();
            let (waited, before) = (first.is_err(), endpoint.unreachable());
            let _opening = match first {
                Ok(opening) => opening,
                Err(_) => reached.wait(Stage::Opening, endpoint, pool.opening.lock()).await,
            };
            if let Some(connection) = pool.shared() {
                endpoint.metrics.reused.inc();
                return Ok(Link::H2(connection));
            }
            // Whoever was waited for has failed: trying again one by one would take everybody's time.
            if waited && endpoint.unreachable() != before {
                return Err(Failed::because(UpstreamError::new(Reason::ConnectFailed), Retry::Connect, true));
            }
            return self.open(endpoint, request, pool).await;
        }
        let permit = match endpoint.breaker.try_connection() {
            Err(Full) => {
                let queue = endpoint.breaker.connection(&endpoint.metrics.pending);
                reached.wait(Stage::Queue, endpoint, queue).await
            }
            permit => permit,
        };
        active.keep(permit.map_err(|Full| Failed::overflow())?);
        if !own && let Some(connection) = member.idle(worker) {
            if !fresh {
                endpoint.metrics.reused.inc();
                return Ok(Link::H1(connection));
            }
            // Closed, as the one that takes its place would be one too many.
            drop(connection);
        }
        let link = self.open(endpoint, request, pool).await?;
        if matches!(link, Link::H2(_)) {
            active.give_back();
        }
        Ok(link)
    }

    async fn open(&self, endpoint: &Endpoint, request: &Outbound<'_>, pool: &Arc<Pool>) -> Result<Link, Failed> {
        // Boxed, so that a request that finds a connection does not carry the room for making one.
        Box::pin(self.connection(endpoint, request, pool)).await.map_err(|error| {
            endpoint.connect_failed(&error);
            Failed::because(error, Retry::Connect, true)
        })
    }

    async fn connection(
        &self,
        endpoint: &Endpoint,
        request: &Outbound<'_>,
        pool: &Arc<Pool>,
    ) -> Result<Link, UpstreamError> {
        let preamble = self.config.proxy_protocol.then(|| proxy_protocol::header(request.connection));
        let offered = self.alpn(request.upgrade);
        let io = self.connector.connect(&endpoint.target, endpoint.server_name.as_ref(), offered, preamble).await?;
        // An upgrade asks for http/1.1 alone, which says nothing of what else is spoken.
        if !request.upgrade {
            endpoint.agreed(&io);
        }
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
    ) -> Result<Answer, Failed> {
        match link {
            Link::H1(connection) => {
                let pool = (!self.config.proxy_protocol).then_some(pool);
                match connection.send(request, body, pool).await {
                    Ok(H1Response { status, headers, body }) => {
                        Ok(Answer { status, headers, body: UpstreamBody::new(Kind::H1(body), status, active) })
                    }
                    Err(failed) => {
                        let reset = failed.error.reason == Reason::ResetBeforeResponse;
                        let harmless = reset && request.is_idempotent() && !body.is_started();
                        let retry = if failed.stale { Retry::Stale } else { Retry::Reset };
                        Err(Failed::because(failed.error, retry, harmless))
                    }
                }
            }
            Link::H2(connection) => {
                let empty = body.is_empty();
                let message = h2_request(request, body.take(), self.connector.tls.is_some())?;
                match connection.send(message).await {
                    Ok((response, stream)) => {
                        let (parts, incoming) = response.into_parts();
                        let kind = Kind::H2 { incoming, stream };
                        let body = UpstreamBody::new(kind, parts.status, active);
                        Ok(Answer { status: parts.status, headers: parts.headers, body })
                    }
                    Err(failed) => {
                        let whole = failed.request.is_some() || empty;
                        if let Some(message) = failed.request {
                            *body = message.into_body();
                        }
                        let harmless = failed.unprocessed.is_some() || request.is_idempotent();
                        let retry = failed.unprocessed.unwrap_or(Retry::Reset);
                        Err(Failed::because(failed.error, retry, harmless && whole && !body.is_started()))
                    }
                }
            }
        }
    }
}

/// The request in h2's terms: an authority in place of `Host`.
fn h2_request(request: &Outbound<'_>, body: RequestBody, tls: bool) -> Result<Request<RequestBody>, Failed> {
    let refuse = |error: http::Error| Failed::for_good(UpstreamError::because(Reason::BadRequest, error));
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
