//! Workers: the threads that run everything, and what each keeps to itself.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mitu_telemetry::Telemetry;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::{HandshakesConfig, Scheduler};
use crate::connection::ConnectionTable;
use crate::gate::Gate;
use crate::relays::Relays;

/// How long a lookup of an upstream's name, which runs on a thread of its own, may hold up the end.
const LAST_LOOKUPS: Duration = Duration::from_secs(1);

/// How often a worker wakes whether there is something to do or not. For a timer that is earlier than all others, tokio
/// wakes the event loop by a system call, which even the loop itself then makes: for every handshake, where all other
/// connections are idle. With a timer that is earlier than nearly all, it does not.
const TICK: Duration = Duration::from_secs(1);

/// What one worker's connections share: nobody else takes these locks in `per_core` mode.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub connections: Arc<ConnectionTable>,
    pub relays: Arc<Relays>,
    pub gate: Arc<Gate>,
    pub telemetry: Arc<Telemetry>,
}

/// The running threads (docs/adr/0003).
#[derive(Debug)]
pub struct Workers {
    pub workers: Vec<Arc<Worker>>,
    runtimes: Runtimes,
}

#[derive(Debug)]
enum Runtimes {
    PerCore(Vec<Core>),
    WorkStealing { handle: Handle, runtime: Option<Runtime> },
}

#[derive(Debug)]
struct Core {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    pub fn start(
        count: usize,
        scheduler: Scheduler,
        handshakes: &HandshakesConfig,
        telemetry: &Arc<Telemetry>,
    ) -> io::Result<Self> {
        let workers = (0..count)
            .map(|index| {
                let telemetry = telemetry.clone();
                let gate = Arc::new(Gate::new(handshakes, count, telemetry.tls.waiting(index)));
                let (connections, relays) = Default::default();
                Arc::new(Worker { index, connections, relays, gate, telemetry })
            })
            .collect();
        let runtimes = match scheduler {
            Scheduler::PerCore => Runtimes::PerCore((0..count).map(Core::start).collect::<io::Result<_>>()?),
            Scheduler::WorkStealing => {
                let runtime = Builder::new_multi_thread()
                    .worker_threads(count)
                    .thread_name("mitu-worker")
                    .enable_all()
                    .build()?;
                Runtimes::WorkStealing { handle: runtime.handle().clone(), runtime: Some(runtime) }
            }
        };
        Ok(Self { workers, runtimes })
    }

    pub fn scheduler(&self) -> Scheduler {
        match &self.runtimes {
            Runtimes::PerCore(_) => Scheduler::PerCore,
            Runtimes::WorkStealing { .. } => Scheduler::WorkStealing,
        }
    }

    /// The event loop of a worker.
    pub fn handle(&self, index: usize) -> &Handle {
        match &self.runtimes {
            Runtimes::PerCore(cores) => &cores[index % cores.len()].handle,
            Runtimes::WorkStealing { handle, .. } => handle,
        }
    }

    /// Has every worker wake its relays where it is cheap: on its own thread.
    pub fn wake_relays(&self, wake: fn(&Relays)) {
        for worker in &self.workers {
            let relays = worker.relays.clone();
            self.handle(worker.index).spawn(async move { wake(&relays) });
        }
    }
}

impl Core {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, mut stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(format!("mitu-worker-{index}")).spawn(move || {
            runtime.block_on(async { while timeout(TICK, &mut stopped).await.is_err() {} });
            // The runtime ends here, and with it every connection it has.
            runtime.shutdown_timeout(LAST_LOOKUPS);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Workers {
    /// Closes every connection and joins the threads.
    fn drop(&mut self) {
        match &mut self.runtimes {
            Runtimes::PerCore(cores) => {
                cores.iter_mut().for_each(|core| drop(core.stop.take()));
                for thread in cores.iter_mut().filter_map(|core| core.thread.take()) {
                    let _ = thread.join();
                }
            }
            Runtimes::WorkStealing { runtime, .. } => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_timeout(LAST_LOOKUPS);
                }
            }
        }
    }
}
