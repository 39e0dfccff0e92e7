//! The opening of an MQTT 3.1.1 session: CONNECT and its CONNACK.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Stream;
use crate::error::LoadError;

/// The broker drops the older of two sessions with one client identifier, so each gets its own.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(0);

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const CLEAN_SESSION: u8 = 0x02;

pub async fn connect<S: Stream>(stream: &mut S) -> Result<(), LoadError> {
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
        [CONNACK, 2, _, 0] => Ok(()),
        [CONNACK, 2, _, code] => Err(LoadError::Status(format!("CONNACK with code {code}"))),
        _ => Err(LoadError::Protocol("the answer to CONNECT is not CONNACK")),
    }
}
