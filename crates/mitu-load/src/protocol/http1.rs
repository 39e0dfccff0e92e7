//! GETs over HTTP/1.1 (RFC 9112), one after the other on a connection that stays open.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answer, HEAD_LIMIT, Stream};
use crate::error::LoadError;

const HEADERS_LIMIT: usize = 128;
const READ: usize = 16 * 1024;

/// What was read and not yet used.
#[derive(Default)]
pub struct Client {
    buffer: Vec<u8>,
}

/// A response's head, and where its body ends.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    length: usize,
    status: u16,
    body: Body,
    keep_alive: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Client {
    pub async fn get<S: Stream>(&mut self, stream: &mut S, host: &str, path: &str) -> Result<Answer, LoadError> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mitu-load\r\nAccept: */*\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = loop {
            match parse(&self.buffer)? {
                // Interim responses are followed by the one that was asked for.
                Some(head) if head.status < 200 => drop(self.buffer.drain(..head.length)),
                Some(head) => break head,
                None if self.buffer.len() > HEAD_LIMIT => {
                    return Err(LoadError::Protocol("the response's head is too large"));
                }
                None => self.more(stream).await?,
            }
        };
        self.buffer.drain(..head.length);
        match head.body {
            Body::Length(length) => self.skip(stream, length).await?,
            Body::Chunked => self.skip_chunks(stream).await?,
            Body::UntilClose => {
                self.buffer.clear();
                while stream.read_buf(&mut self.buffer).await? > 0 {
                    self.buffer.clear();
                }
            }
        }
        Ok(Answer { status: head.status, reusable: head.keep_alive && head.body != Body::UntilClose })
    }

    async fn more<S: Stream>(&mut self, stream: &mut S) -> Result<(), LoadError> {
        self.buffer.reserve(READ);
        if stream.read_buf(&mut self.buffer).await? == 0 { Err(LoadError::Closed) } else { Ok(()) }
    }

    async fn skip<S: Stream>(&mut self, stream: &mut S, mut length: u64) -> Result<(), LoadError> {
        loop {
            let here = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            self.buffer.drain(..here);
            length -= here as u64;
            if length == 0 {
                return Ok(());
            }
            self.more(stream).await?;
        }
    }

    async fn skip_chunks<S: Stream>(&mut self, stream: &mut S) -> Result<(), LoadError> {
        loop {
            let line = self.line(stream).await?;
            let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
            match size {
                Some(0) => break,
                Some(size) => self.skip(stream, size.saturating_add(2)).await?,
                None => return Err(LoadError::Protocol("a chunk's size is not a number")),
            }
        }
        while !self.line(stream).await?.is_empty() {}
        Ok(())
    }

    async fn line<S: Stream>(&mut self, stream: &mut S) -> Result<Vec<u8>, LoadError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer[..end].to_vec();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Err(LoadError::Protocol("a line of the response is too long"));
            }
            self.more(stream).await?;
        }
    }
}

/// The head at the start of `bytes`, once it is whole.
fn parse(bytes: &[u8]) -> Result<Option<Head>, LoadError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(LoadError::Protocol("the response's head is not HTTP/1.1")),
    };
    let status = response.code.unwrap_or_default();
    let mut keep_alive = response.version == Some(1);
    let mut body = if matches!(status, 100..200 | 204 | 304) { Body::Length(0) } else { Body::UntilClose };
    let bodiless = body != Body::UntilClose;
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("connection") {
            keep_alive &= !value.eq_ignore_ascii_case("close");
        } else if bodiless {
            continue;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            body = if value.to_ascii_lowercase().ends_with("chunked") { Body::Chunked } else { Body::UntilClose };
        } else if header.name.eq_ignore_ascii_case("content-length") && body != Body::Chunked {
            let length = value.parse().map_err(|_| LoadError::Protocol("content-length is not a number"))?;
            body = Body::Length(length);
        }
    }
    Ok(Some(Head { length, status, body, keep_alive }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn answers(sent: &[u8], requests: usize) -> Result<Vec<Answer>, LoadError> {
        let (mut near, mut far) = duplex(64 * 1024);
        far.write_all(sent).await.unwrap();
        far.shutdown().await.unwrap();
        let mut client = Client::default();
        let mut found = Vec::new();
        for _ in 0..requests {
            found.push(client.get(&mut near, "h", "/").await?);
        }
        Ok(found)
    }

    #[tokio::test]
    async fn responses_end_where_they_say() {
        let sent = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\
            HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\ntrailer: t\r\n\r\n\
            HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n\
            HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = |status, reusable| Answer { status, reusable };
        let expected = [answer(200, true), answer(404, true), answer(304, true), answer(200, false)];
        assert_eq!(answers(sent, 4).await.unwrap(), expected);
        assert_eq!(answers(sent, 5).await.unwrap_err().kind(), "closed");
    }

    #[tokio::test]
    async fn a_response_without_a_length_ends_with_the_connection() {
        let answer = Answer { status: 200, reusable: false };
        assert_eq!(answers(b"HTTP/1.1 200 OK\r\n\r\nabc", 1).await.unwrap(), [answer]);
    }

    #[tokio::test]
    async fn half_a_response_and_nonsense_are_told_apart() {
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab";
        assert_eq!(answers(half, 1).await.unwrap_err().kind(), "closed");
        assert_eq!(answers(b"220 smtp.example ESMTP\r\n", 1).await.unwrap_err().kind(), "protocol");
    }

    #[test]
    fn only_two_and_three_hundred_are_success() {
        for (status, well) in [(199, false), (200, true), (399, true), (400, false), (502, false)] {
            assert_eq!(Answer { status, reusable: true }.succeeded().is_ok(), well);
        }
    }
}
