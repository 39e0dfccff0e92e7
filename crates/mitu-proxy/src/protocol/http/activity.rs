//! How busy a connection with streams is, h2 or h3: it is given up when nothing happens for too long, or too much for nothing.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::timer::LazyTimer;
use crate::config::Timeouts;

/// How many more requests a client may have cancelled at once than answered: each cost something, upstream as well
/// (CVE-2023-44487).
const MAX_CANCELLED: u32 = 200;

/// A request that is cancelled after this long is one whose client has waited for it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How busy the connection is, as its streams tell.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    streams: AtomicUsize,
    /// Milliseconds from `opened` to when a stream last moved, or ended.
    moved: AtomicU64,
    /// Requests that were cancelled at once, less those that were answered.
    cancelled: AtomicU32,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        let (streams, moved, cancelled) = Default::default();
        Arc::new(Self { opened: Instant::now(), streams, moved, cancelled })
    }

    pub fn begin(self: &Arc<Self>) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Stream { activity: self.clone(), begun: self.mark(), settled: false }
    }

    /// Something moves.
    pub fn mark(&self) -> Instant {
        let now = Instant::now();
        let moved = u64::try_from((now - self.opened).as_millis()).unwrap_or(u64::MAX);
        self.moved.store(moved, Ordering::Relaxed);
        now
    }

    /// When to give the connection up if nothing more happens: later when it waits for an upstream.
    pub fn deadline(&self, timeouts: &Timeouts) -> Instant {
        let patience = if self.is_idle() { timeouts.idle_ms } else { timeouts.relay_idle_ms };
        self.opened + Duration::from_millis(self.moved.load(Ordering::Relaxed) + patience)
    }

    pub fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }

    /// Whether its client makes requests in order to cancel them.
    pub fn is_abused(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) > MAX_CANCELLED
    }
}

/// A stream in progress.
#[derive(Debug)]
pub struct Stream {
    activity: Arc<Activity>,
    begun: Instant,
    settled: bool,
}

impl Stream {
    /// Something moves on it.
    pub fn moved(&self) -> Instant {
        self.activity.mark()
    }

    /// The client has its answer, or it is not its fault that it has not.
    pub fn settled(&mut self) {
        self.settled = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let cancelled = &self.activity.cancelled;
        if self.settled {
            self.activity.mark();
            let _ = cancelled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        } else if self.begun.elapsed() < AT_ONCE {
            cancelled.fetch_add(1, Ordering::Relaxed);
        }
        self.activity.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local! {
    /// Since when the stream whose task runs has had something for its client.
    static OFFERED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The stream whose task runs has something for its client since then.
pub fn offered(since: Instant) {
    OFFERED.set(Some(since));
}

/// The client of the stream whose task runs has taken what there was.
pub fn taken() {
    OFFERED.set(None);
}

/// Runs the task of a stream until its client has left for `patience` what there is for it. The task tells of that by
/// [`offered`] and [`taken`], from wherever it is.
pub async fn while_taken(task: impl Future<Output = ()>, patience: Duration) {
    let (mut task, mut timer, mut waits) = (pin!(task), LazyTimer::default(), None);
    poll_fn(|context| {
        OFFERED.set(waits);
        let polled = task.as_mut().poll(context);
        waits = OFFERED.take();
        match waits {
            Some(since) if polled.is_pending() => timer.poll(context, since + patience),
            _ => polled,
        }
    })
    .await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::time::{sleep, timeout};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_its_client_takes_nothing() {
        let begun = Instant::now();
        let taking = async {
            for _ in 0..10 {
                offered(Instant::now());
                sleep(SECOND).await;
                taken();
                sleep(5 * SECOND).await;
            }
            offered(Instant::now());
            std::future::pending().await
        };
        let other = async {
            offered(Instant::now());
            std::future::pending().await
        };
        let both = async { tokio::join!(while_taken(taking, 2 * SECOND), while_taken(other, 100 * SECOND)) };
        timeout(1000 * SECOND, both).await.unwrap();
        assert_eq!(begun.elapsed(), 100 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_cancelled_at_once_are_counted() {
        let activity = Activity::new();
        let cancel = |count| (0..count).for_each(|_| drop(activity.begin()));
        cancel(MAX_CANCELLED);
        assert!(!activity.is_abused());
        activity.begin().settled();
        let slow = activity.begin();
        sleep(AT_ONCE).await;
        drop(slow);
        cancel(1);
        assert!(!activity.is_abused());
        cancel(1);
        assert!(activity.is_abused() && activity.is_idle());
    }
}
