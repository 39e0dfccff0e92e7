//! What becomes of a request, settled once: metrics and the access log's line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use mitu_telemetry::http::{Reason, RequestMetrics, RequestRecord};

use super::body::Progress;
use super::{Downstream, Version};
use crate::router::Action;

/// The client went away before it had a status; nginx's number for it.
const CLIENT_CLOSED: u16 = 499;

/// An open account counts as a client that went away: whoever drops it midway need not say so.
#[derive(Debug)]
pub struct Account {
    downstream: Arc<Downstream>,
    started: Instant,
    /// In the listener's router.
    route: Option<u32>,
    status: u16,
    reason: Option<Reason>,
    delivered: bool,
    sent: u64,
    relayed: u64,
    progress: Option<Arc<Progress>>,
    /// Only where the access log wants requests.
    log: Option<Box<LogFields>>,
    early_data: bool,
}

/// What the log needs of a request whose head is gone by then.
#[derive(Debug)]
struct LogFields {
    arrived: SystemTime,
    /// None, like `uri`, when the head could not be read.
    method: Option<Method>,
    host: Option<HeaderValue>,
    uri: Option<Uri>,
    user_agent: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    endpoint: Option<Arc<str>>,
    upstream: Option<Duration>,
}

impl Account {
    pub fn open(downstream: &Arc<Downstream>, method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let mut account = Self::open_unparsed(downstream);
        if let Some(log) = &mut account.log {
            log.method = Some(method.clone());
            log.uri = Some(uri.clone());
            log.host = headers.get(header::HOST).cloned();
            log.user_agent = headers.get(header::USER_AGENT).cloned();
            log.traceparent = headers.get("traceparent").cloned();
        }
        account
    }

    /// For a request whose head could not be read.
    pub fn open_unparsed(downstream: &Arc<Downstream>) -> Self {
        let log = downstream.logs_requests().then(|| {
            Box::new(LogFields {
                arrived: SystemTime::now(),
                method: None,
                host: None,
                uri: None,
                user_agent: None,
                traceparent: None,
                endpoint: None,
                upstream: None,
            })
        });
        Self {
            downstream: downstream.clone(),
            started: Instant::now(),
            route: None,
            status: CLIENT_CLOSED,
            reason: None,
            delivered: false,
            sent: 0,
            relayed: 0,
            progress: None,
            log,
            early_data: false,
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn has_body(&mut self, progress: Option<&Arc<Progress>>) {
        self.progress = progress.cloned();
    }

    /// Why the request's body could not be read.
    pub fn body_failed(&self) -> Option<Reason> {
        self.progress.as_ref()?.failed()
    }

    /// The host that a request without a `Host` header is for.
    pub fn for_host(&mut self, host: &HeaderValue) {
        if let Some(log) = &mut self.log {
            log.host = Some(host.clone());
        }
    }

    pub fn routed(&mut self, route: usize) {
        self.route = u32::try_from(route).ok();
    }

    /// It is served although it may be a replay.
    pub fn early_data(&mut self) {
        self.early_data = true;
    }

    /// The endpoint that has answered, or failed to.
    pub fn tried(&mut self, endpoint: &Arc<str>) {
        if let Some(log) = &mut self.log {
            log.endpoint = Some(endpoint.clone());
            log.upstream = Some(self.started.elapsed());
        }
    }

    pub fn answer(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }

    /// The first failure is the one that counts.
    pub fn fail(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    pub fn failure(&self) -> Option<Reason> {
        self.reason
    }

    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// The connection went on in another protocol, and carried this much from and to the client.
    pub fn relayed(&mut self, received: u64, sent: u64) {
        self.relayed = received;
        self.sent = sent;
        self.delivered = true;
    }

    pub fn delivered(&mut self) {
        self.delivered = true;
    }

    fn metrics(&self) -> &RequestMetrics {
        let metrics = self.downstream.connection.listener.router.metrics(self.route.map(|route| route as usize));
        match self.downstream.version {
            Version::H1 => &metrics.h1,
            Version::H2 => &metrics.h2,
            Version::H3 => &metrics.h3,
        }
    }

    fn write_log(&self, log: &LogFields, received: u64, duration: Duration) {
        let connection = &self.downstream.connection;
        let Some(access_log) = &*connection.telemetry.access_log.load() else { return };
        let route = self.route.map(|route| connection.listener.router.route(route as usize));
        let (trace_id, span_id) = log.traceparent.as_ref().and_then(trace).unzip();
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (host, user_agent) = (text(&log.host), text(&log.user_agent));
        let client: SocketAddr = connection.peer;
        access_log.write(&RequestRecord {
            event: "request",
            ts: log.arrived.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            connection: connection.id,
            client,
            listener: &connection.listener.name,
            alpn: &connection.alpn,
            method: log.method.as_ref().map_or("", Method::as_str),
            host: host.as_deref().unwrap_or(""),
            path: log.uri.as_ref().and_then(Uri::path_and_query).map_or("", |path| path.as_str()),
            early_data: self.early_data,
            route: route.map(|route| route.name.as_str()),
            upstream: route.and_then(|route| match &route.action {
                Action::Upstream { upstream, .. } => Some(upstream.name.as_str()),
                Action::Respond(_) | Action::Redirect(_) => None,
            }),
            endpoint: log.endpoint.as_deref(),
            status: self.status,
            bytes_received: received,
            bytes_sent: self.sent,
            duration_ms: millis(duration),
            upstream_ms: log.upstream.map(millis),
            reason: self.reason.map(Reason::as_str),
            side: self.reason.map(|reason| reason.side().as_str()),
            user_agent: user_agent.as_deref(),
            trace_id,
            span_id,
        });
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.delivered {
            self.reason.get_or_insert(Reason::ClientClosed);
        }
        if let Some(progress) = &self.progress {
            progress.abandon();
        }
        let received = self.progress.as_ref().map_or(self.relayed, |progress| progress.received());
        let duration = self.started.elapsed();
        let metrics = self.metrics();
        metrics.finished(self.status, duration, received, self.sent);
        if let Some(reason) = self.reason {
            metrics.failed(reason);
        }
        if let Some(log) = self.log.take() {
            self.write_log(&log, received, duration);
        }
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Trace and span of a `traceparent` (W3C Trace Context, section 3.2).
fn trace(value: &HeaderValue) -> Option<(&str, &str)> {
    let mut fields = value.to_str().ok()?.split('-');
    let (_version, trace, span) = (fields.next()?, fields.next()?, fields.next()?);
    (trace.len() == 32 && span.len() == 16).then_some((trace, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_context_is_read() {
        let header = |text| HeaderValue::from_static(text);
        let valid = header("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(trace(&valid), Some(("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")));
        assert_eq!(trace(&header("00-short-00f067aa0ba902b7-01")), None);
        assert_eq!(trace(&header("nonsense")), None);
    }
}
