//! The UDP side of a listener: an endpoint for each worker, on sockets that share the port. It takes connections for
//! whoever the listener is at the moment, and outlives reloads: packets of open connections always find the worker that
//! knows them ([`steering`]).

mod steering;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mitu_tls::quic::{Handshake, Keys, VERSION};
use parking_lot::Mutex;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::config::{Limits, Timeouts};
use crate::gateway::{self, QuicIntake};
use crate::listener::LiveListener;
use crate::overload::Step;
use crate::worker::{Worker, Workers};

pub use steering::bind;

/// Bytes that the kernel keeps for an endpoint in each direction: a worker that computes for a millisecond must not lose
/// what comes meanwhile. It grants less where `net.core.rmem_max` says so.
pub const SOCKET_BUFFER: usize = 4 << 20;

/// Beyond so many handshakes under way on a worker, clients have to show first that they are at their address: with that a
/// flood from invented addresses costs a packet for each of its own.
const RETRY_ABOVE: usize = 64;

/// Connections that may wait to be taken up, and the bytes that may come of them meanwhile.
const MAX_WAITING: usize = 4096;
const WAITING_BYTES: u64 = 32 << 10;
const ALL_WAITING_BYTES: u64 = 16 << 20;

/// Streams that a client opens for itself: three are of use, and some clients open others to see what happens.
const CLIENT_STREAMS: u32 = 8;

/// How much may be on its way over all streams of a connection, in streams: to this side, and from it.
const RECEIVE_WINDOW: u64 = 4;
const SEND_WINDOW: u64 = 16;

/// What every path takes (RFC 9000, section 14).
const MIN_MTU: u16 = 1200;

/// The largest packet that a path is tried with: what Ethernet takes over IPv6.
const MAX_MTU: u16 = 1452;

/// How near to what the path takes is looked. With more than half of what lies between QUIC's smallest packet and the
/// largest, that is tried first, and where it is lost what is halfway: one packet for most, two at most. Steps of twenty are
/// five packets, more than many a connection lives to send, and each costs as much as a response.
const MTU_STEP: u16 = (MAX_MTU - MIN_MTU) / 2 + 1;

/// QUIC gives a silent connection up later than its protocol does, which has a reason for it; and before it would, it asks
/// whether the client is there, which is so only where requests wait for an upstream.
const SILENCE: u64 = 15_000;
const SIGN_OF_LIFE: u64 = 5_000;

/// How long an end may take to be told.
const LAST_PACKETS: Duration = Duration::from_millis(500);

/// How connections behave on a listener with these bounds.
pub fn transport(limits: &Limits, timeouts: &Timeouts) -> TransportConfig {
    let window = (limits.buffer_bytes as u64).clamp(16 << 10, 16 << 20);
    let of = |count: u64| VarInt::from_u64(count).unwrap_or(VarInt::MAX);
    let idle = timeouts.idle_ms.max(timeouts.handshake_ms);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_MTU).minimum_change(MTU_STEP);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(limits.concurrent_streams.into())
        .max_concurrent_uni_streams(CLIENT_STREAMS.into())
        .stream_receive_window(of(window))
        .receive_window(of(window * RECEIVE_WINDOW))
        .send_window(window * SEND_WINDOW)
        .max_idle_timeout(Some(IdleTimeout::from(of(idle + SILENCE))))
        .keep_alive_interval(Some(Duration::from_millis(idle + SIGN_OF_LIFE)))
        .datagram_receive_buffer_size(None);
    transport
}

/// The running UDP side.
#[derive(Debug)]
pub struct Datagrams {
    pub address: SocketAddr,
    target: Arc<Target>,
    endpoints: Vec<JoinHandle<()>>,
}

/// Who takes new connections.
#[derive(Debug)]
struct Target {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// None: nobody does, and those that are open go on to their end.
    live: Option<Arc<LiveListener>>,
    /// Endpoints without a connection while nobody takes new ones.
    idle: usize,
    /// It is being taken over.
    held: usize,
    /// Nobody takes it over any more.
    ended: bool,
}

/// Keeps a UDP side that is on its way out from ending.
#[derive(Debug)]
pub struct Held(Arc<Target>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.lock().held -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Datagrams {
    /// Takes connections from `sockets`, one for each worker.
    pub fn serve(sockets: Vec<UdpSocket>, live: &Arc<LiveListener>, workers: &Workers, keys: &Keys) -> Self {
        let count = sockets.len();
        let state = State { live: Some(live.clone()), idle: 0, held: 0, ended: false };
        let target = Arc::new(Target { state: Mutex::new(state), changed: Notify::new() });
        let serve = |(index, socket): (usize, UdpSocket)| {
            let worker = workers.workers[index % workers.workers.len()].clone();
            let endpoint = Loop { target: target.clone(), live: live.clone(), worker, count, keys: keys.clone() };
            workers.handle(index).spawn(endpoint.run(socket, index))
        };
        Self { address: live.address, endpoints: sockets.into_iter().enumerate().map(serve).collect(), target }
    }

    /// Whether it can be taken over: it then waits for that.
    pub fn hold(&self) -> Option<Held> {
        let mut state = self.target.state.lock();
        if state.ended {
            return None;
        }
        state.held += 1;
        Some(Held(self.target.clone()))
    }

    /// From here on `live` takes new connections, or nobody does.
    pub fn assign(&self, live: Option<&Arc<LiveListener>>) {
        let mut state = self.target.state.lock();
        (state.live, state.idle) = (live.cloned(), 0);
        drop(state);
        self.target.changed.notify_waiters();
    }

    pub fn ended(&self) -> bool {
        self.endpoints.iter().all(JoinHandle::is_finished)
    }

    /// Closes every connection, and lets clients know.
    pub fn close(&self) {
        let mut state = self.target.state.lock();
        (state.live, state.ended) = (None, true);
        drop(state);
        self.target.changed.notify_waiters();
    }
}

/// One worker's endpoint.
struct Loop {
    target: Arc<Target>,
    /// Who took connections last.
    live: Arc<LiveListener>,
    worker: Arc<Worker>,
    count: usize,
    keys: Keys,
}

impl Loop {
    async fn run(mut self, socket: UdpSocket, index: usize) {
        let handshaking = Arc::new(AtomicUsize::new(0));
        let mut config = EndpointConfig::new(self.keys.reset.clone());
        let count = self.count;
        config.supported_versions(vec![VERSION]).cid_generator(move || Box::new(steering::Ids::new(index, count)));
        let endpoint = Endpoint::new(config, Some(self.server_config()), socket, Arc::new(TokioRuntime));
        let Ok(endpoint) = endpoint else { return self.live.datagrams_failed() };
        let mut counted = false;
        loop {
            let mut changed = std::pin::pin!(self.target.changed.notified());
            changed.as_mut().enable();
            let (live, idle, held, ended) = {
                let state = self.target.state.lock();
                (state.live.clone(), state.idle, state.held, state.ended)
            };
            if ended {
                break;
            }
            if let Some(live) = &live {
                (self.live, counted) = (live.clone(), false);
            }
            if counted && idle == self.count && held == 0 {
                self.end();
                break;
            }
            tokio::select! {
                biased;
                incoming = endpoint.accept() => match (incoming, live) {
                    (Some(incoming), Some(live)) => self.intake(incoming, live, &handshaking),
                    (Some(incoming), None) => incoming.refuse(),
                    (None, _) => return self.live.datagrams_failed(),
                },
                () = &mut changed => {}
                () = endpoint.wait_idle(), if live.is_none() && !counted => counted = self.count_idle(),
            }
        }
        endpoint.close(0_u32.into(), b"");
        let _ = tokio::time::timeout(LAST_PACKETS, endpoint.wait_idle()).await;
    }

    /// This endpoint has no connection left; with the last of them, the UDP side ends.
    fn count_idle(&self) -> bool {
        let mut state = self.target.state.lock();
        if state.live.is_some() {
            return false;
        }
        state.idle += 1;
        drop(state);
        self.target.changed.notify_waiters();
        true
    }

    fn end(&self) {
        self.target.state.lock().ended = true;
        self.target.changed.notify_waiters();
    }

    /// For what comes before a listener is asked: the keys of first packets, and what Retry says.
    fn server_config(&self) -> ServerConfig {
        let handshake = Handshake::new(self.live.current.load_full());
        let mut config = ServerConfig::new(Arc::new(handshake), self.keys.token.clone());
        config
            .max_incoming(MAX_WAITING)
            .incoming_buffer_size(WAITING_BYTES)
            .incoming_buffer_size_total(ALL_WAITING_BYTES);
        config
    }

    /// Like the accept loop of TCP: takes a slot, spawns the connection and goes on.
    fn intake(&self, incoming: Incoming, live: Arc<LiveListener>, handshaking: &Arc<AtomicUsize>) {
        let accepted_at = Instant::now();
        let listener = live.current.load_full();
        let pressed = handshaking.load(Ordering::Relaxed) >= RETRY_ABOVE || self.worker.gate.pressure().0 > 0;
        if pressed && incoming.may_retry() {
            listener.metrics.quic_retries.inc();
            // It may be retried, so that this cannot fail.
            let _ = incoming.retry();
            return;
        }
        let Some(transport) = listener.quic_transport() else { return incoming.refuse() };
        listener.metrics.accepted_quic.inc();
        if live.drain.step() == Step::RejectConnections {
            listener.metrics.refused_overload.inc();
            return incoming.refuse();
        }
        let Some(slot) = live.take_slot(&listener) else { return incoming.refuse() };
        let handshake = Arc::new(Handshake::new(listener.clone()));
        let mut config = ServerConfig::new(handshake.clone(), self.keys.token.clone());
        // With one, a client that comes back shows at once that it is at its address, which early data takes.
        let mut tokens = ValidationTokenConfig::default();
        tokens.sent(u32::from(listener.allows_early_quic()));
        config.transport_config(transport).validation_token_config(tokens);
        tokio::spawn(gateway::quic_connection(QuicIntake {
            incoming,
            config: Arc::new(config),
            handshake,
            address: live.address,
            listener,
            slot,
            under_way: UnderWay::new(handshaking),
            drain: live.drain.subscribe(),
            worker: self.worker.clone(),
            accepted_at,
        }));
    }
}

/// A handshake under way, counted until it is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
