//! How busy a connection with streams is, h2 or h3: it is given up when nothing happens for too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Timeouts;

/// How busy the connection is, as its streams tell.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    streams: AtomicUsize,
    /// Streams with something for the client, which does not take it.
    stalled: AtomicUsize,
    /// Milliseconds from `opened` to when a stream last moved, or ended.
    moved: AtomicU64,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        let (streams, stalled, moved) = Default::default();
        Arc::new(Self { opened: Instant::now(), streams, stalled, moved })
    }

    pub fn begin(self: &Arc<Self>) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.mark();
        Stream { activity: self.clone(), stalled: false }
    }

    pub fn mark(&self) {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    /// When to give the connection up if nothing more happens: soon when it is idle or its client does not read, later
    /// when it waits for an upstream.
    pub fn deadline(&self, timeouts: &Timeouts) -> Instant {
        let waiting = self.streams.load(Ordering::Relaxed) > 0 && self.stalled.load(Ordering::Relaxed) == 0;
        let patience = if waiting { timeouts.relay_idle_ms } else { timeouts.idle_ms };
        self.opened + Duration::from_millis(self.moved.load(Ordering::Relaxed) + patience)
    }

    pub fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }
}

/// A stream in progress, seen from its response's body.
#[derive(Debug)]
pub struct Stream {
    activity: Arc<Activity>,
    stalled: bool,
}

impl Stream {
    /// Bytes have come, or gone.
    pub fn moved(&self) {
        self.activity.mark();
    }

    /// The body was asked for more: the client has taken what it was given.
    pub fn asked(&mut self) {
        if std::mem::take(&mut self.stalled) {
            self.activity.stalled.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The body has something for the client.
    pub fn gave(&mut self) {
        self.activity.mark();
        self.stalled = true;
        self.activity.stalled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.asked();
        self.activity.mark();
        self.activity.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
