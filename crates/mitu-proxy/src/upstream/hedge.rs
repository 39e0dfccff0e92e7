//! Hedging: a request that one endpoint is slow to answer goes to a second one as well, and the first answer counts
//! (Dean and Barroso, "The Tail at Scale", 2013).

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::Upstream;
use super::answer::Answer;
use super::attempt::Reached;
use super::endpoint::Active;
use super::request::{Late, Outbound, Patience};
use super::retry::{Failed, Journey};
use crate::protocol::http::body::RequestBody;

impl Upstream {
    /// When a request is to be sent to a second endpoint; none: never, as is so for all that may change something.
    pub(super) fn hedge_after(&self, request: &Outbound<'_>, bodiless: bool) -> Option<Duration> {
        let after = self.config.hedge_after_ms?;
        let harmless = matches!(*request.method, Method::GET | Method::HEAD | Method::OPTIONS);
        (harmless && bodiless && !request.upgrade).then(|| Duration::from_millis(after))
    }

    pub(super) async fn hedged(
        &self,
        after: Duration,
        journey: &mut Journey<'_>,
        index: usize,
        active: Active,
        request: &Outbound<'_>,
        patience: &mut Patience<'_>,
    ) -> Result<Answer, Failed> {
        let endpoints = journey.endpoints;
        let (member, fresh, until) = (endpoints.member(index), journey.needs_fresh(), patience.until());
        let (mut body, mut reached) = (RequestBody::empty(), Reached::new());
        let (mut second_body, mut second_reached) = (RequestBody::empty(), Reached::new());
        let (mut second, mut failed, mut second_failed) = (None, None, false);
        let tried = {
            let mut first = pin!(self.attempt(member, active, request, &mut body, fresh, &mut reached));
            let hedge_at = until.min(Instant::now() + after);
            match patience.timer.limit(hedge_at, first.as_mut()).await {
                Some(tried) => Some(tried),
                None if hedge_at == until => None,
                None => match journey.hedge(index) {
                    None => patience.timer.limit(until, first).await,
                    Some((other, active)) => {
                        let other = &*second.insert(endpoints.member(other));
                        let attempt =
                            pin!(self.attempt(other, active, request, &mut second_body, false, &mut second_reached));
                        let answer = first_answer(first, &mut failed, attempt, &mut second_failed);
                        patience.timer.limit(until, answer).await
                    }
                },
            }
        };
        tried.unwrap_or_else(|| {
            // Whichever has failed has had the blame for that, and what comes next depends on the other.
            let second = second.filter(|_| !second_failed);
            let late = second.map(|second| self.given_up(second, Late::bodiless(second_reached), request, patience));
            Err(match (failed, late) {
                (Some(_), Some(late)) => late,
                (Some(failed), None) => failed,
                (None, _) => self.given_up(member, Late::bodiless(reached), request, patience),
            })
        })
    }
}

/// The first answer of two; where there is none, the first's failure. `failed`, `second_failed`: what each has come to.
async fn first_answer<F, S>(
    mut first: Pin<&mut F>,
    failed: &mut Option<Failed>,
    mut second: Pin<&mut S>,
    second_failed: &mut bool,
) -> Result<Answer, Failed>
where
    F: Future<Output = Result<Answer, Failed>>,
    S: Future<Output = Result<Answer, Failed>>,
{
    poll_fn(|context| {
        if failed.is_none() {
            match first.as_mut().poll(context) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(answer)),
                Poll::Ready(Err(error)) => *failed = Some(error),
                Poll::Pending => {}
            }
        }
        if !*second_failed {
            match second.as_mut().poll(context) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(Ok(answer)),
                Poll::Ready(Err(_)) => *second_failed = true,
                Poll::Pending => {}
            }
        }
        if *second_failed && let Some(error) = failed.take() { Poll::Ready(Err(error)) } else { Poll::Pending }
    })
    .await
}
