//! Bodies read off the wire: by length, in chunks with trailers, or to the connection's end (RFC 9112, section 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::{Framing, HeadLimits, find_end};

/// Longest chunk-size line, extensions included.
const MAX_CHUNK_LINE: usize = 256;

/// The body is not framed as announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed chunk")]
    Chunk,
    #[error("malformed or oversized trailers")]
    Trailers,
    #[error("the body ended before its announced length")]
    Incomplete,
}

#[derive(Debug)]
pub enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// The buffer must grow first.
    More,
}

#[derive(Debug)]
pub struct Decoder {
    state: State,
    limits: HeadLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers { scanned: usize },
    Done,
}

impl Decoder {
    /// `limits`: for the trailers.
    pub fn new(framing: Framing, limits: HeadLimits) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, limits }
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How much is still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// What the connection's end means now.
    pub fn end_of_input(&mut self) -> Result<(), DecodeError> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(DecodeError::Incomplete),
        }
    }

    /// Takes the next piece off `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, DecodeError> {
        loop {
            match self.state {
                State::Done => return Ok(Decoded::End),
                _ if buffer.is_empty() => return Ok(Decoded::More),
                State::UntilClose => return Ok(Decoded::Data(buffer.split().freeze())),
                State::Length(left) => {
                    let (data, left) = take(buffer, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Decoded::Data(data));
                }
                State::ChunkSize => match chunk_size(buffer)? {
                    None => return Ok(Decoded::More),
                    Some(0) => self.state = State::Trailers { scanned: 0 },
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::ChunkData(left) => {
                    let (data, left) = take(buffer, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Decoded::Data(data));
                }
                State::ChunkEnd => {
                    if buffer.len() < 2 {
                        return if buffer[0] == b'\r' { Ok(Decoded::More) } else { Err(DecodeError::Chunk) };
                    }
                    if buffer[..2] != *b"\r\n" {
                        return Err(DecodeError::Chunk);
                    }
                    buffer.advance(2);
                    self.state = State::ChunkSize;
                }
                State::Trailers { mut scanned } => {
                    let end = find_end(buffer, &mut scanned, true).map_err(|_| DecodeError::Trailers)?;
                    if end.unwrap_or(buffer.len()) > self.limits.bytes {
                        return Err(DecodeError::Trailers);
                    }
                    let Some(end) = end else {
                        self.state = State::Trailers { scanned };
                        return Ok(Decoded::More);
                    };
                    self.state = State::Done;
                    let block = buffer.split_to(end).freeze();
                    return if end == 2 {
                        Ok(Decoded::End)
                    } else {
                        trailers(&block, self.limits).map(Decoded::Trailers)
                    };
                }
            }
        }
    }
}

/// Up to `left` bytes, and how many are left then.
fn take(buffer: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    (buffer.split_to(length).freeze(), left - length as u64)
}

/// Reads `size [;extension] CR LF`.
fn chunk_size(buffer: &mut BytesMut) -> Result<Option<u64>, DecodeError> {
    let Some(newline) = memchr::memchr(b'\n', buffer) else {
        return if buffer.len() > MAX_CHUNK_LINE { Err(DecodeError::Chunk) } else { Ok(None) };
    };
    if newline > MAX_CHUNK_LINE {
        return Err(DecodeError::Chunk);
    }
    let line = buffer[..newline].strip_suffix(b"\r").ok_or(DecodeError::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 16 {
        return Err(DecodeError::Chunk);
    }
    let extension = &line[digits..];
    let clean = extension.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control());
    if !clean || !is_closed(extension) || !(extension.is_empty() || extension.trim_ascii_start().starts_with(b";")) {
        return Err(DecodeError::Chunk);
    }
    let size = line[..digits]
        .iter()
        .filter_map(|&digit| char::from(digit).to_digit(16))
        .fold(0_u64, |size, digit| size << 4 | u64::from(digit));
    buffer.advance(newline + 1);
    Ok(Some(size))
}

/// Whether every quoted string has its end: for some, one may go on over the end of the line.
fn is_closed(extension: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in extension {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    !quoted && !escaped
}

fn trailers(block: &Bytes, limits: HeadLimits) -> Result<HeaderMap, DecodeError> {
    let mut room = vec![httparse::EMPTY_HEADER; limits.headers];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(block, &mut room) else {
        return Err(DecodeError::Trailers);
    };
    lines
        .iter()
        .map(|line| {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| DecodeError::Trailers)?;
            let value =
                HeaderValue::from_maybe_shared(block.slice_ref(line.value)).map_err(|_| DecodeError::Trailers)?;
            Ok((name, value))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 256, headers: 4 };

    /// Feeds `wire` in pieces of `step` bytes; the body, the trailers, and what was left over.
    fn decode(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), DecodeError> {
        let mut decoder = Decoder::new(framing, LIMITS);
        let (mut buffer, mut body, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        let mut pieces = wire.chunks(step);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::Trailers(found) => trailers = found,
                Decoded::End => break,
                Decoded::More => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => {
                        decoder.end_of_input()?;
                        break;
                    }
                },
            }
        }
        buffer.extend(pieces.flatten());
        Ok((body, trailers, buffer.to_vec()))
    }

    #[test]
    fn bodies_arrive_whole_however_they_are_cut() {
        let chunked = b"5\r\nhello\r\n6;name=\"v\"\r\n world\r\n0\r\nx-sum: 7\r\n\r\nnext";
        for step in 1..chunked.len() {
            let (body, trailers, rest) = decode(Framing::Chunked, chunked, step).unwrap();
            assert_eq!((&*body, &*rest), (&b"hello world"[..], &b"next"[..]), "step {step}");
            assert_eq!(trailers["x-sum"], "7");
            let (body, _, rest) = decode(Framing::Length(5), b"hellonext", step).unwrap();
            assert_eq!((&*body, &*rest), (&b"hello"[..], &b"next"[..]), "step {step}");
            assert_eq!(decode(Framing::UntilClose, b"hello", step).unwrap().0, b"hello");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            &b"\r\nhello\r\n0\r\n\r\n"[..],
            b"x\r\n",
            b"-5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhelloXX0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;a\x01b\r\nhello\r\n0\r\n\r\n",
            b"5\r;\r\nhello\r\n0\r\n\r\n",
            b"11111111111111111\r\n",
        ] {
            for step in [1, wire.len()] {
                let result = decode(Framing::Chunked, wire, step);
                assert!(
                    matches!(result, Err(DecodeError::Chunk)),
                    "{:?}: {result:?}",
                    wire.escape_ascii().to_string()
                );
            }
        }
        let endless = [b'1'; MAX_CHUNK_LINE + 2];
        assert_eq!(decode(Framing::Chunked, &endless, 7).unwrap_err(), DecodeError::Chunk);
    }

    #[test]
    fn bad_trailers_are_refused() {
        let long = format!("0\r\nx: {}\r\n\r\n", "y".repeat(300));
        for wire in ["0\r\nno colon\r\n\r\n", "0\r\n x: folded\r\n\r\n", "0\r\nx: 1\n\r\n", &long] {
            assert_eq!(decode(Framing::Chunked, wire.as_bytes(), 3).unwrap_err(), DecodeError::Trailers, "{wire}");
        }
        let many: String = (0..5).map(|number| format!("x-{number}: 1\r\n")).collect();
        let wire = format!("0\r\n{many}\r\n");
        assert_eq!(decode(Framing::Chunked, wire.as_bytes(), 3).unwrap_err(), DecodeError::Trailers);
    }

    #[test]
    fn bodies_cut_short_are_noticed() {
        for (framing, wire) in [
            (Framing::Length(6), &b"hello"[..]),
            (Framing::Chunked, b"5\r\nhel"),
            (Framing::Chunked, b"5\r\nhello\r\n"),
            (Framing::Chunked, b"5\r\nhello\r\n0\r\n"),
        ] {
            assert_eq!(decode(framing, wire, 2).unwrap_err(), DecodeError::Incomplete);
        }
    }
}
