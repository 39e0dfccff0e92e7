//! What one thread does: connections, requests or devices, each recorded from when it was due.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};

use super::plan::{Pace, Storm, Work};
use super::random::Random;
use super::run::{Due, Run};
use crate::error::{LoadError, Stage};
use crate::session::Session;
use crate::tls::{TICKETS_LIMIT, warm_up};

/// How long a client that could not connect waits before its next try, where nothing else sets the pace: a port that
/// refuses must not turn into a busy loop.
const PAUSE: Duration = Duration::from_millis(10);

/// Handshakes at once while tickets and connections are gathered.
const PREPARING: usize = 16;

pub async fn work(run: &Arc<Run>, thread: usize, due: Due) -> Result<(), LoadError> {
    if run.clients.is_some() {
        warm_up()?;
    }
    let own = Own { run: run.clone(), thread };
    match run.plan.work {
        Work::Handshakes { pace: Pace::Closed { connections }, request } => {
            own.gather_tickets(connections, true).await;
            own.begin().await;
            let mut clients = JoinSet::new();
            for _ in 0..own.share(connections) {
                clients.spawn(own.clone().connect_again_and_again(request));
            }
            first_error(clients).await
        }
        Work::Handshakes { pace: Pace::Open { from, to, .. }, request } => {
            // Those of a second; what they hand out meanwhile serves the next.
            own.gather_tickets(from.max(to) as usize, true).await;
            own.begin().await;
            own.connect_when_due(due, request).await
        }
        Work::Requests { connections, pace } => {
            own.gather_tickets(connections, true).await;
            let due = matches!(pace, Pace::Open { .. }).then(|| Arc::new(Mutex::new(due)));
            let sessions = own.open_all(own.share(connections)).await;
            own.begin().await;
            let mut clients = JoinSet::new();
            for session in sessions {
                clients.spawn(own.clone().ask(session, due.clone()));
            }
            first_error(clients).await
        }
        Work::Storm(storm) => {
            own.gather_tickets(usize::try_from(storm.devices).unwrap_or(usize::MAX), false).await;
            own.begin().await;
            own.storm(storm, due).await
        }
    }
}

async fn first_error(mut tasks: JoinSet<Result<(), LoadError>>) -> Result<(), LoadError> {
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| LoadError::Usage(error.to_string()))??;
    }
    Ok(())
}

/// A thread's own part of a run.
#[derive(Clone)]
struct Own {
    run: Arc<Run>,
    thread: usize,
}

impl Own {
    /// This thread's part of `whole`.
    fn share(&self, whole: usize) -> usize {
        whole / self.run.threads + usize::from(self.thread < whole % self.run.threads)
    }

    fn record<R>(&self, what: impl FnOnce(&mut super::record::Recorder) -> R) -> R {
        self.run.record(self.thread, what)
    }

    /// What was due at `due` begins. `free`: when something was there to begin it with, before which it is the server
    /// that is late.
    fn start_one(&self, due: Instant, free: Instant) -> Result<(), LoadError> {
        let late = self.run.scheduled.then(|| due.max(free).elapsed());
        let at = due.saturating_duration_since(self.run.started());
        self.record(|recorder| recorder.begin(at, late))
    }

    fn complete(&self, due: Instant) -> Result<(), LoadError> {
        let (at, took) = (self.run.since_start(), due.elapsed());
        self.record(|recorder| recorder.complete(at, took))
    }

    fn fail(&self, error: &LoadError) -> Result<(), LoadError> {
        let at = self.run.since_start();
        self.record(|recorder| {
            recorder.trouble(error);
            recorder.fail(at)
        })
    }

    /// All threads begin at the same moment; then moments are handed out.
    async fn begin(&self) {
        if self.run.together.wait().await.is_leader() {
            self.run.pace();
        }
    }

    /// A connection, recorded.
    async fn open(&self, deadline: Instant) -> Result<Session, LoadError> {
        let config = self.run.clients.as_ref().and_then(|clients| clients.next());
        let session = Session::open(&self.run.target, config, deadline).await?;
        self.record(|recorder| recorder.open(&session.opened));
        Ok(session)
    }

    /// An exchange, recorded; whether the connection is good for another one.
    async fn exchange(&self, session: &mut Session, deadline: Instant) -> Result<bool, LoadError> {
        let asked = Instant::now();
        let answer = session.exchange(&self.run.target, deadline).await?;
        self.record(|recorder| recorder.answer(answer.status, asked.elapsed()));
        Ok(answer.succeeded()?.reusable)
    }

    /// A connection with its request, if it is to have one.
    async fn visit(&self, due: Instant, request: bool) -> Result<Session, LoadError> {
        let deadline = due + self.run.target.timeout;
        let mut session = self.open(deadline).await?;
        if request {
            self.exchange(&mut session, deadline).await?;
        }
        Ok(session)
    }

    /// When preparing has to be done, whatever it has come to: it may take as long as the run.
    fn prepared_by(&self) -> tokio::time::Instant {
        (self.run.made + Duration::from_secs_f64(self.run.plan.seconds)).into()
    }

    /// Full handshakes, one for each of `connections` that is to resume, before anything counts (`again`: see
    /// `Clients::tickets`). Whatever goes wrong here goes wrong again, and is recorded, when it does.
    async fn gather_tickets(&self, connections: usize, again: bool) {
        let _ = timeout_at(self.prepared_by(), self.gather_all_tickets(connections, again)).await;
    }

    async fn gather_all_tickets(&self, connections: usize, again: bool) {
        let Some(clients) = &self.run.clients else { return };
        // No more than there will be handshakes to use them.
        let connections = connections.min(usize::try_from(self.run.plan.count).unwrap_or(usize::MAX));
        for (config, tickets, wanted) in clients.tickets(connections, again) {
            let wanted = wanted.min(TICKETS_LIMIT);
            let mut opening = JoinSet::new();
            for _ in 0..self.share(wanted) {
                // A server that gives several at once, or one for all (TLS 1.2), need not be asked as often.
                if tickets.ready() >= wanted {
                    break;
                }
                if opening.len() >= PREPARING && !matches!(opening.join_next().await, Some(Ok(true))) {
                    break;
                }
                let (own, config) = (self.clone(), config.clone());
                opening.spawn(async move {
                    let deadline = Instant::now() + own.run.target.timeout;
                    let Ok(mut session) = Session::open(&own.run.target, Some(&config), deadline).await else {
                        return false;
                    };
                    own.record(|recorder| recorder.counts.prepared += 1);
                    // Tickets come behind the handshake: with the answer to a request, or before the server's close.
                    let answered = session.exchange(&own.run.target, deadline).await.is_ok();
                    session.close().await;
                    answered
                });
            }
            while opening.join_next().await.is_some() {}
        }
    }

    /// Connections that are to stay; None for those that cannot be had yet.
    async fn open_all(&self, count: usize) -> Vec<Option<Session>> {
        let mut opening = JoinSet::new();
        let mut sessions = Vec::new();
        let mut left = count;
        while left > 0 || !opening.is_empty() {
            if left > 0 && opening.len() < PREPARING {
                left -= 1;
                let own = self.clone();
                opening.spawn(async move { own.open(Instant::now() + own.run.target.timeout).await.ok() });
                continue;
            }
            match timeout_at(self.prepared_by(), opening.join_next()).await {
                Ok(Some(done)) => sessions.push(done.unwrap_or_default()),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        sessions.resize_with(count, || None);
        sessions
    }

    /// One connection after the other.
    async fn connect_again_and_again(self, request: bool) -> Result<(), LoadError> {
        while self.run.take() {
            let due = Instant::now();
            self.start_one(due, due)?;
            match self.visit(due, request).await {
                Ok(session) => {
                    self.complete(due)?;
                    session.close().await;
                }
                Err(error) => {
                    self.fail(&error)?;
                    sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    async fn connect_when_due(self, mut queue: Due, request: bool) -> Result<(), LoadError> {
        let mut connections: JoinSet<Result<(), LoadError>> = JoinSet::new();
        while let Some(due) = queue.recv().await {
            while let Some(done) = connections.try_join_next() {
                done.map_err(|error| LoadError::Usage(error.to_string()))??;
            }
            self.start_one(due, due)?;
            if connections.len() >= self.share(self.run.plan.in_flight).max(1) {
                self.fail(&LoadError::NotBegun)?;
                continue;
            }
            let own = self.clone();
            connections.spawn(async move {
                match own.visit(due, request).await {
                    Ok(session) => {
                        own.complete(due)?;
                        session.close().await;
                        Ok(())
                    }
                    Err(error) => own.fail(&error),
                }
            });
        }
        first_error(connections).await
    }

    /// Requests on one connection: each after the other, or each when it is due. Another takes the place of a
    /// connection that is lost.
    async fn ask(self, mut session: Option<Session>, queue: Option<Arc<Mutex<Due>>>) -> Result<(), LoadError> {
        loop {
            let free = Instant::now();
            let due = match &queue {
                None if self.run.take() => Instant::now(),
                None => break,
                Some(queue) => match queue.lock().await.recv().await {
                    Some(due) => due,
                    None => break,
                },
            };
            self.start_one(due, free)?;
            let deadline = due + self.run.target.timeout;
            if deadline <= Instant::now() {
                self.fail(&LoadError::Timeout(Stage::Response))?;
                continue;
            }
            let mut open = match session.take() {
                Some(session) => session,
                None => match self.open(deadline).await {
                    Ok(session) => session,
                    Err(error) => {
                        self.fail(&error)?;
                        sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            match self.exchange(&mut open, deadline).await {
                Ok(reusable) => {
                    self.complete(due)?;
                    session = reusable.then_some(open);
                }
                // The server answered, and the connection is as good as it was.
                Err(error @ LoadError::Status(_)) => {
                    self.fail(&error)?;
                    session = Some(open);
                }
                Err(error) => self.fail(&error)?,
            }
        }
        if let Some(session) = session {
            session.close().await;
        }
        Ok(())
    }

    async fn storm(self, storm: Storm, mut queue: Due) -> Result<(), LoadError> {
        let mut devices = JoinSet::new();
        let mut held = JoinSet::new();
        let mut seed = self.run.plan.seed ^ ((self.thread as u64) << 32);
        let mut coming = true;
        while coming || !devices.is_empty() {
            tokio::select! {
                due = queue.recv(), if coming => match due {
                    None => coming = false,
                    Some(due) => {
                        seed = seed.wrapping_add(1);
                        let crowded = devices.len() + held.len() >= self.share(self.run.plan.in_flight).max(1);
                        devices.spawn(self.clone().device(storm, due, Random::new(seed), crowded));
                    }
                },
                Some(done) = devices.join_next() => {
                    let session = done.map_err(|error| LoadError::Usage(error.to_string()))??;
                    if let Some(mut session) = session {
                        self.record(|recorder| recorder.counts.held += 1);
                        held.spawn(async move { session.hold().await });
                    }
                }
                Some(_) = held.join_next() => self.record(|recorder| recorder.counts.dropped += 1),
            }
        }
        // Those that are in stay until the last is.
        let mut last = pin!(self.run.together.wait());
        loop {
            tokio::select! {
                _ = &mut last => return Ok(()),
                Some(_) = held.join_next() => self.record(|recorder| recorder.counts.dropped += 1),
            }
        }
    }

    /// Connects, makes its exchange, and tries again, ever later, until it has an answer or gives up.
    async fn device(
        self,
        storm: Storm,
        due: Instant,
        mut random: Random,
        crowded: bool,
    ) -> Result<Option<Session>, LoadError> {
        self.start_one(due, due)?;
        let mut next = due;
        for attempt in 0..storm.retry.attempts {
            if attempt > 0 {
                let backoff = (storm.retry.base * 2_f64.powi(attempt.min(60) as i32 - 1)).min(storm.retry.cap);
                next = Instant::now() + Duration::from_secs_f64(backoff * random.share());
                if next.duration_since(self.run.started()).as_secs_f64() >= self.run.plan.seconds {
                    break;
                }
                sleep_until(next.into()).await;
                self.record(|recorder| recorder.counts.retries += 1);
            }
            let visited =
                if crowded && attempt == 0 { Err(LoadError::NotBegun) } else { self.visit(next, true).await };
            match visited {
                Ok(session) => {
                    self.complete(due)?;
                    self.record(|recorder| recorder.stages.since_start.record(self.run.since_start()));
                    if storm.hold {
                        return Ok(Some(session));
                    }
                    session.close().await;
                    return Ok(None);
                }
                Err(error) => self.record(|recorder| recorder.trouble(&error)),
            }
        }
        let at = self.run.since_start();
        self.record(|recorder| recorder.fail(at))?;
        Ok(None)
    }
}
