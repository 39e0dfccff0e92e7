//! An endpoint's response on its way to the client, and what it says of the endpoint.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use mitu_telemetry::http::Reason;

use super::endpoint::Active;
use super::h1::H1Body;
use super::h2::StreamGuard;
use super::relay::UpstreamStream;
use crate::protocol::http::body::BodyError;
use crate::protocol::http::upgrade::{Rewound, Upgrade};

/// Pieces that are read of a body that nobody wants.
const DISCARDED: usize = 4;

/// The head of an endpoint's response, and what brings its body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: UpstreamBody,
}

/// The body of a response; its request counts as active until the last of it has come, or this is dropped.
#[derive(Debug)]
pub struct UpstreamBody {
    kind: Kind,
    active: Active,
    /// What may still come.
    left: u64,
    /// The endpoint has been given credit for the response, or blamed for it.
    settled: bool,
}

#[derive(Debug)]
pub enum Kind {
    H1(H1Body),
    H2 { incoming: Incoming, stream: StreamGuard },
}

impl UpstreamBody {
    pub fn new(kind: Kind, status: StatusCode, active: Active) -> Self {
        let settled = !active.endpoint().answered(status);
        let mut body = Self { kind, active, left: u64::MAX, settled };
        if body.is_end_stream() {
            body.came_whole();
        }
        body
    }

    /// Holds it to so many bytes. `Err`: it announces more.
    pub fn limit(&mut self, bytes: u64) -> Result<(), Reason> {
        self.left = bytes;
        if self.size_hint().exact().is_some_and(|length| length > bytes) {
            self.active.endpoint().metrics.response_failed(Reason::ResponseTooLarge);
            return Err(Reason::ResponseTooLarge);
        }
        Ok(())
    }

    pub fn endpoint(&self) -> &Arc<str> {
        &self.active.endpoint().address
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.kind {
            Kind::H1(body) => body.poll_frame(context),
            Kind::H2 { incoming, .. } => Pin::new(incoming).poll_frame(context).map_err(BodyError::from),
        };
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_trailers() || self.is_end_stream() {
                    self.came_whole();
                } else if !self.settled {
                    self.active.answers(true);
                }
                Poll::Ready(Some(self.admit(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.cut_short(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.came_whole();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn admit(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => {
                self.active.endpoint().metrics.response_failed(Reason::ResponseTooLarge);
                Err(BodyError::TooLarge)
            }
        }
    }

    /// The endpoint has done all that it was asked for.
    fn came_whole(&mut self) {
        if !self.settled {
            self.settled = true;
            self.active.answers(false);
            self.active.endpoint().succeeded();
        }
        self.active.end();
    }

    fn cut_short(&mut self, error: &BodyError) {
        self.active.answers(false);
        if !std::mem::replace(&mut self.settled, true) && !matches!(error, BodyError::Over) {
            // `Over`: it waits for what its client has not sent.
            self.active.endpoint().response_failed(Reason::ResponseIncomplete);
        }
    }

    /// Nobody wants it. What is there of it already is taken, so that the connection may serve others.
    pub fn discard(mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..DISCARDED {
            if !matches!(self.poll_frame(&mut context), Poll::Ready(Some(Ok(_)))) {
                return;
            }
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::H1(body) => body.is_end_stream(),
            Kind::H2 { incoming, .. } => incoming.is_end_stream(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::H1(body) => body.size_hint(),
            Kind::H2 { incoming, .. } => incoming.size_hint(),
        }
    }

    /// The upstream's side after `101`. None on h2, which has no such status.
    pub fn into_upgrade(self, protocol: HeaderValue) -> Option<Upgrade> {
        match self.kind {
            Kind::H2 { .. } => None,
            Kind::H1(body) => {
                let (io, first) = body.into_upgraded()?;
                // What its relay comes to is its client's business.
                if !self.settled {
                    self.active.endpoint().succeeded();
                }
                Some(Upgrade { protocol, stream: Rewound::new(first, UpstreamStream::new(io, self.active)) })
            }
        }
    }
}
