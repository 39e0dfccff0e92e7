//! The body of a request, from its stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::error::{Code, StreamError};
use super::frame::{self, FrameReader, Piece};
use super::head::{HeadError, HeadLimits, decode_trailers};
use crate::protocol::http::body::BodyError;

/// What follows the head on a request's stream.
#[derive(Debug)]
pub struct H3Body {
    frames: FrameReader,
    /// A piece that was looked at before anybody asked.
    next: Option<Piece>,
    limits: HeadLimits,
    /// As `Content-Length` says, less what has come.
    left: Option<u64>,
    /// They are given on with the end of the stream: what follows them would be no request of HTTP/3.
    trailers: Option<HeaderMap>,
    ended: bool,
    connection: quinn::Connection,
}

impl H3Body {
    pub fn new(
        frames: FrameReader,
        next: Option<Piece>,
        length: Option<u64>,
        limits: HeadLimits,
        connection: quinn::Connection,
    ) -> Self {
        Self { frames, next, limits, left: length, trailers: None, ended: false, connection }
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Lets the client know that nobody reads the rest: it may stop sending, and still gets its response.
    pub fn stop(&mut self) {
        if !self.ended {
            self.ended = true;
            self.frames.stop(Code::NO_ERROR);
        }
    }

    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.poll_piece(context)) {
            Ok(Some(data)) => self.count(data),
            Ok(None) => {
                self.ended = true;
                match (self.left, self.trailers.take()) {
                    (Some(1..), _) => Err(BodyError::Length),
                    (_, Some(trailers)) => Ok(Frame::trailers(trailers)),
                    (_, None) => return Poll::Ready(None),
                }
            }
            Err(error) => {
                if let StreamError::Broken(violation) = &error {
                    self.connection.close(violation.code.into(), violation.reason.as_bytes());
                }
                Err(BodyError::H3(error))
            }
        };
        if let Err(error) = &frame {
            self.ended = true;
            if matches!(error, BodyError::Length | BodyError::H3(StreamError::Malformed)) {
                self.frames.stop(Code::MESSAGE_ERROR);
            }
        }
        Poll::Ready(Some(frame))
    }

    /// Holds the body to its length.
    fn count(&mut self, data: Bytes) -> Result<Frame<Bytes>, BodyError> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Length)?;
        }
        Ok(Frame::data(data))
    }

    /// The next data; None: the end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            let piece = match self.next.take() {
                Some(piece) => piece,
                None => ready!(self.frames.poll_piece(context, self.limits.bytes))?,
            };
            match piece {
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::Data(data) if self.trailers.is_none() => return Poll::Ready(Ok(Some(data))),
                Piece::Whole(frame::HEADERS, section) if self.trailers.is_none() => {
                    self.trailers = Some(trailers(section, self.limits)?);
                }
                Piece::TooLarge(frame::HEADERS) if self.trailers.is_none() => {
                    return Poll::Ready(Err(StreamError::Malformed));
                }
                _ => {
                    let reason = "a frame that does not belong behind a head";
                    return Poll::Ready(Err(Code::FRAME_UNEXPECTED.broken(reason)));
                }
            }
        }
    }
}

fn trailers(section: Bytes, limits: HeadLimits) -> Result<HeaderMap, StreamError> {
    decode_trailers(section, limits).map_err(|error| match error {
        HeadError::Decompression => Code::QPACK_DECOMPRESSION_FAILED.broken("malformed trailers"),
        HeadError::Refused(_) => StreamError::Malformed,
    })
}
