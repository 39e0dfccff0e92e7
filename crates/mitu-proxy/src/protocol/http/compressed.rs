//! The body of a response that is compressed on its way: as it comes, and no later than its upstream pauses.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::body::BodyError;
use crate::filter::compression::{Encoder, Place};
use crate::upstream::UpstreamBody;

/// How much is compressed before others have their turn.
const TURN: usize = 64 * 1024;

/// How much is compressed in one go.
const PIECE: usize = 16 * 1024;

#[derive(Debug)]
pub struct Compressed {
    body: UpstreamBody,
    /// None once the end is out.
    encoder: Option<Encoder>,
    _place: Place,
    /// What has come of the body and is not compressed yet.
    left: Bytes,
    trailers: Option<HeaderMap>,
    /// Some of what was compressed is in the encoder still.
    held: bool,
    /// What was compressed in this turn.
    spent: usize,
}

impl Compressed {
    pub fn new(body: UpstreamBody, (encoder, place): (Encoder, Place)) -> Self {
        let (left, trailers, held, spent) = Default::default();
        Self { body, encoder: Some(encoder), _place: place, left, trailers, held, spent }
    }

    pub fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            if self.spent >= TURN {
                self.spent = 0;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut ended = false;
            if self.left.is_empty() {
                match self.body.poll_frame(context)? {
                    Poll::Pending if self.held => {
                        // Who waits for the upstream is not to wait for what is here already.
                        encoder.flush()?;
                        self.held = false;
                    }
                    Poll::Pending => {
                        self.spent = 0;
                        return Poll::Pending;
                    }
                    Poll::Ready(None) => ended = true,
                    Poll::Ready(Some(frame)) => match frame.into_data() {
                        Ok(data) => self.left = data,
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok();
                            ended = true;
                        }
                    },
                }
            }
            let piece = self.left.split_to(self.left.len().min(PIECE));
            if !piece.is_empty() {
                encoder.write(&piece)?;
                self.held = true;
                self.spent += piece.len();
            }
            let ready = if ended {
                self.encoder.take().map(Encoder::finish).transpose()?.unwrap_or_default()
            } else {
                encoder.take()
            };
            if !ready.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(ready.into()))));
            }
        }
    }
}
