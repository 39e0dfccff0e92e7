//! A connection whose handshake is done: what every handler may know of it, and the table of all that are open.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use mitu_telemetry::Telemetry;
use mitu_telemetry::tls::StageTimes;
use mitu_tls::alpn::{Terms, Verdict};
use mitu_tls::early_data::EarlyData;
use mitu_tls::identity::ClientIdentity;
use parking_lot::Mutex;
use serde::Serialize;

use crate::drain::Drain;
use crate::listener::{Listener, TAKEN_BACK};
use crate::overload::Step;
use crate::relays::Relays;
use crate::sites::OverQuic;

/// One downstream connection, from the finished handshake to its end. It keeps the configuration it began with.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    /// The worker whose pools and tables it uses.
    pub worker: usize,
    pub listener: Arc<Listener>,
    /// The client's address: from the PROXY header where one was believed, and IPv4 where it is mapped into IPv6.
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// The protocol negotiated, or assumed for a client without ALPN.
    pub alpn: Arc<str>,
    /// Its index among the listener's.
    pub protocol: usize,
    pub terms: Terms,
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The suite's IANA name.
    pub cipher: &'static str,
    pub resumed: bool,
    /// Whether the client has finished its handshake; None: it had before anything else came.
    pub early_data: Option<EarlyData>,
    /// From the ClientHello, lower case.
    pub server_name: Option<Arc<str>>,
    /// The site that has it; none: an unknown name, or none at all.
    pub site: Option<usize>,
    /// The client certificate's, when one was verified.
    pub identity: Option<Arc<ClientIdentity>>,
    pub stages: StageTimes,
    pub opened: SystemTime,
    pub started: Instant,
    /// Requests begun so far.
    pub requests: AtomicU64,
    pub drain: Drain,
    /// The worker's.
    pub relays: Arc<Relays>,
    pub telemetry: Arc<Telemetry>,
}

/// What `/connections` and the access log say of a connection.
#[derive(Debug, Serialize)]
pub struct ConnectionRecord<'a> {
    pub event: &'static str,
    /// Seconds since the epoch.
    pub ts: f64,
    pub connection: u64,
    pub listener: &'a str,
    pub client: SocketAddr,
    pub server_name: Option<&'a str>,
    pub alpn: &'a str,
    /// Where the two sides did not simply agree, and what the client has offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn_verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn_offered: Option<&'a str>,
    pub tls_version: &'a str,
    pub cipher: &'a str,
    pub resumed: bool,
    pub client_certificate: Option<&'a str>,
    pub requests: u64,
    pub duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    pub stages: StageTimes,
}

impl Connection {
    /// Whether another request may follow on it, as far as this side is concerned.
    pub fn keeps_alive(&self) -> bool {
        let kept = !self.drain.draining() && !self.is_pressed();
        if !kept {
            self.let_go();
        }
        kept
    }

    /// Whether its listener is overloaded, so that it goes once it is idle.
    pub fn is_pressed(&self) -> bool {
        self.drain.step() >= Step::DisableKeepalive
    }

    /// It ends while its client might go on: counted, if overload is why.
    pub fn let_go(&self) {
        if !self.drain.draining() {
            self.listener.metrics.overload_keepalive.inc();
        }
    }

    /// Whether a request is refused, because the listener is overloaded.
    pub fn refuses_requests(&self) -> bool {
        let refuses = self.drain.step() >= Step::StopAcceptingRequests;
        if refuses {
            self.listener.metrics.overload_requests.inc();
        }
        refuses
    }

    /// Whether it has served its client: one that has just come is not let go yet.
    pub fn has_served(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    /// While what the client sends may be a replay of what another has sent.
    pub fn unconfirmed(&self) -> Option<&EarlyData> {
        self.early_data.as_ref().filter(|early| !early.is_confirmed())
    }

    /// What responses on it say in `Alt-Svc`; None: nothing.
    pub fn alt_svc(&self) -> Option<HeaderValue> {
        let value = self.listener.alt_svc()?;
        match self.listener.sites.over_quic(self) {
            OverQuic::Now => Some(value),
            OverQuic::Withdrawn => Some(HeaderValue::from_static(TAKEN_BACK)),
            // What was said before is taken back wherever it may have been heard.
            OverQuic::Never => (value == TAKEN_BACK).then_some(value),
        }
    }

    pub fn record(&self) -> ConnectionRecord<'_> {
        ConnectionRecord {
            event: "connection",
            ts: self.opened.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            connection: self.id,
            listener: &self.listener.name,
            client: self.peer,
            server_name: self.server_name.as_deref(),
            alpn: &self.alpn,
            alpn_verdict: (self.terms.verdict != Verdict::Agreed).then(|| self.terms.verdict.as_str()),
            alpn_offered: self.terms.offered.as_deref(),
            tls_version: self.version,
            cipher: self.cipher,
            resumed: self.resumed,
            client_certificate: self.identity.as_ref().map(|identity| identity.subject.as_str()),
            requests: self.requests.load(Ordering::Relaxed),
            duration_ms: self.started.elapsed().as_secs_f64() * 1e3,
            bytes_sent: None,
            bytes_received: None,
            error: None,
            stages: self.stages,
        }
    }
}

/// The open connections of one worker.
#[derive(Debug, Default)]
pub struct ConnectionTable(Mutex<HashMap<u64, Arc<Connection>>>);

impl ConnectionTable {
    /// Lists `connection` until the guard is dropped.
    pub fn insert(self: &Arc<Self>, connection: Arc<Connection>) -> Listed {
        let id = connection.id;
        self.0.lock().insert(id, connection);
        Listed { table: self.clone(), id }
    }

    pub fn snapshot(&self) -> Vec<Arc<Connection>> {
        self.0.lock().values().cloned().collect()
    }
}

/// Takes its connection out of the table when the connection ends, however it ends.
#[derive(Debug)]
pub struct Listed {
    table: Arc<ConnectionTable>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.0.lock().remove(&self.id);
    }
}
