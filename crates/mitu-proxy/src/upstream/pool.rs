//! Connections to one endpoint that one worker keeps: idle h1 ones, most recently used first, and shared h2 ones.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::h1::H1Connection;
use super::h2::H2Connection;

/// How often idle connections are looked through, at most.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    max_idle: usize,
    idle_timeout: Duration,
    /// Held while an h2 connection is opened, so that a burst of requests opens one and not one each.
    pub opening: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Idle>,
    shared: Vec<Arc<H2Connection>>,
    sweeping: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Box<H1Connection>,
    since: Instant,
}

impl Pool {
    pub fn new(max_idle: usize, idle_timeout: Duration) -> Self {
        Self { state: Mutex::default(), max_idle, idle_timeout, opening: tokio::sync::Mutex::default() }
    }

    /// An idle connection that is still open.
    pub fn take(&self) -> Option<Box<H1Connection>> {
        loop {
            let mut idle = self.state.lock().idle.pop()?;
            if idle.connection.is_open() {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection that has served its request.
    pub fn put(self: &Arc<Self>, connection: Box<H1Connection>) {
        let mut state = self.state.lock();
        if state.idle.len() < self.max_idle {
            state.idle.push(Idle { connection, since: Instant::now() });
            self.sweep_later(&mut state);
        }
    }

    /// A shared connection with room for one more request.
    pub fn shared(&self) -> Option<Arc<H2Connection>> {
        let mut state = self.state.lock();
        state.shared.retain(|connection| connection.is_open());
        state.shared.iter().find(|connection| connection.has_room()).cloned()
    }

    /// Shares a connection from now on.
    pub fn share(self: &Arc<Self>, connection: Arc<H2Connection>) {
        let mut state = self.state.lock();
        state.shared.push(connection);
        self.sweep_later(&mut state);
    }

    fn sweep_later(self: &Arc<Self>, state: &mut State) {
        if !state.sweeping {
            state.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(self), self.idle_timeout.min(SWEEP)));
        }
    }
}

/// Closes connections that have been idle for too long or that the endpoint has closed; ends with the last of them.
async fn sweep(pool: Weak<Pool>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.state.lock();
        let timeout = pool.idle_timeout;
        state.idle.retain_mut(|idle| idle.since.elapsed() < timeout && idle.connection.is_open());
        state.shared.retain(|connection| connection.is_open() && connection.idle_for() < timeout);
        if state.idle.is_empty() && state.shared.is_empty() {
            state.sweeping = false;
            return;
        }
    }
}
