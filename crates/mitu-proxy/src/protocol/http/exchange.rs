//! One request from its head to its response's head, top to bottom: validate, route, filter, act.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use mitu_telemetry::http::Reason;
use tokio::time::Instant;

use super::account::Account;
use super::body::{RequestBody, ResponseBody};
use super::compressed::Compressed;
use super::h1::head::Expect;
use super::timer::LazyTimer;
use super::websocket::Opening;
use super::{Downstream, Version, validate};
use crate::filter::compression::{Compression, Encoding};
use crate::filter::grpc_web::Form;
use crate::filter::headers::{Hop, strip_hop_by_hop};
use crate::respond::{self, Audience};
use crate::router::path::normalise;
use crate::router::{Action, FixedResponse, Redirect, Route};
use crate::upstream::{Outbound, Patience, Upstream, UpstreamBody};

/// Tells an upstream that the request may be a replay (RFC 8470, section 5.1).
const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// A request as its connection has read it.
#[derive(Debug)]
pub struct Incoming {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: RequestBody,
    pub expect: Expect,
    /// HTTP/1.0 does without a host, and without upgrades.
    pub http10: bool,
    /// What CONNECT is to begin in h2 and h3: their way to upgrade (RFC 8441).
    pub protocol: Option<Bytes>,
}

impl Incoming {
    /// A request of h2 or h3.
    pub fn in_frames(
        method: Method,
        uri: Uri,
        mut headers: HeaderMap,
        protocol: Option<Bytes>,
        body: RequestBody,
    ) -> Self {
        let expect = match headers.remove(header::EXPECT) {
            Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Expect::Other,
            _ => Expect::Nothing,
        };
        join_cookies(&mut headers);
        Self { method, uri, headers, body, expect, http10: false, protocol }
    }
}

/// Clients may send one cookie a field; outside h2 and h3 they are one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Answers a request. Dropping the future abandons it, and the upstream's part with it.
pub async fn exchange(
    downstream: &Arc<Downstream>,
    request: Incoming,
    timer: &mut LazyTimer,
) -> Response<ResponseBody> {
    downstream.connection.requests.fetch_add(1, Ordering::Relaxed);
    let mut account = Account::open(downstream, &request.method, &request.uri, &request.headers);
    account.has_body(request.body.progress());
    let audience = Audience::of(&request.headers);
    let method = request.method.clone();
    let mut response = match answer(downstream, request, &mut account, timer).await {
        Ok(Answered::Own { status, headers, body }) => {
            account.answer(status);
            let mut response = Response::new(ResponseBody::full(body, account));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        Ok(Answered::Upstream { status, headers, body }) => {
            account.answer(status);
            let mut response = match body {
                Proxied::Body { body, nominated, form } => {
                    Response::new(ResponseBody::upstream(body, nominated, form, account))
                }
                Proxied::Compressed(body, nominated) => {
                    Response::new(ResponseBody::compressed(body, nominated, account))
                }
                Proxied::Upgrade(upgrade) => Response::new(ResponseBody::upgrade(upgrade, account)),
            };
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        Err(Refusal { reason, retry_after }) => {
            let mut response = refuse(reason, audience, &method, account);
            if let Some(wait) = retry_after {
                // Whole seconds, of which the last has to be over.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
    };
    if downstream.version != Version::H3
        && let Some(alt_svc) = downstream.connection.alt_svc()
    {
        response.headers_mut().insert(header::ALT_SVC, alt_svc);
    }
    response
}

/// The answer to a request that failed.
pub fn refuse(reason: Reason, audience: Audience, method: &Method, mut account: Account) -> Response<ResponseBody> {
    let mut answer = respond::failure(reason, audience);
    if *method == Method::HEAD {
        answer.body.clear();
    }
    account.answer(answer.status);
    account.fail(reason);
    let mut response = Response::new(ResponseBody::full(answer.body, account));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// Why a request gets an answer that it did not ask for.
struct Refusal {
    reason: Reason,
    /// Asked again after this, it may get another.
    retry_after: Option<Duration>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, retry_after: None }
    }
}

enum Answered {
    Own { status: StatusCode, headers: HeaderMap, body: Bytes },
    Upstream { status: StatusCode, headers: HeaderMap, body: Proxied },
}

enum Proxied {
    /// `nominated`: the names of trailers that are not passed on. `form`: what gRPC-Web makes of it.
    Body {
        body: UpstreamBody,
        nominated: Vec<HeaderName>,
        form: Option<Form>,
    },
    Compressed(Box<Compressed>, Vec<HeaderName>),
    Upgrade(super::upgrade::Upgrade),
}

async fn answer(
    downstream: &Arc<Downstream>,
    mut request: Incoming,
    account: &mut Account,
    timer: &mut LazyTimer,
) -> Result<Answered, Refusal> {
    let connection = &downstream.connection;
    let listener = &connection.listener;

    if connection.refuses_requests() {
        return Err(Reason::Overloaded.into());
    }
    validate::method(&request.method, request.protocol.as_deref())?;
    let tunnel = request.protocol.is_some();
    if tunnel {
        // As it would come over HTTP/1.1: to the routes, and to the upstream.
        request.method = Method::GET;
    }
    validate::target(&request.method, &request.uri)?;
    validate::host(&request.uri, &mut request.headers, !request.http10)?;
    if request.expect == Expect::Other {
        return Err(Reason::ExpectationFailed.into());
    }

    // Routes that ask who the client is are told by this gateway, not by the client.
    let claims_first = listener.router.asks_for_claims();
    if claims_first {
        downstream.claims().apply(&mut request.headers);
    }
    let path = normalise(request.uri.path()).map_err(|_| Reason::BadPath)?;
    let host = request.headers.get(header::HOST);
    if let Some(host) = host {
        account.for_host(host);
    }
    let host_text = host.and_then(|host| host.to_str().ok()).unwrap_or("");
    if listener.sites.misdirected(connection, downstream.version, host_text) {
        return Err(Reason::Misdirected.into());
    }
    let index = listener.router.find(host_text, &path, &request.method, &request.headers).ok_or(Reason::NoRoute)?;
    account.routed(index);
    let route = listener.router.route(index);
    for limiter in &route.limiters {
        limiter
            .admit(connection, &request.headers, account.started())
            .map_err(|wait| Refusal { reason: Reason::RateLimited, retry_after: Some(wait) })?;
    }
    let early = match connection.unconfirmed() {
        None => false,
        Some(_) if route.early_data && is_harmless(&request, tunnel) => true,
        Some(early) => {
            listener.metrics.early_data_delayed.inc();
            let patience = Duration::from_millis(listener.timeouts.handshake_ms);
            if timer.limit(Instant::now() + patience, early.confirmed()).await != Some(true) {
                return Err(Reason::TooEarly.into());
            }
            false
        }
    };
    if early {
        listener.metrics.early_data_served.inc();
        account.early_data();
    }
    if let Some(limit) = route.request_body_bytes {
        request.body.limit(limit);
    }
    if request.body.is_too_large() {
        return Err(Reason::BodyTooLarge.into());
    }

    match &route.action {
        // It would say that the tunnel is there.
        Action::Respond(fixed) if tunnel && fixed.status.is_success() => Err(Reason::ProtocolNotSupported.into()),
        Action::Respond(fixed) => Ok(respond_fixed(route, fixed, &request.method)),
        Action::Redirect(redirect) => {
            let query = request.uri.query().map_or(String::new(), |query| format!("?{query}"));
            Ok(redirect_to(route, redirect, host_text, &format!("{path}{query}"))?)
        }
        Action::Upstream { upstream, timeout, try_timeout } => {
            let target = target(&request.uri, path, route)?;
            // What the client takes, whatever its upstream is told.
            let encoding = route.compression.as_ref().and_then(|compression| compression.choose(&request.headers));
            let mut hop = strip_hop_by_hop(&mut request.headers);
            if tunnel {
                hop.upgrade = Some(HeaderValue::from_static("websocket"));
            }
            request.body.refuse_trailers(std::mem::take(&mut hop.nominated));
            if !claims_first {
                downstream.claims().apply(&mut request.headers);
            }
            let grpc_web = route.filters.grpc_web(&mut request.headers);
            if let Some(grpc_web) = grpc_web {
                // As gRPC's own clients say, which a script cannot.
                hop.te_trailers = true;
                if grpc_web.request == Form::Base64 {
                    request.body.decode_base64();
                }
            }
            route.filters.apply_request(&mut request.headers);
            if early {
                // Nothing may take it out again: the upstream may answer 425, and the client then sends it once more.
                request.headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
            }
            if let Some(host) = route.filters.host() {
                request.headers.insert(header::HOST, host.clone());
            } else if !request.headers.contains_key(header::HOST) {
                // What an HTTP/1.0 client means that does not say it (RFC 9112, section 3.3).
                let own = HeaderValue::try_from(connection.local.to_string()).map_err(|_| Reason::BadHost)?;
                request.headers.insert(header::HOST, own);
            }
            let proxied = Proxy {
                downstream,
                upstream,
                timeout: *timeout,
                try_timeout: *try_timeout,
                response_limit: route.response_body_bytes,
                hop,
                target: &target,
                expect: request.expect,
                http10: request.http10,
                tunnel,
            };
            let answered = proxied.run(&request.method, &mut request.headers, &mut request.body, account, timer).await;
            // A body that failed explains whatever the upstream made of it.
            let answered = match account.body_failed() {
                Some(reason) if answered.is_err() => Err(reason),
                _ => answered,
            };
            let (status, mut headers, mut body) = answered?;
            if let (Some(grpc_web), Proxied::Body { form, .. }) = (grpc_web, &mut body) {
                *form = grpc_web.to_response(&mut headers).then_some(grpc_web.response);
            }
            route.filters.apply_response(&mut headers);
            if let Some(compression) = &route.compression {
                body = compress(body, compression, encoding, &request.method, status, &mut headers);
            }
            Ok(Answered::Upstream { status, headers, body })
        }
    }
}

/// Whether a request may be served as often as somebody sends it (RFC 8470, section 4).
fn is_harmless(request: &Incoming, tunnel: bool) -> bool {
    request.method.is_safe() && request.body.is_empty() && !tunnel && !request.headers.contains_key(header::UPGRADE)
}

fn respond_fixed(route: &Route, fixed: &FixedResponse, method: &Method) -> Answered {
    let mut headers = fixed.headers.clone();
    route.filters.apply_response(&mut headers);
    let body = if *method == Method::HEAD { Bytes::new() } else { fixed.body.clone() };
    Answered::Own { status: fixed.status, headers, body }
}

fn redirect_to(route: &Route, redirect: &Redirect, host: &str, path_and_query: &str) -> Result<Answered, Reason> {
    let location = redirect.location(host, path_and_query);
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::LOCATION, HeaderValue::try_from(location).map_err(|_| Reason::BadRequest)?);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    route.filters.apply_response(&mut headers);
    Ok(Answered::Own { status: redirect.status, headers, body: Bytes::new() })
}

/// Path and query for the upstream: as they came, where neither spelling nor filters change them.
fn target<'a>(uri: &'a Uri, path: Cow<'a, str>, route: &Route) -> Result<Cow<'a, str>, Reason> {
    let rewritten = route.filters.rewrite(&path);
    let (path, added) = match &rewritten {
        None => (path, None),
        Some(rewritten) => {
            let (path, added) =
                rewritten.split_once('?').map_or((&**rewritten, None), |(path, query)| (path, Some(query)));
            // The path was normal, so dots that stand alone were cut out of a segment, to leave what the rewrite set.
            if path.split('/').any(|segment| matches!(segment, "." | "..")) {
                return Err(Reason::BadPath);
            }
            (Cow::Owned(normalise(path).map_err(|_| Reason::BadPath)?.into_owned()), added)
        }
    };
    Ok(match (path, uri.path_and_query()) {
        (Cow::Borrowed(_), Some(whole)) if whole.as_str().starts_with('/') => Cow::Borrowed(whole.as_str()),
        (path, _) => match (added, uri.query()) {
            (None, None) => path,
            (Some(query), None) | (None, Some(query)) => Cow::Owned(format!("{path}?{query}")),
            (Some(added), Some(query)) => Cow::Owned(format!("{path}?{added}&{query}")),
        },
    })
}

/// Makes of a response what its client gets of it.
fn compress(
    body: Proxied,
    compression: &Compression,
    encoding: Option<Encoding>,
    method: &Method,
    status: StatusCode,
    headers: &mut HeaderMap,
) -> Proxied {
    let Proxied::Body { body, nominated, form } = body else { return body };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length = announced.or_else(|| body.size_hint().exact().filter(|_| *method != Method::HEAD));
    match compression.apply(encoding, method, status, headers, length) {
        Some(compressor) => Proxied::Compressed(Box::new(Compressed::new(body, compressor)), nominated),
        None => Proxied::Body { body, nominated, form },
    }
}

/// A request that an upstream is to answer.
struct Proxy<'a> {
    downstream: &'a Downstream,
    upstream: &'a Upstream,
    timeout: Duration,
    try_timeout: Option<Duration>,
    response_limit: Option<u64>,
    hop: Hop,
    target: &'a str,
    expect: Expect,
    http10: bool,
    /// The client has asked by CONNECT, and `hop` has it as an upgrade.
    tunnel: bool,
}

impl Proxy<'_> {
    async fn run(
        self,
        method: &Method,
        headers: &mut HeaderMap,
        body: &mut RequestBody,
        account: &mut Account,
        timer: &mut LazyTimer,
    ) -> Result<(StatusCode, HeaderMap, Proxied), Reason> {
        let upgrade = self.hop.upgrade.filter(|protocol| {
            // h2 has no upgrade but by CONNECT, and with a body under way the protocol cannot change.
            let possible = self.tunnel || (self.downstream.version == Version::H1 && !self.http10);
            possible && body.is_empty() && validate::is_relayed(protocol.as_bytes())
        });
        let opening = if self.tunnel { Some(Opening::begin(headers)?) } else { None };
        if let Some(protocol) = &upgrade {
            headers.insert(header::UPGRADE, protocol.clone());
        }
        let te_trailers = self.hop.te_trailers && upgrade.is_none();
        if te_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if body.is_empty() {
            headers.remove(header::EXPECT);
        }
        let outbound = Outbound {
            connection: &self.downstream.connection,
            method,
            target: self.target,
            headers,
            te_trailers,
            upgrade: upgrade.is_some(),
            expect_continue: self.expect == Expect::Continue,
        };
        let deadline = Instant::from_std(account.started()) + self.timeout;
        let patience = Patience { deadline, per_try: self.try_timeout, timer };
        let mut answer = match self.upstream.request(&outbound, body, patience).await {
            Err(error) => {
                if let Some(endpoint) = &error.endpoint {
                    account.tried(endpoint);
                }
                return Err(error.reason);
            }
            Ok(answer) => answer,
        };
        account.tried(answer.body.endpoint());
        if let Some(limit) = self.response_limit {
            answer.body.limit(limit)?;
        }
        let mut headers = answer.headers;
        let switched = answer.status == StatusCode::SWITCHING_PROTOCOLS;
        let hop = strip_hop_by_hop(&mut headers);
        let mut status = answer.status;
        if let Some(opening) = opening {
            match switched {
                true if !opening.is_accepted(&mut headers, hop.upgrade.as_ref()) => return Err(Reason::BadResponse),
                true => status = StatusCode::OK,
                // To the client it would say that the tunnel is there.
                false if status.is_success() => return Err(Reason::BadResponse),
                false => {}
            }
        }
        let body = match (switched, upgrade) {
            (false, _) => Proxied::Body { body: answer.body, nominated: hop.nominated, form: None },
            (true, None) => return Err(Reason::BadResponse),
            (true, Some(asked)) => {
                let upgrade = answer.body.into_upgrade(hop.upgrade.unwrap_or(asked));
                Proxied::Upgrade(upgrade.ok_or(Reason::BadResponse)?)
            }
        };
        Ok((status, headers, body))
    }
}
