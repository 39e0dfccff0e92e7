//! Connections made to be held: what does one cost that does nothing?

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use mitu_load::error::LoadError;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::options::{self, TargetOptions};
use crate::report;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    target: TargetOptions,
    /// Connections to hold
    #[arg(long, default_value = "1000")]
    connections: usize,
    /// Connections being opened at once
    #[arg(long, default_value = "32")]
    concurrency: usize,
    /// Plain TCP instead of TLS
    #[arg(long)]
    plain: bool,
}

/// Printed once when all are open, and once more at the end.
#[derive(Debug, Serialize)]
struct Held {
    open: usize,
    closed_by_server: usize,
    errors: BTreeMap<&'static str, usize>,
    first_error: Option<String>,
}

pub async fn run(arguments: Arguments) -> Result<(), LoadError> {
    let target = Arc::new(arguments.target.target()?);
    let config = if arguments.plain { None } else { Some(arguments.target.client_config()?) };
    let opening = Arc::new(Semaphore::new(arguments.concurrency));
    let mut openings = JoinSet::new();
    for _ in 0..arguments.connections {
        let (target, config, opening) = (target.clone(), config.clone(), opening.clone());
        openings.spawn(async move {
            let _turn = opening.acquire().await;
            options::open(&target, config.as_ref(), Instant::now()).await
        });
    }
    let mut held = JoinSet::new();
    let mut errors = BTreeMap::new();
    let mut first_error = None;
    while let Some(outcome) = openings.join_next().await {
        match outcome.unwrap_or_else(|error| Err(LoadError::Usage(error.to_string()))) {
            Ok((mut session, _)) => drop(held.spawn(async move { session.hold().await })),
            Err(error) => {
                *errors.entry(error.kind()).or_default() += 1;
                first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    report::print(&Held {
        open: held.len(),
        closed_by_server: 0,
        errors: errors.clone(),
        first_error: first_error.clone(),
    })?;

    let mut closed_by_server = 0;
    let mut end_of_input = tokio::task::spawn_blocking(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    loop {
        tokio::select! {
            _ = &mut end_of_input => break,
            Some(_) = held.join_next() => closed_by_server += 1,
        }
    }
    report::print(&Held { open: held.len(), closed_by_server, errors, first_error })
}
