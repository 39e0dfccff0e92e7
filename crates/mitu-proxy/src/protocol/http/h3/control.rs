//! The client's one-way streams (RFC 9114, section 6.2): its settings, and QPACK's, on which there is nothing to say here.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::RecvStream;

use super::Shared;
use super::error::{Code, StreamError, Violation};
use super::frame::{self, FrameReader, Piece, put_varint, varint};

const CONTROL: u64 = 0x0;
const PUSH: u64 = 0x1;
const QPACK_ENCODER: u64 = 0x2;
const QPACK_DECODER: u64 = 0x3;

const MAX_FIELD_SECTION_SIZE: u64 = 0x6;
/// RFC 9220, section 3.
const ENABLE_CONNECT_PROTOCOL: u64 = 0x8;

/// Settings that HTTP/2 had, and HTTP/3 does not allow.
const OF_H2: [u64; 4] = [0x2, 0x3, 0x4, 0x5];

/// Most bytes of a frame on the control stream: settings are a few.
const MAX_FRAME: usize = 4096;

/// Which of its streams the client has opened: each may be there once.
#[derive(Debug, Default)]
pub struct Opened(AtomicU8);

impl Opened {
    fn once(&self, kind: u64) -> Result<(), StreamError> {
        let bit = 1 << kind;
        match self.0.fetch_or(bit, Ordering::Relaxed) & bit {
            0 => Ok(()),
            _ => Err(Code::STREAM_CREATION_ERROR.broken("a second stream of a kind that is there once")),
        }
    }
}

/// The first bytes of this side's control stream: its type, and the settings.
pub fn settings(max_field_section_size: usize) -> Bytes {
    let mut payload = BytesMut::new();
    put_varint(MAX_FIELD_SECTION_SIZE, &mut payload);
    put_varint(max_field_section_size as u64, &mut payload);
    put_varint(ENABLE_CONNECT_PROTOCOL, &mut payload);
    put_varint(1, &mut payload);
    let mut first = BytesMut::new();
    put_varint(CONTROL, &mut first);
    put_frame(frame::SETTINGS, &payload, &mut first);
    first.freeze()
}

/// A GOAWAY: requests on `stream` and later ones are not served.
pub fn goaway(stream: u64) -> Bytes {
    let mut payload = BytesMut::new();
    put_varint(stream, &mut payload);
    let mut frame = BytesMut::new();
    put_frame(frame::GOAWAY, &payload, &mut frame);
    frame.freeze()
}

fn put_frame(kind: u64, payload: &[u8], to: &mut BytesMut) {
    put_varint(kind, to);
    put_varint(payload.len() as u64, to);
    to.put_slice(payload);
}

/// Reads one of the client's streams to its end. What is wrong with it ends the connection.
pub async fn read(mut stream: RecvStream, shared: &Shared) -> Result<(), Violation> {
    let opened = &shared.opened;
    let read = async {
        match kind(&mut stream).await? {
            Some(kind @ CONTROL) => {
                opened.once(kind)?;
                control(FrameReader::new(stream), shared).await
            }
            Some(kind @ QPACK_ENCODER) => {
                opened.once(kind)?;
                encoder(&mut stream).await
            }
            Some(kind @ QPACK_DECODER) => {
                opened.once(kind)?;
                decoder(&mut stream).await
            }
            Some(PUSH) => Err(Code::STREAM_CREATION_ERROR.broken("clients do not push")),
            // Of a kind that nobody knows, or that ended before it was known.
            Some(_) => {
                let _ = stream.stop(Code::STREAM_CREATION_ERROR.into());
                Ok(())
            }
            None => Ok(()),
        }
    };
    match read.await {
        Err(StreamError::Broken(violation)) => Err(violation),
        // A stream that is lost with its connection says nothing of it.
        Ok(()) | Err(StreamError::Lost(_)) => Ok(()),
        Err(StreamError::Cancelled | StreamError::Malformed) => Err(CLOSED),
    }
}

const CLOSED: Violation =
    Violation { code: Code::CLOSED_CRITICAL_STREAM, reason: "a stream that must stay has ended" };

/// The type of a stream; None: it ended before.
async fn kind(stream: &mut RecvStream) -> Result<Option<u64>, StreamError> {
    let (mut bytes, mut length) = ([0; 8], 0);
    while length < bytes.len() {
        match stream.read(&mut bytes[length..=length]).await {
            Ok(Some(read)) => length += read,
            Ok(None) => return Ok(None),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(StreamError::Lost(error)),
            // A client may take back what it has not said the purpose of.
            Err(_) => return Ok(None),
        }
        if let Some((kind, _)) = varint(&bytes[..length]) {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

async fn control(mut frames: FrameReader, shared: &Shared) -> Result<(), StreamError> {
    let (mut first, mut max_push, mut goaway) = (true, None, None);
    loop {
        let piece = poll_fn(|context| frames.poll_piece(context, MAX_FRAME)).await?;
        match piece {
            Piece::TooLarge(_) => return Err(Code::EXCESSIVE_LOAD.broken("a large frame on the control stream")),
            Piece::Whole(frame::SETTINGS, payload) if first => check_settings(&payload)?,
            _ if first && piece != Piece::End => return Err(Code::MISSING_SETTINGS.broken("no settings")),
            Piece::Whole(frame::GOAWAY, payload) => {
                let id = number(&payload)?;
                if goaway.replace(id).is_some_and(|before| id > before) {
                    return Err(Code::ID_ERROR.broken("GOAWAY goes back"));
                }
                shared.leaves();
            }
            Piece::Whole(frame::MAX_PUSH_ID, payload) => {
                let id = number(&payload)?;
                if max_push.replace(id).is_some_and(|before| id < before) {
                    return Err(Code::ID_ERROR.broken("MAX_PUSH_ID goes back"));
                }
            }
            Piece::Whole(frame::CANCEL_PUSH, payload) => {
                number(&payload)?;
                return Err(Code::ID_ERROR.broken("nothing was pushed"));
            }
            Piece::Whole(..) | Piece::Data(_) => {
                return Err(Code::FRAME_UNEXPECTED.broken("a frame that does not belong on a control stream"));
            }
            Piece::End => return Err(StreamError::Broken(CLOSED)),
        }
        first = false;
    }
}

fn check_settings(mut payload: &[u8]) -> Result<(), StreamError> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let cut = || Code::FRAME_ERROR.broken("settings that are cut off");
        let (id, rest) = varint(payload).ok_or_else(cut)?;
        let (_, rest) = varint(rest).ok_or_else(cut)?;
        if seen.contains(&id) || OF_H2.contains(&id) {
            return Err(Code::SETTINGS_ERROR.broken("a setting twice, or one of HTTP/2"));
        }
        seen.push(id);
        payload = rest;
    }
    Ok(())
}

/// The one number that a frame is about.
fn number(payload: &[u8]) -> Result<u64, StreamError> {
    match varint(payload) {
        Some((number, [])) => Ok(number),
        _ => Err(Code::FRAME_ERROR.broken("a frame that is about one number has more or less")),
    }
}

/// QPACK's encoder may say that its table has no room, which it has not: nothing else is possible.
async fn encoder(stream: &mut RecvStream) -> Result<(), StreamError> {
    const CAPACITY_OF_ZERO: u8 = 0b0010_0000;
    instructions(stream, |byte| match byte {
        CAPACITY_OF_ZERO => Ok(()),
        _ => Err(Code::QPACK_ENCODER_STREAM_ERROR.broken("the dynamic table has no room")),
    })
    .await
}

/// QPACK's decoder may give up streams, which changes nothing: this side's table is empty.
async fn decoder(stream: &mut RecvStream) -> Result<(), StreamError> {
    const CANCELLATION: u8 = 0b0100_0000;
    const KIND: u8 = 0b1100_0000;
    let mut continues = false;
    instructions(stream, |byte| {
        if continues {
            continues = byte & 0x80 != 0;
            return Ok(());
        }
        if byte & KIND != CANCELLATION {
            return Err(Code::QPACK_DECODER_STREAM_ERROR.broken("nothing was inserted"));
        }
        continues = byte & !KIND == !KIND;
        Ok(())
    })
    .await
}

async fn instructions(
    stream: &mut RecvStream,
    mut each: impl FnMut(u8) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let mut bytes = [0; 256];
    loop {
        match stream.read(&mut bytes).await {
            Ok(Some(length)) => bytes[..length].iter().try_for_each(|byte| each(*byte))?,
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(StreamError::Lost(error)),
            Ok(None) | Err(_) => return Err(StreamError::Broken(CLOSED)),
        }
    }
}
