//! One request from its head to its response's head, top to bottom: validate, route, filter, act.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use mitu_telemetry::http::Reason;
use tokio::time::Instant;

use super::account::Account;
use super::body::{RequestBody, ResponseBody};
use super::h1::head::Expect;
use super::timer::LazyTimer;
use super::{Downstream, Version, validate};
use crate::filter::headers::{Hop, strip_hop_by_hop};
use crate::respond::{self, Audience};
use crate::router::path::normalise;
use crate::router::{Action, FixedResponse, Redirect, Route};
use crate::upstream::{Outbound, Upstream};

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
}

impl Incoming {
    /// A request of h2 or h3.
    pub fn in_frames(method: Method, uri: Uri, mut headers: HeaderMap, body: RequestBody) -> Self {
        let expect = match headers.remove(header::EXPECT) {
            Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Expect::Other,
            _ => Expect::Nothing,
        };
        join_cookies(&mut headers);
        Self { method, uri, headers, body, expect, http10: false }
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
                Proxied::Body(body, nominated) => Response::new(ResponseBody::upstream(body, nominated, account)),
                Proxied::Upgrade(upgrade) => Response::new(ResponseBody::upgrade(upgrade, account)),
            };
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        Err(reason) => refuse(reason, audience, &method, account),
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

enum Answered {
    Own { status: StatusCode, headers: HeaderMap, body: bytes::Bytes },
    Upstream { status: StatusCode, headers: HeaderMap, body: Proxied },
}

enum Proxied {
    /// And the names of trailers that are not passed on.
    Body(crate::upstream::UpstreamBody, Vec<HeaderName>),
    Upgrade(super::upgrade::Upgrade),
}

async fn answer(
    downstream: &Arc<Downstream>,
    mut request: Incoming,
    account: &mut Account,
    timer: &mut LazyTimer,
) -> Result<Answered, Reason> {
    let connection = &downstream.connection;
    let listener = &connection.listener;

    if connection.refuses_requests() {
        return Err(Reason::Overloaded);
    }
    validate::method(&request.method)?;
    validate::target(&request.method, &request.uri)?;
    validate::host(&request.uri, &mut request.headers, !request.http10)?;
    if request.expect == Expect::Other {
        return Err(Reason::ExpectationFailed);
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
        return Err(Reason::Misdirected);
    }
    let index = listener.router.find(host_text, &path, &request.method, &request.headers).ok_or(Reason::NoRoute)?;
    account.routed(index);
    let route = listener.router.route(index);
    if let (Some(limit), Some(length)) = (listener.limits.request_body_bytes, request.body.length())
        && length > limit
    {
        return Err(Reason::BodyTooLarge);
    }

    match &route.action {
        Action::Respond(fixed) => Ok(respond_fixed(route, fixed, &request.method)),
        Action::Redirect(redirect) => {
            let query = request.uri.query().map_or(String::new(), |query| format!("?{query}"));
            redirect_to(route, redirect, host_text, &format!("{path}{query}"))
        }
        Action::Upstream { upstream, timeout } => {
            let target = target(&request.uri, path, route)?;
            let mut hop = strip_hop_by_hop(&mut request.headers);
            request.body.refuse_trailers(std::mem::take(&mut hop.nominated));
            if !claims_first {
                downstream.claims().apply(&mut request.headers);
            }
            route.filters.apply_request(&mut request.headers);
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
                hop,
                target: &target,
                expect: request.expect,
                http10: request.http10,
            };
            let answered = proxied.run(&request.method, &mut request.headers, &mut request.body, account, timer).await;
            // A body that failed explains whatever the upstream made of it.
            let answered = match account.body_failed() {
                Some(reason) if answered.is_err() => Err(reason),
                _ => answered,
            };
            answered.map(|mut answered| {
                if let Answered::Upstream { headers, .. } = &mut answered {
                    route.filters.apply_response(headers);
                }
                answered
            })
        }
    }
}

fn respond_fixed(route: &Route, fixed: &FixedResponse, method: &Method) -> Answered {
    let mut headers = fixed.headers.clone();
    route.filters.apply_response(&mut headers);
    let body = if *method == Method::HEAD { bytes::Bytes::new() } else { fixed.body.clone() };
    Answered::Own { status: fixed.status, headers, body }
}

fn redirect_to(route: &Route, redirect: &Redirect, host: &str, path_and_query: &str) -> Result<Answered, Reason> {
    let location = redirect.location(host, path_and_query);
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::LOCATION, HeaderValue::try_from(location).map_err(|_| Reason::BadRequest)?);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    route.filters.apply_response(&mut headers);
    Ok(Answered::Own { status: redirect.status, headers, body: bytes::Bytes::new() })
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

/// Whether a protocol is one that may go through unseen. With `h2c` a client would send further requests past the
/// routes and filters, inside what was taken for one connection.
fn is_relayed(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// A request that an upstream is to answer.
struct Proxy<'a> {
    downstream: &'a Downstream,
    upstream: &'a Upstream,
    timeout: Duration,
    hop: Hop,
    target: &'a str,
    expect: Expect,
    http10: bool,
}

impl Proxy<'_> {
    async fn run(
        self,
        method: &Method,
        headers: &mut HeaderMap,
        body: &mut RequestBody,
        account: &mut Account,
        timer: &mut LazyTimer,
    ) -> Result<Answered, Reason> {
        let upgrade = self.hop.upgrade.filter(|protocol| {
            // h2 has no upgrade, and with a body under way the protocol cannot change.
            let possible = self.downstream.version == Version::H1 && !self.http10 && body.is_empty();
            possible && is_relayed(protocol)
        });
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
        let answer = match timer.limit(deadline, self.upstream.request(&outbound, body)).await {
            None if account.awaits_body() => return Err(Reason::BodyTimeout),
            None => return Err(Reason::ResponseTimeout),
            Some(Err(error)) => {
                if let Some(endpoint) = &error.endpoint {
                    account.tried(endpoint);
                }
                return Err(error.reason);
            }
            Some(Ok(answer)) => answer,
        };
        account.tried(answer.body.endpoint());
        let mut headers = answer.headers;
        let switched = answer.status == StatusCode::SWITCHING_PROTOCOLS;
        let hop = strip_hop_by_hop(&mut headers);
        let body = match (switched, upgrade) {
            (false, _) => Proxied::Body(answer.body, hop.nominated),
            (true, None) => return Err(Reason::BadResponse),
            (true, Some(asked)) => {
                let upgrade = answer.body.into_upgrade(hop.upgrade.unwrap_or(asked));
                Proxied::Upgrade(upgrade.ok_or(Reason::BadResponse)?)
            }
        };
        Ok(Answered::Upstream { status: answer.status, headers, body })
    }
}
