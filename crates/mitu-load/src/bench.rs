//! `mitu bench`: a plan carried out on several threads, bounded in time and number, told about while it runs.
//!
//! [`plan`] says what to do, [`schedule`] when; a pacer thread hands out what is due, and each worker thread runs it on
//! an event loop of its own. Latency counts from when something was due, so that a server, or this program, that falls
//! behind shows it instead of slowing the load down.

mod clients;
pub mod plan;
mod random;
mod record;
pub mod report;
mod run;
mod schedule;
mod series;
mod times;
mod work;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::LoadError;
use plan::Plan;
use report::Report;
use run::Run;

/// A run under way, or over. Dropping it stops it.
pub struct Bench {
    run: Arc<Run>,
    threads: Vec<JoinHandle<()>>,
}

impl Bench {
    /// Begins what `plan` (JSON) says.
    pub fn start(plan: &str) -> Result<Self, LoadError> {
        let plan = Plan::parse(plan)?;
        let (run, queues) = Run::new(plan)?;
        // Those that have begun end with it when another cannot begin.
        let mut bench = Self { run: Arc::new(run), threads: Vec::new() };
        for (number, queue) in queues.into_iter().enumerate() {
            let run = bench.run.clone();
            let spawned = thread::Builder::new().name(format!("load-{number}"));
            bench.threads.push(spawned.spawn(move || run::worker(&run, number, queue))?);
        }
        Ok(bench)
    }

    /// What it has come to so far.
    pub fn report(&self) -> Result<Report, LoadError> {
        self.run.report()
    }

    /// Waits for the end, `limit` at most. Whether it has come.
    pub fn wait(&self, limit: Duration) -> bool {
        self.run.wait(limit)
    }

    /// Begins nothing more, and cuts off what is under way.
    pub fn stop(&self) {
        self.run.stop();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on standard error, and its recorder holds what it had done.
            let _ = thread.join();
        }
    }
}
