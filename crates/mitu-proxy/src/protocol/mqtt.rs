//! The first packet of an MQTT client, CONNECT, as far as the client's identifier (MQTT 5.0, section 3.1; 3.1.1 and 3.1
//! likewise). It is looked at where it lies, and passed on as it came.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// What may come up to the end of the identifier.
pub const MAX: usize = 16 * 1024;

/// Bytes that room is made for at once.
const PIECE: usize = 512;

/// Why there is no identifier.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("not an MQTT CONNECT: {0}")]
    Malformed(&'static str),
    #[error("the client left before its MQTT CONNECT was whole")]
    Incomplete,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads into `bytes` until the client's identifier is there, which may be empty; more may have come behind it.
pub async fn read_connect<'a, R>(stream: &mut R, bytes: &'a mut Vec<u8>) -> Result<&'a [u8], ConnectError>
where
    R: AsyncRead + Unpin,
{
    while let Err(Stop::More) = client_id(bytes) {
        let room = (MAX - bytes.len()).min(PIECE);
        if room == 0 {
            return Err(ConnectError::Malformed("the client's identifier comes too late"));
        }
        bytes.reserve(room);
        if (&mut *stream).take(room as u64).read_buf(bytes).await? == 0 {
            return Err(ConnectError::Incomplete);
        }
    }
    client_id(bytes).map_err(|stop| match stop {
        Stop::Malformed(why) => ConnectError::Malformed(why),
        Stop::More => ConnectError::Incomplete,
    })
}

/// Why an identifier cannot be told.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Stop {
    /// Not all of it is there.
    More,
    /// It never will be.
    Malformed(&'static str),
}

/// The client's identifier in a CONNECT that `bytes` begin with.
pub fn client_id(bytes: &[u8]) -> Result<&[u8], Stop> {
    const CONNECT: u8 = 0x10;
    let mut packet = Packet { rest: bytes, left: usize::MAX };
    if packet.take(1)?[0] != CONNECT {
        return Err(Stop::Malformed("it is another packet, or another protocol"));
    }
    packet.left = packet.variable()?;
    let name = packet.field()?;
    // Bridges set the highest bit.
    let level = packet.take(1)?[0] & 0x7f;
    if !matches!((name, level), (b"MQTT", 4 | 5) | (b"MQIsdp", 3)) {
        return Err(Stop::Malformed("a version that nobody knows"));
    }
    let _flags_and_keep_alive = packet.take(3)?;
    if level == 5 {
        let properties = packet.variable()?;
        packet.take(properties)?;
    }
    packet.field()
}

/// What of the packet has not been looked at.
struct Packet<'a> {
    rest: &'a [u8],
    /// Of the length that it has given itself.
    left: usize,
}

impl<'a> Packet<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        self.left = self.left.checked_sub(length).ok_or(Stop::Malformed("its lengths do not agree"))?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Stop::More)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A field with its length in front.
    fn field(&mut self) -> Result<&'a [u8], Stop> {
        let length = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([length[0], length[1]])))
    }

    /// A number of one to four bytes, the lowest seven bits first.
    fn variable(&mut self) -> Result<usize, Stop> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Malformed("a length of more than four bytes"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `behind`: will, user and password, and what the client sends without waiting.
    fn connect(name: &str, level: u8, properties: Option<usize>, id: &[u8], behind: &[u8]) -> Vec<u8> {
        let mut body = vec![0, name.len() as u8];
        body.extend(name.as_bytes());
        body.extend([level, 0b10, 0, 60]);
        if let Some(length) = properties {
            body.extend(variable(length));
            body.extend(vec![b'p'; length]);
        }
        body.extend((id.len() as u16).to_be_bytes());
        body.extend(id);
        body.extend(behind);
        [&[0x10], &*variable(body.len()), &body].concat()
    }

    fn variable(mut value: usize) -> Vec<u8> {
        let mut coded = Vec::new();
        loop {
            let more = if value > 0x7f { 0x80 } else { 0 };
            coded.push((value & 0x7f) as u8 | more);
            value >>= 7;
            if value == 0 {
                return coded;
            }
        }
    }

    fn packets() -> Vec<(Vec<u8>, Vec<u8>)> {
        let long = vec![b'x'; 5_000];
        vec![
            (connect("MQTT", 4, None, b"device-1", b""), b"device-1".to_vec()),
            (connect("MQTT", 5, Some(0), b"device-1", b"will"), b"device-1".to_vec()),
            (connect("MQTT", 5, Some(300), b"d", b""), b"d".to_vec()),
            (connect("MQIsdp", 3, None, b"old", b"user"), b"old".to_vec()),
            (connect("MQTT", 0x84, None, b"bridge", b""), b"bridge".to_vec()),
            (connect("MQTT", 4, None, b"", b""), Vec::new()),
            (connect("MQTT", 5, Some(2_000), &long, &[0xff; 20_000]), long),
        ]
    }

    #[test]
    fn identifiers_are_read_in_every_version() {
        for (packet, id) in packets() {
            assert_eq!(client_id(&packet), Ok(&*id));
            assert_eq!(client_id(&[&packet, &b"\xc0\0"[..]].concat()), Ok(&*id), "another packet behind it");
        }
    }

    #[test]
    fn of_every_prefix_more_is_wanted_until_it_is_there() {
        for (packet, id) in packets() {
            let whole = (0..=packet.len()).find(|&length| client_id(&packet[..length]).is_ok()).unwrap();
            for length in 0..=packet.len() {
                let found = client_id(&packet[..length]);
                assert_eq!(found, if length < whole { Err(Stop::More) } else { Ok(&*id) }, "{length}");
            }
        }
    }

    #[test]
    fn what_is_not_a_connect_is_told_at_once() {
        for bytes in [
            &b"G"[..],
            b"\x16\x03\x01",
            b"\xc0\0",
            b"\x11\x0c",
            b"\x10\xff\xff\xff\xff",
            b"\x10\x05\0\x04MQT",
            &connect("MQTT", 3, None, b"a", b"")[..],
            &connect("MQTT", 6, None, b"a", b"")[..],
            &connect("HTTP", 4, None, b"a", b"")[..],
            // The identifier is longer than the packet.
            b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x08device-1",
            // And so are the properties.
            b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\xff\x7f",
        ] {
            assert!(matches!(client_id(bytes), Err(Stop::Malformed(_))), "{bytes:?} {:?}", client_id(bytes));
        }
    }

    #[test]
    fn whatever_comes_does_no_harm() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let packets = packets();
        for round in 0..20_000 {
            let mut bytes: Vec<u8> = match round % 2 {
                0 => (0..random() % 40).map(|_| random() as u8).collect(),
                _ => packets[random() % packets.len()].0.clone(),
            };
            for _ in 0..random() % 4 {
                let length = bytes.len().clamp(1, 24);
                if let Some(byte) = bytes.get_mut(random() % length) {
                    *byte = random() as u8;
                }
            }
            let found = client_id(&bytes);
            assert!(found.is_err() || found.is_ok_and(|id| id.len() <= bytes.len()));
            // What has been decided is not changed by what comes behind it.
            if found != Err(Stop::More) {
                let decided = found.map(<[u8]>::to_vec);
                bytes.extend([random() as u8; 8]);
                assert_eq!(client_id(&bytes).map(<[u8]>::to_vec), decided);
            }
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_bounded() {
        let mut bytes = Vec::new();
        let endless = [connect("MQTT", 5, Some(100_000), b"late", b"")[..].to_vec(), vec![0; 100_000]].concat();
        let error = read_connect(&mut &*endless, &mut bytes).await.unwrap_err();
        assert!(matches!(error, ConnectError::Malformed(_)), "{error}");
        assert!(bytes.len() <= MAX && bytes.capacity() <= 2 * MAX);
        let mut bytes = Vec::new();
        let (packet, id) = packets().pop().unwrap();
        assert_eq!(read_connect(&mut &*packet, &mut bytes).await.unwrap(), id);
        let (mut bytes, short) = (Vec::new(), &packet[..20]);
        assert!(matches!(read_connect(&mut &*short, &mut bytes).await, Err(ConnectError::Incomplete)));
    }
}
