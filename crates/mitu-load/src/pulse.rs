//! Requests on connections that are open already, each due at its time: what a storm of new connections does to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::error::LoadError;
use crate::report::{Recorder, Report};
use crate::session::{self, Sample};
use crate::target::{Target, TargetOptions};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    target: TargetOptions,
    /// Connections
    #[arg(long, default_value = "10")]
    connections: u32,
    /// Requests a second, over all connections
    #[arg(long, default_value = "500")]
    rate: f64,
    /// Stop after this many seconds
    #[arg(long, default_value = "5")]
    duration: f64,
}

pub async fn run(arguments: Arguments) -> Result<Report, LoadError> {
    let target = Arc::new(arguments.target.target()?);
    let config = arguments.target.client_config()?;
    let mut sessions = Vec::new();
    for _ in 0..arguments.connections {
        sessions.push(session::open(&target, Some(&config), Instant::now()).await?);
    }
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(arguments.duration);
    let every = Duration::from_secs_f64(f64::from(arguments.connections) / arguments.rate);
    let mut clients = JoinSet::new();
    for (number, session) in (0..).zip(sessions) {
        let first = started + every * number / arguments.connections;
        clients.spawn(ask(session, target.clone(), first, every, until));
    }
    let mut merged = Recorder::default();
    for recorder in clients.join_all().await {
        merged.merge(recorder);
    }
    Ok(merged.report(started.elapsed()))
}

/// A request is due when it is due, however late the one before it was answered.
async fn ask(
    mut session: session::Session,
    target: Arc<Target>,
    first: Instant,
    every: Duration,
    until: Instant,
) -> Recorder {
    let mut recorder = Recorder::default();
    let mut due = first;
    while due < until {
        sleep_until(due.into()).await;
        let exchange = session.protocol.exchange(&mut session.stream, &target.host, &target.path);
        let outcome = timeout(target.timeout, exchange).await.unwrap_or(Err(LoadError::Timeout));
        let broken = outcome.is_err();
        recorder.record(outcome.map(|()| Sample { total: due.elapsed(), ..Sample::default() }));
        if broken {
            break;
        }
        due += every;
    }
    recorder
}
