//! A GET over HTTP/1.1, kept open.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{RESPONSE_LIMIT, Stream};
use crate::error::LoadError;

pub async fn get<S: Stream>(stream: &mut S, host: &str, path: &str) -> Result<(), LoadError> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mitu-load\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(LoadError::Closed);
        }
        if complete(&response)? {
            return Ok(());
        }
        if response.len() > RESPONSE_LIMIT {
            return Err(LoadError::Protocol("the response is too large"));
        }
    }
}

/// Whether `response` holds a successful response to its end.
fn complete(response: &[u8]) -> Result<bool, LoadError> {
    let Some(head) = response.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    let (head, body) = (&response[..head], &response[head + 4..]);
    let head = std::str::from_utf8(head).map_err(|_| LoadError::Protocol("the response's head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(LoadError::Status(status.to_owned()));
    }
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(LoadError::Protocol("a header has no colon"));
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.parse().map_err(|_| LoadError::Protocol("content-length is not a number"))?;
            return Ok(body.len() >= length);
        }
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            return Ok(body.ends_with(b"0\r\n\r\n"));
        }
    }
    Err(LoadError::Protocol("the response does not say where it ends"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_at_its_declared_length() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert!(!complete(&head.as_bytes()[..10]).unwrap());
        assert!(!complete(format!("{head}ab").as_bytes()).unwrap());
        assert!(complete(format!("{head}abc").as_bytes()).unwrap());
    }

    #[test]
    fn a_chunked_response_is_complete_at_its_last_chunk() {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert!(!complete(head.as_bytes()).unwrap());
        assert!(complete(format!("{head}0\r\n\r\n").as_bytes()).unwrap());
    }

    #[test]
    fn anything_but_200_is_an_error() {
        let error = complete(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").unwrap_err();
        assert_eq!(error.kind(), "status");
    }
}
