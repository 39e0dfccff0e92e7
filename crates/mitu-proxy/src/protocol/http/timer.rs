//! One timer for a whole connection.
//!
//! Most deadlines are met, so setting and clearing a timer for each is work for nothing. This one is set for the
//! earliest deadline it was ever asked for and looks at the current one when it fires: a busy connection touches the
//! runtime's timer wheel once for each full time limit, not for each request.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub struct LazyTimer(Option<Pin<Box<Sleep>>>);

impl LazyTimer {
    /// Ready once `deadline` has passed.
    pub fn poll(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if sleep.deadline() >= deadline || Instant::now() >= deadline {
                // The next deadline is a later one.
                self.0 = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Runs `future` until `deadline`. None: the deadline came first.
    pub async fn limit<F: Future>(&mut self, deadline: Instant, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll(context, deadline).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, poll_fn};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn deadlines_may_move_both_ways() {
        let mut timer = LazyTimer::default();
        let start = Instant::now();
        let polled = poll_fn(|context| Poll::Ready(timer.poll(context, start + 60 * SECOND))).await;
        assert!(polled.is_pending());
        // Earlier than what it is set for.
        assert_eq!(timer.limit(start + SECOND, pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 1);
        // Later than what it was set for: it fires in between and goes on.
        let polled = poll_fn(|context| Poll::Ready(timer.poll(context, start + 2 * SECOND))).await;
        assert!(polled.is_pending());
        assert_eq!(timer.limit(start + 5 * SECOND, pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), 5);
        assert_eq!(timer.limit(start + 6 * SECOND, async { 7 }).await, Some(7));
    }
}
