//! What is said on a connection, in the protocol that ALPN chose: one exchange after the other.

mod http1;
mod http2;
mod mqtt;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::error::LoadError;

/// The most that a response's head may take, or one frame of it.
const HEAD_LIMIT: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Http1,
    Http2,
    Mqtt,
}

impl Protocol {
    pub fn from_alpn(name: &[u8]) -> Self {
        match name {
            b"h2" => Self::Http2,
            b"mqtt" => Self::Mqtt,
            _ => Self::Http1,
        }
    }
}

/// The end of one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's, or 200 for an MQTT session.
    pub status: u16,
    /// Whether the connection is good for another exchange.
    pub reusable: bool,
}

impl Answer {
    /// Whether the server did what it was asked: anything from 200 to 399.
    pub fn succeeded(self) -> Result<Self, LoadError> {
        if (200..400).contains(&self.status) { Ok(self) } else { Err(LoadError::Status(self.status.to_string())) }
    }
}

/// The length of a string in a head, where HPACK's and QPACK's coding of integers has one byte for it.
pub fn one_byte_length(value: &str) -> Result<u8, LoadError> {
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 127);
    length.ok_or_else(|| LoadError::Usage(format!("'{value}' is longer than 126 bytes")))
}

/// One end of a connection, as far as its exchanges have come.
pub enum Conversation {
    Http1(http1::Client),
    Http2(http2::Client),
    Mqtt(mqtt::Client),
}

impl Conversation {
    pub fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1(http1::Client::default()),
            Protocol::Http2 => Self::Http2(http2::Client::default()),
            Protocol::Mqtt => Self::Mqtt(mqtt::Client::default()),
        }
    }

    /// One GET, up to the end of its response. For MQTT: CONNECT the first time, then PINGREQ.
    pub async fn exchange<S: Stream>(&mut self, stream: &mut S, host: &str, path: &str) -> Result<Answer, LoadError> {
        match self {
            Self::Http1(client) => client.get(stream, host, path).await,
            Self::Http2(client) => client.get(stream, host, path).await,
            Self::Mqtt(client) => client.exchange(stream).await,
        }
    }

    /// Reads on after an exchange, answering what the protocol says must be answered, until the server closes.
    pub async fn hold<S: Stream>(&mut self, stream: &mut S) -> Result<(), LoadError> {
        match self {
            Self::Http2(_) => http2::hold(stream).await,
            Self::Http1(_) | Self::Mqtt(_) => {
                let mut scratch = [0; 256];
                while stream.read(&mut scratch).await? > 0 {}
                Ok(())
            }
        }
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}
