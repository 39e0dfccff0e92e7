//! One exchange on a fresh connection, in the protocol that ALPN chose.

mod http1;
mod http2;
mod mqtt;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::error::LoadError;

/// The most that one response may take; the benchmarks' responses are far smaller.
const RESPONSE_LIMIT: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// One GET, or for MQTT one CONNECT, up to the end of its answer.
    pub async fn exchange<S: Stream>(self, stream: &mut S, host: &str, path: &str) -> Result<(), LoadError> {
        match self {
            Self::Http1 => http1::get(stream, host, path).await,
            Self::Http2 => http2::get(stream, host, path).await,
            Self::Mqtt => mqtt::connect(stream).await,
        }
    }

    /// Reads on after the exchange, answering what the protocol says must be answered, until the server closes.
    pub async fn hold<S: Stream>(self, stream: &mut S) -> Result<(), LoadError> {
        match self {
            Self::Http2 => http2::hold(stream).await,
            Self::Http1 | Self::Mqtt => {
                let mut scratch = [0; 256];
                while stream.read(&mut scratch).await? > 0 {}
                Ok(())
            }
        }
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}
