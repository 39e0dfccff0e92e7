//! The running data plane: start, reload, drain, stop. A configuration is built whole, with its sockets bound, before
//! any of it is live; what cannot be built changes nothing.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mitu_telemetry::access_log::{AccessLog, Target};
use mitu_telemetry::{Telemetry, connections};
use mitu_tls::certificate;
use mitu_tls::error::TlsConfigError;
use mitu_tls::ticket::Ticketers;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::accept;
use crate::config::{AccessLogConfig, ListenerConfig, RuntimeConfig, Secrets};
use crate::connection::Connection;
use crate::drain::LINGER;
use crate::files;
use crate::gate::Gate;
use crate::listener::{Listener, ListenerError, LiveListener, Parts};
use crate::socket;
use crate::upstream::{self, Upstreams};
use crate::worker::Workers;

/// How long a drain waits at most for the last connections to be accepted, and how often it looks.
const QUEUES_EMPTY: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);

/// How long the end waits at most for lines of the access log to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

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
    /// None once stopped. Only the control side takes this lock.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    workers: Workers,
    live: HashMap<String, Serving>,
    /// Drained by a reload, until their last connection has ended.
    retired: Vec<Serving>,
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
        !self.accepting() && self.listener.active() == 0
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
            let listener = Listener::build(config, &parts, &mut ticketers)
                .map_err(|source| ServerError::Listener { name: config.name.clone(), source })?;
            Ok((config.bind, Arc::new(listener)))
        };
        let listeners = config.listeners.iter().map(build).collect::<Result<_, ServerError>>()?;
        Ok(Self { listeners, upstreams, ticketers })
    }
}

/// Builds everything `config` asks for but its sockets and its log.
pub fn validate(config: &str, secrets: &Secrets) -> Result<(), ServerError> {
    Built::new(&serde_json::from_str(config)?, secrets, &Telemetry::new()?, None).map(drop)
}

impl Server {
    /// Starts the workers. `inherited`: listening sockets by listener name.
    pub fn start(
        config: &str,
        secrets: &Secrets,
        mut inherited: HashMap<String, Vec<TcpListener>>,
    ) -> Result<Self, ServerError> {
        let config: RuntimeConfig = serde_json::from_str(config)?;
        let telemetry = Telemetry::new()?;
        let built = Built::new(&config, secrets, &telemetry, None)?;
        files::keep(config.kept_files);
        let mut bound = Vec::with_capacity(built.listeners.len());
        for ((_, listener), wanted) in built.listeners.iter().zip(&config.listeners) {
            let handed = inherited.remove(&listener.name).filter(|sockets| !sockets.is_empty());
            let adopted = handed.is_some();
            let sockets = match handed {
                Some(sockets) => socket::adopt(sockets, config.workers),
                None => socket::bind(wanted.bind, config.workers, false),
            };
            bound.push(Bound::new(wanted, listener.clone(), sockets, adopted)?);
        }
        let access_log = open_access_log(config.access_log.as_ref(), &telemetry.connections)?;
        telemetry.access_log.store(access_log.map(Arc::new));
        let workers = Workers::start(config.workers, config.scheduler, &config.handshakes, &telemetry)
            .map_err(ServerError::Start)?;
        bound.iter().try_for_each(Bound::listen)?;
        let gates = workers.workers.iter().map(|worker| worker.gate.clone()).collect();
        let live = bound.into_iter().map(|bound| bound.serve(&workers)).collect();
        let retired = Vec::new();
        let state = State { workers, live, retired, draining: false, built, access_log: config.access_log };
        Ok(Self { telemetry, gates, state: Mutex::new(Some(state)) })
    }

    /// Makes `config` live for new connections; those that are open keep what they began with.
    pub fn reload(&self, config: &str, secrets: &Secrets) -> Result<(), ServerError> {
        let config: RuntimeConfig = serde_json::from_str(config)?;
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
        let built = Built::new(&config, secrets, &self.telemetry, Some(&state.built))?;
        let mut kept = Vec::new();
        let mut bound = Vec::new();
        for ((bind, listener), wanted) in built.listeners.iter().zip(&config.listeners) {
            if state.live.get(&wanted.name).is_some_and(|serving| serving.serves(*bind)) {
                kept.push((*bind, listener.clone()));
            } else {
                let ours = state.live.values().chain(&state.retired).any(|serving| serving.holds(*bind));
                let sockets = socket::bind(*bind, to, ours);
                bound.push(Bound::new(wanted, listener.clone(), sockets, false)?);
            }
        }
        let new_log = (config.access_log != state.access_log)
            .then(|| open_access_log(config.access_log.as_ref(), &self.telemetry.connections))
            .transpose()?;
        // Last of all, as whoever connects to a socket that is given up again is lost.
        bound.iter().try_for_each(Bound::listen)?;

        // Nothing below fails.
        files::keep(config.kept_files);
        state.workers.workers.iter().for_each(|worker| worker.gate.configure(&config.handshakes, from));
        if let Some(log) = new_log {
            self.telemetry.access_log.store(log.map(Arc::new));
            state.access_log = config.access_log;
        }
        let mut previous = std::mem::take(&mut state.live);
        for (bind, listener) in kept {
            if let Some(mut serving) = previous.remove(&listener.name) {
                serving.bind = bind;
                serving.listener.current.store(listener.clone());
                state.live.insert(listener.name.clone(), serving);
            }
        }
        for serving in previous.into_values() {
            begin_drain(&serving.listener, &state.workers);
            state.retired.push(serving);
        }
        state.live.extend(bound.into_iter().map(|bound| bound.serve(&state.workers)));
        state.retired.retain(|serving| !serving.ended());
        state.built = built;
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
    /// takes a moment: only then is [`Self::active`] complete.
    pub fn drain(&self) {
        if let Some(state) = &mut *self.state.lock() {
            state.draining = true;
            state.live.values().for_each(|serving| begin_drain(&serving.listener, &state.workers));
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

    /// Closes every connection and joins the workers. Lines in the access log's queue are written.
    pub fn stop(&self) {
        // Joining takes its time; whoever asks meanwhile is not to wait for it.
        let state = self.state.lock().take();
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

    /// Opens the access log's file anew.
    pub fn reopen_logs(&self) {
        if let Some(log) = &*self.telemetry.access_log.load() {
            log.reopen();
        }
    }
}

/// A listener whose sockets are bound but not yet accepted from.
struct Bound {
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
        Ok(Self { live, name, bind, backlog, sockets, inherited })
    }

    fn listen(&self) -> Result<(), ServerError> {
        let failed = |source| ServerError::Bind { name: self.name.clone(), bind: self.bind, source };
        if self.inherited { Ok(()) } else { socket::listen(&self.sockets, self.backlog).map_err(failed) }
    }

    fn serve(self, workers: &Workers) -> (String, Serving) {
        let accept = |(index, socket): (usize, TcpListener)| {
            let worker = workers.workers[index % workers.workers.len()].clone();
            workers.handle(index).spawn(accept::run(socket, self.live.clone(), worker, self.inherited))
        };
        let accepts = self.sockets.into_iter().enumerate().map(accept).collect();
        (self.name, Serving { listener: self.live, bind: self.bind, accepts })
    }
}

fn begin_drain(live: &Arc<LiveListener>, workers: &Workers) {
    live.drain.begin();
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
