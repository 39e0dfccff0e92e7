//! The overload manager: when memory runs short, listeners do with less, step by step, before the kernel
//! takes everything away. First connections are not kept, then requests are refused, and in the end connections.
//!
//! A thread of its own looks every [`INTERVAL`]. Connections see the step in one relaxed load ([`crate::drain`]).

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use mitu_telemetry::Telemetry;
use mitu_telemetry::connections::OverloadMetrics;
use parking_lot::Mutex;

use crate::config::OverloadConfig;
use crate::listener::LiveListener;

/// How often pressure is looked at. What one look does not show is not worth a step.
const INTERVAL: Duration = Duration::from_millis(250);

/// By how much pressure must fall below what began a step for the step to end: else it would come and go at every look.
const HYSTERESIS: f64 = 0.05;

/// Changes that nobody has asked for yet; further ones push out the oldest.
const CHANGES: usize = 256;

/// What is done about it. Each step does what those before it do as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    Normal,
    /// Responses end their connection, and those that are idle are closed.
    DisableKeepalive,
    /// 503, or a refusal of the stream.
    StopAcceptingRequests,
    /// Closed on accept.
    RejectConnections,
}

impl Step {
    const ALL: [Self; 4] =
        [Self::Normal, Self::DisableKeepalive, Self::StopAcceptingRequests, Self::RejectConnections];

    pub fn of(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::RejectConnections)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::DisableKeepalive => "disable_keepalive",
            Self::StopAcceptingRequests => "stop_accepting_requests",
            Self::RejectConnections => "reject_connections",
        }
    }

    /// The step after this one under `pressure`; `begin`: the pressure at which each step but the first begins.
    fn under(self, pressure: f64, begin: [f64; 3]) -> Self {
        let begun = begin.iter().filter(|share| pressure >= **share).count();
        let kept = begin.iter().take(self as usize).filter(|share| pressure >= **share - HYSTERESIS).count();
        Self::of(begun.max(kept) as u8)
    }
}

/// A listener went from one step to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub listener: String,
    pub step: Step,
    /// Shares of the ceilings, as they were then; none: there is no ceiling.
    pub memory: Option<f64>,
    pub connections: f64,
}

/// The running manager; dropping it ends its thread.
#[derive(Debug)]
pub struct Overload {
    shared: Arc<Shared>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: Mutex<OverloadConfig>,
    listeners: Mutex<Vec<Watched>>,
    changes: Mutex<VecDeque<Change>>,
    telemetry: Arc<Telemetry>,
}

#[derive(Debug)]
struct Watched {
    live: Weak<LiveListener>,
    name: String,
    metrics: OverloadMetrics,
    step: Step,
}

impl Overload {
    pub fn start(config: OverloadConfig, telemetry: &Arc<Telemetry>) -> io::Result<Self> {
        let (listeners, changes) = Default::default();
        let shared = Shared { config: Mutex::new(config), listeners, changes, telemetry: telemetry.clone() };
        let shared = Arc::new(shared);
        let (stop, stopped) = sync_channel::<()>(0);
        let manager = shared.clone();
        let thread = thread::Builder::new().name("mitu-overload".into()).spawn(move || {
            let mut memory = Step::Normal;
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                memory = manager.look(memory, resident);
                if memory > Step::Normal {
                    shrink_heap();
                }
            }
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    pub fn configure(&self, config: OverloadConfig) {
        *self.shared.config.lock() = config;
    }

    /// From here on a listener is managed, until it is dropped.
    pub fn watch(&self, live: &Arc<LiveListener>) {
        self.shared.watch(live);
    }

    /// What has changed since this was last asked.
    pub fn changes(&self) -> Vec<Change> {
        self.shared.changes.lock().drain(..).collect()
    }
}

impl Drop for Overload {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self, live: &Arc<LiveListener>) {
        let name = live.current.load().name.clone();
        let metrics = self.telemetry.connections.overload(&name);
        self.listeners.lock().push(Watched { live: Arc::downgrade(live), name, metrics, step: Step::Normal });
    }

    /// Settles every listener's step. `memory`: that of the last look; and the one of this.
    fn look(&self, memory: Step, resident: impl Fn() -> Option<u64>) -> Step {
        let config = self.config.lock().clone();
        let begin = [config.disable_keepalive, config.stop_accepting_requests, config.reject_connections];
        // What cannot be read is no reason to turn clients away.
        let pressure = config.memory_bytes.and_then(|most| Some(resident()? as f64 / most.get() as f64));
        self.telemetry.connections.memory_pressure(pressure.unwrap_or(0.0));
        let memory = memory.under(pressure.unwrap_or(0.0), begin);
        self.listeners.lock().retain_mut(|watched| {
            let Some(live) = watched.live.upgrade() else { return false };
            // Shown, and no reason for a step: more than there may be are refused in any case, and a client that is let go
            // comes back, with a handshake.
            let connections = live.active() as f64 / live.current.load().limits.connections as f64;
            live.drain.overload(memory);
            watched.metrics.pressure.set(connections);
            watched.metrics.step.set(memory as i64);
            if std::mem::replace(&mut watched.step, memory) != memory {
                let mut changes = self.changes.lock();
                if changes.len() == CHANGES {
                    changes.pop_front();
                }
                changes.push_back(Change {
                    listener: watched.name.clone(),
                    step: memory,
                    memory: pressure,
                    connections,
                });
            }
            true
        });
        memory
    }
}

/// Has the allocator give back to the kernel what nobody uses. mimalloc keeps what was freed for a while, and looks
/// whether that is over when a large block is freed. Where requests and connections are refused, nobody frees any, and
/// the overload would never end.
fn shrink_heap() {
    /// Larger than the pieces in which it asks the kernel for memory. Nothing is written to it, so that it takes none.
    const LARGE: usize = 64 << 20;
    drop(black_box(Vec::<u8>::with_capacity(LARGE)));
}

/// Resident memory of this process.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BEGIN: [f64; 3] = [0.85, 0.90, 0.95];

    fn steps(pressures: &[f64]) -> Vec<u8> {
        let mut step = Step::Normal;
        let next = |pressure: &f64| {
            step = step.under(*pressure, BEGIN);
            step as u8
        };
        pressures.iter().map(next).collect()
    }

    #[test]
    fn steps_follow_pressure_up() {
        assert_eq!(steps(&[0.0, 0.849, 0.85, 0.899, 0.90, 0.95, 2.0]), [0, 0, 1, 1, 2, 3, 3]);
        assert_eq!(steps(&[0.99]), [3]);
    }

    #[test]
    fn a_step_ends_well_below_where_it_began() {
        assert_eq!(steps(&[0.85, 0.84, 0.81, 0.79, 0.84]), [1, 1, 1, 0, 0]);
        assert_eq!(steps(&[0.95, 0.91, 0.89, 0.86, 0.84, 0.81, 0.79]), [3, 3, 2, 2, 1, 1, 0]);
        assert_eq!(steps(&[0.95, 0.2]), [3, 0]);
    }

    #[test]
    fn pressure_that_swings_around_a_bound_makes_one_change() {
        let swinging: Vec<f64> = (0..100).map(|turn| 0.90 + 0.02 * f64::from(turn % 2)).collect();
        assert!(steps(&swinging).iter().all(|step| *step == 2));
    }

    #[test]
    fn steps_that_begin_together_are_taken_together() {
        let all = |pressure| Step::Normal.under(pressure, [0.9; 3]);
        assert_eq!((all(0.89), all(0.9)), (Step::Normal, Step::RejectConnections));
    }

    #[test]
    fn memory_is_read() {
        let before = resident().unwrap();
        let held = vec![1_u8; 64 << 20];
        assert!(resident().unwrap() >= before + (48 << 20), "{before} {}", held.len());
    }
}
