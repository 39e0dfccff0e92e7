//! Frames (RFC 9114, section 7), read from a stream as its bytes come.

use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Chunk, ReadError, RecvStream, VarInt};

use super::error::{Code, StreamError};

/// Bytes read at once.
const READ: usize = 64 * 1024;

/// Most bytes a second, in frames that nobody knows, that are passed over on one stream: they would cost without end
/// otherwise. Some clients send a few with each request.
const MAX_UNKNOWN: u64 = 64 * 1024;

pub const DATA: u64 = 0x0;
pub const HEADERS: u64 = 0x1;
pub const CANCEL_PUSH: u64 = 0x3;
pub const SETTINGS: u64 = 0x4;
pub const PUSH_PROMISE: u64 = 0x5;
pub const GOAWAY: u64 = 0x7;
pub const MAX_PUSH_ID: u64 = 0xd;

/// Types that HTTP/2 had, and HTTP/3 does not allow.
const OF_H2: [u64; 4] = [0x2, 0x6, 0x8, 0x9];

/// A frame's type and length take two integers of eight bytes each, at most.
pub const MAX_HEAD: usize = 16;

/// What has come of a stream, piece by piece.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    chunk: Bytes,
    /// The head of the next frame, as far as it has come.
    head: Head,
    /// Of the payload of this frame, to come.
    left: u64,
    kind: u64,
    /// The payload of a frame that is wanted whole.
    payload: BytesMut,
    /// Of frames that nobody knows, and since when.
    unknown: u64,
    since: Instant,
}

#[derive(Debug, Default)]
struct Head {
    bytes: [u8; MAX_HEAD],
    length: usize,
}

/// A piece of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A frame that is wanted whole: its type and its payload.
    Whole(u64, Bytes),
    /// Of DATA.
    Data(Bytes),
    /// A frame that is larger than whole frames may be.
    TooLarge(u64),
    /// The stream has ended between two frames.
    End,
}

impl FrameReader {
    pub fn new(stream: RecvStream) -> Self {
        let (chunk, head, left, kind, payload, unknown) = Default::default();
        Self { stream, chunk, head, left, kind, payload, unknown, since: Instant::now() }
    }

    pub fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }

    /// Whether more has come than was asked for, or the stream may have: what is not read is refused.
    pub fn stop(&mut self, code: Code) {
        // It has ended, or the client has taken it back.
        let _ = self.stream.stop(code.into());
    }

    /// The next piece. `limit`: most bytes of a frame that is wanted whole.
    pub fn poll_piece(&mut self, context: &mut Context<'_>, limit: usize) -> Poll<Result<Piece, StreamError>> {
        loop {
            if self.left > 0 {
                if self.chunk.is_empty() && !ready!(self.poll_fill(context))? {
                    return Poll::Ready(Err(Code::FRAME_ERROR.broken("the stream ended within a frame")));
                }
                let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.chunk.len());
                let piece = self.chunk.split_to(length);
                self.left -= length as u64;
                match self.kind {
                    DATA => return Poll::Ready(Ok(Piece::Data(piece))),
                    kind if is_whole(kind) => {
                        if self.left == 0 && self.payload.is_empty() {
                            return Poll::Ready(Ok(Piece::Whole(kind, piece)));
                        }
                        self.payload.put_slice(&piece);
                        if self.left == 0 {
                            return Poll::Ready(Ok(Piece::Whole(kind, self.payload.split().freeze())));
                        }
                    }
                    _ => self.pass_over(length as u64)?,
                }
                continue;
            }
            let Some((kind, length)) = ready!(self.poll_head(context))? else { return Poll::Ready(Ok(Piece::End)) };
            if OF_H2.contains(&kind) {
                return Poll::Ready(Err(Code::FRAME_UNEXPECTED.broken("a frame of HTTP/2")));
            }
            (self.kind, self.left) = (kind, length);
            if is_whole(kind) {
                if length > limit as u64 {
                    return Poll::Ready(Ok(Piece::TooLarge(kind)));
                }
                if length == 0 {
                    return Poll::Ready(Ok(Piece::Whole(kind, Bytes::new())));
                }
            } else if kind != DATA {
                // Also without a payload.
                self.pass_over(1)?;
            }
        }
    }

    /// Counts what is passed over.
    fn pass_over(&mut self, bytes: u64) -> Result<(), StreamError> {
        self.unknown += bytes;
        if self.unknown <= MAX_UNKNOWN {
            return Ok(());
        }
        if self.since.elapsed() < Duration::from_secs(1) {
            return Err(Code::EXCESSIVE_LOAD.broken("too much in unknown frames"));
        }
        (self.unknown, self.since) = (0, Instant::now());
        Ok(())
    }

    /// Type and length of the next frame; None: the stream has ended.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<(u64, u64)>, StreamError>> {
        loop {
            let Head { bytes, length } = &mut self.head;
            if let Some((kind, rest)) = varint(&bytes[..*length])
                && let Some((size, _)) = varint(rest)
            {
                *length = 0;
                return Poll::Ready(Ok(Some((kind, size))));
            }
            if self.chunk.is_empty() && !ready!(self.poll_fill(context))? {
                return Poll::Ready(match self.head.length {
                    0 => Ok(None),
                    _ => Err(Code::FRAME_ERROR.broken("the stream ended within the head of a frame")),
                });
            }
            // Byte by byte, so that none of the payload is taken: heads are of two or three.
            let byte = self.chunk.split_to(1)[0];
            let Head { bytes, length } = &mut self.head;
            bytes[*length] = byte;
            *length += 1;
        }
    }

    /// Reads more. False: the stream has ended.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let read = pin!(self.stream.read_chunk(READ, true));
        match ready!(read.poll(context)) {
            Ok(Some(Chunk { bytes, .. })) => {
                self.chunk = bytes;
                Poll::Ready(Ok(true))
            }
            Ok(None) => Poll::Ready(Ok(false)),
            Err(ReadError::ConnectionLost(error)) => Poll::Ready(Err(StreamError::Lost(error))),
            Err(_) => Poll::Ready(Err(StreamError::Cancelled)),
        }
    }
}

/// Whether frames of this type are wanted whole.
fn is_whole(kind: u64) -> bool {
    matches!(kind, HEADERS | CANCEL_PUSH | SETTINGS | PUSH_PROMISE | GOAWAY | MAX_PUSH_ID)
}

/// An integer of QUIC (RFC 9000, section 16), and what follows; None: more must come.
pub fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let first = *bytes.first()?;
    let (number, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value = number[1..].iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, rest))
}

pub fn put_varint(value: u64, to: &mut impl BufMut) {
    match value {
        0..0x40 => to.put_u8(value as u8),
        0x40..0x4000 => to.put_u16(value as u16 | 1 << 14),
        0x4000..0x4000_0000 => to.put_u32(value as u32 | 2 << 30),
        _ => to.put_u64(value | 3 << 62),
    }
}

/// Appends a HEADERS frame whose payload `write` appends.
pub fn put_headers(to: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    // Two bytes for its length, which hold what nearly all heads have.
    const LENGTH: usize = 2;
    to.put_u8(HEADERS as u8);
    let at = to.len();
    to.put_bytes(0, LENGTH);
    write(to);
    let length = to.len() - at - LENGTH;
    if length < 0x4000 {
        return (&mut to[at..at + LENGTH]).put_u16(length as u16 | 1 << 14);
    }
    let payload = to.split_off(at + LENGTH);
    to.truncate(at);
    put_varint(length as u64, to);
    to.unsplit(payload);
}

/// The head of a DATA frame.
pub fn put_data_head(length: usize, to: &mut impl BufMut) {
    to.put_u8(DATA as u8);
    put_varint(length as u64, to);
}

impl From<Code> for VarInt {
    fn from(code: Code) -> Self {
        VarInt::from_u32(code.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back_and_wait_for_their_bytes() {
        for value in [0, 63, 64, 16_383, 16_384, 1 << 30, (1 << 62) - 1] {
            let mut bytes = BytesMut::new();
            put_varint(value, &mut bytes);
            assert_eq!(varint(&bytes), Some((value, &[][..])));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn the_length_of_headers_is_put_in_front() {
        for length in [0, 10, 0x3fff, 0x4000, 100_000] {
            let mut bytes = BytesMut::from(&b"before"[..]);
            put_headers(&mut bytes, |to| to.put_bytes(7, length));
            let (kind, rest) = varint(&bytes[6..]).unwrap_or_default();
            let (told, payload) = varint(rest).unwrap_or_default();
            assert_eq!((kind, told, payload.len()), (HEADERS, length as u64, length));
            assert!(payload.iter().all(|byte| *byte == 7));
        }
    }
}
