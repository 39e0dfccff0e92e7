//! The body of a request, from its stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
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
    trailers: bool,
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
        Self { frames, next, limits, left: length, trailers: false, ended: false, connection }
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
        let polled = match self.next.take() {
            Some(piece) => Ok(piece),
            None => ready!(self.frames.poll_piece(context, self.limits.bytes)),
        };
        let frame = polled.and_then(|piece| self.accept(piece));
        let frame = match frame {
            Ok(Some(frame)) => self.count(frame),
            Ok(None) => {
                self.ended = true;
                if self.left.is_none_or(|left| left == 0) {
                    return Poll::Ready(None);
                }
                Err(BodyError::Length)
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
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Length)?;
        }
        Ok(frame)
    }

    /// None: the end.
    fn accept(&mut self, piece: Piece) -> Result<Option<Frame<Bytes>>, StreamError> {
        match piece {
            Piece::End => Ok(None),
            Piece::Data(data) if !self.trailers => Ok(Some(Frame::data(data))),
            Piece::Whole(frame::HEADERS, section) if !self.trailers => {
                self.trailers = true;
                match decode_trailers(section, self.limits) {
                    Ok(trailers) => Ok(Some(Frame::trailers(trailers))),
                    Err(HeadError::Decompression) => {
                        Err(Code::QPACK_DECOMPRESSION_FAILED.broken("malformed trailers"))
                    }
                    Err(HeadError::Refused(_)) => Err(StreamError::Malformed),
                }
            }
            Piece::TooLarge(frame::HEADERS) if !self.trailers => Err(StreamError::Malformed),
            _ => Err(Code::FRAME_UNEXPECTED.broken("a frame that does not belong behind a head")),
        }
    }
}
