//! A request's way to an endpoint: choose, try, and again where that is safe.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use http::{HeaderMap, Method};
use mitu_telemetry::http::{Reason, Retry};
use tokio::time::Instant;

use super::answer::Answer;
use super::attempt::{Reached, Stage};
use super::endpoint::Active;
use super::endpoints::{Endpoints, Member};
use super::retry::{Again, Failed, Journey, Next};
use super::{Upstream, UpstreamError};
use crate::connection::Connection;
use crate::protocol::http::body::{Progress, RequestBody};
use crate::protocol::http::timer::LazyTimer;

/// A request as the endpoint is to see it.
#[derive(Debug)]
pub struct Outbound<'a> {
    pub connection: &'a Connection,
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// `Host` among them; nothing that belongs to a connection.
    pub headers: &'a HeaderMap,
    /// The client can take trailers; in `headers` as `TE`, too.
    pub te_trailers: bool,
    /// The protocol that the client wants to change to; in `headers` as `Upgrade`, too.
    pub upgrade: bool,
    /// The client waits for `100 Continue`.
    pub expect_continue: bool,
}

impl Outbound<'_> {
    /// The value of `Connection` on an h1 connection.
    pub fn connection_options(&self) -> &'static str {
        match (self.upgrade, self.te_trailers) {
            (true, _) => "upgrade",
            (false, true) => "te",
            (false, false) => "",
        }
    }

    /// Whether sending it twice does what sending it once does (RFC 9110, section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
    }
}

/// How long a request may wait for its response's head.
#[derive(Debug)]
pub struct Patience<'a> {
    pub deadline: Instant,
    /// For each try; none: `deadline` alone.
    pub per_try: Option<Duration>,
    pub timer: &'a mut LazyTimer,
}

impl Patience<'_> {
    /// When a try that begins now is given up.
    pub fn until(&self) -> Instant {
        self.per_try.map_or(self.deadline, |time| self.deadline.min(Instant::now() + time))
    }
}

/// How a try stands whose time is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late {
    pub reached: Reached,
    /// Nothing of the body has left.
    pub whole: bool,
    /// It was not the client who took the time.
    pub blamed: bool,
    /// The client owes a piece of the body.
    pub awaited: bool,
}

impl Late {
    /// Of a request without a body.
    pub fn bodiless(reached: Reached) -> Self {
        Self { reached, whole: true, blamed: true, awaited: false }
    }
}

impl Upstream {
    /// Sends a request and waits for the head of its response, here or there.
    pub async fn request(
        &self,
        request: &Outbound<'_>,
        body: &mut RequestBody,
        mut patience: Patience<'_>,
    ) -> Result<Answer, UpstreamError> {
        let endpoints = self.endpoints.load_full();
        let hash = self.hash(request.connection, Some(request.target), Some(request.headers));
        let mut journey = Journey::new(self, &endpoints, self.cursor(request.connection), hash, true);
        let (mut index, mut active) = journey.enter().inspect_err(|error| self.tell(error, &endpoints))?;
        loop {
            let bodiless = body.is_empty();
            let tried = match self.hedge_after(request, bodiless) {
                None => {
                    let (member, fresh) = (endpoints.member(index), journey.needs_fresh());
                    self.try_once(member, active, request, body, fresh, &mut patience).await
                }
                Some(after) => Box::pin(self.hedged(after, &mut journey, index, active, request, &mut patience)).await,
            };
            let (result, again) = match tried {
                Ok(answer) if bodiless && self.declines(request, &answer) => (Ok(answer), Again::Retry(Retry::Status)),
                Ok(answer) => return Ok(answer),
                Err(Failed { error, again }) => (Err(error), again),
            };
            let Some(next) = journey.next(index, again, Some(patience.deadline)) else {
                return result.inspect_err(|error| self.tell(error, &endpoints));
            };
            if let Ok(answer) = result {
                answer.body.discard();
            }
            if let Some(time) = next.not_before {
                patience.timer.limit(time, pending::<()>()).await;
            }
            Next { index, active, .. } = next;
        }
    }

    /// Whether a response is one that another may be better than.
    fn declines(&self, request: &Outbound<'_>, answer: &Answer) -> bool {
        request.is_idempotent() && self.config.retries.statuses.contains(&answer.status.as_u16())
    }

    async fn try_once(
        &self,
        member: &Member,
        active: Active,
        request: &Outbound<'_>,
        body: &mut RequestBody,
        fresh: bool,
        patience: &mut Patience<'_>,
    ) -> Result<Answer, Failed> {
        let bodiless = body.is_empty();
        let client = body.progress().cloned();
        let awaits_client = || client.as_deref().is_some_and(Progress::is_awaited);
        let mut reached = Reached::new();
        let tried = {
            let mut attempt = pin!(self.attempt(member, active, request, body, fresh, &mut reached));
            loop {
                let until = patience.until();
                match patience.timer.limit(until, attempt.as_mut()).await {
                    // The endpoint has nothing to answer yet.
                    None if until < patience.deadline && awaits_client() => {}
                    tried => break tried,
                }
            }
        };
        tried.unwrap_or_else(|| {
            let whole = bodiless || (!body.is_empty() && !body.is_started());
            // The time for a try begins anew when the client's part has come; that of a route does not, so a client that is
            // slow with its body could have any endpoint blamed.
            let blamed = bodiless || patience.per_try.is_some();
            let late = Late { reached, whole, blamed, awaited: awaits_client() };
            Err(self.given_up(member, late, request, patience))
        })
    }

    /// What it means that a try has taken too long.
    pub(super) fn given_up(
        &self,
        member: &Member,
        late: Late,
        request: &Outbound<'_>,
        patience: &Patience<'_>,
    ) -> Failed {
        let endpoint = &member.endpoint;
        let Reached { stage, .. } = late.reached;
        let reason = match stage {
            Stage::Queue => Reason::Overflow,
            _ if late.awaited => Reason::BodyTimeout,
            Stage::Opening | Stage::Endpoint | Stage::Sent => {
                if stage == Stage::Endpoint {
                    endpoint.standing.rest();
                }
                if late.blamed && late.reached.had_time(endpoint) {
                    endpoint.response_failed(Reason::ResponseTimeout);
                } else {
                    endpoint.metrics.response_failed(Reason::ResponseTimeout);
                }
                Reason::ResponseTimeout
            }
        };
        let safe = late.whole && (stage != Stage::Sent || request.is_idempotent());
        let time = Instant::now() < patience.deadline;
        Failed::because(UpstreamError::new(reason).at(&endpoint.address), Retry::Timeout, safe && time)
    }

    /// Counts a request or relay that was refused because of a limit.
    pub(super) fn tell(&self, error: &UpstreamError, endpoints: &Endpoints) {
        if error.reason == Reason::Overflow {
            self.families.overflowed(&self.name, endpoints.limit());
        }
    }
}
