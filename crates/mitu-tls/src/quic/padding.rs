//! Padding is taken out of packets as they are opened. A client's first datagrams are mostly padding, for the sake of the
//! address that is not known to be its own, and so are those by which it finds out how large a datagram may be. quinn
//! reads such a payload as a thousand frames of one byte: more work than the key exchange of its handshake.

use quinn_proto::VarInt;
use quinn_proto::coding::Codec;

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const ACK_ECN: u8 = 0x03;
const CRYPTO: u8 = 0x06;
const STREAM: u8 = 0x08;
const STREAM_LAST: u8 = 0x0f;
const STREAM_HAS_OFFSET: u8 = 0x04;
const STREAM_HAS_LENGTH: u8 = 0x02;
const NEW_CONNECTION_ID: u8 = 0x18;
const PATH_CHALLENGE: u8 = 0x1a;
const PATH_RESPONSE: u8 = 0x1b;
const IMMEDIATE_ACK: u8 = 0x1f;

/// Closes the gaps in a packet's payload; how many bytes are left, one at least, as no packet may be empty. What is not
/// read here, malformed frames among it, stays as it is.
pub fn close_gaps(payload: &mut [u8]) -> usize {
    let (mut read, mut kept) = (0, 0);
    while let Some(&kind) = payload.get(read) {
        if kind == PADDING {
            read += payload[read..].iter().take_while(|&&byte| byte == PADDING).count();
            continue;
        }
        let length = frame(&payload[read..]).unwrap_or(payload.len() - read);
        payload.copy_within(read..read + length, kept);
        (read, kept) = (read + length, kept + length);
    }
    if kept == 0 { payload.len().min(1) } else { kept }
}

/// How long the first frame is (RFC 9000, section 19), where it is one that stands before padding.
fn frame(payload: &[u8]) -> Option<usize> {
    let mut rest = payload;
    let kind = *rest.split_off_first()?;
    match kind {
        PING | IMMEDIATE_ACK => {}
        ACK | ACK_ECN => {
            // The largest and the delay, before the number of ranges.
            numbers(&mut rest, 2)?;
            let ranges = number(&mut rest)?;
            numbers(&mut rest, 1 + 2 * ranges + if kind == ACK_ECN { 3 } else { 0 })?;
        }
        CRYPTO => {
            numbers(&mut rest, 1)?;
            data(&mut rest)?;
        }
        STREAM..=STREAM_LAST if kind & STREAM_HAS_LENGTH != 0 => {
            numbers(&mut rest, if kind & STREAM_HAS_OFFSET == 0 { 1 } else { 2 })?;
            data(&mut rest)?;
        }
        NEW_CONNECTION_ID => {
            const RESET_TOKEN: usize = 16;
            numbers(&mut rest, 2)?;
            let length = usize::from(*rest.split_off_first()?);
            rest.split_off(..length + RESET_TOKEN)?;
        }
        PATH_CHALLENGE | PATH_RESPONSE => {
            rest.split_off(..8)?;
        }
        _ => return None,
    }
    Some(payload.len() - rest.len())
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    VarInt::decode(rest).ok().map(VarInt::into_inner)
}

fn numbers(rest: &mut &[u8], count: u64) -> Option<()> {
    (0..count).try_for_each(|_| number(rest).map(drop))
}

/// What its length stands in front of.
fn data(rest: &mut &[u8]) -> Option<()> {
    let length = usize::try_from(number(rest)?).ok()?;
    rest.split_off(..length).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn closed(payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        let length = close_gaps(&mut payload);
        payload.truncate(length);
        payload
    }

    const HELLO: [u8; 6] = [CRYPTO, 0x40, 0x07, 0x02, 0x00, 0xff];
    const ACKED: [u8; 7] = [ACK, 5, 0, 1, 1, 0, 2];
    const REQUEST: [u8; 7] = [0x0f, 4, 0, 2, 0, 0, PING];
    const PATH: [u8; 9] = [PATH_CHALLENGE, 0, 0, 0, 0, 0, 0, 0, 0];
    const ACKED_ECN: [u8; 8] = [ACK_ECN, 5, 0, 0, 1, 1, 2, 3];

    #[test]
    fn gaps_are_closed_wherever_they_are() {
        let zeros = [0; 300];
        let padded = [&zeros[..], &HELLO, &zeros, &[PING], &ACKED, &zeros, &ACKED_ECN, &zeros].concat();
        assert_eq!(closed(&padded), [&HELLO[..], &[PING], &ACKED, &ACKED_ECN].concat());
        assert_eq!(closed(&HELLO), HELLO);
        let identifier = [&[NEW_CONNECTION_ID, 1, 0, 8][..], &[0; 24]].concat();
        let padded = [&REQUEST[..6], &zeros, &PATH, &[IMMEDIATE_ACK], &zeros, &identifier, &zeros].concat();
        assert_eq!(closed(&padded), [&REQUEST[..6], &PATH, &[IMMEDIATE_ACK], &identifier].concat());
    }

    #[test]
    fn a_packet_of_padding_stays_one() {
        assert_eq!(closed(&[0; 1200]), [0]);
        assert_eq!(closed(&[]), []);
    }

    #[test]
    fn what_is_inside_of_other_frames_stays() {
        // A stream's data goes on to the end of the packet.
        let stream = [0x08, 0, 0, 0, 0, 0, 0];
        assert_eq!(closed(&[&[0, 0, PING][..], &stream].concat()), [&[PING][..], &stream].concat());
        // So does what a malformed frame leaves.
        for cut in 1..HELLO.len() {
            let malformed = [&[0, 0][..], &HELLO[..cut]].concat();
            assert_eq!(closed(&malformed), &HELLO[..cut]);
        }
        let endless = [ACK, 5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0];
        assert_eq!(closed(&endless), endless);
    }

    #[test]
    fn nothing_but_padding_is_lost() {
        // Every payload of up to six bytes out of these, read here and by a reader that knows one byte at a time.
        let bytes = [PADDING, PING, ACK, CRYPTO, 0x0b, 0x40];
        let mut payload = vec![0; 6];
        for number in 0..6_usize.pow(6) {
            let mut rest = number;
            for byte in &mut payload {
                *byte = bytes[rest % 6];
                rest /= 6;
            }
            assert_eq!(slowly(&closed(&payload)), slowly(&payload), "{payload:?}");
        }
    }

    /// The frames of a payload, as quinn reads them: padding by the byte, and passed over.
    fn slowly(mut payload: &[u8]) -> Vec<&[u8]> {
        let mut frames = Vec::new();
        while let Some(kind) = payload.first() {
            let length = if *kind == PADDING { 1 } else { frame(payload).unwrap_or(payload.len()) };
            let (read, rest) = payload.split_at(length);
            if *kind != PADDING {
                frames.push(read);
            }
            payload = rest;
        }
        frames
    }
}
