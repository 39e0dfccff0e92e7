//! The running data plane: start, reload, drain, stop. A configuration is built whole, with its sockets bound, before
//! any of it is live; what cannot be built changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mitu_telemetry::access_log::{AccessLog, Target};
use mitu_telemetry::{Telemetry, connections};
use mitu_tls::certificate;
use mitu_tls::error::TlsConfigError;
use mitu_tls::quic::Keys;
use mitu_tls::ticket::Ticketers;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::accept;
use crate::config::{AccessLogConfig, Discovered, ListenerConfig, RuntimeConfig, Secrets};
use crate::connection::Connection;
use crate::drain::LINGER;
use crate::files;
use crate::gate::Gate;
use crate::listener::{Listener, ListenerError, LiveListener, Parts};
use crate::overload::{Change, Overload};
use crate::quic::{self, Datagrams, Held};
use crate::relays::Relays;
use crate::socket;
use crate::upstream::{self, EndpointReport, Upstreams};
use crate::worker::Workers;

/// How long a drain waits at most for the last connections to be accepted, and how often it looks.
const QUEUES_EMPTY: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);

/// How long the end waits at most for lines of the access log to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long it waits at most for clients in QUIC to be told.
const LAST_PACKETS: Duration = Duration::from_secs(1);

/// Why a configuration cannot be made live.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the runtime configuration does not parse: {0}")]
    Parse(#[from] serde_json::Error),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error(transparent)]
    Upstreams(#[from] upstream::BuildError),
    #[error("listener '{name}': {source}")]
    Listener { name: String, source: ListenerError },
    #[error("listener '{name}': cannot bind {bind}: {source}")]
    Bind { name: String, bind: SocketAddr, source: io::Error },
    #[error("listener '{name}': cannot bind UDP port {bind} for h3: {source}")]
    BindUdp { name: String, bind: SocketAddr, source: io::Error },
    #[error("cannot make keys for QUIC: the system gives no random numbers")]
    QuicKeys,
    #[error("access log: cannot open {path}: {source}")]
    AccessLog { path: String, source: io::Error },
    #[error("cannot change from {from} to {to} workers without a restart")]
    Workers { from: usize, to: usize },
    #[error("cannot change the scheduler without a restart")]
    Scheduler,
    #[error("cannot start the workers: {0}")]
    Start(io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the gateway is draining")]
    Draining,
    #[error("the data plane has been stopped")]
    Stopped,
}

/// A running data plane.
#[derive(Debug)]
pub struct Server {
    telemetry: Arc<Telemetry>,
    /// The workers', whose number never changes.
    gates: Vec<Arc<Gate>>,
    overload: Overload,
    quic: Keys,
    /// None once stopped. Only the control side takes this lock.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    workers: Workers,
    live: HashMap<String, Serving>,
    /// Drained by a reload, until their last connection has ended.
    retired: Vec<Serving>,
    /// UDP sides that a reload has taken from their listeners, until their last connection has ended.
    orphans: Vec<Datagrams>,
    draining: bool,
    built: Built,
    access_log: Option<AccessLogConfig>,
}

/// A live listener and the tasks that accept for it.
#[derive(Debug)]
struct Serving {
    listener: Arc<LiveListener>,
    /// As configured; an inherited socket may have another address.
    bind: SocketAddr,
    accepts: Vec<JoinHandle<()>>,
    /// The UDP side, where there is one.
    datagrams: Option<Datagrams>,
}

impl Serving {
    /// Whether it is what a listener of that name and `bind` asks for. Port 0 asks for any port, and the one that is
    /// bound already is one.
    fn serves(&self, bind: SocketAddr) -> bool {
        let address = self.listener.address;
        self.bind == bind || address == bind || (bind.port() == 0 && address.ip() == bind.ip())
    }

    /// Whether a socket of ours is in the way of a new one at `bind`, and lets it in beside itself.
    fn holds(&self, bind: SocketAddr) -> bool {
        let address = self.listener.address;
        let overlap = address.ip() == bind.ip() || address.ip().is_unspecified() || bind.ip().is_unspecified();
        address.port() == bind.port() && overlap && self.accepting()
    }

    fn accepting(&self) -> bool {
        self.accepts.iter().any(|accept| !accept.is_finished())
    }

    fn ended(&self) -> bool {
        !self.accepting() && self.listener.active() == 0 && self.datagrams.as_ref().is_none_or(Datagrams::ended)
    }

    /// Goes on under another configuration.
    fn replace(&mut self, bind: SocketAddr, listener: Arc<Listener>) {
        self.bind = bind;
        self.listener.replace(listener);
    }
}

impl State {
    /// The UDP sides, whoever they serve.
    fn datagrams(&self) -> impl Iterator<Item = &Datagrams> {
        let of_listeners = self.live.values().chain(&self.retired).filter_map(|serving| serving.datagrams.as_ref());
        of_listeners.chain(&self.orphans)
    }

    /// The UDP side that has this address already, which is not to end meanwhile.
    fn hold(&self, address: SocketAddr) -> Option<Held> {
        self.datagrams().filter(|datagrams| datagrams.address == address).find_map(Datagrams::hold)
    }

    /// Serves a listener's UDP side: on sockets of its own, or on those that another had before.
    fn serve_datagrams(
        &mut self,
        sockets: DatagramSockets,
        live: &Arc<LiveListener>,
        keys: &Keys,
    ) -> Option<Datagrams> {
        match sockets {
            DatagramSockets::Own(sockets) => Some(Datagrams::serve(sockets, live, &self.workers, keys)),
            DatagramSockets::Inherited(_held) => {
                let position =
                    self.orphans.iter().position(|orphan| orphan.address == live.address && !orphan.ended());
                let datagrams = self.orphans.swap_remove(position?);
                datagrams.assign(Some(live));
                Some(datagrams)
            }
        }
    }

    /// Closes the connections in QUIC, whose clients would otherwise wait for an answer.
    fn close_datagrams(&self) {
        self.datagrams().for_each(Datagrams::close);
        let begun = Instant::now();
        while begun.elapsed() < LAST_PACKETS && !self.datagrams().all(Datagrams::ended) {
            thread::sleep(POLL);
        }
    }
}

/// A configuration made ready, but for its sockets.
#[derive(Debug)]
struct Built {
    listeners: Vec<(SocketAddr, Arc<Listener>)>,
    upstreams: Upstreams,
    ticketers: Ticketers,
}

impl Built {
    fn new(
        config: &RuntimeConfig,
        secrets: &Secrets,
        telemetry: &Arc<Telemetry>,
        previous: Option<&Self>,
        discovered: &Discovered,
    ) -> Result<Self, ServerError> {
        let protocols = config.listeners.iter().flat_map(|listener| &listener.protocols);
        let providers = protocols.map(|protocol| protocol.tls.provider);
        let certificates = certificate::load_all(&config.certificates, secrets, providers)?;
        let upstreams = Upstreams::build(
            &config.upstreams,
            &config.certificates,
            secrets,
            config.workers,
            previous.map(|built| &built.upstreams),
            &discovered.endpoints,
            &telemetry.http,
        )?;
        let parts = Parts {
            certificates: &certificates,
            secrets,
            upstreams: &upstreams,
            previous_tickets: previous.map(|built| &built.ticketers),
            telemetry,
        };
        let mut ticketers = Ticketers::new(&config.tickets, secrets)?;
        let build = |config: &ListenerConfig| {
            let mut before = previous.iter().flat_map(|built| &built.listeners).map(|(_, listener)| &**listener);
            let before = before.find(|listener| listener.name == config.name);
            let listener = Listener::build(config, &parts, &mut ticketers, before)
                .map_err(|source| ServerError::Listener { name: config.name.clone(), source })?;
            Ok((config.bind, Arc::new(listener)))
        };
        let listeners = config.listeners.iter().map(build).collect::<Result<_, ServerError>>()?;
        Ok(Self { listeners, upstreams, ticketers })
    }

    /// Makes it the live one, as far as it changes what was there before. Nothing of this fails.
    fn settle(&mut self, discovered: &Discovered) {
        self.upstreams.settle();
        self.rank(discovered);
    }

    fn rank(&self, discovered: &Discovered) {
        for (ranking, order) in &discovered.orders {
            self.listeners.iter().for_each(|(_, listener)| listener.rank(ranking, order));
        }
    }
}

/// Builds everything `config` asks for but its sockets and its log.
pub fn validate(config: &str, secrets: &Secrets) -> Result<(), ServerError> {
    Built::new(&serde_json::from_str(config)?, secrets, &Telemetry::new()?, None, &Discovered::default()).map(drop)
}

impl Server {
    /// Starts the workers. `inherited`: listening sockets by listener name.
    pub fn start(
        config: &str,
        secrets: &Secrets,
        discovered: &str,
        mut inherited: HashMap<String, Vec<TcpListener>>,
    ) -> Result<Self, ServerError> {
        let config: RuntimeConfig = serde_json::from_str(config)?;
        let telemetry = Telemetry::new()?;
        let discovered = serde_json::from_str(discovered)?;
        let mut built = Built::new(&config, secrets, &telemetry, None, &discovered)?;
        built.settle(&discovered);
        files::keep(config.kept_files);
        let mut bound = Vec::with_capacity(built.listeners.len());
        for ((_, listener), wanted) in built.listeners.iter().zip(&config.listeners) {
            let handed = inherited.remove(&listener.name).filter(|sockets| !sockets.is_empty());
            let adopted = handed.is_some();
            let sockets = match handed {
                Some(sockets) => socket::adopt(sockets, config.workers),
                None => socket::bind(wanted.bind, config.workers, false),
            };
            let bound_tcp = Bound::new(wanted, listener.clone(), sockets, adopted)?;
            bound.push(bound_tcp.with_datagrams(config.workers, None)?);
        }
        let access_log = open_access_log(config.access_log.as_ref(), &telemetry.connections)?;
        telemetry.access_log.store(access_log.map(Arc::new));
        let workers = Workers::start(config.workers, config.scheduler, &config.handshakes, &telemetry)
            .map_err(ServerError::Start)?;
        bound.iter().try_for_each(Bound::listen)?;
        let gates = workers.workers.iter().map(|worker| worker.gate.clone()).collect();
        let quic = Keys::random().map_err(|_| ServerError::QuicKeys)?;
        let overload = Overload::start(config.overload, &telemetry).map_err(ServerError::Start)?;
        bound.iter().for_each(|bound| overload.watch(&bound.live));
        let live = bound.into_iter().map(|bound| bound.serve(&workers, &quic)).collect();
        let (retired, orphans) = Default::default();
        let state = State { workers, live, retired, orphans, draining: false, built, access_log: config.access_log };
        Ok(Self { telemetry, gates, overload, quic, state: Mutex::new(Some(state)) })
    }

    /// Makes `config` live for new connections; those that are open keep what they began with.
    pub fn reload(&self, config: &str, secrets: &Secrets, discovered: &str) -> Result<(), ServerError> {
        let config: RuntimeConfig = serde_json::from_str(config)?;
        let discovered = serde_json::from_str(discovered)?;
        let mut state = self.state.lock();
        let state = state.as_mut().ok_or(ServerError::Stopped)?;
        if state.draining {
            return Err(ServerError::Draining);
        }
        let (from, to) = (state.workers.workers.len(), config.workers);
        if from != to {
            return Err(ServerError::Workers { from, to });
        }
        if state.workers.scheduler() != config.scheduler {
            return Err(ServerError::Scheduler);
        }

        // Everything that can fail comes first.
        let mut built = Built::new(&config, secrets, &self.telemetry, Some(&state.built), &discovered)?;
        let mut kept = Vec::new();
        let mut bound = Vec::new();
        for ((bind, listener), wanted) in built.listeners.iter().zip(&config.listeners) {
            if let Some(serving) = state.live.get(&wanted.name).filter(|serving| serving.serves(*bind)) {
                let address = serving.listener.address;
                let lacks = listener.speaks_quic() && serving.datagrams.is_none();
                let sockets =
                    lacks.then(|| bind_datagrams(&wanted.name, address, to, state.hold(address))).transpose()?;
                kept.push((*bind, listener.clone(), sockets));
            } else {
                let ours = state.live.values().chain(&state.retired).any(|serving| serving.holds(*bind));
                let sockets = socket::bind(*bind, to, ours);
                let bound_tcp = Bound::new(wanted, listener.clone(), sockets, false)?;
                let held = state.hold(bound_tcp.live.address);
                bound.push(bound_tcp.with_datagrams(to, held)?);
            }
        }
        let new_log = (config.access_log != state.access_log)
            .then(|| open_access_log(config.access_log.as_ref(), &self.telemetry.connections))
            .transpose()?;
        // Last of all, as whoever connects to a socket that is given up again is lost.
        bound.iter().try_for_each(Bound::listen)?;

        // Nothing below fails.
        files::keep(config.kept_files);
        built.settle(&discovered);
        state.workers.wake_relays(Relays::wake_removed);
        state.workers.workers.iter().for_each(|worker| worker.gate.configure(&config.handshakes, from));
        self.overload.configure(config.overload);
        bound.iter().for_each(|bound| self.overload.watch(&bound.live));
        if let Some(log) = new_log {
            self.telemetry.access_log.store(log.map(Arc::new));
            state.access_log = config.access_log;
        }
        let mut previous = std::mem::take(&mut state.live);
        let mut lacking = Vec::new();
        for (bind, listener, sockets) in kept {
            if let Some(mut serving) = previous.remove(&listener.name) {
                if !listener.speaks_quic() {
                    state.orphans.extend(serving.datagrams.take().inspect(|datagrams| datagrams.assign(None)));
                }
                serving.replace(bind, listener.clone());
                lacking.extend(sockets.map(|sockets| (listener.name.clone(), sockets)));
                state.live.insert(listener.name.clone(), serving);
            }
        }
        for mut serving in previous.into_values() {
            state.orphans.extend(serving.datagrams.take().inspect(|datagrams| datagrams.assign(None)));
            let relays = serving.listener.current.load().timeouts.relay_drain_ms;
            begin_drain(&serving.listener, &state.workers, relays.map(Duration::from_millis));
            state.retired.push(serving);
        }
        for bound in bound {
            let (name, mut serving, sockets) = bound.serve_tcp(&state.workers);
            serving.datagrams =
                sockets.and_then(|sockets| state.serve_datagrams(sockets, &serving.listener, &self.quic));
            state.live.insert(name, serving);
        }
        for (name, sockets) in lacking {
            if let Some(live) = state.live.get(&name).map(|serving| serving.listener.clone()) {
                let datagrams = state.serve_datagrams(sockets, &live, &self.quic);
                if let Some(serving) = state.live.get_mut(&name) {
                    serving.datagrams = datagrams;
                }
            }
        }
        state.retired.retain(|serving| !serving.ended());
        state.orphans.retain(|datagrams| !datagrams.ended());
        state.built = built;
        Ok(())
    }

    /// Makes what is known of the upstreams live: for new requests, and for new handshakes.
    pub fn discover(&self, discovered: &str) -> Result<(), ServerError> {
        let discovered: Discovered = serde_json::from_str(discovered)?;
        let state = self.state.lock();
        let state = state.as_ref().ok_or(ServerError::Stopped)?;
        state.built.upstreams.discover(&discovered.endpoints)?;
        state.built.rank(&discovered);
        state.workers.wake_relays(Relays::wake_removed);
        Ok(())
    }

    /// The sum of `count` over every listener that is live or still has connections.
    fn sum(&self, count: impl Fn(&Serving) -> usize) -> usize {
        let state = self.state.lock();
        state.iter().flat_map(|state| state.live.values().chain(&state.retired)).map(count).sum()
    }

    /// The bound address of each listener, by name.
    pub fn addresses(&self) -> HashMap<String, SocketAddr> {
        let state = self.state.lock();
        let live = state.iter().flat_map(|state| &state.live);
        live.map(|(name, serving)| (name.clone(), serving.listener.address)).collect()
    }

    /// Stops accepting and asks every connection to finish. Those that had connected already are accepted first, which
    /// takes a moment: only then is [`Self::active`] complete. `within`: what is still open is cut off then, so that relays
    /// leave before.
    pub fn drain(&self, within: Duration) {
        if let Some(state) = &mut *self.state.lock() {
            state.draining = true;
            let within = within / 5 * 4;
            for serving in state.live.values() {
                if let Some(datagrams) = &serving.datagrams {
                    datagrams.assign(None);
                }
                let own = serving.listener.current.load().timeouts.relay_drain_ms.map(Duration::from_millis);
                begin_drain(&serving.listener, &state.workers, Some(own.map_or(within, |own| own.min(within))));
            }
            for serving in &state.retired {
                serving.listener.drain.relays().give(within);
            }
            state.workers.wake_relays(Relays::wake);
        }
        let begun = Instant::now();
        while begun.elapsed() < QUEUES_EMPTY && self.sum(|serving| usize::from(serving.accepting())) > 0 {
            thread::sleep(POLL);
        }
    }

    /// Connections open now, handshakes included.
    pub fn active(&self) -> usize {
        self.sum(|serving| serving.listener.active())
    }

    /// Handshakes that wait because there are more than there is time for, and those that have been shed so far. A reload
    /// does not hold it up.
    pub fn handshakes(&self) -> (usize, u64) {
        let pressures = self.gates.iter().map(|gate| gate.pressure());
        pressures.fold((0, 0), |(waiting, shed), one| (waiting + one.0, shed + one.1))
    }

    /// Which listeners have come to another step of overload since this was last asked. A reload does not hold it up.
    pub fn overload_changes(&self) -> Vec<Change> {
        self.overload.changes()
    }

    /// Closes every connection and joins the workers. Lines in the access log's queue are written.
    pub fn stop(&self) {
        // Joining takes its time; whoever asks meanwhile is not to wait for it.
        let state = self.state.lock().take();
        if let Some(state) = &state {
            state.close_datagrams();
        }
        drop(state);
        if let Some(log) = self.telemetry.access_log.swap(None).and_then(Arc::into_inner) {
            log.finish(LAST_LINES);
        }
    }

    /// Every metric in Prometheus text format.
    pub fn metrics(&self) -> Result<Vec<u8>, ServerError> {
        Ok(self.telemetry.render()?)
    }

    /// Open connections as JSON, oldest first, `limit` at most.
    pub fn connections(&self, limit: usize) -> Result<String, ServerError> {
        let mut open: Vec<Arc<Connection>> = {
            let state = self.state.lock();
            let workers = state.iter().flat_map(|state| &state.workers.workers);
            workers.flat_map(|worker| worker.connections.snapshot()).collect()
        };
        open.sort_unstable_by_key(|connection| connection.id);
        let records: Vec<_> = open.iter().take(limit).map(|connection| connection.record()).collect();
        Ok(serde_json::to_string(&records)?)
    }

    /// What is known of each upstream's endpoints, as JSON.
    pub fn endpoints(&self) -> Result<String, ServerError> {
        let upstreams: BTreeMap<String, Vec<EndpointReport>> =
            self.state.lock().iter().flat_map(|state| state.built.upstreams.report()).collect();
        Ok(serde_json::to_string(&upstreams)?)
    }

    /// Opens the access log's file anew.
    pub fn reopen_logs(&self) {
        if let Some(log) = &*self.telemetry.access_log.load() {
            log.reopen();
        }
    }
}

/// A listener whose sockets are bound but not yet accepted from.
struct Bound {
    datagrams: Option<DatagramSockets>,
    live: Arc<LiveListener>,
    name: String,
    bind: SocketAddr,
    backlog: u32,
    sockets: Vec<TcpListener>,
    inherited: bool,
}

impl Bound {
    fn new(
        config: &ListenerConfig,
        listener: Arc<Listener>,
        sockets: io::Result<Vec<TcpListener>>,
        inherited: bool,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Bind { name: config.name.clone(), bind: config.bind, source };
        let sockets = sockets.map_err(failed)?;
        let address = sockets.first().map_or(Ok(config.bind), TcpListener::local_addr).map_err(failed)?;
        let live = Arc::new(LiveListener::new(address, listener));
        let (name, bind, backlog) = (config.name.clone(), config.bind, config.backlog);
        Ok(Self { live, name, bind, backlog, sockets, inherited, datagrams: None })
    }

    /// Binds the same port of UDP, where h3 is spoken. `held`: the UDP side that has it.
    fn with_datagrams(mut self, workers: usize, held: Option<Held>) -> Result<Self, ServerError> {
        if self.live.current.load().speaks_quic() {
            self.datagrams = Some(bind_datagrams(&self.name, self.live.address, workers, held)?);
        }
        Ok(self)
    }

    fn listen(&self) -> Result<(), ServerError> {
        let failed = |source| ServerError::Bind { name: self.name.clone(), bind: self.bind, source };
        if self.inherited { Ok(()) } else { socket::listen(&self.sockets, self.backlog).map_err(failed) }
    }

    fn serve(self, workers: &Workers, keys: &Keys) -> (String, Serving) {
        let (name, mut serving, sockets) = self.serve_tcp(workers);
        if let Some(DatagramSockets::Own(sockets)) = sockets {
            serving.datagrams = Some(Datagrams::serve(sockets, &serving.listener, workers, keys));
        }
        (name, serving)
    }

    fn serve_tcp(self, workers: &Workers) -> (String, Serving, Option<DatagramSockets>) {
        let accept = |(index, socket): (usize, TcpListener)| {
            let worker = workers.workers[index % workers.workers.len()].clone();
            workers.handle(index).spawn(accept::run(socket, self.live.clone(), worker, self.inherited))
        };
        let accepts = self.sockets.into_iter().enumerate().map(accept).collect();
        let serving = Serving { listener: self.live, bind: self.bind, accepts, datagrams: None };
        (self.name, serving, self.datagrams)
    }
}

/// Where the UDP side of a listener comes from.
enum DatagramSockets {
    Own(Vec<UdpSocket>),
    /// Another listener's, which is on its way out.
    Inherited(Held),
}

fn bind_datagrams(
    name: &str,
    address: SocketAddr,
    workers: usize,
    held: Option<Held>,
) -> Result<DatagramSockets, ServerError> {
    if let Some(held) = held {
        return Ok(DatagramSockets::Inherited(held));
    }
    let failed = |source| ServerError::BindUdp { name: name.to_owned(), bind: address, source };
    quic::bind(address, workers).map(DatagramSockets::Own).map_err(failed)
}

/// `relays`: the time over which they leave; none: they stay.
fn begin_drain(live: &Arc<LiveListener>, workers: &Workers, relays: Option<Duration>) {
    live.drain.begin();
    if let Some(within) = relays {
        live.drain.relays().give(within);
        workers.wake_relays(Relays::wake);
    }
    let live = live.clone();
    workers.handle(0).spawn(async move {
        tokio::time::sleep(LINGER).await;
        live.drain.end_linger();
    });
}

fn open_access_log(
    config: Option<&AccessLogConfig>,
    families: &connections::Families,
) -> Result<Option<AccessLog>, ServerError> {
    let open = |config: &AccessLogConfig| {
        let target = Target::parse(&config.path);
        AccessLog::open(target, config.queue, config.requests, config.connections, families.access_log())
            .map_err(|source| ServerError::AccessLog { path: config.path.clone(), source })
    };
    config.map(open).transpose()
}
