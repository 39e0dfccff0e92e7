//! What the threads of a run share, and the life of each.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Barrier, mpsc, watch};

use super::clients::Clients;
use super::plan::{Pace, Plan, Work};
use super::record::Recorder;
use super::report::{Phase, Report};
use super::schedule::Schedule;
use super::work;
use crate::cpu;
use crate::error::LoadError;
use crate::target::Target;

/// How long the pacer sleeps at most before it looks whether it shall go on.
const PACER_NAP: Duration = Duration::from_millis(50);

pub type Due = mpsc::UnboundedReceiver<Instant>;

pub struct Run {
    pub plan: Plan,
    pub target: Target,
    /// None: plain TCP.
    pub clients: Option<Clients>,
    pub threads: usize,
    pub made: Instant,
    /// Whether things are due, and not begun when others end.
    pub scheduled: bool,
    /// All threads are ready to begin, or done with what they had.
    pub together: Barrier,
    schedule: Mutex<Option<(Schedule, Vec<mpsc::UnboundedSender<Instant>>)>>,
    recorders: Vec<Mutex<Recorder>>,
    left: AtomicU64,
    started: OnceLock<Instant>,
    stopped: watch::Sender<bool>,
    ended: Mutex<Ended>,
    end: Condvar,
}

#[derive(Default)]
struct Ended {
    threads: usize,
    at: Option<Instant>,
    cpu: Option<Duration>,
    error: Option<LoadError>,
}

impl Run {
    /// The run, and for each of its threads what tells when something is due.
    pub fn new(plan: Plan) -> Result<(Self, Vec<Due>), LoadError> {
        let mut target = Target::new(plan.address, &plan.host, &plan.path, plan.sources)?;
        target.timeout = Duration::from_secs_f64(plan.timeout);
        target.round_trip = Duration::from_secs_f64(plan.round_trip_ms / 1e3);
        target.default_protocol = plan.protocol;
        let connections = match plan.work {
            Work::Handshakes { pace: Pace::Closed { connections }, .. } => connections,
            Work::Requests { connections, .. } => connections,
            Work::Handshakes { .. } | Work::Storm(_) => usize::MAX,
        };
        let threads = plan.threads.min(connections);
        let (senders, queues) = (0..threads).map(|_| mpsc::unbounded_channel()).unzip();
        let schedule = Schedule::of(&plan);
        let run = Self {
            clients: plan.tls.as_ref().map(Clients::new).transpose()?,
            target,
            threads,
            made: Instant::now(),
            together: Barrier::new(threads),
            scheduled: schedule.is_some(),
            schedule: Mutex::new(schedule.map(|schedule| (schedule, senders))),
            recorders: (0..threads).map(|_| Recorder::new().map(Mutex::new)).collect::<Result<_, _>>()?,
            left: AtomicU64::new(plan.count),
            started: OnceLock::new(),
            stopped: watch::Sender::new(false),
            ended: Mutex::default(),
            end: Condvar::new(),
            plan,
        };
        Ok((run, queues))
    }

    /// When the run began; the first who asks says so.
    pub fn started(&self) -> Instant {
        *self.started.get_or_init(Instant::now)
    }

    pub fn since_start(&self) -> Duration {
        self.started().elapsed()
    }

    /// Takes one of what is left to do, in a run that sets its own pace.
    pub fn take(&self) -> bool {
        let in_time = self.since_start().as_secs_f64() < self.plan.seconds;
        in_time && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    pub fn record<R>(&self, thread: usize, what: impl FnOnce(&mut Recorder) -> R) -> R {
        what(&mut self.recorders[thread].lock())
    }

    /// Hands out moments to the threads in turn, from a thread that sleeps more finely than an event loop can.
    pub fn pace(&self) {
        let Some((schedule, senders)) = self.schedule.lock().take() else { return };
        let (started, stopped) = (self.started(), self.stopped.subscribe());
        let hand_out = move || {
            for (moment, sender) in schedule.zip(senders.iter().cycle()) {
                let due = started + moment;
                while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    if *stopped.borrow() {
                        return;
                    }
                    thread::sleep(left.min(PACER_NAP));
                }
                if sender.send(due).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("load-pacer".to_owned()).spawn(hand_out) {
            self.fail(error.into());
        }
    }

    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Ends a run that cannot go on; `report` says why.
    pub fn fail(&self, error: LoadError) {
        self.ended.lock().error.get_or_insert(error);
        self.stop();
    }

    pub fn wait(&self, limit: Duration) -> bool {
        let mut ended = self.ended.lock();
        let _ = self.end.wait_while_for(&mut ended, |ended| ended.threads < self.threads, limit);
        ended.threads == self.threads
    }

    pub fn report(&self) -> Result<Report, LoadError> {
        let ended = self.ended.lock();
        if let Some(error) = &ended.error {
            return Err(LoadError::Usage(error.to_string()));
        }
        let over = ended.threads == self.threads;
        let phase = match (over, self.started.get()) {
            (true, _) if *self.stopped.borrow() => Phase::Stopped,
            (true, _) => Phase::Done,
            (false, None) => Phase::Preparing,
            (false, Some(_)) => Phase::Running,
        };
        let until = if over { ended.at } else { None }.unwrap_or_else(Instant::now);
        let elapsed = self.started.get().map_or(Duration::ZERO, |started| until.saturating_duration_since(*started));
        let cpu = if over { ended.cpu } else { None };
        drop(ended);
        let mut sum = Recorder::new()?;
        for recorder in &self.recorders {
            sum.add(&recorder.lock())?;
        }
        Ok(Report::of(sum, phase, elapsed, self.threads, cpu))
    }
}

/// The life of a thread: prepare, begin together with the others, work until it is done or stopped.
pub fn worker(run: &std::sync::Arc<Run>, number: usize, queue: Due) {
    let _ending = Ending(run);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return run.fail(error.into()),
    };
    let mut stopped = run.stopped.subscribe();
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => {}
            done = work::work(run, number, queue) => if let Err(error) = done {
                run.fail(error);
            }
        }
    });
}

/// Counts a thread that ends, however it does: nobody waits for one that panicked.
struct Ending<'a>(&'a Run);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut ended = self.0.ended.lock();
        ended.threads += 1;
        ended.at = Some(Instant::now());
        if let Some(own) = cpu::of_this_thread() {
            *ended.cpu.get_or_insert_default() += own;
        }
        if thread::panicking() {
            ended.error.get_or_insert(LoadError::Usage("a thread of the load generator panicked".to_owned()));
            self.0.stop();
        }
        self.0.end.notify_all();
    }
}
