//! Field sections as QPACK writes them (RFC 9204), without its dynamic table: this side allows none and fills none, so that
//! no stream waits for another, and no client can make it keep anything.

mod huffman;
mod table;

use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use table::{DATE, STATUS};
pub use table::{Name, Pseudo};

use crate::protocol::http::date;

/// What a field counts for beside its bytes (RFC 9114, section 4.2.2).
const OVERHEAD: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("malformed field section")]
    Malformed,
    #[error("field section larger than allowed")]
    TooLarge,
}

/// A field's name, as far as it is known, and its value.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    pub name: FieldName,
    pub value: Bytes,
}

#[derive(Debug, PartialEq, Eq)]
pub enum FieldName {
    Known(&'static Name),
    Literal(Bytes),
}

/// Reads a field section, field by field.
#[derive(Debug)]
pub struct Decoder {
    rest: Bytes,
    /// What the fields may still count for.
    left: usize,
    /// Where strings in the Huffman code go.
    decoded: BytesMut,
}

impl Decoder {
    /// `limit`: bytes of all names and values, and 32 more for each field.
    pub fn new(section: Bytes, limit: usize) -> Result<Self, DecodeError> {
        let decoded = BytesMut::with_capacity(section.len() + section.len() / 2);
        let mut decoder = Self { rest: section, left: limit, decoded };
        // Required Insert Count: none of this side's table, which has no room. The base then says nothing.
        if decoder.integer(8)? != 0 {
            return Err(DecodeError::Malformed);
        }
        decoder.integer(7)?;
        Ok(decoder)
    }

    /// The next field; None at the end.
    pub fn next(&mut self) -> Result<Option<Field>, DecodeError> {
        const INDEXED: u8 = 0b1000_0000;
        const INDEXED_STATIC: u8 = 0b0100_0000;
        const NAMED: u8 = 0b0100_0000;
        const NAMED_STATIC: u8 = 0b0001_0000;
        const LITERAL: u8 = 0b0010_0000;
        let Some(&first) = self.rest.first() else { return Ok(None) };
        let field = if first & INDEXED != 0 {
            let entry = table::get(self.integer(6)?).filter(|_| first & INDEXED_STATIC != 0);
            let (name, value) = entry.ok_or(DecodeError::Malformed)?;
            Field { name: FieldName::Known(name), value: Bytes::from_static(value.as_bytes()) }
        } else if first & NAMED != 0 {
            let entry = table::get(self.integer(4)?).filter(|_| first & NAMED_STATIC != 0);
            let (name, _) = entry.ok_or(DecodeError::Malformed)?;
            Field { name: FieldName::Known(name), value: self.string(7)? }
        } else if first & LITERAL != 0 {
            Field { name: FieldName::Literal(self.string(3)?), value: self.string(7)? }
        } else {
            return Err(DecodeError::Malformed);
        };
        let name = match &field.name {
            FieldName::Known(name) => name.as_str().len(),
            FieldName::Literal(name) => name.len(),
        };
        self.left = self.left.checked_sub(name + field.value.len() + OVERHEAD).ok_or(DecodeError::TooLarge)?;
        Ok(Some(field))
    }

    /// An integer in the lower bits of the next byte, and behind it (RFC 7541, section 5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, DecodeError> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        // More than four bytes count nothing that fits into a section.
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed)
    }

    /// A string whose length is in the lower bits, and the bit before them says whether it is in the Huffman code.
    fn string(&mut self, prefix: u32) -> Result<Bytes, DecodeError> {
        let coded = self.rest.first().is_some_and(|first| first & 1 << prefix != 0);
        let length = self.integer(prefix)?;
        if length > self.rest.len() {
            return Err(DecodeError::Malformed);
        }
        let bytes = self.rest.split_to(length);
        if !coded {
            return Ok(bytes);
        }
        huffman::decode(&bytes, &mut self.decoded).ok_or(DecodeError::Malformed)?;
        Ok(self.decoded.split().freeze())
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        if self.rest.is_empty() {
            return Err(DecodeError::Malformed);
        }
        Ok(self.rest.split_to(1)[0])
    }
}

/// Appends the field section of a response's head, which is dated. `headers` that belong to a connection are left out.
pub fn encode_head(status: StatusCode, headers: &HeaderMap, to: &mut BytesMut) {
    to.put_slice(&[0, 0]);
    match table::status(status) {
        Some(index) => indexed(index, to),
        None => named(STATUS, status.as_str().as_bytes(), to),
    }
    if !headers.contains_key(header::DATE) {
        named(DATE, &date::now(), to);
    }
    fields(headers, to);
}

/// Appends the field section of trailers.
pub fn encode_trailers(trailers: &HeaderMap, to: &mut BytesMut) {
    to.put_slice(&[0, 0]);
    fields(trailers, to);
}

fn fields(headers: &HeaderMap, to: &mut BytesMut) {
    for (name, value) in headers.iter().filter(|(name, _)| !is_of_connection(name)) {
        encode_field(name, value, to);
    }
}

/// Appends one more field.
pub fn encode_field(name: &HeaderName, value: &HeaderValue, to: &mut BytesMut) {
    match table::find(name, value) {
        (Some(index), true) => indexed(index, to),
        (Some(index), false) => named(index, value.as_bytes(), to),
        (None, _) => {
            let name = name.as_str().as_bytes();
            integer(0b0010_0000, 3, name.len(), to);
            to.put_slice(name);
            string(value.as_bytes(), to);
        }
    }
}

/// What HTTP/3 has no use for (RFC 9114, section 4.2).
pub fn is_of_connection(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
}

fn indexed(index: usize, to: &mut BytesMut) {
    integer(0b1100_0000, 6, index, to);
}

fn named(index: usize, value: &[u8], to: &mut BytesMut) {
    integer(0b0101_0000, 4, index, to);
    string(value, to);
}

/// As it is: the Huffman code would cost more time than its bytes do.
fn string(value: &[u8], to: &mut BytesMut) {
    integer(0, 7, value.len(), to);
    to.put_slice(value);
}

fn integer(pattern: u8, prefix: u32, value: usize, to: &mut BytesMut) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return to.put_u8(pattern | value as u8);
    }
    to.put_u8(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        to.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.put_u8(rest as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
