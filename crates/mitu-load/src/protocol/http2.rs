//! GETs over HTTP/2 (RFC 9113), written out by hand: one stream at a time, static header names.
//!
//! A full client would cost several times what the server spends, on the core that has to keep ahead of it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answer, HEAD_LIMIT, Stream, one_byte_length};
use crate::error::LoadError;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;
/// Received bytes after which the connection's window is opened again.
const RENEW_WINDOW: u32 = 1 << 30;

#[derive(Default)]
pub struct Client {
    opened: bool,
    streams: u32,
    received: u32,
    /// The server takes no more streams.
    going_away: bool,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Client {
    pub async fn get<S: Stream>(&mut self, stream: &mut S, host: &str, path: &str) -> Result<Answer, LoadError> {
        let mut out = Vec::with_capacity(256);
        if !self.opened {
            self.opened = true;
            open(&mut out);
        }
        let number = self.streams * 2 + 1;
        self.streams += 1;
        push_frame(&mut out, HEADERS, END_STREAM | END_HEADERS, number, &request_block(host, path)?);
        stream.write_all(&out).await?;
        let mut found = 0;
        loop {
            let frame = read_frame(stream).await?;
            answer(stream, &frame).await?;
            if frame.kind == GOAWAY {
                self.going_away = true;
                if last_stream(&frame.payload) < number {
                    return Err(LoadError::Closed);
                }
            }
            if frame.kind == DATA {
                self.count(stream, frame.payload.len() as u32).await?;
            }
            if frame.stream != number {
                continue;
            }
            match frame.kind {
                // Interim responses come before the one that was asked for, trailers behind it.
                HEADERS if found < 200 => found = status(&frame.payload)?,
                RST_STREAM => return Err(LoadError::Closed),
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return Ok(Answer { status: found, reusable: !self.going_away && number < WINDOW - 2 });
            }
        }
    }

    async fn count<S: Stream>(&mut self, stream: &mut S, bytes: u32) -> Result<(), LoadError> {
        self.received += bytes;
        if self.received >= RENEW_WINDOW {
            let mut out = Vec::new();
            push_frame(&mut out, WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
            self.received = 0;
            stream.write_all(&out).await?;
        }
        Ok(())
    }
}

/// Answers SETTINGS and PING until the server closes.
pub async fn hold<S: Stream>(stream: &mut S) -> Result<(), LoadError> {
    loop {
        let frame = match read_frame(stream).await {
            Err(LoadError::Closed) => return Ok(()),
            frame => frame?,
        };
        answer(stream, &frame).await?;
    }
}

/// The preface: windows that no response fills, and no header table, so that every header block stands for itself.
fn open(out: &mut Vec<u8>) {
    out.extend_from_slice(PREFACE);
    let mut settings = Vec::new();
    for (name, value) in [(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, WINDOW)] {
        settings.extend_from_slice(&name.to_be_bytes());
        settings.extend_from_slice(&value.to_be_bytes());
    }
    push_frame(out, SETTINGS, 0, 0, &settings);
    push_frame(out, WINDOW_UPDATE, 0, 0, &(WINDOW - DEFAULT_WINDOW).to_be_bytes());
}

async fn answer<S: Stream>(stream: &mut S, frame: &Frame) -> Result<(), LoadError> {
    if frame.flags & ACK != 0 || !matches!(frame.kind, SETTINGS | PING) {
        return Ok(());
    }
    let payload = if frame.kind == PING { frame.payload.as_slice() } else { &[] };
    let mut answer = Vec::with_capacity(FRAME_HEAD + payload.len());
    push_frame(&mut answer, frame.kind, ACK, 0, payload);
    Ok(stream.write_all(&answer).await?)
}

fn push_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

async fn read_frame<S: Stream>(stream: &mut S) -> Result<Frame, LoadError> {
    let mut head = [0; FRAME_HEAD];
    stream.read_exact(&mut head).await.map_err(closed)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    if length > HEAD_LIMIT {
        return Err(LoadError::Protocol("a frame is larger than it may be"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(closed)?;
    let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & WINDOW;
    Ok(Frame { kind: head[3], flags: head[4], stream: number, payload })
}

fn closed(error: std::io::Error) -> LoadError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => LoadError::Closed,
        _ => LoadError::Io(error),
    }
}

/// The last stream that a GOAWAY says was taken.
fn last_stream(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |number| u32::from_be_bytes(*number) & WINDOW)
}

/// `GET https://host/path` as an HPACK block: indexed fields, and literals that are not added to the table.
fn request_block(host: &str, path: &str) -> Result<Vec<u8>, LoadError> {
    const METHOD_GET: u8 = 0x82;
    const SCHEME_HTTPS: u8 = 0x87;
    const AUTHORITY: u8 = 0x01;
    const PATH: u8 = 0x04;
    let mut block = vec![METHOD_GET, SCHEME_HTTPS];
    for (name, value) in [(AUTHORITY, host), (PATH, path)] {
        block.extend_from_slice(&[name, one_byte_length(value)?]);
        block.extend_from_slice(value.as_bytes());
    }
    Ok(block)
}

/// `:status`, which must be the block's first field, after any change of the table's size (RFC 7541).
fn status(block: &[u8]) -> Result<u16, LoadError> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let first = block.iter().position(|byte| byte & 0xe0 != 0x20);
    let found = match first.map_or(&[][..], |first| &block[first..]) {
        [index @ 0x88..=0x8e, ..] => Some(INDEXED[usize::from(index - 0x88)]),
        // A literal whose name is the table's `:status`: its value plain, or in Huffman code.
        [0x48 | 0x08 | 0x18, 3, value @ ..] => value.get(..3).and_then(plain),
        [0x48 | 0x08 | 0x18, length @ (0x82 | 0x83), value @ ..] => {
            value.get(..usize::from(length & 0x7f)).and_then(huffman)
        }
        _ => None,
    };
    found.ok_or(LoadError::Protocol("the header block does not begin with a status"))
}

fn plain(digits: &[u8]) -> Option<u16> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Three digits: those up to 2 have five bits, the others six (RFC 7541, appendix B).
fn huffman(bytes: &[u8]) -> Option<u16> {
    let bits = bytes.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (32 - 8 * bytes.len());
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let (five, six) = (bits << at >> 27, bits << at >> 26);
        let (digit, length) = if five <= 2 { (five, 5) } else { (six.checked_sub(25)? + 3, 6) };
        number = number * 10 + u16::try_from(digit).ok().filter(|digit| *digit < 10)?;
        at += length;
    }
    Some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_the_rfc_says() {
        let mut out = Vec::new();
        push_frame(&mut out, PING, ACK, 0, &[7; 8]);
        assert_eq!(out, [0, 0, 8, 6, 1, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
    }

    #[test]
    fn the_status_is_read_in_every_form() {
        assert_eq!(status(&[0x20, 0x88]).unwrap(), 200);
        assert_eq!(status(&[0x8d, 0x00]).unwrap(), 404);
        assert_eq!(status(&[0x48, 3, b'5', b'0', b'3']).unwrap(), 503);
        // RFC 7541, C.6.1: `:status: 302`; 502 and 429 by the table of appendix B.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]).unwrap(), 302);
        assert_eq!(status(&[0x08, 0x82, 0b0110_1100, 0b0000_0010]).unwrap(), 502);
        assert_eq!(status(&[0x08, 0x83, 0b0110_1000, 0b0100_1111, 0b1111_1111]).unwrap(), 429);
        assert_eq!(status(&[0x48, 0x82, 0xff, 0xff]).unwrap_err().kind(), "protocol");
        assert_eq!(status(&[0x48, 3, b'5']).unwrap_err().kind(), "protocol");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert_eq!(request_block("h", &"x".repeat(127)).unwrap_err().kind(), "usage");
    }

    #[tokio::test]
    async fn exchanges_follow_each_other_until_the_server_goes_away() {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        let mut sent = Vec::new();
        push_frame(&mut sent, SETTINGS, 0, 0, &[]);
        push_frame(&mut sent, HEADERS, END_HEADERS, 1, &[0x20, 0x88]);
        push_frame(&mut sent, DATA, END_STREAM, 1, b"first");
        push_frame(&mut sent, GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]);
        push_frame(&mut sent, HEADERS, END_HEADERS | END_STREAM, 3, &[0x8d]);
        far.write_all(&sent).await.unwrap();
        let mut client = Client::default();
        let answers = [client.get(&mut near, "h", "/").await.unwrap(), client.get(&mut near, "h", "/").await.unwrap()];
        assert_eq!(answers.map(|answer| (answer.status, answer.reusable)), [(200, true), (404, false)]);
    }
}
