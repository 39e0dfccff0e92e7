//! A GET over HTTP/2 (RFC 9113), written out by hand: one stream, static header names, small responses.
//!
//! A full client would cost several times what the server spends, on the core that has to keep ahead of it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{RESPONSE_LIMIT, Stream};
use crate::error::LoadError;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// `:status: 200`, by its index in HPACK's static table (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

pub async fn get<S: Stream>(stream: &mut S, host: &str, path: &str) -> Result<(), LoadError> {
    let mut opening = PREFACE.to_vec();
    push_frame(&mut opening, SETTINGS, 0, 0, &[]);
    push_frame(&mut opening, HEADERS, END_STREAM | END_HEADERS, 1, &request_block(host, path)?);
    stream.write_all(&opening).await?;
    loop {
        let frame = read_frame(stream).await?;
        answer(stream, &frame).await?;
        match frame.kind {
            HEADERS => status(&frame.payload)?,
            RST_STREAM | GOAWAY => return Err(LoadError::Closed),
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            return Ok(());
        }
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
    if length > RESPONSE_LIMIT {
        return Err(LoadError::Protocol("a frame is larger than it may be"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(closed)?;
    Ok(Frame { kind: head[3], flags: head[4], payload })
}

fn closed(error: std::io::Error) -> LoadError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => LoadError::Closed,
        _ => LoadError::Io(error),
    }
}

/// `GET https://host/path` as an HPACK block: indexed fields, and literals that are not added to the table.
fn request_block(host: &str, path: &str) -> Result<Vec<u8>, LoadError> {
    const METHOD_GET: u8 = 0x82;
    const SCHEME_HTTPS: u8 = 0x87;
    const AUTHORITY: u8 = 0x01;
    const PATH: u8 = 0x04;
    let mut block = vec![METHOD_GET, SCHEME_HTTPS];
    for (name, value) in [(AUTHORITY, host), (PATH, path)] {
        // Lengths below 127 are one byte in HPACK's integer coding.
        let length = u8::try_from(value.len()).ok().filter(|length| *length < 127);
        let length = length.ok_or_else(|| LoadError::Usage(format!("'{value}' is longer than 126 bytes")))?;
        block.extend_from_slice(&[name, length]);
        block.extend_from_slice(value.as_bytes());
    }
    Ok(block)
}

/// The status must be the block's first field, after any change of the table's size.
fn status(block: &[u8]) -> Result<(), LoadError> {
    match block.iter().find(|byte| **byte & 0xe0 != 0x20) {
        Some(&STATUS_200) => Ok(()),
        other => Err(LoadError::Status(format!("the header block begins with {other:02x?}"))),
    }
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
    fn the_status_is_read_behind_a_table_size_update() {
        assert!(status(&[0x20, 0x88]).is_ok());
        assert_eq!(status(&[0x8d]).unwrap_err().kind(), "status");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        assert_eq!(request_block("h", &"x".repeat(127)).unwrap_err().kind(), "usage");
    }
}
