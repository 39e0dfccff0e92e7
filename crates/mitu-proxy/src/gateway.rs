//! The life of a connection, whole, from top to bottom. Each stage has a file of its own.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mitu_telemetry::tls::StageTimes;
use mitu_tls::alpn::{Terms, Verdict};
use mitu_tls::client_hello;
use mitu_tls::early_data::{Confirmation, EarlyData};
use mitu_tls::handshake::{self, Clock, Failed, HandshakeError};
use mitu_tls::identity::ClientIdentity;
use mitu_tls::quic::{Handshake, Negotiated};
use mitu_tls::select::Chosen;
use quinn::{Connecting, ConnectionError, Incoming, ServerConfig, ZeroRttAccepted};
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, HandshakeKind, ProtocolVersion};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::dispatch::{self, Stream};
use crate::drain::Drain;
use crate::gate::{Gate, Kind, Pass, Refused};
use crate::listener::{Listener, Slot};
use crate::proxy_protocol;
use crate::quic::UnderWay;
use crate::worker::Worker;

/// What the accept loop hands over for a connection on TCP.
pub struct Intake {
    pub tcp: TcpStream,
    pub peer: SocketAddr,
    /// The listener's.
    pub address: SocketAddr,
    pub listener: Arc<Listener>,
    /// Held until the connection ends.
    pub slot: Slot,
    pub drain: Drain,
    pub worker: Arc<Worker>,
    pub accepted_at: Instant,
}

/// What the endpoint hands over for a connection in QUIC.
pub struct QuicIntake {
    pub incoming: Incoming,
    pub config: Arc<ServerConfig>,
    pub handshake: Arc<Handshake>,
    /// The listener's.
    pub address: SocketAddr,
    pub listener: Arc<Listener>,
    /// Held until the connection ends.
    pub slot: Slot,
    /// Held until the handshake ends.
    pub under_way: UnderWay,
    pub drain: Drain,
    pub worker: Arc<Worker>,
    pub accepted_at: Instant,
}

/// A connection on TCP, from accept to its end.
pub async fn connection(intake: Intake) {
    let Intake { tcp, mut peer, address, listener, slot: _slot, mut drain, worker, accepted_at } = intake;
    let mut times = StageTimes { accept_wait: accepted_at.elapsed(), ..StageTimes::default() };

    // One deadline bounds everything before the first application byte. Boxed, so that an open connection does not
    // carry the room that its handshake needed.
    let limit = Duration::from_millis(listener.timeouts.handshake_ms);
    let secured = Box::pin(async {
        let pass = worker.gate.pass();
        let secure = secure(tcp, &mut peer, address, &listener, &mut drain, &pass, &mut times);
        let secured = timeout(limit, pass.run(secure)).await;
        times.gate = pass.waited();
        secured
    })
    .await;
    times.total = accepted_at.elapsed();
    let secured = match secured.unwrap_or_else(|_| Err(HandshakeError::Timeout.into())) {
        Ok(secured) => secured,
        Err(failed) => {
            report_failure(&failed.error, peer, &listener, times, &worker);
            return Box::pin(failed.close()).await;
        }
    };
    listener.handshake_metrics(secured.prepared, secured.version, secured.resumed).observe(&times);

    let (stream, protocol, connection) = open(secured, peer, times, accepted_at, listener, drain, &worker);
    let _listed = worker.connections.insert(connection.clone());
    let early_data = connection.early_data.clone();
    let serving = established(dispatch::run(stream, protocol, connection), &worker.gate);
    match early_data {
        None => serving.await,
        Some(early_data) => Box::pin(while_in_time(serving, early_data, limit, ())).await,
    }
}

/// Serves a connection that began with early data, whose client has as long again to end its handshake, and a little more:
/// what it gets meanwhile is to arrive. Until it has, `held` is.
async fn while_in_time<T>(serving: impl Future<Output = ()>, early_data: EarlyData, limit: Duration, held: T) {
    const GRACE: Duration = Duration::from_secs(1);
    let mut serving = pin!(serving);
    tokio::select! {
        () = &mut serving => return,
        in_time = timeout(limit + GRACE, early_data.confirmed()) => if in_time.is_err() { return },
    }
    drop(held);
    serving.await;
}

/// A connection in QUIC, likewise. What a ClientHello decides is decided in [`mitu_tls::quic`], within QUIC's own steps.
pub async fn quic_connection(intake: QuicIntake) {
    let QuicIntake { incoming, config, handshake, address, listener, slot: _slot, under_way, .. } = intake;
    let (drain, worker, accepted_at) = (intake.drain, intake.worker, intake.accepted_at);
    let mut times = StageTimes { accept_wait: accepted_at.elapsed(), ..StageTimes::default() };
    let peer = canonical(incoming.remote_address());

    let limit = Duration::from_millis(listener.timeouts.handshake_ms);
    let secured = Box::pin(async {
        let pass = worker.gate.pass();
        let secure = secure_quic(incoming, config, peer, address, &listener, &pass);
        let secured = timeout(limit, pass.run(secure)).await;
        times.gate = pass.waited();
        secured
    })
    .await;
    let outcome = handshake.outcome();
    times.total = accepted_at.elapsed();
    (times.select, times.crypto) = (outcome.select, outcome.crypto);
    times.client_flight = times.total.saturating_sub(times.accept_wait + times.gate + times.select + times.crypto);
    let secured = match secured.unwrap_or(Err(HandshakeError::Timeout)) {
        Ok(secured) => secured,
        Err(error) => return report_failure(&outcome.error.unwrap_or(error), peer, &listener, times, &worker),
    };
    if let Some(metrics) = listener.quic_handshake_metrics(secured.prepared, secured.resumed) {
        metrics.observe(&times);
    }
    let (stream, protocol, connection) = open(secured, peer, times, accepted_at, listener, drain, &worker);
    let _listed = worker.connections.insert(connection.clone());
    let early_data = connection.early_data.clone();
    let serving = established(dispatch::run(stream, protocol, connection), &worker.gate);
    match early_data {
        None => {
            drop(under_way);
            serving.await;
        }
        Some(early_data) => Box::pin(while_in_time(serving, early_data, limit, under_way)).await,
    }
}

/// From here on the connection has a name in `/connections`, and its handler what was decrypted.
fn open(
    secured: Secured,
    peer: SocketAddr,
    stages: StageTimes,
    started: Instant,
    listener: Arc<Listener>,
    drain: Drain,
    worker: &Worker,
) -> (Stream, usize, Arc<Connection>) {
    let Secured { stream, protocol, terms, local, version, cipher, resumed, early, server_name, identity, .. } =
        secured;
    let connection = Connection {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        worker: worker.index,
        peer,
        local,
        alpn: listener.protocols[protocol].alpn.clone(),
        protocol,
        terms,
        version,
        cipher,
        resumed,
        early_data: early,
        site: listener.sites.named(server_name.as_deref()),
        server_name,
        identity,
        stages,
        opened: SystemTime::now(),
        started,
        requests: AtomicU64::new(0),
        drain,
        relays: worker.relays.clone(),
        telemetry: worker.telemetry.clone(),
        listener,
    };
    (stream, protocol, Arc::new(connection))
}

/// How often the task of a connection runs for its first request and its end, with an upstream between them.
const FIRST_STEPS: u8 = 8;

/// Serves a connection, and lets the gate hear of it whenever it has something to do, once its beginning is over: in a
/// storm, what new connections do is no reason for shorter turns.
async fn established(serving: impl Future<Output = ()>, gate: &Gate) {
    let (mut serving, mut steps) = (pin!(serving), 0);
    poll_fn(|context| {
        if steps < FIRST_STEPS {
            steps += 1;
        } else {
            gate.hears();
        }
        serving.as_mut().poll(context)
    })
    .await;
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A stream whose handshake is done, but for the client's last message where there is early data, with what it negotiated.
struct Secured {
    stream: Stream,
    prepared: usize,
    protocol: usize,
    terms: Terms,
    local: SocketAddr,
    version: &'static str,
    cipher: &'static str,
    resumed: bool,
    /// Of a connection that began with early data.
    early: Option<EarlyData>,
    server_name: Option<Arc<str>>,
    identity: Option<Arc<ClientIdentity>>,
}

/// Everything before the first application byte.
async fn secure(
    mut tcp: TcpStream,
    peer: &mut SocketAddr,
    address: SocketAddr,
    listener: &Listener,
    drain: &mut Drain,
    pass: &Pass,
    times: &mut StageTimes,
) -> Result<Secured, Failed> {
    // The listener's own address is the connection's, unless it stands for all of the machine's.
    let mut local = canonical(if address.ip().is_unspecified() { tcp.local_addr()? } else { address });
    *peer = canonical(*peer);

    // PROXY header: required of the peers that are trusted to send one, and of nobody else.
    if listener.expects_proxy_header(peer.ip()) {
        let header = tokio::select! {
            biased;
            header = proxy_protocol::read(&mut tcp) => header,
            () = drain.lingered() => Err(HandshakeError::Draining),
        };
        let header = header.inspect_err(|_| listener.metrics.refused_proxy_protocol.inc())?;
        if let Some(addresses) = header {
            (*peer, local) = (canonical(addresses.source), canonical(addresses.destination));
        }
    }

    // From here on in turns, which sources have alike.
    pass.comes_from(peer.ip()).map_err(|refused| reset(&tcp, refused))?;
    pass.turn(Kind::Hello).await.map_err(|refused| reset(&tcp, refused))?;

    // ClientHello: read once, before anything is decided. A drain waits for those that have begun.
    let begun = Instant::now();
    let lingered = async {
        drain.lingered().await;
        HandshakeError::Draining
    };
    let arrived = client_hello::read(&mut tcp, lingered).await?;
    times.client_hello = begun.elapsed();

    // Selection: server name → site, ALPN → protocol, signatures → certificate, keys sent → group; all of
    // it prepared before.
    let begun = Instant::now();
    let Some(hello) = arrived.view() else { return Err(handshake::refuse_malformed(tcp, arrived).await) };
    let server_name = hello.server_name.as_deref().map(Arc::<str>::from);
    let selected = listener.select(&hello);
    times.select = begun.elapsed();
    let Chosen { prepared, protocol, config, retries, terms } = match selected {
        Ok(selected) => selected,
        Err(error) => return Err(handshake::refuse(tcp, error).await),
    };

    // Gate: established connections and other sources have their turns before the signature.
    let negotiates = matches!(terms.verdict, Verdict::Agreed | Verdict::NotAllowed);
    let kind = if hello.resumes { Kind::Resumed } else { Kind::Full };
    let asked = server_name.as_deref().map_or(Ok(()), |name| pass.asks_for(name));
    asked.map_err(|refused| reset(&tcp, refused))?;
    pass.turn(kind).await.map_err(|refused| reset(&tcp, refused))?;
    if retries {
        pass.retries();
    }

    // Handshake: this side's computing and the client's answers are timed apart.
    let clock = Clock::start(&mut times.crypto, &mut times.client_flight);
    let stream = handshake::run(tcp, arrived.into_records(), config, clock).await?;

    let tls = stream.tls();
    // A second ClientHello, after HelloRetryRequest, is rustls' alone to read, and it takes one without ALPN.
    if negotiates && tls.alpn_protocol().is_none() {
        return Err(HandshakeError::AlpnTakenBack.into());
    }
    let version = match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let cipher = tls.negotiated_cipher_suite().map_or("", |suite| mitu_tls::policy::suite_name(&suite));
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    let identity = identify(tls.peer_certificates().and_then(<[_]>::first), resumed)?;
    let early = stream.early_data();
    let stream = Stream::Tcp(stream);
    Ok(Secured { stream, prepared, protocol, terms, local, version, cipher, resumed, early, server_name, identity })
}

/// The same in QUIC. The gate knows no more of a client than its address: all are taken for full handshakes.
async fn secure_quic(
    incoming: Incoming,
    config: Arc<ServerConfig>,
    peer: SocketAddr,
    address: SocketAddr,
    listener: &Listener,
    pass: &Pass,
) -> Result<Secured, HandshakeError> {
    let local = canonical(incoming.local_ip().map_or(address, |ip| SocketAddr::new(ip, address.port())));
    // What must come through a load balancer that tells the client's address does not come in QUIC.
    if listener.expects_proxy_header(peer.ip()) {
        listener.metrics.refused_proxy_protocol.inc();
        return Err(HandshakeError::ProxyProtocol("there is none in QUIC"));
    }
    // Whoever is refused is told, and may come by TCP.
    pass.comes_from(peer.ip()).map_err(refused)?;
    pass.turn(Kind::Full).await.map_err(refused)?;
    // Who has not shown that it is at its address has no request served before: nobody asks in another's name.
    let is_there = incoming.remote_address_validated();
    let mut connecting = incoming.accept_with(config).map_err(quic_error)?;
    let begun = is_there && listener.allows_early_quic() && has_early_data(&mut connecting).await?;
    let begun = if begun { connecting.into_0rtt() } else { Err(connecting) };
    let (quic, early) = match begun {
        Ok((quic, done)) => (quic.clone(), Some(confirmed_by(quic, done))),
        Err(connecting) => (connecting.await.map_err(quic_error)?, None),
    };

    let negotiated = quic.handshake_data().and_then(|data| data.downcast::<Negotiated>().ok());
    let Some(negotiated) = negotiated else { return Err(HandshakeError::Quic("no handshake".to_owned())) };
    let Negotiated { prepared, protocol, terms, server_name, cipher, resumed, leaf, .. } = *negotiated;
    let identity =
        identify(leaf.as_ref(), resumed).inspect_err(|_| quic.close(0_u32.into(), b"the certificate has expired"))?;
    let (stream, version) = (Stream::Quic(quic), "TLSv1.3");
    Ok(Secured { stream, prepared, protocol, terms, local, version, cipher, resumed, early, server_name, identity })
}

/// Whether the client has sent some, as its ClientHello says.
async fn has_early_data(connecting: &mut Connecting) -> Result<bool, HandshakeError> {
    let hello = connecting.handshake_data().await.map_err(quic_error)?;
    Ok(hello.downcast_ref::<Negotiated>().is_some_and(|negotiated| negotiated.early_data))
}

/// Told when the handshake is done; and never, where the connection ends before.
fn confirmed_by(quic: quinn::Connection, done: ZeroRttAccepted) -> EarlyData {
    let confirmation = Confirmation::default();
    let early_data = confirmation.early_data();
    tokio::spawn(async move {
        // On this side it does not say whether the handshake was finished or given up.
        done.await;
        if quic.close_reason().is_none() {
            confirmation.confirm();
        }
    });
    early_data
}

/// Who the client is. A ticket carries the identity past the certificate check, and each session that resumes gets new
/// tickets.
fn identify(leaf: Option<&CertificateDer<'_>>, resumed: bool) -> Result<Option<Arc<ClientIdentity>>, HandshakeError> {
    let identity = leaf.map(|leaf| Arc::new(ClientIdentity::from_verified(leaf)));
    match identity {
        Some(identity) if resumed && identity.is_expired(SystemTime::now()) => {
            Err(HandshakeError::Tls(CertificateError::Expired.into()))
        }
        identity => Ok(identity),
    }
}

fn quic_error(error: ConnectionError) -> HandshakeError {
    /// Codes from here on are TLS' alerts (RFC 9001, section 4.8).
    const ALERTS: std::ops::Range<u64> = 0x100..0x200;
    match error {
        ConnectionError::TimedOut => HandshakeError::Timeout,
        ConnectionError::ApplicationClosed(_) => HandshakeError::Closed,
        ConnectionError::ConnectionClosed(close) if ALERTS.contains(&u64::from(close.error_code)) => {
            let alert = u64::from(close.error_code) as u8;
            HandshakeError::Tls(rustls::Error::AlertReceived(alert.into()))
        }
        error => HandshakeError::Quic(error.to_string()),
    }
}

/// Closing is to cost neither side anything more.
fn reset(tcp: &TcpStream, refused: Refused) -> Failed {
    let _ = tcp.set_zero_linger();
    self::refused(refused).into()
}

fn refused(refused: Refused) -> HandshakeError {
    match refused {
        Refused::Shed => HandshakeError::Shed,
        Refused::RateLimited => HandshakeError::RateLimited,
    }
}

/// `::ffff:192.0.2.1`, which a socket for all addresses calls an IPv4 peer, is 192.0.2.1 to everybody here.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if matches!(v6.ip().to_canonical(), IpAddr::V4(_)) => {
            SocketAddr::new(v6.ip().to_canonical(), v6.port())
        }
        address => address,
    }
}

/// The access log's line for a connection that came to nothing.
#[derive(Serialize)]
struct FailureRecord<'a> {
    event: &'static str,
    ts: f64,
    listener: &'a str,
    client: SocketAddr,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpn_verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpn_offered: Option<&'a str>,
    error: String,
    stages: StageTimes,
}

fn report_failure(
    error: &HandshakeError,
    client: SocketAddr,
    listener: &Listener,
    stages: StageTimes,
    worker: &Worker,
) {
    let reason = error.reason();
    listener.handshake_failed(reason);
    if let Some(log) = &*worker.telemetry.access_log.load()
        && log.connections_enabled()
    {
        let ts = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let terms = error.terms();
        log.write(&FailureRecord {
            event: "handshake_failed",
            ts,
            listener: &listener.name,
            client,
            reason: reason.as_str(),
            alpn_verdict: terms.map(|terms| terms.verdict.as_str()),
            alpn_offered: terms.and_then(|terms| terms.offered.as_deref()),
            error: error.to_string(),
            stages,
        });
    }
}

#[cfg(test)]
mod tests {
    use mitu_tls::stream::SecureStream;

    use super::*;
    use crate::protocol::http::{serve_h1, serve_h2};
    use crate::protocol::relay;

    fn size<Argument, Task: Future>(_: impl FnOnce(Argument) -> Task) -> usize {
        size_of::<Task>()
    }

    /// What an open connection takes of the heap whether it is busy or not, buffers and TLS state apart.
    #[test]
    fn an_idle_connection_takes_little_room() {
        let h1 = size(|(stream, connection): (SecureStream, _)| serve_h1(stream, connection));
        let h2 = size(|(stream, connection): (SecureStream, _)| serve_h2(stream, connection));
        let relay =
            size(|(stream, connection, upstream, metrics): (SecureStream, &'static _, &'static _, &'static _)| {
                relay::serve(stream, connection, upstream, metrics)
            });
        let sizes = [size(connection), h1, h2, relay];
        assert!(sizes.iter().zip([832, 896, 2048, 416]).all(|(size, most)| *size <= most), "{sizes:?}");
    }
}
