//! An MQTT 3.1.1 session: CONNECT and its CONNACK, then pings.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answer, Stream};
use crate::error::LoadError;

/// The broker drops the older of two sessions with one client identifier, so each gets its own.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(0);

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PINGREQ: u8 = 0xc0;
const PINGRESP: u8 = 0xd0;
const CLEAN_SESSION: u8 = 0x02;
const DONE: Answer = Answer { status: 200, reusable: true };

#[derive(Default)]
pub struct Client {
    connected: bool,
}

impl Client {
    pub async fn exchange<S: Stream>(&mut self, stream: &mut S) -> Result<Answer, LoadError> {
        if self.connected { ping(stream).await } else { self.connect(stream).await }
    }

    async fn connect<S: Stream>(&mut self, stream: &mut S) -> Result<Answer, LoadError> {
        let client = format!("load-{}-{}", std::process::id(), NEXT_CLIENT.fetch_add(1, Ordering::Relaxed));
        // Protocol name, level 4, flags, no keep-alive.
        let mut packet = vec![CONNECT, (12 + client.len()) as u8];
        packet.extend_from_slice(&[0, 4, b'M', b'Q', b'T', b'T', 4, CLEAN_SESSION, 0, 0]);
        packet.extend_from_slice(&(client.len() as u16).to_be_bytes());
        packet.extend_from_slice(client.as_bytes());
        stream.write_all(&packet).await?;

        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map_err(|_| LoadError::Closed)?;
        match answer {
            [CONNACK, 2, _, 0] => {
                self.connected = true;
                Ok(DONE)
            }
            [CONNACK, 2, _, code] => Err(LoadError::Status(format!("CONNACK with code {code}"))),
            _ => Err(LoadError::Protocol("the answer to CONNECT is not CONNACK")),
        }
    }
}

async fn ping<S: Stream>(stream: &mut S) -> Result<Answer, LoadError> {
    stream.write_all(&[PINGREQ, 0]).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(|_| LoadError::Closed)?;
    if answer == [PINGRESP, 0] { Ok(DONE) } else { Err(LoadError::Protocol("the answer to PINGREQ is not PINGRESP")) }
}
