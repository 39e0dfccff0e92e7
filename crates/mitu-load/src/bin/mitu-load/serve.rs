//! The upstream behind every proxy, and the server behind the plain-TCP floor: one fixed response, as cheap as it gets.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mitu_load::error::LoadError;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::report;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const H2_PREFACE_START: &[u8] = b"PRI ";
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

#[derive(Debug, Args)]
pub struct Arguments {
    /// host:port to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Bytes of the response's body
    #[arg(long, default_value = "128")]
    body: usize,
}

#[derive(Serialize)]
pub struct Listening {
    pub address: SocketAddr,
}

/// Serves until it is killed.
pub async fn run(arguments: Arguments) -> Result<(), LoadError> {
    let listener = TcpListener::bind(arguments.listen).await?;
    report::print(&Listening { address: listener.local_addr()? })?;
    let body = body(arguments.body)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A client that breaks off ends its own connection and nothing else.
        tokio::spawn(connection(stream, body.clone()));
    }
}

/// JSON of exactly `length` bytes.
pub fn body(length: usize) -> Result<Bytes, LoadError> {
    let (start, end) = (r#"{"ok":true,"pad":""#, r#""}"#);
    let padding = length.checked_sub(start.len() + end.len());
    let padding =
        padding.ok_or_else(|| LoadError::Usage(format!("--body must be at least {}", start.len() + end.len())))?;
    Ok(Bytes::from(format!("{start}{}{end}", "x".repeat(padding))))
}

async fn connection(stream: TcpStream, body: Bytes) -> Result<(), LoadError> {
    let mut start = [0; H2_PREFACE_START.len()];
    while stream.peek(&mut start).await? < start.len() {
        if stream.peek(&mut start).await? == 0 {
            return Ok(());
        }
    }
    if start == H2_PREFACE_START { http2(stream, body).await } else { http1(stream, &body).await }
}

/// Answers each request head; requests with a body are not for this server.
async fn http1(mut stream: TcpStream, body: &Bytes) -> Result<(), LoadError> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    response.extend_from_slice(body);
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            read => filled += read,
        }
        let mut begin = 0;
        while let Some(end) = find(&buffer[begin..filled], END_OF_HEAD) {
            stream.write_all(&response).await?;
            begin += end + END_OF_HEAD.len();
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
        if filled == buffer.len() {
            return Err(LoadError::Protocol("a request's head does not fit"));
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

async fn http2(stream: TcpStream, body: Bytes) -> Result<(), LoadError> {
    let service = service_fn(move |_| {
        let mut response = http::Response::new(Full::new(body.clone()));
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        async move { Ok::<_, Infallible>(response) }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let served = server.serve_connection(TokioIo::new(stream), service).await;
    served.map_err(|_| LoadError::Protocol("an HTTP/2 connection broke off"))
}
