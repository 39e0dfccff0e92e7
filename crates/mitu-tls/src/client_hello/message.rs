//! The handshake message of a ClientHello, put together from its records, of which there is one nearly always.

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// The head of a record: type, version, length.
const HEAD: usize = 5;

/// The most that rustls takes in one record, and before the message is whole.
const MAX_RECORD: usize = (16 + 2) * 1024;
const MAX_RECORDS: usize = 0xffff;

#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Waits,
    Whole,
    /// It can be no ClientHello.
    Malformed,
}

#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    /// Where the next record begins.
    next: usize,
}

impl Message {
    /// Takes what has come since the last time. `records`: all that has come.
    pub fn advance(&mut self, records: &[u8]) -> Progress {
        while let Some((&[kind, major, _, high, low], rest)) = records[self.next..].split_first_chunk() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if (kind, major) != (HANDSHAKE, 3) || !(1..=MAX_RECORD).contains(&length) {
                return Progress::Malformed;
            }
            let Some(part) = rest.get(..length) else { break };
            self.bytes.extend_from_slice(part);
            self.next += HEAD + length;
            match self.bytes[..] {
                [CLIENT_HELLO] | [CLIENT_HELLO, 0, ..] => {}
                _ => return Progress::Malformed,
            }
            if self.body().is_some() {
                return Progress::Whole;
            }
        }
        if records.len() > MAX_RECORDS { Progress::Malformed } else { Progress::Waits }
    }

    /// What is behind the message's type and length, when all of it is there.
    pub fn body(&self) -> Option<&[u8]> {
        match &self.bytes[..] {
            &[CLIENT_HELLO, 0, high, low, ref body @ ..] => body.get(..u16::from_be_bytes([high, low]).into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `message` in records of `length` bytes.
    fn cut(message: &[u8], length: usize) -> Vec<u8> {
        let parts = message.chunks(length);
        parts.flat_map(|part| [&[HANDSHAKE, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat()).collect()
    }

    fn hello(length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        [&[CLIENT_HELLO, 0, high, low][..], &vec![7; length.into()]].concat()
    }

    #[test]
    fn it_is_whole_with_its_last_byte_however_it_is_cut() {
        for length in [1, 2, 3, 5, 299, 300, 16_384] {
            let records = cut(&hello(300), length);
            let mut message = Message::default();
            for end in 0..records.len() {
                assert_eq!(message.advance(&records[..end]), Progress::Waits);
                assert_eq!(message.body(), None);
            }
            assert_eq!(message.advance(&records), Progress::Whole);
            assert_eq!(message.body(), Some(&[7; 300][..]));
        }
    }

    #[test]
    fn what_comes_behind_it_is_not_its_own() {
        let mut message = Message::default();
        assert_eq!(message.advance(&cut(&[hello(9), vec![1]].concat(), 100)), Progress::Whole);
        assert_eq!(message.body(), Some(&[7; 9][..]));
    }

    #[test]
    fn what_is_none_is_not_waited_for() {
        let wrong: [&[u8]; 6] = [
            b"GET / HTTP/1.1",
            &[HANDSHAKE, 2, 0, 0, 9],
            &[HANDSHAKE, 3, 1, 0, 0],
            &[HANDSHAKE, 3, 1, 0xff, 0xff],
            &[HANDSHAKE, 3, 1, 0, 1, 2],
            &[HANDSHAKE, 3, 1, 0, 2, CLIENT_HELLO, 1],
        ];
        for records in wrong {
            assert_eq!(Message::default().advance(records), Progress::Malformed, "{records:?}");
        }
    }

    #[test]
    fn it_has_a_bound() {
        let (records, mut message) = (cut(&hello(0xffff), 1), Message::default());
        let end = (0..records.len()).step_by(1000).find(|&end| message.advance(&records[..end]) != Progress::Waits);
        assert_eq!(end, Some(66_000));
    }
}
