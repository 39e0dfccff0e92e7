//! The content codings that responses are sent in.

use std::fmt;
use std::io::{self, Write};

use flate2::write::GzEncoder;
use http::HeaderValue;
use serde::{Deserialize, Serialize};

/// Bits of the window: how far back an encoder looks, and the most that it holds of what went before. Small ones, since
/// every response that is under way has its own.
const WINDOW_BITS: u32 = 17;

/// Levels for what is made once and sent once: beyond them a few per cent are to be had for several times the work.
const ZSTD_LEVEL: i32 = 3;
const BROTLI_LEVEL: u32 = 4;
const GZIP_LEVEL: u32 = 5;

/// What a brotli encoder hands on at once.
const BROTLI_BUFFER: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    Zstd,
    /// Brotli.
    Br,
    Gzip,
}

impl Encoding {
    /// As `Accept-Encoding` and `Content-Encoding` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    pub fn value(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// Compresses one response.
pub enum Encoder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    pub fn new(encoding: Encoding) -> io::Result<Self> {
        Ok(match encoding {
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(WINDOW_BITS)?;
                Self::Zstd(encoder)
            }
            Encoding::Br => {
                let encoder = brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, BROTLI_LEVEL, WINDOW_BITS);
                Self::Br(Box::new(encoder))
            }
            Encoding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))),
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Zstd(encoder) => encoder,
            Self::Br(encoder) => encoder,
            Self::Gzip(encoder) => encoder,
        }
    }

    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.writer().write_all(data)
    }

    /// Lets out all that was written so far, so that it can be read.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }

    /// What is ready to be sent.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Br(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        })
    }

    /// The rest, and the end.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Br(encoder) => Ok(encoder.into_inner()),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Encoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    const ALL: [Encoding; 3] = [Encoding::Zstd, Encoding::Br, Encoding::Gzip];

    /// What can be read of `data`, which need not have an end.
    fn decoded(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn Read + '_> = match encoding {
            Encoding::Zstd => Box::new(zstd::stream::read::Decoder::new(data).unwrap()),
            Encoding::Br => Box::new(brotli::Decompressor::new(data, 4096)),
            Encoding::Gzip => Box::new(flate2::read::GzDecoder::new(data)),
        };
        let (mut text, mut piece) = (Vec::new(), [0; 1024]);
        while let Ok(length @ 1..) = decoder.read(&mut piece) {
            text.extend_from_slice(&piece[..length]);
        }
        text
    }

    fn text(length: usize) -> Vec<u8> {
        (0_u32..)
            .flat_map(|number| format!("{} and then ", number.wrapping_mul(2_654_435_761)).into_bytes())
            .take(length)
            .collect()
    }

    #[test]
    fn what_goes_in_comes_out_and_is_smaller() {
        let text = text(1 << 20);
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding).unwrap();
            let mut sent = Vec::new();
            for piece in text.chunks(10_000) {
                encoder.write(piece).unwrap();
                sent.extend(encoder.take());
            }
            sent.extend(encoder.finish().unwrap());
            assert!(sent.len() < text.len() / 2, "{encoding:?}: {}", sent.len());
            assert!(decoded(encoding, &sent) == text, "{encoding:?}");
        }
    }

    #[test]
    fn what_was_flushed_can_be_read() {
        for encoding in ALL {
            let mut encoder = Encoder::new(encoding).unwrap();
            let (mut sent, mut given) = (Vec::new(), Vec::new());
            for number in 0..20 {
                let event = format!("data: {number}\n\n");
                encoder.write(event.as_bytes()).unwrap();
                encoder.flush().unwrap();
                sent.extend(encoder.take());
                given.extend(event.into_bytes());
                assert_eq!(decoded(encoding, &sent), given, "{encoding:?}");
            }
        }
    }
}
