//! Connections made to be closed: as many as the server takes, or at a fixed rate whether it keeps up or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use mitu_load::error::LoadError;
use mitu_load::target::Target;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::options::{self, TargetOptions};
use crate::report::{Recorder, Report, Sample};

/// Connections of an open-loop run that may be under way; those due beyond it are failures.
const IN_FLIGHT_LIMIT: usize = 8192;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    target: TargetOptions,
    /// Connections under way at once (without --rate)
    #[arg(long, default_value = "16")]
    concurrency: usize,
    /// Stop after this many connections
    #[arg(long)]
    count: Option<usize>,
    /// Stop after this many seconds (default 5, if no count is given)
    #[arg(long)]
    duration: Option<f64>,
    /// Open this many connections a second, on time, however long each takes
    #[arg(long)]
    rate: Option<f64>,
}

pub async fn run(arguments: Arguments, tls: bool) -> Result<Report, LoadError> {
    let started = Instant::now();
    let seconds = arguments.duration.or(if arguments.count.is_some() { None } else { Some(5.0) });
    let bound = Bound {
        left: AtomicUsize::new(arguments.count.unwrap_or(usize::MAX)),
        until: seconds.map(|seconds| started + Duration::from_secs_f64(seconds)),
    };
    let recorder = match arguments.rate {
        Some(rate) if rate > 0.0 => open_loop(&arguments, tls, rate, bound).await?,
        Some(_) => return Err(LoadError::Usage("--rate must be above 0".to_owned())),
        None => closed_loop(&arguments, tls, bound).await?,
    };
    Ok(recorder.report(started.elapsed()))
}

/// How much is to be done.
struct Bound {
    left: AtomicUsize,
    until: Option<Instant>,
}

impl Bound {
    /// Takes one connection from what is left.
    fn take(&self, now: Instant) -> bool {
        let in_time = self.until.is_none_or(|until| now < until);
        in_time && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// Each client opens its next connection when its last one is closed.
async fn closed_loop(arguments: &Arguments, tls: bool, bound: Bound) -> Result<Recorder, LoadError> {
    let (target, bound) = (Arc::new(arguments.target.target()?), Arc::new(bound));
    let mut clients = JoinSet::new();
    for _ in 0..arguments.concurrency {
        let config = tls.then(|| arguments.target.client_config()).transpose()?;
        let (target, bound) = (target.clone(), bound.clone());
        clients.spawn(async move {
            let mut recorder = Recorder::default();
            while bound.take(Instant::now()) {
                recorder.record(connection(&target, config.as_ref(), Instant::now()).await);
            }
            recorder
        });
    }
    let mut merged = Recorder::default();
    for recorder in clients.join_all().await {
        merged.merge(recorder);
    }
    Ok(merged)
}

/// Connections begin when they are due. Latency counts from that moment, so that a server (or this program) that
/// falls behind shows it.
async fn open_loop(arguments: &Arguments, tls: bool, rate: f64, bound: Bound) -> Result<Recorder, LoadError> {
    let target = Arc::new(arguments.target.target()?);
    let config = tls.then(|| arguments.target.client_config()).transpose()?;
    let mut due = pacer(rate, bound)?;
    let mut connections = JoinSet::new();
    let mut recorder = Recorder::default();
    loop {
        tokio::select! {
            biased;
            next = due.recv() => match next {
                None => break,
                Some(_) if connections.len() >= IN_FLIGHT_LIMIT => recorder.record(Err(LoadError::NotBegun)),
                Some(at) => {
                    let (target, config) = (target.clone(), config.clone());
                    connections.spawn(async move { connection(&target, config.as_ref(), at).await });
                }
            },
            Some(outcome) = connections.join_next() => record(&mut recorder, outcome),
        }
    }
    while let Some(outcome) = connections.join_next().await {
        record(&mut recorder, outcome);
    }
    Ok(recorder)
}

/// One connection that was due at `due`, to its end.
async fn connection(target: &Target, config: Option<&Arc<ClientConfig>>, due: Instant) -> Result<Sample, LoadError> {
    let (session, sample) = options::open(target, config, due).await?;
    session.close().await;
    Ok(sample)
}

fn record(recorder: &mut Recorder, outcome: Result<Result<Sample, LoadError>, JoinError>) {
    recorder.record(outcome.unwrap_or_else(|error| Err(LoadError::Usage(error.to_string()))));
}

/// Sends the moments at which connections are due, from a thread that sleeps more finely than the event loop can.
fn pacer(rate: f64, bound: Bound) -> Result<mpsc::UnboundedReceiver<Instant>, LoadError> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let pace = move || {
        let started = Instant::now();
        for number in 0_u32.. {
            let due = started + Duration::from_secs_f64(f64::from(number) / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if !bound.take(due) || sender.send(due).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("pacer".to_owned()).spawn(pace)?;
    Ok(receiver)
}
