//! How things go wrong in HTTP/3 (RFC 9114, section 8).

use quinn::{ConnectionError, WriteError};

/// An error code, as the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const NO_ERROR: Self = Self(0x100);
    pub const INTERNAL_ERROR: Self = Self(0x102);
    pub const STREAM_CREATION_ERROR: Self = Self(0x103);
    pub const CLOSED_CRITICAL_STREAM: Self = Self(0x104);
    pub const FRAME_UNEXPECTED: Self = Self(0x105);
    pub const FRAME_ERROR: Self = Self(0x106);
    pub const EXCESSIVE_LOAD: Self = Self(0x107);
    pub const ID_ERROR: Self = Self(0x108);
    pub const SETTINGS_ERROR: Self = Self(0x109);
    pub const MISSING_SETTINGS: Self = Self(0x10a);
    pub const REQUEST_REJECTED: Self = Self(0x10b);
    pub const REQUEST_CANCELLED: Self = Self(0x10c);
    pub const REQUEST_INCOMPLETE: Self = Self(0x10d);
    pub const MESSAGE_ERROR: Self = Self(0x10e);
    /// RFC 9204, section 6.
    pub const QPACK_DECOMPRESSION_FAILED: Self = Self(0x200);
    pub const QPACK_ENCODER_STREAM_ERROR: Self = Self(0x201);
    pub const QPACK_DECODER_STREAM_ERROR: Self = Self(0x202);

    /// The connection is to be closed with it.
    pub fn broken(self, reason: &'static str) -> StreamError {
        StreamError::Broken(Violation { code: self, reason })
    }
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Violation {
    pub code: Code,
    pub reason: &'static str,
}

/// Why a stream is not read any further.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The client has taken the stream back.
    #[error("the client has cancelled the stream")]
    Cancelled,
    #[error(transparent)]
    Lost(ConnectionError),
    /// What it says cannot be served; the connection goes on.
    #[error("malformed message")]
    Malformed,
    /// It is no HTTP/3: the whole connection ends.
    #[error(transparent)]
    Broken(Violation),
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            _ => Self::Cancelled,
        }
    }
}
