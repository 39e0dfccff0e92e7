//! Requests on connections that are open already, each due at its time: what a storm of new connections does to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use mitu_load::error::LoadError;
use mitu_load::protocol::Answer;
use mitu_load::session::Session;
use mitu_load::target::Target;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::options::{self, TargetOptions};
use crate::report::{Recorder, Report, Sample};

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
        sessions.push(options::open(&target, Some(&config), Instant::now()).await?.0);
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

/// A request is due when it is due, however late the one before it was answered. How late this program's own timer is,
/// whose ticks are a millisecond, is no part of its time.
async fn ask(mut session: Session, target: Arc<Target>, first: Instant, every: Duration, until: Instant) -> Recorder {
    let mut recorder = Recorder::default();
    let mut due = first;
    while due < until {
        let early = Instant::now() < due;
        sleep_until(due.into()).await;
        let since = if early { Instant::now() } else { due };
        let answer = session.exchange(&target, Instant::now() + target.timeout).await;
        let outcome = answer.and_then(Answer::succeeded);
        let broken = outcome.is_err();
        recorder.record(outcome.map(|_| Sample { total: since.elapsed(), ..Sample::default() }));
        if broken {
            break;
        }
        due += every;
    }
    recorder
}
